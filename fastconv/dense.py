"""The fully connected layer, which a convolution replaces, and its gradients."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.arrays import QUIET, ready
from fastconv.epilogue import apply_activation, check_activation, epilogue_for, expect_no_failure
from fastconv.kernels import dense as kernels
from fastconv.kernels import launch
from fastconv.kernels.params import address, fill
from fastconv.operands import allocate, array_argument, expect_shape, same_dtype
from fastconv.plan import Plan, request
from fastconv.problem import compute_dtype

_STRIP = 512
"""Units of a task: their sums and four rows of their weights fit the first cache level."""


_FOR_BLAS = 1 << 28
"""Operations from which on NumPy's BLAS computes a product. After smaller ones its threads, which spin for 25 ms, would
take the cores from the convolution that follows: a step of LeNet-5 took 8 ms instead of 4."""


def _plan(direction: str, n: int, w_shape: tuple[int, ...], dtype: str) -> Plan | None:
    """How a 1x1 convolution of one row of n pixels computes the product; None for one input and for large products."""
    features, units = w_shape
    if n < 2 or not features or not units or 2 * n * features * units >= _FOR_BLAS:
        return None
    return request(direction, (1, 1, n, features), (1, 1, *w_shape), np.dtype(dtype), 1, 0, 1, 1, "NHWC", "exact").plan


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


@QUIET
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
    shape, dtype = (*x.shape[:-1], w.shape[1]), compute_dtype("x", x.dtype)
    y = allocate(shape, dtype, x.dtype, out, {"x": x, "w": w, "bias": bias})
    values, weights = ready(x, dtype), ready(w, dtype)
    if values.size == values.shape[-1] and weights.size:
        start = np.zeros(w.shape[1], dtype) if bias is None else ready(bias, dtype)
        _one_row(values, weights, start, y.array)
    elif values.ndim == 2 and (plan := _plan("forward", len(values), w.shape, dtype)):
        epilogue = epilogue_for(bias, activation, dtype)
        plan.operation.run(values[None, None], weights[None, None], y.array[None, None], epilogue)
        expect_no_failure(epilogue)
        activation = None  # the kernel has applied it
    else:
        np.matmul(values, weights, out=y.array)
        if bias is not None:
            y.array[...] += bias
    apply_activation(activation, y.array)
    return y.deliver()


def _one_row(x: np.ndarray, w: np.ndarray, start: np.ndarray, y: np.ndarray) -> None:
    features, units = w.shape
    threads = launch.threads_for(2 * w.size)
    # Narrower strips where there would be too few for the threads, in whole cache lines.
    strip = min(_STRIP, -(-units // (threads * 16)) * 16)
    sums = np.empty((threads, strip), w.dtype)
    params = fill(
        kernels.DENSE, x=address(x), w=address(w), y=address(y), start=address(start), sums=address(sums),
        features=features, units=units, strip=strip, item=w.itemsize,
    )  # fmt: skip
    launch.run(kernels.forward(w.dtype.name), params, -(-units // strip), threads=threads)


@QUIET
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
    shape, dtype = (*grad_y.shape[:-1], w.shape[0]), compute_dtype("grad_y", grad_y.dtype)
    grad_x = allocate(shape, dtype, grad_y.dtype, out, {"grad_y": grad_y, "w": w})
    gradient, weights = ready(grad_y, dtype), ready(w, dtype)
    if gradient.ndim == 2 and (plan := _plan("grad_input", len(gradient), w.shape, dtype)):
        plan.operation.run(gradient[None, None], weights[None, None], grad_x.array[None, None])
    else:
        np.matmul(gradient, weights.T, out=grad_x.array)
    return grad_x.deliver()


@QUIET
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
    shape, dtype = (x.shape[-1], grad_y.shape[-1]), compute_dtype("x", x.dtype)
    grad_w = allocate(shape, dtype, x.dtype, out, {"grad_y": grad_y, "x": x})
    gradient, values = np.atleast_2d(ready(grad_y, dtype)), np.atleast_2d(ready(x, dtype))
    if len(values) == 1:  # an outer product: twice as fast written directly as through BLAS
        np.multiply(values.T, gradient, out=grad_w.array)
    elif plan := _plan("grad_weight", len(values), shape, dtype):
        plan.operation.run(gradient[None, None], values[None, None], grad_w.array[None, None])
    else:
        np.matmul(values.T, gradient, out=grad_w.array)
    return grad_w.deliver()
