"""What is timed: a task (one case in one direction, with its data) and a contender that prepares a call for it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import fastconv
from bench.shapes import ConvCase
from fastconv.plan import Plan

TOLERANCE = {"float32": 1e-4, "float64": 1e-12}
"""Largest difference from the expected result, as a fraction of its largest value.

float32 sums of a million products differ by some 1e-5 of that between orders of summation, FFT and Winograd by a few
times as much; a wrong pixel differs by about 1.
"""
REFERENCE = "naive"
"""The algorithm that is there to be read and tested against, not to be fast."""

_NCHW, _NHWC = (0, 3, 1, 2), (0, 2, 3, 1)
_OIHW, _HWIO = (3, 2, 0, 1), (2, 3, 1, 0)


@dataclass(frozen=True)
class Task:
    """One case in one direction. Arrays are NHWC, weights HWIO; `first` and `second` are what the direction reads.

    ============  ======  ======  ========
    direction     first   second  result
    ============  ======  ======  ========
    forward       x       w       y
    grad_input    grad_y  w       grad_x
    grad_weight   grad_y  x       grad_w
    ============  ======  ======  ========
    """

    case: ConvCase
    direction: str
    first: np.ndarray
    second: np.ndarray

    @classmethod
    def make(cls, case: ConvCase, direction: str, image: np.ndarray | None = None, dtype: Any = "float32") -> Task:
        """Fill a task with random data, the same at every run; `image` takes the place of a random x."""
        rng = np.random.default_rng(0)

        def random(shape: tuple[int, ...]) -> np.ndarray:
            return rng.standard_normal(shape, np.dtype(dtype))

        def x() -> np.ndarray:
            return random(case.x_shape) if image is None else image

        first = x() if direction == "forward" else random(case.y_shape)
        second = x() if direction == "grad_weight" else random(case.w_shape)
        return cls(case, direction, first, second)

    @property
    def dtype(self) -> str:
        return self.first.dtype.name

    @property
    def result_shape(self) -> tuple[int, int, int, int]:
        shapes = {
            "forward": self.case.y_shape,
            "grad_input": self.case.x_shape,
            "grad_weight": self.case.w_shape,
        }
        return shapes[self.direction]

    def zeros(self) -> np.ndarray:
        """Allocate a result. It is written to once, so that its first use takes no page faults."""
        result = np.empty(self.result_shape, self.dtype)
        result.fill(0)
        return result

    def channels_first(self) -> tuple[np.ndarray, np.ndarray]:
        """Return copies of both operands with images as NCHW and weights as OIHW."""
        second = _NCHW if self.direction == "grad_weight" else _OIHW
        return np.ascontiguousarray(self.first.transpose(_NCHW)), np.ascontiguousarray(self.second.transpose(second))

    def zeros_channels_first(self) -> np.ndarray:
        """Allocate a result as NCHW or OIHW."""
        axes = _OIHW if self.direction == "grad_weight" else _NCHW
        return np.ascontiguousarray(self.zeros().transpose(axes))

    def channels_last(self, result: np.ndarray) -> np.ndarray:
        """View a result of NCHW or OIHW as NHWC or HWIO."""
        return result.transpose(_HWIO if self.direction == "grad_weight" else _NHWC)


@dataclass(frozen=True)
class Prepared:
    """A call that is ready to be timed.

    Attributes
    ----------
    run
        Does the work. Data was converted to the library's own types and layout beforehand.
    as_numpy
        Turns what `run` returns into fastconv's result for the same task (NHWC, HWIO), outside the timing.
    operands
        What must live as long as the call: some libraries keep addresses only.
    """

    run: Callable[[], Any]
    as_numpy: Callable[[Any], np.ndarray]
    operands: tuple[Any, ...] = ()


class Contender(ABC):
    """Something that can compute a task."""

    name: str

    @abstractmethod
    def supports(self, case: ConvCase, direction: str, dtype: str = "float32") -> str | None:
        """Return why this contender cannot take that problem, or None if it can."""

    @abstractmethod
    def prepare(self, task: Task) -> Prepared:
        """Convert the task's data and return the call to time."""


