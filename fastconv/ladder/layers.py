"""The layers of the first two steps, from gray image to gray image, and their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastconv.arrays import QUIET, ready
from fastconv.dense import dense, dense_grad_input, dense_grad_weight
from fastconv.local2d import local2d, local2d_grad_bias, local2d_grad_input, local2d_grad_weight
from fastconv.operands import ArrayLike, allocate, array_argument, expect_shape, same_dtype
from fastconv.problem import compute_dtype


@QUIET
def dense2d(x: ArrayLike, w: ArrayLike, bias: ArrayLike | None = None, *, out: np.ndarray | None = None) -> np.ndarray:
    """Apply a dense layer from image to image: ``H[i, j] = U[i, j] + sum_kl W[i, j, k, l] X[k, l]``.

    Parameters
    ----------
    x : array of shape (n, ih, iw) or (ih, iw)
        Gray images of float16, float32 or float64.
    w : array of shape (oh, ow, ih, iw)
        Weights, of the dtype of x.
    bias : array of shape (oh, ow), optional
        Added to every output image.
    out : array of the result's shape and dtype, optional
        Receives the result; it must not overlap with an input.

    Returns
    -------
    array of shape (n, oh, ow) or (oh, ow)
        Of the inputs' dtype; float16 is computed in float32 and rounded once.

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import ladder
    >>> x = np.arange(4.0).reshape(2, 2)
    >>> transpose = np.zeros((2, 2, 2, 2))
    >>> transpose[0, 0, 0, 0] = transpose[0, 1, 1, 0] = transpose[1, 0, 0, 1] = transpose[1, 1, 1, 1] = 1
    >>> ladder.dense2d(x, transpose)
    array([[0., 2.],
           [1., 3.]])
    """
    x, w = _images("x", x), _weights("w", w)
    same_dtype("w", w, "x", x)
    _expect_image("x", x, w.shape[2:], f"the last two axes of w, whose shape is {w.shape}")
    bias = _bias(bias, "w", w)
    dtype = compute_dtype("x", x.dtype)
    h = allocate((*x.shape[:-2], *w.shape[:2]), dtype, x.dtype, out, x=x, w=w, bias=bias)
    # In dense's terms this is the gradient for the input, which takes W as it lies: row (i, j) by column (k, l).
    dense_grad_input(_flat(ready(x, dtype)), _matrix(ready(w, dtype)), out=_flat(h.array))
    if bias is not None:
        h.array[...] += bias
    return h.deliver()


def dense2d_grad_input(grad_h: ArrayLike, w: ArrayLike, *, out: np.ndarray | None = None) -> np.ndarray:
    """Gradient of `dense2d` for its input: ``grad_x[k, l] = sum_ij W[i, j, k, l] grad_h[i, j]``.

    Parameters
    ----------
    grad_h : array of shape (n, oh, ow) or (oh, ow)
        Gradient for the output.
    w : array of shape (oh, ow, ih, iw)
        Weights.
    out : array of the result's shape and dtype, optional
        Receives the result.

    Returns
    -------
    array of shape (n, ih, iw) or (ih, iw)

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import ladder
    >>> ladder.dense2d_grad_input(np.ones((2, 2)), np.arange(8.0).reshape(2, 2, 1, 2))
    array([[12., 16.]])
    """
    grad_h, w = _images("grad_h", grad_h), _weights("w", w)
    same_dtype("w", w, "grad_h", grad_h)
    _expect_image("grad_h", grad_h, w.shape[:2], f"the first two axes of w, whose shape is {w.shape}")
    dtype = compute_dtype("grad_h", grad_h.dtype)
    grad_x = allocate((*grad_h.shape[:-2], *w.shape[2:]), dtype, grad_h.dtype, out, grad_h=grad_h, w=w)
    dense(_flat(ready(grad_h, dtype)), _matrix(ready(w, dtype)), out=_flat(grad_x.array))
    return grad_x.deliver()


def dense2d_grad_weight(grad_h: ArrayLike, x: ArrayLike, *, out: np.ndarray | None = None) -> np.ndarray:
    """Gradient of `dense2d` for its weights: ``grad_w[i, j, k, l] = sum_n grad_h[n, i, j] x[n, k, l]``.

    Parameters
    ----------
    grad_h : array of shape (n, oh, ow) or (oh, ow)
        Gradient for the output.
    x : array of shape (n, ih, iw) or (ih, iw)
        The layer's input.
    out : array of the result's shape and dtype, optional
        Receives the result.

    Returns
    -------
    array of shape (oh, ow, ih, iw)

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import ladder
    >>> ladder.dense2d_grad_weight(np.array([[1.0, 2]]), np.array([[3.0], [4]]))[0, 1]
    array([[6.],
           [8.]])
    """
    grad_h, x = _pair_of_images(grad_h, x)
    dtype = compute_dtype("x", x.dtype)
    grad_w = allocate((*grad_h.shape[-2:], *x.shape[-2:]), dtype, x.dtype, out, grad_h=grad_h, x=x)
    dense_grad_weight(_flat(ready(x, dtype)), _flat(ready(grad_h, dtype)), out=_matrix(grad_w.array))
    return grad_w.deliver()


def dense2d_grad_bias(grad_h: ArrayLike) -> np.ndarray:
    """Gradient of `dense2d` for its bias: the sum of grad_h over the images.

    Parameters
    ----------
    grad_h : array of shape (n, oh, ow) or (oh, ow)
        Gradient for the output.

    Returns
    -------
    array of shape (oh, ow)
        Summed in float64, of grad_h's dtype.

    Raises
    ------
    ValueError, TypeError
        If grad_h is not one or several gray images of floating-point numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import ladder
    >>> ladder.dense2d_grad_bias(np.ones((5, 1, 2)))
    array([[5., 5.]])
    """
    return local2d_grad_bias(_images("grad_h", grad_h)[..., None])[..., 0]


def relative2d(
    x: ArrayLike, v: ArrayLike, bias: ArrayLike | None = None, *, out: np.ndarray | None = None
) -> np.ndarray:
    """Apply the same layer with weights by offset: ``H[i, j] = U[i, j] + sum_ab V[i, j, a, b] X[i + a, j + b]``.

    Nothing is constrained yet: ``relative2d(x, to_relative(w))`` is ``dense2d(x, w)``. In this form it is a locally
    connected layer whose window is as large as the image.

    Parameters
    ----------
    x : array of shape (n, ih, iw) or (ih, iw)
        Gray images of float16, float32 or float64.
    v : array of shape (oh, ow, ih, iw)
        Weights by offset, as `to_relative` returns them, of the dtype of x.
    bias : array of shape (oh, ow), optional
        Added to every output image.
    out : array of the result's shape and dtype, optional
        Receives the result; it must not overlap with an input.

    Returns
    -------
    array of shape (n, oh, ow) or (oh, ow)
        Of the inputs' dtype; float16 is computed in float32 and rounded once.

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import ladder
    >>> x, v = np.arange(9.0).reshape(3, 3), np.zeros((2, 2, 3, 3))
    >>> v[:, :, 1, 0] = 1  # each output pixel reads the pixel below
    >>> ladder.relative2d(x, v)
    array([[3., 4.],
           [6., 7.]])
    """
    x, v = _images("x", x), _weights("v", v)
    same_dtype("v", v, "x", x)
    _expect_image("x", x, v.shape[2:], f"the last two axes of v, whose shape is {v.shape}")
    bias = _bias(bias, "v", v)
    h = allocate((*x.shape[:-2], *v.shape[:2]), x.dtype.name, x.dtype, out, x=x, v=v, bias=bias)
    start = None if bias is None else bias[..., None]
    local2d(_repeated(x, v.shape[:2]), v[..., None, None], start, out=h.array[..., None])
    return h.deliver()


def relative2d_grad_input(grad_h: ArrayLike, v: ArrayLike) -> np.ndarray:
    """Gradient of `relative2d` for its input: ``grad_x[i + a, j + b] = sum V[i, j, a, b] grad_h[i, j]``.

    Parameters
    ----------
    grad_h : array of shape (n, oh, ow) or (oh, ow)
        Gradient for the output.
    v : array of shape (oh, ow, ih, iw)
        Weights by offset.

    Returns
    -------
    array of shape (n, ih, iw) or (ih, iw)

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import ladder
    >>> v = np.zeros((2, 2, 3, 3))
    >>> v[:, :, 1, 0] = 1
    >>> ladder.relative2d_grad_input(np.ones((2, 2)), v)
    array([[0., 0., 0.],
           [1., 1., 0.],
           [1., 1., 0.]])
    """
    grad_h, v = _images("grad_h", grad_h), _weights("v", v)
    same_dtype("v", v, "grad_h", grad_h)
    _expect_image("grad_h", grad_h, v.shape[:2], f"the first two axes of v, whose shape is {v.shape}")
    oh, ow, ih, iw = v.shape
    repeated = (*grad_h.shape[:-2], oh + ih - 1, ow + iw - 1, 1)
    grad_x = local2d_grad_input(grad_h[..., None], v[..., None, None], repeated)[..., 0]
    return _folded(grad_x, ih, iw)


def relative2d_grad_weight(grad_h: ArrayLike, x: ArrayLike) -> np.ndarray:
    """Gradient of `relative2d` for its weights: ``grad_v[i, j, a, b] = sum_n grad_h[n, i, j] x[n, i + a, j + b]``.

    Parameters
    ----------
    grad_h : array of shape (n, oh, ow) or (oh, ow)
        Gradient for the output.
    x : array of shape (n, ih, iw) or (ih, iw)
        The layer's input.

    Returns
    -------
    array of shape (oh, ow, ih, iw)

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import ladder
    >>> x = np.arange(4.0).reshape(2, 2)
    >>> ladder.relative2d_grad_weight(np.ones((2, 2)), x)[0, 1]  # x as seen from (0, 1)
    array([[1., 0.],
           [3., 2.]])
    """
    grad_h, x = _pair_of_images(grad_h, x)
    repeated = _repeated(x, grad_h.shape[-2:])
    return local2d_grad_weight(grad_h[..., None], repeated, x.shape[-2:])[..., 0, 0]


def relative2d_grad_bias(grad_h: ArrayLike) -> np.ndarray:
    """Gradient of `relative2d` for its bias, which is that of `dense2d`.

    Parameters
    ----------
    grad_h : array of shape (n, oh, ow) or (oh, ow)
        Gradient for the output.

    Returns
    -------
    array of shape (oh, ow)
        Summed in float64, of grad_h's dtype.

    Raises
    ------
    ValueError, TypeError
        If grad_h is not one or several gray images of floating-point numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import ladder
    >>> ladder.relative2d_grad_bias(np.ones((5, 1, 2)))
    array([[5., 5.]])
    """
    return dense2d_grad_bias(grad_h)


def _repeated(x: np.ndarray, output_size: Sequence[int]) -> np.ndarray:
    """X with a channel axis, continued periodically so far that a window of its size fits at each output pixel."""
    (oh, ow), (ih, iw) = output_size, x.shape[-2:]
    rows, columns = np.arange(oh + ih - 1) % ih, np.arange(ow + iw - 1) % iw
    return x[..., rows[:, None], columns, None]


def _folded(repeated: np.ndarray, ih: int, iw: int) -> np.ndarray:
    """The adjoint of `_repeated`: the sum over all places that hold the same pixel."""
    folded = np.zeros((*repeated.shape[:-2], ih, iw), repeated.dtype)
    for top in range(0, repeated.shape[-2], ih):
        for left in range(0, repeated.shape[-1], iw):
            part = repeated[..., top : top + ih, left : left + iw]
            folded[..., : part.shape[-2], : part.shape[-1]] += part
    return folded


def _images(name: str, value: ArrayLike) -> np.ndarray:
    array = array_argument(name, value)
    if array.ndim not in (2, 3) or 0 in array.shape[-2:]:
        raise ValueError(
            f"{name} must be gray images of shape (n, rows, columns) or (rows, columns), got {array.shape}"
        )
    return array


def _weights(name: str, value: ArrayLike) -> np.ndarray:
    array = array_argument(name, value)
    if array.ndim != 4:
        raise ValueError(f"{name} must have 4 axes (oh, ow, ih, iw), got shape {array.shape}")
    return array


def _expect_image(name: str, array: np.ndarray, size: tuple[int, ...], why: str) -> None:
    expect_shape(name, array, (*array.shape[:-2], *size), why)


def _pair_of_images(grad_h: ArrayLike, x: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    grad_h, x = _images("grad_h", grad_h), _images("x", x)
    same_dtype("x", x, "grad_h", grad_h)
    if grad_h.shape[:-2] != x.shape[:-2]:
        raise ValueError(f"grad_h and x must have the same number of images, got shapes {grad_h.shape} and {x.shape}")
    return grad_h, x


def _bias(bias: Any, name: str, weights: np.ndarray) -> np.ndarray | None:
    if bias is None:
        return None
    bias = array_argument("bias", bias)
    same_dtype("bias", bias, name, weights)
    expect_shape("bias", bias, weights.shape[:2], "one value for each output pixel")
    return bias


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(*images.shape[:-2], images.shape[-2] * images.shape[-1])


def _matrix(w: np.ndarray) -> np.ndarray:
    """Weights with a row for each output pixel and a column for each input pixel."""
    return w.reshape(w.shape[0] * w.shape[1], w.shape[2] * w.shape[3])
