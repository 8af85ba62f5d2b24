"""The fully connected layer, which a convolution replaces, and its gradients."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from fastconv.algorithms.base import PLAIN, Epilogue
from fastconv.arrays import NATIVE, QUIET, ready
from fastconv.epilogue import apply_activation, check_activation, epilogue_for, expect_no_failure
from fastconv.kernels import dense as kernels
from fastconv.kernels import launch
from fastconv.kernels.params import fill
from fastconv.operands import allocate, array_argument, expect_shape, same_dtype
from fastconv.plan import Request, request
from fastconv.problem import COMPUTED, compute_dtype

_STRIP = 512
"""Units of a task: their sums and four rows of their weights fit the first cache level."""


_FOR_BLAS = 1 << 28
"""Operations from which on NumPy's BLAS computes a product. After smaller ones its threads, which spin for 25 ms, would
take the cores from the convolution that follows: a step of LeNet-5 took 8 ms instead of 4."""


_FLOATS = (NATIVE["float32"], NATIVE["float64"])


@functools.lru_cache(maxsize=1024)
def _request(direction: str, n: int, features: int, units: int, dtype: np.dtype) -> Request | None:
    """How a 1x1 convolution of one row of n pixels computes the product; None for one input and for large products."""
    if n < 2 or not features or not units or 2 * n * features * units >= _FOR_BLAS:
        return None
    return request(direction, (1, 1, n, features), (1, 1, features, units), dtype, 1, 0, 1, 1, "NHWC", "exact")


def _at_once(
    direction: str, first: Any, second: Any, sizes: tuple[int, int, int], out: Any, epilogue: Epilogue = PLAIN
) -> np.ndarray | None:  # fmt: skip
    """The product of matrices that lie as kernels read them, ten microseconds sooner; None where they do not.

    `sizes` are n, the features and the units, which fit each other.
    """
    if first.dtype not in _FLOATS or not (out is None or type(out) is np.ndarray):
        return None
    asked = _request(direction, *sizes, first.dtype)
    if asked is None:
        return None
    first, second = first[None, None], second[None, None]
    if not asked.takes(first, second, None if out is None else out[None, None]):
        return None
    if out is None:
        n, features, units = sizes
        shape = {"forward": (n, units), "grad_input": (n, features), "grad_weight": (features, units)}[direction]
        out = np.empty(shape, first.dtype)
    asked.run(first, second, out[None, None], epilogue)
    return out


def _matrix(name: str, value: Any) -> np.ndarray:
    array = array_argument(name, value)
    if array.ndim != 2:
        raise ValueError(f"{name} must have 2 axes (features, units), got shape {array.shape}")
    return array


def _rows(name: str, value: Any, axis: str) -> np.ndarray:
    array = array_argument(name, value)
    if array.ndim not in (1, 2):
        raise ValueError(f"{name} must have shape (n, {axis}) or ({axis},), got {array.shape}")
    return array


def dense(
    x: Any, w: Any, bias: Any = None, *, activation: Any = None, out: np.ndarray | None = None
) -> np.ndarray:  # fmt: skip
    """Apply a fully connected layer: ``y = activation(x @ w + bias)``.

    Parameters
    ----------
    x : array of shape (n, features) or (features,)
        Inputs of float16, float32 or float64.
    w : array of shape (features, units)
        Weights, of the dtype of x.
    bias : array of shape (units,), optional
        Added to every row.
    activation : None, "relu" or a scalar function compiled with `numba.njit`
        Applied to each output value.
    out : array of the result's shape and dtype, optional
        Receives the result; it must not overlap with an input.

    Returns
    -------
    array of shape (n, units) or (units,)
        Of the inputs' dtype; float16 is computed in float32 and rounded once.

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not fit each other, or the activation is none.
    RuntimeError
        If the activation raises an exception; the output is then incomplete.

    Notes
    -----
    One input has no use for a cache: each weight is read once and used once, so memory sets the time. It runs
    through a kernel that reads the weights in order on all threads. Several inputs are the pixels of a 1x1 convolution,
    and large products run through NumPy's BLAS.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.dense(np.ones(3, np.float32), np.ones((3, 2), np.float32))
    array([3., 3.], dtype=float32)
    """
    x, w = _rows("x", x, "features"), _matrix("w", w)
    same_dtype("w", w, "x", x)
    if x.shape[-1] != w.shape[0]:
        raise ValueError(f"x must have {w.shape[0]} features for w of shape {w.shape}, got shape {x.shape}")
    if bias is not None:
        bias = array_argument("bias", bias)
        same_dtype("bias", bias, "w", w)
        expect_shape("bias", bias, (w.shape[1],), "one value for each unit")
    check_activation(activation)
    if x.ndim == 2 and (bias is None or out is None):
        epilogue = epilogue_for(bias, activation, COMPUTED[w.dtype])
        result = _at_once("forward", x, w, (len(x), *w.shape), out, epilogue)
        if result is not None:
            expect_no_failure(epilogue)
            return result
    return _dense(x, w, bias, activation, out)


@QUIET
def _dense(x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, activation: Any, out: Any) -> np.ndarray:
    """The layer on checked arrays."""
    shape, dtype = (*x.shape[:-1], w.shape[1]), compute_dtype("x", x.dtype)
    y = allocate(shape, dtype, x.dtype, out, {"x": x, "w": w, "bias": bias})
    values, weights = ready(x, dtype), ready(w, dtype)
    if values.size == values.shape[-1] and weights.size:
        start = np.zeros(w.shape[1], dtype) if bias is None else ready(bias, dtype)
        _one_row(values, weights, start, y.array)
    elif values.ndim == 2 and (asked := _request("forward", len(values), *w.shape, NATIVE[dtype])):
        epilogue = epilogue_for(bias, activation, dtype)
        asked.plan.operation.run(values[None, None], weights[None, None], y.array[None, None], epilogue)
        expect_no_failure(epilogue)
        activation = None  # the kernel has applied it
    else:
        np.matmul(values, weights, out=y.array)
        if bias is not None:
            y.array[...] += bias
    apply_activation(activation, y.array)
    return y.deliver()


@functools.lru_cache(maxsize=256)
def _planned_row(features: int, units: int, dtype: str, threads: int) -> launch.Launch:
    """The product of one row."""
    # Narrower strips where there would be too few for the threads, in whole cache lines.
    strip = min(_STRIP, -(-units // (threads * 16)) * 16)
    workspace = strip * NATIVE[dtype].itemsize
    plan = fill(kernels.DENSE, features=features, units=units, strip=strip, workspace_bytes=workspace)
    return launch.Launch(lambda: kernels.forward(dtype), dtype, plan, -(-units // strip), threads, workspace)


def _one_row(x: np.ndarray, w: np.ndarray, start: np.ndarray, y: np.ndarray) -> None:
    planned = _planned_row(*w.shape, COMPUTED[w.dtype], launch.threads_for(2 * w.size))
    planned(x.reshape(1, 1, 1, -1), w[None, None], start, y.reshape(1, 1, 1, -1))


def dense_grad_input(grad_y: Any, w: Any, *, out: np.ndarray | None = None) -> np.ndarray:
    """Gradient of a fully connected layer for its input: ``grad_y @ w.T``.

    Parameters
    ----------
    grad_y : array of shape (n, units) or (units,)
        Gradient for the output.
    w : array of shape (features, units)
        Weights.
    out : array of the result's shape and dtype, optional
        Receives the result.

    Returns
    -------
    array of shape (n, features) or (features,)

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not fit each other.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.dense_grad_input(np.ones(2, np.float32), np.ones((3, 2), np.float32))
    array([2., 2., 2.], dtype=float32)
    """
    grad_y, w = _rows("grad_y", grad_y, "units"), _matrix("w", w)
    same_dtype("w", w, "grad_y", grad_y)
    if grad_y.shape[-1] != w.shape[1]:
        raise ValueError(f"grad_y must have {w.shape[1]} units for w of shape {w.shape}, got shape {grad_y.shape}")
    result = _at_once("grad_input", grad_y, w, (len(grad_y), *w.shape), out) if grad_y.ndim == 2 else None
    return _grad_input(grad_y, w, out) if result is None else result


@QUIET
def _grad_input(grad_y: np.ndarray, w: np.ndarray, out: Any) -> np.ndarray:
    """The gradient of checked arrays."""
    shape, dtype = (*grad_y.shape[:-1], w.shape[0]), compute_dtype("grad_y", grad_y.dtype)
    grad_x = allocate(shape, dtype, grad_y.dtype, out, {"grad_y": grad_y, "w": w})
    gradient, weights = ready(grad_y, dtype), ready(w, dtype)
    if gradient.ndim == 2 and (asked := _request("grad_input", len(gradient), *w.shape, NATIVE[dtype])):
        asked.plan.operation.run(gradient[None, None], weights[None, None], grad_x.array[None, None])
    else:
        np.matmul(gradient, weights.T, out=grad_x.array)
    return grad_x.deliver()


def dense_grad_weight(grad_y: Any, x: Any, *, out: np.ndarray | None = None) -> np.ndarray:
    """Gradient of a fully connected layer for its weights: ``x.T @ grad_y``.

    Parameters
    ----------
    grad_y : array of shape (n, units) or (units,)
        Gradient for the output.
    x : array of shape (n, features) or (features,)
        The layer's input.
    out : array of shape (features, units), optional
        Receives the result.

    Returns
    -------
    array of shape (features, units)

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not fit each other.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.dense_grad_weight(np.ones(2, np.float32), np.arange(3, dtype=np.float32))
    array([[0., 0.],
           [1., 1.],
           [2., 2.]], dtype=float32)
    """
    grad_y, x = _rows("grad_y", grad_y, "units"), _rows("x", x, "features")
    same_dtype("x", x, "grad_y", grad_y)
    if grad_y.shape[:-1] != x.shape[:-1]:
        raise ValueError(f"grad_y and x must have the same number of rows, got shapes {grad_y.shape} and {x.shape}")
    sizes = len(x), x.shape[-1], grad_y.shape[-1]
    result = _at_once("grad_weight", grad_y, x, sizes, out) if x.ndim == 2 else None
    return _grad_weight(grad_y, x, out) if result is None else result


@QUIET
def _grad_weight(grad_y: np.ndarray, x: np.ndarray, out: Any) -> np.ndarray:
    """The gradient of checked arrays."""
    shape, dtype = (x.shape[-1], grad_y.shape[-1]), compute_dtype("x", x.dtype)
    grad_w = allocate(shape, dtype, x.dtype, out, {"grad_y": grad_y, "x": x})
    gradient, values = np.atleast_2d(ready(grad_y, dtype)), np.atleast_2d(ready(x, dtype))
    if len(values) == 1:  # an outer product: twice as fast written directly as through BLAS
        np.multiply(values.T, gradient, out=grad_w.array)
    elif asked := _request("grad_weight", len(values), *shape, NATIVE[dtype]):
        asked.plan.operation.run(gradient[None, None], values[None, None], grad_w.array[None, None])
    else:
        np.matmul(values.T, gradient, out=grad_w.array)
    return grad_w.deliver()