class Fastconv(Contender):
    """fastconv with one value of ``algorithm=``, writing to an array that it is given.

    Parameters
    ----------
    layout
        Of the arrays that it reads and writes.
    packed
        Whether the weights were packed before the call, by `fastconv.prepare_conv2d`.
    """

    def __init__(self, algorithm: str, layout: str = "NHWC", packed: bool = False) -> None:
        self.algorithm = algorithm
        self.layout = layout
        self.packed = packed
        self.name = algorithm

    def plan(self, case: ConvCase, direction: str, dtype: str = "float32") -> Plan:
        """Ask fastconv for its plan of a case."""
        return plan(case, direction, self.algorithm, dtype, self.layout)

    def supports(self, case: ConvCase, direction: str, dtype: str = "float32") -> str | None:
        if self.packed and direction != "forward":
            return "fastconv packs weights for the forward pass only"
        try:
            self.plan(case, direction, dtype)
        except ValueError as error:
            return str(error)
        return None

    def prepare(self, task: Task) -> Prepared:
        case = task.case
        if self.layout == "NHWC":
            first, second, out, as_numpy = task.first, task.second, task.zeros(), np.asarray
        else:
            (first, second), out, as_numpy = task.channels_first(), task.zeros_channels_first(), task.channels_last
        options = {**case.parameters, "algorithm": self.algorithm, "layout": self.layout}
        if self.packed:
            layer = fastconv.prepare_conv2d(second, input_shape=first.shape, **options)
            return Prepared(lambda: layer(first, out=out), as_numpy)
        x_shape = _x_shape(case, self.layout)
        calls = {
            "forward": lambda: fastconv.conv2d(first, second, out=out, **options),
            "grad_input": lambda: fastconv.conv2d_grad_input(first, second, x_shape, out=out, **options),
            "grad_weight": lambda: fastconv.conv2d_grad_weight(first, second, (case.kh, case.kw), out=out, **options),
        }
        return Prepared(calls[task.direction], as_numpy)


def plan(case: ConvCase, direction: str, algorithm: str = "auto", dtype: str = "float32", layout: str = "NHWC") -> Plan:
    """Ask fastconv for its plan of a case, which knows the parameters, FLOPs, bytes and the modelled time."""
    w_shape = case.w_shape if layout == "NHWC" else tuple(case.w_shape[axis] for axis in _OIHW)
    return fastconv.plan_conv2d(
        _x_shape(case, layout),
        w_shape,
        dtype=dtype,
        direction=direction,
        algorithm=algorithm,
        layout=layout,
        **case.parameters,
    )


def _x_shape(case: ConvCase, layout: str) -> tuple[int, ...]:
    return case.x_shape if layout == "NHWC" else tuple(case.x_shape[axis] for axis in _NCHW)


def concrete_algorithms() -> list[str]:
    """Return the algorithms themselves, without the names that choose among them."""
    return [name for name in fastconv.conv2d_algorithms() if name not in ("auto", "exact")]


class WrongResultError(Exception):
    """A contender's result is not that of fastconv, so its time means nothing."""


def require_equal(name: str, result: np.ndarray, expected: np.ndarray) -> None:
    """Raise WrongResultError unless a contender's result is the expected one within `TOLERANCE`."""
    if result.shape != expected.shape or result.dtype != expected.dtype:
        raise WrongResultError(
            f"{name}: a {result.dtype} result of shape {result.shape}, expected {expected.dtype} {expected.shape}"
        )
    scale = float(np.abs(expected).max(initial=0.0)) or 1.0
    error = float(np.abs(result - expected).max(initial=0.0)) / scale
    if math.isnan(error) or error > TOLERANCE[result.dtype.name]:
        raise WrongResultError(f"{name}: differs from fastconv by {error:.1e} of the largest value")
