"""Depthwise layers in NHWC as planes, some channels after others: for what reads a plane much faster than its pixels.

The images are turned, the planes computed by an algorithm that takes them in NCHW, and its result is turned back.
Weights are turned with their images.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from fastconv.algorithms.base import PLAIN, Epilogue, Operation, scratch_limit
from fastconv.algorithms.transposed import MovingOperation
from fastconv.algorithms.turning import transposition, turning_seconds
from fastconv.kernels.params import Buffer, aligned
from fastconv.problem import ConvProblem

_LEAST_CHANNELS = 16
"""Channels that are turned together: a cache line of a pixel has as many."""

Planner = Callable[[ConvProblem, str, int], Operation]


class _Turn:
    """Launches between the pixels of some of a layer's channels and their planes, which have a `shape`."""

    def __init__(self, problem: ConvProblem, matrices: int, shape: tuple[int, ...], threads: int) -> None:
        self.shape, item = shape, problem.itemsize
        self.size, pixels = math.prod(shape), math.prod(shape[2:])
        count, all_channels = self.size // (matrices * pixels), problem.groups
        flat, planes = (pixels * all_channels * item, all_channels * item), (count * pixels * item, pixels * item)
        self.to_planes = transposition(problem.dtype, matrices, pixels, count, flat, planes, threads, by_rows=True)
        self.to_pixels = transposition(problem.dtype, matrices, count, pixels, planes, flat, threads)


class PlanarOperation(MovingOperation):
    """An operation of another algorithm on the planes of `count` channels at a time."""

    def __init__(self, problem: ConvProblem, direction: str, threads: int, count: int, plan: Planner) -> None:
        self.problem = problem
        self.direction = direction
        self._threads = threads
        self._spans = [(first, min(first + count, problem.groups)) for first in range(0, problem.groups, count)]
        part = functools.cache(lambda channels: self._part(channels, plan))
        self._parts = [part(end - first) for first, end in self._spans]
        self._scratch = max(sum(turn.size for turn in turns) for _, turns in self._parts) * problem.itemsize
        self.workspace_bytes = self._scratch + max(operation.workspace_bytes for operation in self.inner)
        self.prepared_key = self

    def _part(self, channels: int, plan: Planner) -> tuple[Operation, tuple[_Turn, _Turn, _Turn]]:
        """The operation on the planes of so many channels, and what turns its two operands and its result."""
        problem, threads = self.problem, self._threads
        planes = replace(problem, ic=channels, oc=channels, groups=channels, layout="NCHW")
        x, y = (_Turn(problem, problem.n, shape, threads) for shape in (planes.x_shape, planes.y_shape))
        w = _Turn(problem, 1, planes.w_shape, threads)
        turns = {"forward": (x, w, y), "grad_input": (y, w, x), "grad_weight": (y, x, w)}[self.direction]
        return plan(planes, self.direction, threads), turns

    @property
    def inner(self) -> list[Operation]:
        return [operation for operation, _ in self._parts]

    def _moving_seconds(self) -> float:
        return sum(turning_seconds(turn.size, self._threads) for _, turns in self._parts for turn in turns)

    def _how(self) -> str:
        return f"turned to planes, {self._spans[0][1]} channels at a time"

    def prepare(self, w: np.ndarray) -> Any:
        prepared = []
        for (first, end), (operation, (_, turn, _)) in zip(self._spans, self._parts, strict=True):
            turned = aligned(turn.shape, self.problem.dtype)
            self._move(turn.to_planes, w[..., first:end], turned)
            prepared.append((turned, operation.prepare(turned)))
        return prepared

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: Any = None,
    ) -> None:  # fmt: skip
        with Buffer(self._scratch) as buffer:
            for number, ((begin, end), (operation, turns)) in enumerate(zip(self._spans, self._parts, strict=True)):
                places = itertools.accumulate((turn.size for turn in turns[:-1]), initial=0)
                left, right, made = (
                    self._view(buffer, place, turn.shape) for place, turn in zip(places, turns, strict=True)
                )
                self._move(turns[0].to_planes, first[..., begin:end], left)
                ready = None
                if prepared is None:
                    self._move(turns[1].to_planes, second[..., begin:end], right)
                else:
                    right, ready = prepared[number]
                operation.run(left, right, made, _of_channels(epilogue, begin, end), ready)
                self._move(turns[2].to_pixels, made, result[..., begin:end])


def _of_channels(epilogue: Epilogue, first: int, end: int) -> Epilogue:
    """What happens to the output of some channels."""
    if epilogue.bias is None:
        return epilogue
    part = Epilogue(np.ascontiguousarray(epilogue.bias[first:end]))
    part.end = epilogue.end
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
