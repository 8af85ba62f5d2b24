"""Depthwise layers in NHWC as planes, some channels after others: for what reads a plane much faster than its pixels.

The images are turned, the planes computed by an algorithm that takes them in NCHW, and its result is turned back.
Weights are turned with their images.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fastconv.algorithms.base import PLAIN, Epilogue, Estimate, Operation, scratch_limit
from fastconv.algorithms.transposed import transposition, turning_seconds
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import Buffer, aligned
from fastconv.problem import ConvProblem

if TYPE_CHECKING:
    from fastconv.machine import Machine

_LEAST_CHANNELS = 16
"""Channels that are turned together: a cache line of a pixel has as many."""

Planner = Callable[[ConvProblem, str, int], Operation]


class _Turn:
    """Launches between the pixels of some of the channels and planes, for `n` images of so many pixels."""

    def __init__(self, problem: ConvProblem, n: int, pixels: int, count: int, threads: int) -> None:
        item, all_channels = problem.itemsize, problem.groups
        flat, planes = (pixels * all_channels * item, all_channels * item), (count * pixels * item, pixels * item)
        self.to_planes = transposition(problem.dtype, n, pixels, count, flat, planes, threads, by_rows=True)
        self.to_pixels = transposition(problem.dtype, n, count, pixels, planes, flat, threads)
        self.size = n * count * pixels


class PlanarOperation(Operation):
    """An operation of another algorithm on the planes of `count` channels at a time."""

    def __init__(self, problem: ConvProblem, direction: str, threads: int, count: int, plan: Planner) -> None:
        self.problem = problem
        self.direction = direction
        self._threads = threads
        self._spans = [(first, min(first + count, problem.groups)) for first in range(0, problem.groups, count)]
        self._parts = functools.cache(lambda channels: self._part(channels, plan))
        parts = [self._parts(end - first) for first, end in self._spans]
        moved = max(sum(turn.size for turn in turns) for _, turns in parts) * problem.itemsize
        self._moved = moved
        self.workspace_bytes = moved + max(inner.workspace_bytes for inner, _ in parts)
        self.prepared_key = self

    def _part(self, channels: int, plan: Planner) -> tuple[Operation, tuple[_Turn, _Turn, _Turn]]:
        """The operation on the planes of so many channels, and what turns its two operands and its result."""
        problem, threads = self.problem, self._threads
        inner = plan(
            replace(problem, ic=channels, oc=channels, groups=channels, layout="NCHW"), self.direction, threads
        )
        x, y = (
            _Turn(problem, problem.n, math.prod(size), channels, threads)
            for size in (problem.input_size, problem.output_size)
        )
        w = _Turn(problem, 1, math.prod(problem.kernel_size), channels, threads)
        return inner, {"forward": (x, w, y), "grad_input": (y, w, x), "grad_weight": (y, x, w)}[self.direction]

    def estimate(self, machine: Machine) -> Estimate:
        seconds, reason = 0.0, ""
        for first, end in self._spans:
            inner, turns = self._parts(end - first)
            estimate = inner.estimate(machine)
            moving = sum(turning_seconds(turn.size, self._threads) for turn in turns)
            seconds, reason = seconds + estimate.seconds + moving, estimate.reason
        return Estimate(seconds, f"turned to planes, {self._spans[0][1]} channels at a time: {reason}")

    def _shapes(self, channels: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The shapes of the operands and the result in planes."""
        problem = self._parts(channels)[0].problem  # type: ignore[attr-defined]
        x, w, y = problem.x_shape, problem.w_shape, problem.y_shape
        return {"forward": (x, w, y), "grad_input": (y, w, x), "grad_weight": (y, x, w)}[self.direction]

    def _turn(self, launch: Launch, source: np.ndarray, target: np.ndarray) -> None:
        launch(source, source, _UNUSED[self.problem.dtype], target)

    def prepare(self, w: np.ndarray) -> Any:
        prepared = []
        for first, end in self._spans:
            inner, (_, turn, _) = self._parts(end - first)
            turned = aligned(self._shapes(end - first)[1], self.problem.dtype)
            self._turn(turn.to_planes, w[..., first:end], turned)
            prepared.append((turned, inner.prepare(turned)))
        return prepared

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: Any = None,
    ) -> None:  # fmt: skip
        with Buffer(self._moved) as buffer:
            values = buffer[: self._moved].view(self.problem.dtype)
            for number, (begin, end) in enumerate(self._spans):
                inner, turns = self._parts(end - begin)
                planes, place = [], 0
                for turn, shape in zip(turns, self._shapes(end - begin), strict=True):
                    planes.append(values[place : place + turn.size].reshape(shape))
                    place += turn.size
                left, right, made = planes
                self._turn(turns[0].to_planes, first[..., begin:end], left)
                ready = None
                if prepared is None:
                    self._turn(turns[1].to_planes, second[..., begin:end], right)
                else:
                    right, ready = prepared[number]
                inner.run(left, right, made, _of_channels(epilogue, begin, end), ready)
                self._turn(turns[2].to_pixels, made, result[..., begin:end])


_UNUSED = {dtype: np.zeros(1, dtype) for dtype in ("float32", "float64")}
"""Stands for what sums begin with, which turning has none of."""


def _of_channels(epilogue: Epilogue, first: int, end: int) -> Epilogue:
    """What happens to the output of some channels."""
    if epilogue.bias is None:
        return epilogue
    part = Epilogue(np.ascontiguousarray(epilogue.bias[first:end]))
    part.relu, part.activation, part.failed_address = epilogue.relu, epilogue.activation, epilogue.failed_address
    return part


def plan_planar(problem: ConvProblem, direction: str, threads: int, plan: Planner) -> PlanarOperation | None:
    """Plan it; None for other layers than depthwise ones in NHWC, or where no channels' planes fit the scratch."""
    channels = problem.groups
    if problem.layout != "NHWC" or not (problem.ic == problem.oc == channels >= _LEAST_CHANNELS):
        return None
    count = channels
    while count >= _LEAST_CHANNELS:
        operation = PlanarOperation(problem, direction, threads, count, plan)
        if operation.workspace_bytes <= scratch_limit(problem, threads):
            return operation
        count = -(-count // 2 // _LEAST_CHANNELS) * _LEAST_CHANNELS if count > _LEAST_CHANNELS else 0
    return None
