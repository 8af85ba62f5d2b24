"""What the directions of a locally connected layer share: geometry, arrays on their way in and out, the launch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastconv.arrays import Result, ready
from fastconv.kernels import launch
from fastconv.kernels import local as kernels
from fastconv.kernels.params import address, fill
from fastconv.kernels.target import vector_bytes
from fastconv.operands import ArrayLike, array_argument, expect_shape
from fastconv.plan import request
from fastconv.problem import ConvProblem, canonical, check_layout

_GRAIN_BYTES = 1 << 18
"""Weights that a thread takes at a time, at most; the input gradient shares them between its rows."""
_GRAINS_PER_THREAD = 8
_AXES = "(oh, ow, kh, kw, ic, oc)"


def weights_argument(w: ArrayLike) -> np.ndarray:
    """W as an array with the six axes of weights."""
    array = array_argument("w", w)
    if array.ndim != 6:
        raise ValueError(f"w must have 6 axes {_AXES}, got shape {array.shape}")
    return array


def geometry(
    x_name: str, x_shape: Any, w_name: str, windows: Sequence[int], dtype: np.dtype, stride: Any, padding: Any,
    dilation: Any, layout: Any,
) -> tuple[ConvProblem, bool]:  # fmt: skip
    """The geometry, that of a convolution with a kernel (kh, kw, ic, oc), and whether the batch axis is missing.

    Convolutions remember theirs, and a geometry that was met before takes a microsecond.
    """
    w_shape = tuple(windows) if check_layout(layout) == "NHWC" else (windows[3], windows[2], windows[0], windows[1])
    asked = request(
        "forward", x_shape, w_shape, dtype, stride, padding, dilation, 1, layout, "auto", x_name, w_name
    )  # fmt: skip
    return asked.problem, asked.batchless


def weights_shape(problem: ConvProblem) -> tuple[int, ...]:
    """(oh, ow, kh, kw, ic, oc)."""
    return (*problem.output_size, *problem.kernel_size, problem.ic, problem.oc)


def expect_weights(w: np.ndarray, problem: ConvProblem) -> None:
    """ValueError unless there are weights for each output."""
    expect_shape("w", w, weights_shape(problem), f"{_AXES}, weights for each of the {problem.output_size} outputs")


def nhwc(array: np.ndarray, problem: ConvProblem) -> np.ndarray:
    """An image as the kernels read it, with a batch axis."""
    return ready(canonical(array if array.ndim == 4 else array[None], problem.layout), problem.dtype)


def target_of(result: np.ndarray, problem: ConvProblem) -> np.ndarray:
    """Where the kernels write an image: the result itself where its axes lie as they take them."""
    view = canonical(result, problem.layout)
    return view if view.flags.c_contiguous else np.empty(view.shape, problem.dtype)


def deliver(result: Result, target: np.ndarray, problem: ConvProblem) -> np.ndarray:
    """What the caller gets of a result that was written to `target_of` it."""
    view = canonical(result.array, problem.layout)
    if view is not target and not view.flags.c_contiguous:
        view[...] = target
    return result.deliver()


def run(
    direction: str, problem: ConvProblem, x: np.ndarray, w: np.ndarray, y: np.ndarray, start: np.ndarray | None = None
) -> None:  # fmt: skip
    """Launch the kernel of a direction on arrays of NHWC."""
    (ih, iw), (oh, ow), (kh, kw) = problem.input_size, problem.output_size, problem.kernel_size
    side_by_side = problem.dilation[1] == 1 or kw == 1
    threads = launch.threads_for(2 * problem.n * w.size)
    params = fill(
        kernels.LOCAL, x=address(x), v=address(w), h=address(y), u=address(start),
        n=problem.n, ih=ih, iw=iw, ic=problem.ic, oh=oh, ow=ow, oc=problem.oc, kh=kh, kw=kw,
        stride_i=problem.stride[0], stride_j=problem.stride[1],
        pad_i=problem.padding[0][0], pad_j=problem.padding[1][0],
        dilation_i=problem.dilation[0], dilation_j=problem.dilation[1], taps=kw if side_by_side else 1,
    )  # fmt: skip
    tasks, grain_bytes = (ih, w.nbytes) if direction == "grad_input" else (oh * ow, _GRAIN_BYTES)
    single = problem.oc == 1
    kernel = getattr(kernels, direction)(
        problem.dtype, _lanes(problem, kw * problem.ic if single else problem.oc), single
    )
    fair = -(-tasks // (_GRAINS_PER_THREAD * threads))
    grain = max(1, min(fair, grain_bytes * tasks // max(w.nbytes, 1)))
    launch.run(kernel, params, tasks, threads=threads, grain=grain)


def _lanes(problem: ConvProblem, length: int) -> int:
    """Lanes of a vector that fits runs of that length."""
    fitting = 1 << (length - 1).bit_length()
    return max(16, min(vector_bytes(), fitting * problem.itemsize)) // problem.itemsize
