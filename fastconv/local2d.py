"""The locally connected layer, a convolution without shared weights, and its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastconv.arrays import QUIET, ready
from fastconv.local_pass import (
    deliver,
    expect_weights,
    geometry,
    nhwc,
    run,
    target_of,
    weights_argument,
    weights_shape,
)
from fastconv.operands import ArrayLike, allocate, array_argument, expect_grad_y, expect_shape, same_dtype
from fastconv.problem import check_image_rank, check_layout, check_pair, check_sizes


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
    x, w = array_argument("x", x), weights_argument(w)
    same_dtype("w", w, "x", x)
    problem, batchless = geometry("x", x.shape, "w", w.shape[2:], x.dtype, stride, padding, dilation, layout)
    expect_weights(w, problem)
    if bias is not None:
        bias = array_argument("bias", bias)
        same_dtype("bias", bias, "w", w)
        expect_shape("bias", bias, problem.y_shape[1:], "one value for each output of an image")
    y = allocate(problem.y_shape, problem.dtype, x.dtype, out, {"x": x, "w": w, "bias": bias}, batchless)
    start = np.zeros(problem.y_shape[1:], problem.dtype) if bias is None else bias
    target = target_of(y.array, problem)
    run("forward", problem, nhwc(x, problem), ready(w, problem.dtype), target, nhwc(start, problem))
    return deliver(y, target, problem)


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
    grad_y, w = array_argument("grad_y", grad_y), weights_argument(w)
    same_dtype("w", w, "grad_y", grad_y)
    problem, batchless = geometry(
        "input_shape", check_sizes("input_shape", input_shape), "w", w.shape[2:], grad_y.dtype, stride, padding,
        dilation, layout,
    )  # fmt: skip
    expect_weights(w, problem)
    expect_grad_y(grad_y, problem, batchless)
    grad_x = allocate(problem.x_shape, problem.dtype, grad_y.dtype, out, {"grad_y": grad_y, "w": w}, batchless)
    target = target_of(grad_x.array, problem)
    run("grad_input", problem, target, ready(w, problem.dtype), nhwc(grad_y, problem))
    return deliver(grad_x, target, problem)


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
    problem, batchless = geometry(
        "x", x.shape, "the kernel (kernel_size, grad_y)", windows, x.dtype, stride, padding, dilation, layout
    )
    expect_grad_y(grad_y, problem, batchless)
    grad_w = allocate(weights_shape(problem), problem.dtype, x.dtype, out, {"grad_y": grad_y, "x": x})
    run("grad_weight", problem, nhwc(x, problem), grad_w.array, nhwc(grad_y, problem))
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
