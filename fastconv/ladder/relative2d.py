"""The same layer with weights by offset: a locally connected one whose window is as large as the image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastconv.ladder.dense2d import dense2d_grad_bias
from fastconv.ladder.operands import bias_image, expect_image, image_pair, images_argument, weights_argument
from fastconv.local2d import local2d, local2d_grad_input, local2d_grad_weight
from fastconv.operands import ArrayLike, allocate, same_dtype


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
    x, v = images_argument("x", x), weights_argument("v", v)
    same_dtype("v", v, "x", x)
    expect_image("x", x, v.shape[2:], f"the last two axes of v, whose shape is {v.shape}")
    bias = bias_image(bias, "v", v)
    h = allocate((*x.shape[:-2], *v.shape[:2]), x.dtype.name, x.dtype, out, {"x": x, "v": v, "bias": bias})
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
    grad_h, v = images_argument("grad_h", grad_h), weights_argument("v", v)
    same_dtype("v", v, "grad_h", grad_h)
    expect_image("grad_h", grad_h, v.shape[:2], f"the first two axes of v, whose shape is {v.shape}")
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
    grad_h, x = image_pair(grad_h, x)
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
