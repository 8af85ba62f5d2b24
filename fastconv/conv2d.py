"""Two-dimensional convolution and its gradients: check, plan, allocate, run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastconv.algorithms.base import Epilogue
from fastconv.arrays import image, ready
from fastconv.epilogue import channel_sums, check_activation, epilogue_for, expect_no_failure
from fastconv.operands import (
    ArrayLike,
    allocate,
    array_argument,
    bias_argument,
    expect_grad_y,
    same_dtype,
    weights_argument,
)
from fastconv.plan import Plan, Request, call_key, earlier, remember, request
from fastconv.problem import (
    check_groups,
    check_image_rank,
    check_layout,
    check_pair,
    check_sizes,
)


def conv2d(
    x: ArrayLike,
    w: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    layout: str = "NHWC",
    algorithm: str = "auto",
    activation: Any = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Convolve a batch of multi-channel images.

    ``y[n, i, j, d] = bias[d] + sum_abc w[a, b, c, d] x[n, i*stride + a*dilation, j*stride + b*dilation, c]`` on the
    zero-padded input. The kernel is not flipped (cross-correlation), as in the deep-learning libraries.

    Parameters
    ----------
    x : array of shape (n, ih, iw, ic), or (n, ic, ih, iw) for layout "NCHW"
        Images of float16, float32 or float64. The batch axis may be missing, and then is in the result too.
    w : array of shape (kh, kw, ic/groups, oc), or (oc, ic/groups, kh, kw) for layout "NCHW"
        Weights, of the dtype of x.
    bias : array of shape (oc,), optional
        Added to every output pixel.
    stride, dilation : int or (int, int), default 1
        Step of the window, and of the taps within it, along (rows, columns).
    padding : int, (rows, columns), ((top, bottom), (left, right)), or str, default 0
        Zeros around the input. "valid" is none, "same" gives ceil(size/stride) outputs with the odd zero at the end
        ("same_lower": at the start), "full" every output that meets at least one input.
    groups : int, default 1
        Input and output channels are split into that many groups which do not mix. With groups equal to ic it is a
        depthwise convolution.
    layout : {"NHWC", "NCHW"}
        Order of the axes of x, w and the result.
    algorithm : str, default "auto"
        One of `conv2d_algorithms`. "auto" takes the one with the shortest predicted time (winograd and fft only where
        that saves 5 microseconds and 11 %, or 5 % in a form that rounds no worse), "exact" the same among those that
        sum the plain products only; a name runs that algorithm or raises ValueError.
    activation : None, "relu" or a scalar function compiled with `numba.njit`
        Applied to each output value before it is stored.
    out : array, optional
        Receives the result. It must have the result's shape and dtype and not overlap with an input.

    Returns
    -------
    array of shape (n, oh, ow, oc), or (n, oc, oh, ow) for layout "NCHW"
        C-contiguous, of the inputs' dtype; float16 is computed in float32 and rounded once.

    Raises
    ------
    ValueError
        If shapes or parameters do not fit each other, or the algorithm is not for this problem.
    TypeError
        If a dtype or the type of an argument is not supported.
    RuntimeError
        If the activation raises an exception; the output is then incomplete.

    References
    ----------
    Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016, sections 2 and 4.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    >>> w = np.ones((3, 3, 1, 1), np.float32)
    >>> fastconv.conv2d(x, w)[0, :, :, 0]
    array([[45., 54.],
           [81., 90.]], dtype=float32)
    """
    key = call_key("forward", x, w, None, stride, padding, dilation, groups, layout, algorithm)
    asked = earlier(key)
    if asked is None:
        x, w = array_argument("x", x), weights_argument(w)
        same_dtype("w", w, "x", x)
        asked = request("forward", x.shape, w.shape, x.dtype, stride, padding, dilation, groups, layout, algorithm)
        remember(key, asked)
    if bias is None and activation is None and asked.takes(x, w, out):
        return asked.run(x, w, out)
    problem = asked.problem
    bias = bias_argument(bias, w, problem)
    check_activation(activation)
    epilogue = epilogue_for(bias, activation, problem.dtype)
    if (bias is None or out is None) and asked.takes(x, w, out):
        result = asked.run(x, w, out, epilogue)
        expect_no_failure(epilogue)
        return result
    y = allocate(problem.y_shape, problem.dtype, x.dtype, out, {"x": x, "w": w, "bias": bias}, asked.batchless)
    run_forward(asked.plan, x, w, epilogue, y.array)
    return y.deliver()


