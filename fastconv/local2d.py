"""The locally connected layer, a convolution without shared weights, and its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastconv.arrays import QUIET, Result, ready
from fastconv.kernels import launch
from fastconv.kernels import local as kernels
from fastconv.kernels.params import address, fill
from fastconv.kernels.target import vector_bytes
from fastconv.operands import ArrayLike, allocate, array_argument, expect_grad_y, expect_shape, same_dtype
from fastconv.problem import (
    ConvProblem,
    canonical,
    check_image_rank,
    check_layout,
    check_pair,
    check_sizes,
    problem_from,
)

_GRAIN_BYTES = 1 << 18
"""Weights that a thread takes at a time, at most; the input gradient shares them between its rows."""
_GRAINS_PER_THREAD = 8
_AXES = "(oh, ow, kh, kw, ic, oc)"


def local2d(
    x: ArrayLike,
    w: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    dilation: int | Sequence[int] = 1,
    layout: str = "NHWC",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Apply a locally connected layer: a convolution in which every output pixel has weights of its own.

    ``y[n, i, j, d] = bias[i, j, d] + sum_abc w[i, j, a, b, c, d] x[n, i*stride + a*dilation, j*stride + b*dilation,
    c]`` on the zero-padded input. Each window is local, as in `conv2d`, but nothing makes the layer invariant to
    translation, and it has oh*ow times as many weights.

    Parameters
    ----------
    x : array of shape (n, ih, iw, ic), or (n, ic, ih, iw) for layout "NCHW"
        Images of float16, float32 or float64. The batch axis may be missing, and then is in the result too.
    w : array of shape (oh, ow, kh, kw, ic, oc), for both layouts
        Weights, of the dtype of x: those of one output pixel lie together, in the order that `conv2d` takes.
    bias : array of shape (oh, ow, oc), or (oc, oh, ow) for layout "NCHW", optional
        Added to every image; it has a value for each output.
    stride, padding, dilation
        As for `conv2d`.
    layout : {"NHWC", "NCHW"}
        Order of the axes of x, bias and the result.
    out : array, optional
        Receives the result. It must have the result's shape and dtype and not overlap with an input.

    Returns
    -------
    array of shape (n, oh, ow, oc), or (n, oc, oh, ow) for layout "NCHW"
        C-contiguous, of the inputs' dtype; float16 is computed in float32 and rounded once.

    Raises
    ------
    ValueError
        If shapes or parameters do not fit each other.
    TypeError
        If a dtype or the type of an argument is not supported.

    Notes
    -----
    Each weight is read once and meets one number of each image, so the time is that of reading the weights from
    memory. An image of layout "NCHW" is copied into NHWC first, which is little beside the weights.

    References
    ----------
    The layer is ``LocallyConnected2D`` of Keras 2; LeCun, "Generalization and network design strategies", 1989,
    compares it with dense and convolutional layers.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x = np.ones((1, 3, 3, 1), np.float32)
    >>> w = np.arange(4, dtype=np.float32).reshape(2, 2, 1, 1, 1, 1) * np.ones((2, 2, 2, 2, 1, 1), np.float32)
    >>> fastconv.local2d(x, w)[0, :, :, 0]
    array([[ 0.,  4.],
           [ 8., 12.]], dtype=float32)
    """
    x, w = array_argument("x", x), _weights(w)
    same_dtype("w", w, "x", x)
    problem, batchless = _problem("x", x.shape, "w", w.shape[2:], x.dtype, stride, padding, dilation, layout)
    _expect_weights(w, problem)
    if bias is not None:
        bias = array_argument("bias", bias)
        same_dtype("bias", bias, "w", w)
        expect_shape("bias", bias, problem.y_shape[1:], "one value for each output of an image")
    y = allocate(problem.y_shape, problem.dtype, x.dtype, out, batchless, x=x, w=w, bias=bias)
    start = np.zeros(problem.y_shape[1:], problem.dtype) if bias is None else bias
    target = _target(y.array, problem)
    _run("forward", problem, _nhwc(x, problem), ready(w, problem.dtype), target, _nhwc(start, problem))
    return _deliver(y, target, problem)


