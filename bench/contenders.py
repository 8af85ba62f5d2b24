"""What is timed: a task (one case in one direction, with its data) and a contender that prepares a call for it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import fastconv
from bench.cases import ConvCase

TOLERANCE = 1e-4
"""Largest difference from the expected result, as a fraction of its largest value.

float32 sums of a million products differ by some 1e-5 of that between orders of summation, FFT and Winograd by a few
times as much; a wrong pixel differs by about 1.
"""


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
    def make(cls, case: ConvCase, direction: str, image: np.ndarray | None = None) -> Task:
        """Fill a task with random data, the same at every run; `image` takes the place of a random x."""
        rng = np.random.default_rng(0)

        def random(shape: tuple[int, ...]) -> np.ndarray:
            return rng.standard_normal(shape, np.float32)

        def x() -> np.ndarray:
            return random(case.x_shape) if image is None else image

        first = x() if direction == "forward" else random(case.y_shape)
        second = x() if direction == "grad_weight" else random(case.w_shape)
        return cls(case, direction, first, second)

    @property
    def result_shape(self) -> tuple[int, int, int, int]:
        shapes = {
            "forward": self.case.y_shape,
            "grad_input": self.case.x_shape,
            "grad_weight": self.case.w_shape,
        }
        return shapes[self.direction]


@dataclass(frozen=True)
class Prepared:
    """A call that is ready to be timed.

    Attributes
    ----------
    run
        Does the work. Data was converted to the library's own types and layout beforehand.
    as_numpy
        Turns what `run` returns into fastconv's result for the same task (NHWC, HWIO), outside the timing.
    """

    run: Callable[[], Any]
    as_numpy: Callable[[Any], np.ndarray]


class Contender(ABC):
    """Something that can compute a task."""

    name: str

    @abstractmethod
    def supports(self, case: ConvCase, direction: str) -> str | None:
        """Return why this contender cannot take that problem, or None if it can."""

    @abstractmethod
    def prepare(self, task: Task) -> Prepared:
        """Convert the task's data and return the call to time."""


class Fastconv(Contender):
    """fastconv with one value of ``algorithm=``, writing to an array that it is given."""

    def __init__(self, algorithm: str) -> None:
        self.algorithm = algorithm
        self.name = algorithm

    def supports(self, case: ConvCase, direction: str) -> str | None:
        try:
            plan(case, direction, self.algorithm)
        except ValueError as error:
            return str(error)
        return None

    def prepare(self, task: Task) -> Prepared:
        case, first, second = task.case, task.first, task.second
        options = {
            **case.parameters,
            "algorithm": self.algorithm,
            "out": np.zeros(task.result_shape, np.float32),
        }
        calls = {
            "forward": lambda: fastconv.conv2d(first, second, **options),
            "grad_input": lambda: fastconv.conv2d_grad_input(first, second, case.x_shape, **options),
            "grad_weight": lambda: fastconv.conv2d_grad_weight(first, second, (case.kh, case.kw), **options),
        }
        return Prepared(calls[task.direction], np.asarray)


def plan(case: ConvCase, direction: str, algorithm: str = "auto") -> Any:
    """Ask fastconv for its plan of a case, which knows the parameters, FLOPs, bytes and the modelled time."""
    return fastconv.plan_conv2d(case.x_shape, case.w_shape, direction=direction, algorithm=algorithm, **case.parameters)


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
    if math.isnan(error) or error > TOLERANCE:
        raise WrongResultError(f"{name}: differs from fastconv by {error:.1e} of the largest value")