def run_forward(
    plan: Plan, x: np.ndarray, w: np.ndarray, epilogue: Epilogue, y: np.ndarray, prepared: Any = None
) -> None:
    """Run a planned forward pass on checked arrays."""
    problem = plan.problem
    if problem.n == 0:
        return
    plan.operation.run(image(x, problem.dtype), ready(w, problem.dtype), y, epilogue, prepared)
    expect_no_failure(epilogue)


def conv2d_grad_input(
    grad_y: ArrayLike,
    w: ArrayLike,
    input_shape: Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    layout: str = "NHWC",
    algorithm: str = "auto",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Gradient of a convolution for its input.

    ``grad_x = sum over outputs of grad_y * d y / d x``: the adjoint of `conv2d` in x.

    Parameters
    ----------
    grad_y : array of the shape of the convolution's output
        Gradient for the output.
    w : array
        The weights, as given to `conv2d`.
    input_shape : tuple of int
        Shape of the convolution's input; a stride leaves several possible.
    stride, padding, dilation, groups, layout, algorithm
        As for `conv2d`.
    out : array of shape `input_shape`, optional
        Receives the result.

    Returns
    -------
    array of shape `input_shape`
        Exactly 0 where no window reads.

    Raises
    ------
    ValueError, TypeError
        As `conv2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> w = np.arange(4, dtype=np.float32).reshape(2, 2, 1, 1)
    >>> fastconv.conv2d_grad_input(np.ones((1, 2, 2, 1), np.float32), w, (1, 3, 3, 1))[0, :, :, 0]
    array([[0., 1., 1.],
           [2., 6., 4.],
           [2., 5., 3.]], dtype=float32)
    """
    key = call_key("grad_input", grad_y, w, input_shape, stride, padding, dilation, groups, layout, algorithm)
    asked = earlier(key)
    if asked is None:
        grad_y, w = array_argument("grad_y", grad_y), weights_argument(w)
        same_dtype("w", w, "grad_y", grad_y)
        asked = request(
            "grad_input", check_sizes("input_shape", input_shape), w.shape, grad_y.dtype, stride, padding, dilation,
            groups, layout, algorithm, "input_shape",
        )  # fmt: skip
        expect_grad_y(grad_y, asked.problem, asked.batchless)
        remember(key, asked)
    return _grad_input(asked, grad_y, w, out)


def _grad_input(asked: Request, grad_y: np.ndarray, w: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    if asked.takes(grad_y, w, out):
        return asked.run(grad_y, w, out)
    problem = asked.problem
    grad_x = allocate(problem.x_shape, problem.dtype, grad_y.dtype, out, {"grad_y": grad_y, "w": w}, asked.batchless)
    if problem.n:
        asked.plan.operation.run(image(grad_y, problem.dtype), ready(w, problem.dtype), grad_x.array)
    return grad_x.deliver()


def conv2d_grad_weight(
    grad_y: ArrayLike,
    x: ArrayLike,
    kernel_size: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    layout: str = "NHWC",
    algorithm: str = "auto",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Gradient of a convolution for its weights.

    ``grad_w[a, b, c, d] = sum_nij x[n, i*stride + a*dilation, j*stride + b*dilation, c] grad_y[n, i, j, d]``

    Parameters
    ----------
    grad_y : array of the shape of the convolution's output
        Gradient for the output.
    x : array
        The input, as given to `conv2d`.
    kernel_size : int or (kh, kw)
        Size of the kernel; a stride leaves several possible.
    stride, padding, dilation, groups, layout, algorithm
        As for `conv2d`.
    out : array of the shape of the weights, optional
        Receives the result.

    Returns
    -------
    array of the shape of the weights

    Raises
    ------
    ValueError, TypeError
        As `conv2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x = np.arange(9, dtype=np.float32).reshape(1, 3, 3, 1)
    >>> fastconv.conv2d_grad_weight(np.ones((1, 2, 2, 1), np.float32), x, 2)[:, :, 0, 0]
    array([[ 8., 12.],
           [20., 24.]], dtype=float32)
    """
    key = call_key("grad_weight", grad_y, x, kernel_size, stride, padding, dilation, groups, layout, algorithm)
    asked = earlier(key)
    if asked is None:
        grad_y, x = array_argument("grad_y", grad_y), array_argument("x", x)
        same_dtype("x", x, "grad_y", grad_y)
        channels = -1 if check_layout(layout) == "NHWC" else -3
        x_shape, _ = check_image_rank("x", x.shape, layout)
        y_shape, _ = check_image_rank("grad_y", grad_y.shape, layout)
        groups = check_groups(groups)
        if x_shape[channels] % groups:
            raise ValueError(f"groups={groups} must divide the {x_shape[channels]} channels of x, got shape {x.shape}")
        kernel, ic, oc = check_pair("kernel_size", kernel_size), x_shape[channels] // groups, y_shape[channels]
        w_shape = (*kernel, ic, oc) if layout == "NHWC" else (oc, ic, *kernel)
        asked = request(
            "grad_weight", x.shape, w_shape, x.dtype, stride, padding, dilation, groups, layout, algorithm, "x",
            "the kernel (kernel_size, grad_y)",
        )  # fmt: skip
        expect_grad_y(grad_y, asked.problem, asked.batchless)
        remember(key, asked)
    return _grad_weight(asked, grad_y, x, out)


def _grad_weight(asked: Request, grad_y: np.ndarray, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    if asked.takes(grad_y, x, out):
        return asked.run(grad_y, x, out)
    problem = asked.problem
    grad_w = allocate(problem.w_shape, problem.dtype, x.dtype, out, {"grad_y": grad_y, "x": x})
    if problem.n:
        asked.plan.operation.run(image(grad_y, problem.dtype), image(x, problem.dtype), grad_w.array)
    else:
        grad_w.array[...] = 0
    return grad_w.deliver()


def conv2d_grad_bias(grad_y: ArrayLike, *, layout: str = "NHWC") -> np.ndarray:
    """Gradient of a convolution for its bias: the sum of grad_y over everything but channels.

    Parameters
    ----------
    grad_y : array of the shape of the convolution's output
        Gradient for the output.
    layout : {"NHWC", "NCHW"}
        Order of its axes.

    Returns
    -------
    array of shape (oc,)
        Summed in float64, of grad_y's dtype.

    Raises
    ------
    ValueError, TypeError
        If grad_y is not an image of floating-point numbers, or the layout is unknown.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.conv2d_grad_bias(np.ones((1, 2, 3, 2), np.float32))
    array([6., 6.], dtype=float32)
    """
    grad_y = array_argument("grad_y", grad_y)
    shape, _ = check_image_rank("grad_y", grad_y.shape, check_layout(layout))
    return channel_sums(grad_y.reshape(shape), layout).astype(grad_y.dtype.newbyteorder("="))


def conv2d_backward(
    grad_y: ArrayLike,
    x: ArrayLike,
    w: ArrayLike,
    *,
    needs: Sequence[bool] = (True, True, True),
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    layout: str = "NHWC",
    algorithm: str = "auto",
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """All gradients of a convolution at once.

    Parameters
    ----------
    grad_y : array of the shape of the convolution's output
        Gradient for the output.
    x, w : array
        Input and weights, as given to `conv2d`.
    needs : three bools, default all True
        Which of the gradients for (x, w, bias) to compute.
    stride, padding, dilation, groups, layout, algorithm
        As for `conv2d`.

    Returns
    -------
    (grad_x, grad_w, grad_bias)
        None for those that are not needed.

    Raises
    ------
    ValueError, TypeError
        As `conv2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x, w = np.ones((1, 3, 3, 1), np.float32), np.ones((2, 2, 1, 1), np.float32)
    >>> grad_x, grad_w, grad_bias = fastconv.conv2d_backward(np.ones((1, 2, 2, 1), np.float32), x, w)
    >>> grad_x.shape, grad_w.shape, float(grad_bias[0])
    ((1, 3, 3, 1), (2, 2, 1, 1), 4.0)
    """
    grad_y, x, w = array_argument("grad_y", grad_y), array_argument("x", x), weights_argument(w)
    same_dtype("w", w, "x", x)
    same_dtype("grad_y", grad_y, "x", x)
    if not isinstance(needs, Sequence) or isinstance(needs, str) or len(needs) != 3:
        raise ValueError(f"needs must be three bools, for the gradients of (x, w, bias); got {needs!r}")
    shapes, how = (x.shape, w.shape), (stride, padding, dilation, groups, layout, algorithm)
    asked = request("grad_input", *shapes, x.dtype, *how)
    expect_grad_y(grad_y, asked.problem, asked.batchless)
    given, dtype = grad_y.dtype.newbyteorder("="), asked.problem.dtype
    computed = np.dtype(dtype)
    gradient = ready(grad_y, dtype)  # converted once for all three
    grad_x = grad_w = grad_bias = None
    if needs[0]:
        asked = request("grad_input", *shapes, computed, *how)
        grad_x = _grad_input(asked, gradient, ready(w, dtype)).astype(given, copy=False)
    if needs[1]:
        asked = request("grad_weight", *shapes, computed, *how)
        grad_w = _grad_weight(asked, gradient, ready(x, dtype)).astype(given, copy=False)
    if needs[2]:
        grad_bias = conv2d_grad_bias(gradient, layout=layout).astype(given, copy=False)
    return grad_x, grad_w, grad_bias
