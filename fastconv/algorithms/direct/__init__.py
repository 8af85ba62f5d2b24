"""direct: register-tiled micro-kernels on the arrays as they lie, with no patch matrix.

Forward pass and input gradient are the same kernels. The input gradient of a strided convolution falls apart into one
dense convolution for each phase of the stride (`grids`): the input pixels of a phase meet the same taps, and no
multiplication with an inserted zero is ever made. Each dense sub-problem becomes a pass with output channels in the
vectors' lanes (`gather`), or with pixels (`strips`) where channels cannot fill them; so does the weight gradient
(`correlate`, `dots`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from fastconv.algorithms.base import PLAIN, Algorithm, Epilogue, Estimate, Operation
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.base import Pass
from fastconv.algorithms.direct.correlate import plan_correlate
from fastconv.algorithms.direct.depthwise import plan_depthwise
from fastconv.algorithms.direct.depthwise_dots import plan_depthwise_dots
from fastconv.algorithms.direct.dots import plan_dots
from fastconv.algorithms.direct.gather import plan_gather
from fastconv.algorithms.direct.grids import sub_problems
from fastconv.algorithms.direct.strips import plan_strips
from fastconv.cost import conv_bytes
from fastconv.problem import ConvProblem

if TYPE_CHECKING:
    from fastconv.machine import Machine


def _faster(kinds: Iterable[Pass | None]) -> Pass:
    return min((kind for kind in kinds if kind is not None), key=lambda kind: kind.seconds(model.NOMINAL_RATE))


def plan_passes(problem: ConvProblem, direction: str, threads: int) -> tuple[Pass, ...]:
    """Plan the launches of a direction, each the fastest of the kinds that take it."""
    if direction == "grad_weight":
        return (_faster(plan(problem, threads) for plan in (plan_correlate, plan_dots, plan_depthwise_dots)),)
    return tuple(
        _faster(plan(problem, direction, rows, columns, threads) for plan in (plan_gather, plan_strips, plan_depthwise))
        for rows, columns in sub_problems(problem, direction)
    )


class Direct(Algorithm):
    """Register tiles over pixels and output channels, or over input and output channels for the weight gradient."""

    name = "direct"

    def plan(self, problem: ConvProblem, direction: str, threads: int) -> Operation:
        return DirectOperation(problem, direction, threads)


class DirectOperation(Operation):
    """One launch for each dense sub-problem."""

    def __init__(self, problem: ConvProblem, direction: str, threads: int) -> None:
        self.problem = problem
        self.direction = direction
        self.passes = plan_passes(problem, direction, threads)
        self.workspace_bytes = max((step.workspace_bytes for step in self.passes), default=0)
        phases = math.prod(min(*pair) for pair in zip(problem.stride, problem.input_size))
        self._leaves_gaps = direction == "grad_input" and len(self.passes) < phases
        if direction == "forward":
            self.prepared_key = self.passes[0].prepared_key

    def estimate(self, machine: Machine) -> Estimate:
        traffic = conv_bytes(self.problem, self.direction) / machine.bandwidth
        seconds = sum(step.seconds(model.slot_rate(machine, step.tile.VL)) for step in self.passes)
        reason = self.passes[0].describe() if self.passes else "no output has a tap"
        return Estimate(max(seconds, traffic), reason)

    def prepare(self, w: np.ndarray) -> np.ndarray:
        return self.passes[0].prepare(w)

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: Any = None,
    ) -> None:  # fmt: skip
        if self._leaves_gaps:
            result[...] = 0  # the pixels of the other phases were never read
        for step in self.passes:
            step.run(first, second, result, epilogue, prepared)
