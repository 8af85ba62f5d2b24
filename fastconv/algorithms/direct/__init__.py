"""direct: register-tiled micro-kernels on the arrays as they lie, with no patch matrix.

Forward pass and input gradient are the same kernels. The input gradient of a strided convolution falls apart into one
dense convolution for each phase of the stride (`grids`): the input pixels of a phase meet the same taps, and no
multiplication with an inserted zero is ever made. Each dense sub-problem becomes a pass with output channels in the
vectors' lanes (`gather`), or with pixels (`strips`) where channels cannot fill them; so does the weight gradient
(`correlate`, `dots`).
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fastconv.algorithms.base import Algorithm, Epilogue, Estimate
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.correlate import CorrelatePass, plan_correlate
from fastconv.algorithms.direct.dots import DotPass, plan_dots
from fastconv.algorithms.direct.gather import GatherPass, plan_gather
from fastconv.algorithms.direct.grids import sub_problems
from fastconv.algorithms.direct.strips import StripPass, plan_strips
from fastconv.cost import conv_bytes, conv_flops
from fastconv.kernels import launch
from fastconv.problem import ConvProblem

if TYPE_CHECKING:
    from fastconv.machine import Machine

Pass = GatherPass | StripPass


@functools.lru_cache(maxsize=1024)
def plan_passes(problem: ConvProblem, direction: str, threads: int) -> tuple[Pass, ...]:
    """Plan the launches of a forward pass or input gradient, each the faster of the two kinds."""
    passes = []
    for rows, columns in sub_problems(problem, direction):
        kinds: list[Pass] = [plan_gather(problem, direction, rows, columns, threads)]
        strip = plan_strips(problem, direction, rows, columns, threads)
        if strip is not None:
            kinds.append(strip)
        passes.append(min(kinds, key=lambda kind: kind.seconds(model.NOMINAL_RATE)))
    return tuple(passes)


@functools.lru_cache(maxsize=1024)
def plan_weight_gradient(problem: ConvProblem, threads: int) -> CorrelatePass | DotPass:
    """Plan the launch of the weight gradient, the faster of the two kinds."""
    kinds: list[CorrelatePass | DotPass] = [plan_correlate(problem, threads)]
    dot = plan_dots(problem, threads)
    if dot is not None:
        kinds.append(dot)
    return min(kinds, key=lambda kind: kind.seconds(model.NOMINAL_RATE))


class Direct(Algorithm):
    """Register tiles over pixels and output channels, or over input and output channels for the weight gradient."""

    name = "direct"

    def estimate(self, problem: ConvProblem, direction: str, machine: Machine) -> Estimate:
        passes: tuple[Pass | CorrelatePass | DotPass, ...]
        if direction == "grad_weight":
            passes = (plan_weight_gradient(problem, machine.threads),)
        else:
            passes = plan_passes(problem, direction, machine.threads)
        traffic = conv_bytes(problem, direction) / machine.bandwidth
        seconds = sum(step.seconds(model.slot_rate(machine, step.tile)) for step in passes)
        workspace = max((step.workspace_bytes for step in passes), default=0)
        reason = passes[0].describe() if passes else "no output has a tap"
        return Estimate(max(seconds, traffic), workspace, reason)

    def prepared_key(self, problem: ConvProblem) -> Any:
        return self._forward_pass(problem).prepared_key

    def prepare(self, problem: ConvProblem, w: np.ndarray) -> np.ndarray:
        return self._forward_pass(problem).prepare(w)

    def _forward_pass(self, problem: ConvProblem) -> Pass:
        (step,) = plan_passes(problem, "forward", launch.threads_for(conv_flops(problem)))
        return step

    def forward(
        self, problem: ConvProblem, x: np.ndarray, w: np.ndarray, epilogue: Epilogue, y: np.ndarray, prepared: Any
    ) -> None:
        self._forward_pass(problem).run(x, w, prepared, epilogue, y)

    def grad_input(self, problem: ConvProblem, grad_y: np.ndarray, w: np.ndarray, grad_x: np.ndarray) -> None:
        passes = plan_passes(problem, "grad_input", launch.threads_for(conv_flops(problem)))
        if len(passes) < math.prod(min(*pair) for pair in zip(problem.stride, problem.input_size)):
            grad_x[...] = 0  # the pixels of the other phases were never read
        for step in passes:
            step.run(grad_y, w, None, Epilogue(), grad_x)

    def grad_weight(self, problem: ConvProblem, grad_y: np.ndarray, x: np.ndarray, grad_w: np.ndarray) -> None:
        plan_weight_gradient(problem, launch.threads_for(conv_flops(problem))).run(x, grad_y, grad_w)
