"""The weight gradient of few output channels as that of a layer whose outputs are several pixels abreast, planned.

Six channels fill six of sixteen lanes, and two pixels of six channels twelve. The pixels beside each other are taken
for one pixel of all their channels, which moves nothing in memory: that is the output of a layer whose stride is the
step from one such group to the next, and whose kernels reach over all windows of a group. The gradient for a tap is the
sum of those that its places in these wider kernels have for the pixels in turn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from fastconv.algorithms.base import PLAIN, Epilogue
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.base import Pass
from fastconv.algorithms.direct.correlate import CorrelatePass, plan_correlate
from fastconv.kernels.params import Buffer
from fastconv.kernels.target import vector_bytes
from fastconv.problem import ConvProblem, canonical_weights

_MOST_ABREAST = 4
"""Pixels of a group: kernels grow with them, and the taps of theirs that are no pixel's are multiplied for nothing."""


@dataclass(frozen=True, eq=False)
class AbreastPass(Pass):
    """The wider layer's weight gradient, and the sum over its pixels."""

    other: CorrelatePass
    pixels: int

    @property
    def _bytes(self) -> int:
        return math.prod(self.other.problem.w_shape) * self.problem.itemsize

    @property
    def workspace_bytes(self) -> int:
        """What the wider layer takes, and its gradient."""
        return self.other.workspace_bytes + self._bytes

    def describe(self) -> str:
        share = model.filled(self.other.problem.oc, self.tile.VL)
        return model.describe(self.tile, f"output channels of {self.pixels} pixels", share)

    def seconds(self, rate: float) -> float:
        values = math.prod(self.problem.w_shape) * self.pixels
        return self.other.seconds(rate) + values * model.ADD_SECONDS + self.pixels * model.ARRAY_SECONDS

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        problem, step, kw = self.problem, self.problem.stride[1], self.problem.kernel_size[1]
        total = canonical_weights(result, problem.layout)
        with Buffer(self._bytes) as buffer:
            wide = buffer[: self._bytes].view(problem.dtype).reshape(self.other.problem.w_shape)
            self.other.run(first, second, wide)
            by_pixel = canonical_weights(wide, problem.layout).reshape(*total.shape[:1], -1, problem.ic, self.pixels,
                                                                       problem.oc)  # fmt: skip
            parts = [by_pixel[:, q * step : q * step + kw, :, q] for q in range(self.pixels)]
            np.add(parts[0], parts[1], out=total)
            for part in parts[2:]:
                total += part


def _wider(problem: ConvProblem, pixels: int) -> ConvProblem:
    """The layer whose outputs are groups of so many pixels."""
    (kh, kw), (rows, columns) = problem.kernel_size, problem.stride
    kw += (pixels - 1) * columns
    return replace(problem, oc=pixels * problem.oc, kernel_size=(kh, kw), stride=(rows, pixels * columns))


def plan_abreast(problem: ConvProblem, threads: int) -> AbreastPass | None:
    """Plan the launch; None where the channels of a pixel fill a vector, or rows have no whole number of groups.

    Nor where windows are apart: most taps of the wider kernels would be no pixel's, and there may be millions.
    """
    lanes = vector_bytes() // problem.itemsize
    if problem.layout == "NCHW" or problem.groups > 1 or problem.dilation[1] > 1 or 2 * problem.oc > lanes:
        return None
    if problem.stride[1] > problem.kernel_size[1]:
        return None
    fitting = [m for m in range(2, _MOST_ABREAST + 1) if problem.output_size[1] % m == 0 and m * problem.oc <= lanes]
    passes = [AbreastPass(problem, threads, other.tile, other.launch, other, m) for m in fitting
              for other in (plan_correlate(_wider(problem, m), threads),)]  # fmt: skip
    return min(passes, key=lambda step: step.seconds(model.nominal_rate()), default=None)
