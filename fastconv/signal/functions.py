"""The public functions: convolution and correlation of two signals, as `scipy.signal` defines them."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.operands import ArrayLike
from fastconv.signal.plan import run_bounded, run_filter, run_image


def convolve(
    in1: ArrayLike,
    in2: ArrayLike,
    mode: str = "full",
    method: str = "auto",
    *,
    boundary: str | None = None,
    fillvalue: Any = None,
) -> np.ndarray:
    """Convolve two signals of one or two dimensions.

    ``(f * g)[i] = sum_a f[a] g[i - a]``, and ``(f * g)[i, j] = sum_ab f[a, b] g[i - a, j - b]``: one of the signals is
    flipped, unlike in `conv2d`. Outside of the arrays both are zero unless a boundary is given.

    Parameters
    ----------
    in1, in2 : array
        The signals, of one or of two axes: floating-point or complex numbers, integers or booleans.
    mode : {"full", "same", "valid"}
        "full" is every result that meets both signals, "same" the part of in1's size at its centre, "valid" what needs
        no zeros outside of the larger signal; one must then be at least as large as the other along every axis.
    method : {"auto", "direct", "fft"}
        "direct" sums the products, "fft" multiplies Fourier transforms, "auto" takes what should be faster, and sums
        for integers and booleans, and wherever a boundary is given.
    boundary : {"fill", "wrap", "symm"}, optional
        What lies outside in1, an image then: the call is `convolve2d`.
    fillvalue : number, optional
        For the boundary "fill".

    Returns
    -------
    array
        Of the dtype that NumPy's promotion gives. Integers are exact modulo 2**bits, but for method "fft", which rounds
        a sum of floating-point numbers; booleans are true where any product is.

    Raises
    ------
    ValueError
        If the signals are empty, their shapes do not fit each other, the mode, method or boundary is unknown, or a
        boundary is given for one axis or with method "fft".
    TypeError
        If a dtype is not supported, such as longdouble and object.

    Notes
    -----
    It is `scipy.signal.convolve`, whose shapes and centring it shares. With "fft" a NaN or an infinity reaches many
    results, and rounding errors are relative to the largest result.

    Examples
    --------
    >>> import fastconv
    >>> fastconv.convolve([1.0, 2.0, 3.0], [0.0, 1.0, 0.5])
    array([0. , 1. , 2.5, 4. , 1.5])
    >>> fastconv.convolve([1, 2, 3], [0, 1, 5], "same")
    array([ 1,  7, 13])
    """
    if boundary is None and fillvalue is None:
        return run_filter(in1, in2, mode, method, False)
    return run_bounded(in1, in2, mode, method, boundary, fillvalue, False)


def correlate(
    in1: ArrayLike,
    in2: ArrayLike,
    mode: str = "full",
    method: str = "auto",
    *,
    boundary: str | None = None,
    fillvalue: Any = None,
) -> np.ndarray:
    """Correlate two signals of one or two dimensions.

    ``c[k] = sum_a in1[a + k] conj(in2[a])`` for every lag k at which they meet, in two dimensions along both axes: the
    convolution of in1 with the flipped conjugate of in2.

    Parameters
    ----------
    in1, in2, mode, method
        As for `convolve`. Results begin at lag ``1 - in2.size`` in mode "full".
    boundary, fillvalue
        As for `convolve`; with either, the call is `correlate2d`.

    Returns
    -------
    array
        As `convolve`.

    Raises
    ------
    ValueError, TypeError
        As `convolve`.

    Notes
    -----
    It is `scipy.signal.correlate`. In mode "valid" with in2 the larger signal, the lags are negative and still rise.

    Examples
    --------
    >>> import fastconv
    >>> fastconv.correlate([1.0, 2.0, 3.0], [0.0, 1.0, 0.5])
    array([0.5, 2. , 3.5, 3. , 0. ])
    """
    if boundary is None and fillvalue is None:
        return run_filter(in1, in2, mode, method, True)
    return run_bounded(in1, in2, mode, method, boundary, fillvalue, True)


def convolve2d(
    in1: ArrayLike, in2: ArrayLike, mode: str = "full", boundary: str = "fill", fillvalue: Any = 0
) -> np.ndarray:
    """Convolve two images, with a choice of what lies outside the first.

    ``(f * g)[i, j] = sum_ab f[i - a, j - b] g[a, b]`` with f continued past its edges.

    Parameters
    ----------
    in1, in2 : array with two axes
        The images, of numbers as `convolve` takes.
    mode : {"full", "same", "valid"}
        As for `convolve`.
    boundary : {"fill", "wrap", "symm"}
        What lies outside in1: fillvalue, in1 again, or in1 mirrored with its edge repeated. SciPy's other names "pad",
        "circular" and "symmetric" are known too.
    fillvalue : number, default 0
        For the boundary "fill".

    Returns
    -------
    array
        As `convolve` with method "direct".

    Raises
    ------
    ValueError
        As `convolve`; if the boundary is unknown, or fillvalue is no number of the result's dtype.
    TypeError
        As `convolve`.

    Notes
    -----
    It is `scipy.signal.convolve2d`, and takes booleans and float16 as well.

    Examples
    --------
    >>> import fastconv
    >>> fastconv.convolve2d([[1, 2], [3, 4]], [[1, 1, 1]], "same", "wrap")
    array([[ 5,  4],
           [11, 10]])
    """
    return run_image(in1, in2, mode, boundary, fillvalue, False)


def correlate2d(
    in1: ArrayLike, in2: ArrayLike, mode: str = "full", boundary: str = "fill", fillvalue: Any = 0
) -> np.ndarray:
    """Correlate two images, with a choice of what lies outside the first.

    ``c[k, l] = sum_ab in1[a + k, b + l] conj(in2[a, b])`` with in1 continued past its edges.

    Parameters
    ----------
    in1, in2, mode, boundary, fillvalue
        As for `convolve2d`.

    Returns
    -------
    array
        As `convolve2d`.

    Raises
    ------
    ValueError, TypeError
        As `convolve2d`.

    Notes
    -----
    It is `scipy.signal.correlate2d`, with two habits that differ from `correlate`: mode "same" begins one lag later
    along an axis of in2 of even size, and mode "valid" with in2 the larger image conjugates in1.

    Examples
    --------
    >>> import fastconv
    >>> fastconv.correlate2d([[1, 2, 3], [4, 5, 6]], [[0, 1]], "valid")
    array([[2, 3],
           [5, 6]])
    """
    return run_image(in1, in2, mode, boundary, fillvalue, True)
