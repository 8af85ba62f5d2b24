"""The weights of one step as those of another: exact rearrangements, no arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastconv.operands import ArrayLike, array_argument
from fastconv.problem import ConvProblem, check_pair, check_whole, problem_from


def to_relative(w: ArrayLike) -> np.ndarray:
    """Index the weights of a dense image layer by offset: ``V[i, j, a, b] = W[i, j, i + a, j + b]``.

    Parameters
    ----------
    w : array of shape (oh, ow, ih, iw)
        Weights ``W[i, j, k, l]``, from input pixel (k, l) to output pixel (i, j).

    Returns
    -------
    array of shape (oh, ow, ih, iw)
        The same numbers, moved. For output row i the offset a runs from -i to ih-1-i, and V has it at ``a % ih``; so
        Python's negative indices read it as the formula is written. Columns likewise.

    Raises
    ------
    ValueError, TypeError
        If w does not have four axes of floating-point numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import ladder
    >>> w = np.arange(81.0).reshape(3, 3, 3, 3)
    >>> v = ladder.to_relative(w)
    >>> bool(v[1, 2, -1, 0] == w[1, 2, 0, 2]), bool((ladder.to_absolute(v) == w).all())
    (True, True)
    """
    return _moved(_order4("w", w), 1)


def to_absolute(v: ArrayLike) -> np.ndarray:
    """Undo `to_relative`: ``W[i, j, k, l] = V[i, j, k - i, l - j]``.

    Parameters
    ----------
    v : array of shape (oh, ow, ih, iw)
        Weights by offset, as `to_relative` returns them.

    Returns
    -------
    array of shape (oh, ow, ih, iw)

    Raises
    ------
    ValueError, TypeError
        If v does not have four axes of floating-point numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import ladder
    >>> v = np.zeros((2, 2, 2, 2))
    >>> v[:, :, 0, 0] = 1  # each output pixel reads the pixel at offset (0, 0)
    >>> ladder.to_absolute(v).reshape(4, 4)
    array([[1., 0., 0., 0.],
           [0., 1., 0., 0.],
           [0., 0., 1., 0.],
           [0., 0., 0., 1.]])
    """
    return _moved(_order4("v", v), -1)


def _moved(array: np.ndarray, sign: int) -> np.ndarray:
    """Let the last two axes begin at (i, j), or take that back."""
    oh, ow, ih, iw = array.shape
    i, j, k, l = np.ogrid[:oh, :ow, :ih, :iw]
    return array[i, j, (k + sign * i) % ih, (l + sign * j) % iw]


def to_local(v: ArrayLike, delta: int | Sequence[int]) -> np.ndarray:
    """Keep the weights with ``|a|, |b| <= delta``: the constraint of locality.

    Parameters
    ----------
    v : array of shape (oh, ow, ih, iw)
        Weights by offset, as `to_relative` returns them.
    delta : int or (rows, columns)
        Largest offset that is kept.

    Returns
    -------
    array of shape (oh, ow, 2*delta + 1, 2*delta + 1, 1, 1)
        For `fastconv.local2d` with ``padding=delta``; 0 where an offset leaves the image.

    Raises
    ------
    ValueError, TypeError
        If v is not of that kind, or delta is negative.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import ladder
    >>> ladder.to_local(np.ones((3, 3, 3, 3)), 1)[0, 0, :, :, 0, 0]
    array([[0., 0., 0.],
           [0., 1., 1.],
           [0., 1., 1.]])
    """
    v = _order4("v", v)
    oh, ow, ih, iw = v.shape
    if not isinstance(delta, Sequence):
        delta = (delta, delta)
    if len(delta) != 2:
        raise ValueError(f"delta must be an integer or two of them (rows, columns), got {delta!r}")
    rows, columns = (check_whole("delta", reach, 0) for reach in delta)
    i, j, a, b = np.ogrid[:oh, :ow, -rows : rows + 1, -columns : columns + 1]
    inside = (i + a >= 0) & (i + a < ih) & (j + b >= 0) & (j + b < iw)
    return np.where(inside, v[i, j, a % ih, b % iw], v.dtype.type(0))[..., None, None]


def unshare(w: ArrayLike, output_size: int | Sequence[int]) -> np.ndarray:
    """Give every output pixel its own copy of a kernel: the weights of `fastconv.local2d` that do what `conv2d` does.

    Parameters
    ----------
    w : array of shape (kh, kw, ic, oc)
        Weights of `fastconv.conv2d`.
    output_size : int or (oh, ow)
        Size of the output; an integer stands for a square.

    Returns
    -------
    array of shape (oh, ow, kh, kw, ic, oc)

    Raises
    ------
    ValueError, TypeError
        If w does not have four axes of floating-point numbers, or a size is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import ladder
    >>> ladder.unshare(np.ones((3, 3, 1, 16), np.float32), 28).shape
    (28, 28, 3, 3, 1, 16)
    """
    w = _kernel(w)
    return np.broadcast_to(w, (*check_pair("output_size", output_size), *w.shape)).copy()


def expand_local(
    w: ArrayLike, input_size: int | Sequence[int], *, stride: Any = 1, padding: Any = "same", dilation: Any = 1
) -> np.ndarray:
    """Write the weights of a locally connected layer as those of a dense one: zeros outside the windows.

    Parameters
    ----------
    w : array of shape (oh, ow, kh, kw, ic, oc)
        Weights of `fastconv.local2d`.
    input_size : int or (ih, iw)
        Size of the image; an integer stands for a square.
    stride, padding, dilation
        As for `fastconv.local2d`, but padding is "same" by default. Weights that meet padding are dropped.

    Returns
    -------
    array of shape (oh, ow, oc, ih, iw, ic)
        ``W[i, j, d, k, l, c]``, the weight from input (k, l, c) to output (i, j, d). It has as many numbers as the
        dense layer has; with one channel, ``W[:, :, 0, :, :, 0]`` is what `dense2d` takes.

    Raises
    ------
    ValueError, TypeError
        If the weights do not fit the image and the parameters.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import ladder
    >>> w = np.arange(1.0, 4).reshape(1, 3, 1, 1, 1, 1) * np.ones((1, 3, 1, 3, 1, 1))
    >>> ladder.expand_local(w, (1, 3))[0, :, 0, 0, :, 0]
    array([[1., 1., 0.],
           [2., 2., 2.],
           [0., 3., 3.]])
    """
    w = array_argument("w", w)
    if w.ndim != 6:
        raise ValueError(f"w must have 6 axes (oh, ow, kh, kw, ic, oc), got shape {w.shape}")
    problem = _problem(w.shape[2:], w.dtype, input_size, stride, padding, dilation)
    if w.shape[:2] != problem.output_size:
        raise ValueError(f"w must have weights for {problem.output_size} outputs, got shape {w.shape}")
    (oh, ow), (ih, iw), (kh, kw) = problem.output_size, problem.input_size, problem.kernel_size
    dense = np.zeros((oh, ow, problem.oc, ih, iw, problem.ic), w.dtype.newbyteorder("="))
    by_pixel = dense.transpose(0, 1, 3, 4, 5, 2)
    for a in range(kh):
        i, rows = _inside(problem, 0, a)
        for b in range(kw):
            j, columns = _inside(problem, 1, b)
            by_pixel[i[:, None], j, rows[:, None], columns] = w[i[:, None], j, a, b]
    return dense


def expand_kernel(
    w: ArrayLike, input_size: int | Sequence[int], *, stride: Any = 1, padding: Any = "same", dilation: Any = 1
) -> np.ndarray:
    """Write a convolution's kernel as the weights of the dense layer that it is: a doubly blocked Toeplitz matrix.

    Parameters
    ----------
    w : array of shape (kh, kw, ic, oc)
        Weights of `fastconv.conv2d`.
    input_size : int or (ih, iw)
        Size of the image; an integer stands for a square.
    stride, padding, dilation
        As for `fastconv.conv2d`, but padding is "same" by default. Weights that meet padding are dropped.

    Returns
    -------
    array of shape (oh, ow, oc, ih, iw, ic)
        ``W[i, j, d, k, l, c] = w[k - i, l - j, c, d]`` for stride 1 and no padding, 0 outside the window. As a matrix,
        ``W.reshape(oh*ow*oc, ih*iw*ic)``, it maps flat images to flat images.

    Raises
    ------
    ValueError, TypeError
        If the kernel does not fit the image and the parameters.

    References
    ----------
    Goodfellow, Bengio and Courville, "Deep learning", 2016, section 9.1.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import ladder
    >>> ladder.expand_kernel(np.array([1.0, 2, 3]).reshape(1, 3, 1, 1), (1, 4))[0, :, 0, 0, :, 0]
    array([[2., 3., 0., 0.],
           [1., 2., 3., 0.],
           [0., 1., 2., 3.],
           [0., 0., 1., 2.]])
    """
    w = _kernel(w)
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    problem = _problem(w.shape, w.dtype, input_size, **options)
    return expand_local(unshare(w, problem.output_size), input_size, **options)


def _inside(problem: ConvProblem, axis: int, tap: int) -> tuple[np.ndarray, np.ndarray]:
    """The outputs along an axis whose tap meets the image, and what it meets there."""
    outputs = np.arange(problem.output_size[axis])
    met = outputs * problem.stride[axis] + tap * problem.dilation[axis] - problem.padding[axis][0]
    inside = (met >= 0) & (met < problem.input_size[axis])
    return outputs[inside], met[inside]


def _problem(
    windows: Sequence[int], dtype: np.dtype, input_size: Any, stride: Any, padding: Any, dilation: Any
) -> ConvProblem:
    x_shape = (1, *check_pair("input_size", input_size), windows[2])
    return problem_from(x_shape, tuple(windows), dtype, stride, padding, dilation, 1, "NHWC", x_name="the image")


def _order4(name: str, value: ArrayLike) -> np.ndarray:
    array = array_argument(name, value)
    if array.ndim != 4 or 0 in array.shape:
        raise ValueError(f"{name} must have 4 axes (oh, ow, ih, iw), none of them empty, got shape {array.shape}")
    return array


def _kernel(w: ArrayLike) -> np.ndarray:
    array = array_argument("w", w)
    if array.ndim != 4:
        raise ValueError(f"w must have 4 axes (kh, kw, ic, oc), got shape {array.shape}")
    return array
