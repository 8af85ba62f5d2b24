"""What runs for a call: sums or transforms, chosen once for inputs of these shapes and dtypes, then looked up."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.signal.direct import Direct, Operation
from fastconv.signal.fourier import Fourier
from fastconv.signal.problem import METHODS, SignalProblem, choice, filter_problem, image_problem, operand
from fastconv.signal.spectral import Spectral

_MOST_KNOWN = 4096
_known: dict[tuple[Any, ...], Operation] = {}


def _converted(problem: SignalProblem, run: Operation) -> Operation:
    """The operation on inputs of other dtypes than what is computed in, and with a result of another."""

    def convert(in1: np.ndarray, in2: np.ndarray) -> np.ndarray:
        computed = run(in1.astype(problem.computed, copy=False), in2.astype(problem.computed, copy=False))
        return computed.astype(problem.dtype, copy=False)

    return convert


def _operation(problem: SignalProblem, method: str, same: bool) -> Operation:
    if method == "auto" and problem.dtype.kind in "biu":  # transforms round
        method = "direct"
    if method != "direct":
        transforms = Fourier(problem) if Fourier.takes(problem) else Spectral(problem)
        if method == "fft" or transforms.seconds < Direct(problem).seconds:
            return transforms.run if same or isinstance(transforms, Spectral) else _converted(problem, transforms.run)
    direct = Direct(problem).run
    return direct if same and problem.dtype == problem.computed else _converted(problem, direct)


def _remember(key: Any, problem: SignalProblem, method: str, in1: np.ndarray, in2: np.ndarray) -> Operation:
    operation = _operation(problem, method, in1.dtype == in2.dtype == problem.dtype)
    if len(_known) >= _MOST_KNOWN:
        _known.clear()
    _known[key] = operation
    return operation


def run_filter(in1: Any, in2: Any, mode: Any, method: Any, correlates: bool) -> np.ndarray:
    """Compute `convolve` or `correlate`."""
    if type(in1) is np.ndarray and type(in2) is np.ndarray:
        key = (correlates, in1.shape, in2.shape, in1.dtype, in2.dtype, mode, method)
        try:
            return _known[key](in1, in2)
        except (KeyError, TypeError):  # not known yet, or not hashable; kernels load from any address
            pass
    else:
        key = None
    in1, in2 = operand("in1", in1), operand("in2", in2)
    if in1.ndim == in2.ndim == 0:
        return in1 * (in2.conj() if correlates else in2)
    problem = filter_problem(in1, in2, mode, correlates)
    choice("method", method, METHODS)
    if key is None:
        key = (correlates, in1.shape, in2.shape, in1.dtype, in2.dtype, mode, method)
    return (_known.get(key) or _remember(key, problem, method, in1, in2))(in1, in2)


def run_image(in1: Any, in2: Any, mode: Any, boundary: Any, fillvalue: Any, correlates: bool) -> np.ndarray:
    """Compute `convolve2d` or `correlate2d`."""
    if type(in1) is np.ndarray and type(in2) is np.ndarray:
        key = (correlates, in1.shape, in2.shape, in1.dtype, in2.dtype, mode, boundary, fillvalue)
        try:
            return _known[key](in1, in2)
        except (KeyError, TypeError):
            pass
    in1, in2 = operand("in1", in1), operand("in2", in2)
    problem = image_problem(in1, in2, mode, boundary, fillvalue, correlates)
    key = (correlates, in1.shape, in2.shape, in1.dtype, in2.dtype, mode, boundary, problem.fill)
    return (_known.get(key) or _remember(key, problem, "direct", in1, in2))(in1, in2)


def run_bounded(
    in1: Any, in2: Any, mode: Any, method: Any, boundary: Any, fillvalue: Any, correlates: bool
) -> np.ndarray:
    """Compute `convolve` or `correlate` with a boundary."""
    if choice("method", method, METHODS) == "fft":
        raise ValueError("method must be 'auto' or 'direct' where a boundary or fillvalue is given; got 'fft'")
    boundary = "fill" if boundary is None else boundary
    return run_image(in1, in2, mode, boundary, 0 if fillvalue is None else fillvalue, correlates)
