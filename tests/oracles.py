"""fastconv against libraries that others wrote: PyTorch with its autograd, SciPy, ONNX's reference evaluator."""

from __future__ import annotations

import functools
from importlib.util import find_spec

import numpy as np

import fastconv

from .cases import Case, inexact_tolerance
from .random_problems import draw_case
from .reference import Geometry

ORACLES = tuple(name for name in ("torch", "scipy", "onnx") if find_spec(name))
_MOST_PRODUCTS = 2_000_000
"""ONNX's evaluator computes patch by patch in Python."""


def _torch(case: Case, x, w, grad_y) -> dict:
    import torch

    geometry = case.geometry
    (top, bottom), (left, right) = geometry.padding
    given_x, given_w = (torch.tensor(array, requires_grad=True) for array in (x, w))
    padded = torch.nn.functional.pad(given_x, (left, right, top, bottom))
    y = torch.nn.functional.conv2d(
        padded, given_w, stride=geometry.stride, dilation=geometry.dilation, groups=case.groups
    )
    y.backward(torch.tensor(grad_y))
    return {"forward": y.detach().numpy(), "grad_input": given_x.grad.numpy(), "grad_weight": given_w.grad.numpy()}


def _scipy(case: Case, x, w, grad_y) -> dict:
    """Plane by plane; a stride leaves out, and dilated kernels have zeros between their taps."""
    from scipy.signal import correlate2d

    geometry: Geometry = case.geometry
    spread = np.zeros((*w.shape[:2], *((k - 1) * d + 1 for k, d in zip(w.shape[2:], geometry.dilation, strict=True))))
    spread[:, :, :: geometry.dilation[0], :: geometry.dilation[1]] = w
    padded = np.pad(x, ((0, 0), (0, 0), *geometry.padding))
    y = np.zeros(grad_y.shape)
    per_group = case.oc // case.groups
    for image in range(case.n):
        for d in range(case.oc):
            for c in range(w.shape[1]):
                plane = padded[image, d // per_group * w.shape[1] + c]
                full = correlate2d(plane, spread[d, c], "valid")
                y[image, d] += full[:: geometry.stride[0], :: geometry.stride[1]]
    return {"forward": y}


@functools.cache
def _onnx_model(dtype: str, stride, padding, dilation, groups: int):
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    kind = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}[dtype]
    (top, bottom), (left, right) = padding
    attributes = {"strides": stride, "dilations": dilation, "group": groups, "pads": (top, left, bottom, right)}
    node = helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    inputs = [helper.make_tensor_value_info(name, kind, [None] * 4) for name in "xw"]
    output = helper.make_tensor_value_info("y", kind, [None] * 4)
    return ReferenceEvaluator(helper.make_model(helper.make_graph([node], "conv", inputs, [output])))


def _onnx(case: Case, x, w, grad_y) -> dict:
    geometry = case.geometry
    model = _onnx_model(x.dtype.name, geometry.stride, geometry.padding, geometry.dilation, case.groups)
    return {"forward": model.run(None, {"x": x, "w": w})[0]}


_ASK = {"torch": _torch, "scipy": _scipy, "onnx": _onnx}


def check(rng: np.random.Generator, number: int, case: Case | None = None, dtype: str = "") -> int:
    """Compare a problem, random if not given, in NCHW with one oracle; return how many results that were."""
    oracle = ORACLES[number % len(ORACLES)]
    case = case or draw_case(rng)
    x_shape, w_shape, y_shape = case.shapes("NCHW")
    if oracle != "torch" and np.prod(y_shape) * np.prod(w_shape[1:]) > _MOST_PRODUCTS:
        return 0
    dtype = dtype or str(rng.choice(["float32", "float64"]))
    x, w, grad_y = (rng.standard_normal(shape).astype(dtype) for shape in (x_shape, w_shape, y_shape))
    keywords = {"layout": "NCHW", **case.arguments}
    results = {
        "forward": fastconv.conv2d(x, w, **keywords),
        "grad_input": fastconv.conv2d_grad_input(grad_y, w, x.shape, **keywords),
        "grad_weight": fastconv.conv2d_grad_weight(grad_y, x, case.kernel, **keywords),
    }
    answers = _ASK[oracle](case, x, w, grad_y)
    for direction, answer in answers.items():
        terms = case.reduction_length(direction)
        # Both sides round, and the largest sum of absolute products is at most terms times the largest product.
        limit = inexact_tolerance(dtype, terms, np.full(answer.shape, np.sqrt(terms) * 16.0))
        difference = np.abs(results[direction] - answer)
        assert (difference <= limit).all(), f"{oracle} {direction} {case} {dtype}: {difference.max()}"
    return len(answers)
