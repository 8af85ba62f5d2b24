"""The input gradient of few channels by way of what each output column gives to it: `fastconv.kernels.spread`, planned.

Channels and taps of a kernel row lie side by side in the weights and in the gradient's rows, and together they fill
vectors that channels alone leave mostly empty. So the gradient is that of a layer with kernels of one column, whose
channels are those of all taps, and whose image has the columns of the output; then the overlapping runs are added up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from fastconv.algorithms.base import PLAIN, Epilogue
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.base import Pass
from fastconv.algorithms.direct.grids import TASKS_PER_THREAD, grad_input_axes
from fastconv.cost import far_bytes
from fastconv.kernels import spread as kernels
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import Buffer, fill
from fastconv.kernels.target import vector_bytes
from fastconv.problem import ConvProblem

_THREAD_BYTES = 1 << 20
"""Runs that are kept at once for each thread, of several images: beside them there is room for the workspaces."""
_MOST_CHANNELS = 8


@dataclass(frozen=True, eq=False)
class SpreadPass(Pass):
    """The passes of the narrower layer for some images, and the launch that adds their runs up."""

    passes: tuple[Pass, ...]
    rest: SpreadPass | None
    """What does the last images, if they are fewer."""
    unused: np.ndarray
    """Stands for what sums begin with, which is nothing."""

    @property
    def _runs(self) -> ConvProblem:
        return self.passes[0].problem

    @property
    def _bytes(self) -> int:
        return math.prod(self._runs.x_shape) * self.problem.itemsize

    @property
    def workspace_bytes(self) -> int:
        """What the passes take, and the runs."""
        return max(step.workspace_bytes for step in self.passes) + self._bytes

    def describe(self) -> str:
        return f"kernel rows of {self._runs.ic} values side by side: {self.passes[0].describe()}"

    def seconds(self, rate: float) -> float:
        times = -(-self.problem.n // self._runs.n)
        each = sum(step.seconds(rate) for step in self.passes) + model.again_seconds(self.threads)
        work = self._bytes / self.problem.itemsize * model.SPREAD_SECONDS
        return times * (each + work / self.threads) + far_bytes(self.problem) * model.STREAM_SECONDS

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        count = self._runs.n
        w = second.reshape(self._runs.w_shape)
        with Buffer(self._bytes) as buffer:
            runs = buffer[: self._bytes].view(self.problem.dtype).reshape(self._runs.x_shape)
            for image in range(0, self.problem.n - count + 1, count):
                for step in self.passes:
                    step.run(first[image : image + count], w, runs)
                self.launch(runs, runs, self.unused, result[image : image + count])
        if self.rest is not None:
            self.rest.run(first[-self.rest.problem.n :], second, result[-self.rest.problem.n :])


Planner = Callable[[ConvProblem, str, int], tuple[Pass, ...]]


def plan_spread(problem: ConvProblem, threads: int, plan: Planner) -> SpreadPass | None:
    """Plan the launches, those of the narrower layer by `plan`; None where channels are not few, or runs are many."""
    (_, kw), (ih, iw), (oh, ow) = problem.kernel_size, problem.input_size, problem.output_size
    width, step, item = kw * problem.ic, problem.stride[1], problem.itemsize
    few = kw > 1 and problem.ic <= _MOST_CHANNELS and problem.ic < vector_bytes() // item
    if problem.layout != "NHWC" or problem.groups > 1 or problem.dilation[1] > 1 or not few or vector_bytes() == 16:
        return None
    if len(grad_input_axes(problem, 0)) < min(problem.stride[0], ih):  # some rows would never be written
        return None
    most = threads * _THREAD_BYTES // (ih * ow * width * item)
    if most == 0 or oh == 0:
        return None
    count = -(-problem.n // -(-problem.n // most))
    narrow = replace(
        problem, n=count, ic=width, input_size=(ih, ow), kernel_size=(problem.kernel_size[0], 1),
        stride=(problem.stride[0], 1), padding=(problem.padding[0], (0, 0)),
    )  # fmt: skip
    passes, rows = plan(narrow, "grad_input", threads), count * ih
    left = problem.n % count
    rest = plan_spread(replace(problem, n=left), threads, plan) if left else None
    template = fill(
        kernels.SPREAD, rows=rows, runs=ow, width=width, step=step * problem.ic,
        first=-problem.padding[1][0] * problem.ic, count=iw * problem.ic,
    )  # fmt: skip
    tasks = -(-rows // kernels.ROWS)
    launch = Launch(
        lambda: kernels.spread(problem.dtype), problem.dtype, template, tasks, threads,
        grain=max(1, tasks // (TASKS_PER_THREAD * threads)),
    )  # fmt: skip
    return SpreadPass(problem, threads, passes[0].tile, launch, passes, rest, np.zeros(1, problem.dtype))