def local2d_grad_input(
    grad_y: ArrayLike,
    w: ArrayLike,
    input_shape: Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    dilation: int | Sequence[int] = 1,
    layout: str = "NHWC",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Gradient of a locally connected layer for its input.

    ``grad_x = sum over outputs of grad_y * d y / d x``: the adjoint of `local2d` in x.

    Parameters
    ----------
    grad_y : array of the shape of the layer's output
        Gradient for the output.
    w : array of shape (oh, ow, kh, kw, ic, oc)
        The weights, as given to `local2d`.
    input_shape : tuple of int
        Shape of the layer's input; a stride leaves several possible.
    stride, padding, dilation, layout
        As for `local2d`.
    out : array of shape `input_shape`, optional
        Receives the result.

    Returns
    -------
    array of shape `input_shape`
        Exactly 0 where no window reads.

    Raises
    ------
    ValueError, TypeError
        As `local2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> w = np.arange(4, dtype=np.float32).reshape(2, 2, 1, 1, 1, 1) * np.ones((2, 2, 2, 2, 1, 1), np.float32)
    >>> fastconv.local2d_grad_input(np.ones((1, 2, 2, 1), np.float32), w, (1, 3, 3, 1))[0, :, :, 0]
    array([[0., 1., 1.],
           [2., 6., 4.],
           [2., 5., 3.]], dtype=float32)
    """
    grad_y, w = array_argument("grad_y", grad_y), _weights(w)
    same_dtype("w", w, "grad_y", grad_y)
    problem, batchless = _problem(
        "input_shape", check_sizes("input_shape", input_shape), "w", w.shape[2:], grad_y.dtype, stride, padding,
        dilation, layout,
    )  # fmt: skip
    _expect_weights(w, problem)
    expect_grad_y(grad_y, problem, batchless)
    grad_x = allocate(problem.x_shape, problem.dtype, grad_y.dtype, out, batchless, grad_y=grad_y, w=w)
    target = _target(grad_x.array, problem)
    _run("grad_input", problem, target, ready(w, problem.dtype), _nhwc(grad_y, problem))
    return _deliver(grad_x, target, problem)


def local2d_grad_weight(
    grad_y: ArrayLike,
    x: ArrayLike,
    kernel_size: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    dilation: int | Sequence[int] = 1,
    layout: str = "NHWC",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Gradient of a locally connected layer for its weights.

    ``grad_w[i, j, a, b, c, d] = sum_n x[n, i*stride + a*dilation, j*stride + b*dilation, c] grad_y[n, i, j, d]``: the
    sum goes over images alone, so one image gives a product for each weight and no sum.

    Parameters
    ----------
    grad_y : array of the shape of the layer's output
        Gradient for the output.
    x : array
        The input, as given to `local2d`.
    kernel_size : int or (kh, kw)
        Size of the windows; a stride leaves several possible.
    stride, padding, dilation, layout
        As for `local2d`.
    out : array of the shape of the weights, optional
        Receives the result.

    Returns
    -------
    array of shape (oh, ow, kh, kw, ic, oc)

    Raises
    ------
    ValueError, TypeError
        As `local2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x = np.arange(9, dtype=np.float32).reshape(1, 3, 3, 1)
    >>> fastconv.local2d_grad_weight(np.ones((1, 2, 2, 1), np.float32), x, 2)[1, 1, :, :, 0, 0]
    array([[4., 5.],
           [7., 8.]], dtype=float32)
    """
    grad_y, x = array_argument("grad_y", grad_y), array_argument("x", x)
    same_dtype("x", x, "grad_y", grad_y)
    channels = -1 if check_layout(layout) == "NHWC" else -3
    x_shape, _ = check_image_rank("x", x.shape, layout)
    y_shape, _ = check_image_rank("grad_y", grad_y.shape, layout)
    windows = (*check_pair("kernel_size", kernel_size), x_shape[channels], y_shape[channels])
    problem, batchless = _problem(
        "x", x.shape, "the kernel (kernel_size, grad_y)", windows, x.dtype, stride, padding, dilation, layout
    )
    expect_grad_y(grad_y, problem, batchless)
    grad_w = allocate(_weights_shape(problem), problem.dtype, x.dtype, out, grad_y=grad_y, x=x)
    _run("grad_weight", problem, _nhwc(x, problem), grad_w.array, _nhwc(grad_y, problem))
    return grad_w.deliver()


@QUIET
def local2d_grad_bias(grad_y: ArrayLike, *, layout: str = "NHWC") -> np.ndarray:
    """Gradient of a locally connected layer for its bias: the sum of grad_y over the images.

    Parameters
    ----------
    grad_y : array of the shape of the layer's output
        Gradient for the output.
    layout : {"NHWC", "NCHW"}
        Order of its axes.

    Returns
    -------
    array of shape (oh, ow, oc), or (oc, oh, ow) for layout "NCHW"
        Summed in float64, of grad_y's dtype.

    Raises
    ------
    ValueError, TypeError
        If grad_y is not an image of floating-point numbers, or the layout is unknown.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.local2d_grad_bias(np.ones((5, 1, 2, 2), np.float32))
    array([[[5., 5.],
            [5., 5.]]], dtype=float32)
    """
    grad_y = array_argument("grad_y", grad_y)
    shape, _ = check_image_rank("grad_y", grad_y.shape, check_layout(layout))
    return grad_y.reshape(shape).sum(axis=0, dtype=np.float64).astype(grad_y.dtype.newbyteorder("="))


def _weights(w: ArrayLike) -> np.ndarray:
    array = array_argument("w", w)
    if array.ndim != 6:
        raise ValueError(f"w must have 6 axes {_AXES}, got shape {array.shape}")
    return array


def _problem(
    x_name: str, x_shape: Any, w_name: str, windows: Sequence[int], dtype: np.dtype, stride: Any, padding: Any,
    dilation: Any, layout: Any,
) -> tuple[ConvProblem, bool]:  # fmt: skip
    """The geometry, that of a convolution with a kernel (kh, kw, ic, oc), and whether the batch axis is missing."""
    shape, batchless = check_image_rank(x_name, x_shape, check_layout(layout))
    kh, kw, ic, oc = windows
    w_shape = (kh, kw, ic, oc) if layout == "NHWC" else (oc, ic, kh, kw)
    problem = problem_from(shape, w_shape, dtype, stride, padding, dilation, 1, layout, x_name=x_name, w_name=w_name)
    return problem, batchless


def _weights_shape(problem: ConvProblem) -> tuple[int, ...]:
    return (*problem.output_size, *problem.kernel_size, problem.ic, problem.oc)


def _expect_weights(w: np.ndarray, problem: ConvProblem) -> None:
    expect_shape("w", w, _weights_shape(problem), f"{_AXES}, weights for each of the {problem.output_size} outputs")


def _nhwc(array: np.ndarray, problem: ConvProblem) -> np.ndarray:
    """An image as the kernels read it, with a batch axis."""
    return ready(canonical(array if array.ndim == 4 else array[None], problem.layout), problem.dtype)


def _target(result: np.ndarray, problem: ConvProblem) -> np.ndarray:
    """Where the kernels write an image: the result itself where its axes lie as they take them."""
    view = canonical(result, problem.layout)
    return view if view.flags.c_contiguous else np.empty(view.shape, problem.dtype)


def _deliver(result: Result, target: np.ndarray, problem: ConvProblem) -> np.ndarray:
    view = canonical(result.array, problem.layout)
    if view is not target and not view.flags.c_contiguous:
        view[...] = target
    return result.deliver()


def _run(
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
