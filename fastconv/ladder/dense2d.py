"""The dense layer from gray image to gray image, and its gradients."""

from __future__ import annotations

import numpy as np

from fastconv.arrays import QUIET, ready
from fastconv.dense import dense, dense_grad_input, dense_grad_weight
from fastconv.ladder.operands import bias_image, expect_image, image_pair, images_argument, weights_argument
from fastconv.local2d import local2d_grad_bias
from fastconv.operands import ArrayLike, allocate, same_dtype
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
    x, w = images_argument("x", x), weights_argument("w", w)
    same_dtype("w", w, "x", x)
    expect_image("x", x, w.shape[2:], f"the last two axes of w, whose shape is {w.shape}")
    bias = bias_image(bias, "w", w)
    dtype = compute_dtype("x", x.dtype)
    h = allocate((*x.shape[:-2], *w.shape[:2]), dtype, x.dtype, out, {"x": x, "w": w, "bias": bias})
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
    grad_h, w = images_argument("grad_h", grad_h), weights_argument("w", w)
    same_dtype("w", w, "grad_h", grad_h)
    expect_image("grad_h", grad_h, w.shape[:2], f"the first two axes of w, whose shape is {w.shape}")
    dtype = compute_dtype("grad_h", grad_h.dtype)
    grad_x = allocate((*grad_h.shape[:-2], *w.shape[2:]), dtype, grad_h.dtype, out, {"grad_h": grad_h, "w": w})
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
    grad_h, x = image_pair(grad_h, x)
    dtype = compute_dtype("x", x.dtype)
    grad_w = allocate((*grad_h.shape[-2:], *x.shape[-2:]), dtype, x.dtype, out, {"grad_h": grad_h, "x": x})
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
    return local2d_grad_bias(images_argument("grad_h", grad_h)[..., None])[..., 0]


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(*images.shape[:-2], images.shape[-2] * images.shape[-1])


def _matrix(w: np.ndarray) -> np.ndarray:
    """Weights with a row for each output pixel and a column for each input pixel."""
    return w.reshape(w.shape[0] * w.shape[1], w.shape[2] * w.shape[3])
