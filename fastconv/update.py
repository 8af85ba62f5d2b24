"""Updates of weights, in place: check, run. The public names are those of `fastconv.nn`."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.arrays import ready
from fastconv.kernels import launch
from fastconv.kernels import update as kernels
from fastconv.operands import ArrayLike, array_argument, expect_shape, same_dtype
from fastconv.problem import COMPUTED

_CHANGEABLE = (np.dtype("float32"), np.dtype("float64"))


def sgd_update(
    w: np.ndarray, grad_w: ArrayLike, velocity: np.ndarray, *, rate: float, momentum: float = 0.9
) -> None:  # fmt: skip
    """Make a step of stochastic gradient descent with momentum.

    ``velocity = momentum * velocity + grad_w``, then ``w = w - rate * velocity``, in one pass.

    Parameters
    ----------
    w : array of any shape, float32 or float64
        Weights, which are changed. They must be C-contiguous and writeable.
    grad_w : array of the shape and dtype of w
        Gradient for the weights.
    velocity : array like w
        Zeros before the first step; it is changed.
    rate, momentum : float
        Learning rate, and how much of the velocity stays.

    Raises
    ------
    ValueError, TypeError
        If an array does not fit, or cannot be changed.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> w, velocity = np.ones(2), np.zeros(2)
    >>> fastconv.nn.sgd_update(w, np.array([1.0, -1.0]), velocity, rate=0.5)
    >>> w
    array([0.5, 1.5])
    """
    _run(kernels.sgd, w, grad_w, {"velocity": velocity}, (rate, momentum))


def adam_update(
    w: np.ndarray,
    grad_w: ArrayLike,
    first: np.ndarray,
    second: np.ndarray,
    *,
    step: int,
    rate: float,
    decays: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
) -> None:
    """Make a step of Adam, with weight decay apart from the gradient (AdamW), in one pass.

    Parameters
    ----------
    w : array of any shape, float32 or float64
        Weights, which are changed. They must be C-contiguous and writeable.
    grad_w : array of the shape and dtype of w
        Gradient for the weights.
    first, second : array like w
        The moments: zeros before the first step; they are changed.
    step : int
        Number of this step, from 1 on.
    rate : float
        Learning rate.
    decays : (float, float), default (0.9, 0.999)
        How much of each moment stays.
    epsilon : float, default 1e-8
        Added to the root of the second moment.
    weight_decay : float, default 0
        The weights shrink by this times the rate.

    Raises
    ------
    ValueError, TypeError
        If an array does not fit or cannot be changed, or `step` is below 1.

    References
    ----------
    Kingma and Ba, "Adam: a method for stochastic optimization", 2014; Loshchilov and Hutter, "Decoupled weight decay
    regularization", 2017.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> w, first, second = np.ones(2), np.zeros(2), np.zeros(2)
    >>> fastconv.nn.adam_update(w, np.array([3.0, -3.0]), first, second, step=1, rate=0.5)
    >>> w.round(6)
    array([0.5, 1.5])
    """
    if step < 1:
        raise ValueError(f"step must be at least 1, got {step!r}")
    settings = (
        rate / (1 - decays[0] ** step), 1 - decays[0], 1 - decays[1], 1 / (1 - decays[1] ** step), epsilon,
        rate * weight_decay,
    )  # fmt: skip
    _run(kernels.adam, w, grad_w, {"first": first, "second": second}, settings)


def _run(make: Any, w: Any, grad_w: Any, remembered: dict[str, Any], settings: tuple[float, ...]) -> None:
    for name, array in {"w": w, **remembered}.items():
        _changeable(name, array)
        same_dtype(name, array, "w", w)
        expect_shape(name, array, w.shape, "the shape of w")
    grad_w = array_argument("grad_w", grad_w)
    same_dtype("grad_w", grad_w, "w", w)
    expect_shape("grad_w", grad_w, w.shape, "the shape of w")
    dtype = COMPUTED[w.dtype]
    first, second = (*remembered.values(), w)[:2]
    numbers = (*map(float, settings), *launch.NO_SETTINGS)[: len(launch.NO_SETTINGS)]
    launch.run_flat(make(dtype), dtype, w, ready(grad_w, dtype), first, second, numbers)


def _changeable(name: str, array: Any) -> None:
    """Refuse what a kernel cannot change in place."""
    if not isinstance(array, np.ndarray) or array.dtype not in _CHANGEABLE:
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(f"{name} must be a numpy array of float32 or float64, got {kind}")
    if not array.flags.carray:
        raise ValueError(f"{name} must be C-contiguous, aligned and writeable: it is changed in place")
