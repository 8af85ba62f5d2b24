"""What training a network needs beside convolutions and dense layers: pooling, ReLU, the loss, updates of weights."""

from __future__ import annotations

import numpy as np

from fastconv.arrays import ready
from fastconv.kernels import activation as kernels
from fastconv.kernels import launch, softmax
from fastconv.operands import ArrayLike, allocate, array_argument, check_out, expect_shape, same_dtype
from fastconv.pooling import avg_pool2d, avg_pool2d_grad_input, max_pool2d, max_pool2d_grad_input
from fastconv.problem import compute_dtype
from fastconv.update import adam_update, sgd_update

__all__ = [
    "adam_update",
    "avg_pool2d",
    "avg_pool2d_grad_input",
    "max_pool2d",
    "max_pool2d_grad_input",
    "relu",
    "relu_grad_input",
    "sgd_update",
    "softmax_cross_entropy",
]


def relu(x: ArrayLike, *, out: np.ndarray | None = None) -> np.ndarray:
    """Replace negative values by 0.

    Parameters
    ----------
    x : array of any shape
        Of float16, float32 or float64.
    out : array of the shape and dtype of x, optional
        Receives the result; it may be x itself.

    Returns
    -------
    array of the shape of x
        NaN stays NaN.

    Raises
    ------
    ValueError, TypeError
        If a dtype or `out` does not fit.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.nn.relu(np.array([-1, 2], np.float32))
    array([0., 2.], dtype=float32)
    """
    x = array_argument("x", x)
    if out is not None:
        check_out(out, x.shape, x.dtype, {})
    return np.maximum(x, x.dtype.type(0), out=out)


def relu_grad_input(grad_y: ArrayLike, y: ArrayLike, *, out: np.ndarray | None = None) -> np.ndarray:
    """Gradient of `relu` for its input: grad_y where y is not 0.

    Parameters
    ----------
    grad_y : array
        Gradient for the output.
    y : array of the shape and dtype of grad_y
        The result of `relu`; its input does as well.
    out : array of the same shape and dtype, optional
        Receives the result; it may be grad_y itself.

    Returns
    -------
    array of the shape of grad_y

    Raises
    ------
    ValueError, TypeError
        If shapes, dtypes or `out` do not fit.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.nn.relu_grad_input(np.array([5, 5], np.float32), np.array([0, 2], np.float32))
    array([0., 5.], dtype=float32)
    """
    grad_y, y = array_argument("grad_y", grad_y), array_argument("y", y)
    same_dtype("y", y, "grad_y", grad_y)
    expect_shape("y", y, grad_y.shape, "the shape of grad_y")
    dtype = compute_dtype("grad_y", grad_y.dtype)
    others = {"y": y} if out is grad_y else {"y": y, "grad_y": grad_y}
    grad_x = allocate(grad_y.shape, dtype, grad_y.dtype, out, others)
    gradient, values = ready(grad_y, dtype), ready(y, dtype)
    launch.run_flat(kernels.relu_gradient(dtype), dtype, gradient, values, grad_x.array, values)
    return grad_x.deliver()


def softmax_cross_entropy(logits: ArrayLike, labels: ArrayLike, *, smoothing: float = 0.0) -> tuple[float, np.ndarray]:
    """Mean cross-entropy between the softmax of the logits and the labels, and its gradient.

    Parameters
    ----------
    logits : array of shape (n, classes)
        Of float16, float32 or float64.
    labels : array of shape (n,)
        The right class of each row, integers from 0.
    smoothing : float from 0 to 1, default 0
        Share of the target that is spread evenly over all classes instead of given to the label.

    Returns
    -------
    loss : float
        Without smoothing ``mean(log(sum(exp(logits))) - logits[label])``, with no overflow for large logits.
    grad_logits : array of shape (n, classes)
        Gradient of the loss, of the dtype of the logits.

    Raises
    ------
    ValueError, TypeError
        If shapes do not fit, there is no row, a label is no class, or `smoothing` is not from 0 to 1.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> loss, grad = fastconv.nn.softmax_cross_entropy(np.zeros((1, 4), np.float32), [2])
    >>> round(loss, 4), grad
    (1.3863, array([[ 0.25,  0.25, -0.75,  0.25]], dtype=float32))
    """
    logits, labels = array_argument("logits", logits), np.asarray(labels)
    if logits.ndim != 2 or logits.size == 0:
        raise ValueError(f"logits must have shape (n, classes) with at least one of each, got {logits.shape}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    n, classes = logits.shape
    expect_shape("labels", labels, (n,), "one label for each row of logits")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels must be from 0 to {classes - 1}, got {labels.min()} to {labels.max()}")
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing must be from 0 to 1, got {smoothing!r}")
    dtype = compute_dtype("logits", logits.dtype)
    grad = np.empty((n, classes), dtype)
    loss = softmax.cross_entropy(dtype)()(ready(logits, dtype), ready(labels, "int64"), smoothing, grad)
    return loss, grad.astype(logits.dtype.newbyteorder("="), copy=False)
