"""The phases of a stride as one pass: their launches are chained (`fastconv.kernels.chain`), those that pack too.

One after another, small phases would spend most of their time on starting threads and on waiting for the last of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fastconv.algorithms.base import PLAIN, Epilogue, scratch_limit
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.base import Pass
from fastconv.algorithms.direct.depthwise import DepthwisePass
from fastconv.algorithms.direct.gathered import GatherPass
from fastconv.algorithms.direct.rolling_pixels import RollingPixelsPass
from fastconv.kernels.chain import Chain, Link, workspace_bytes
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import LINE, Buffer
from fastconv.problem import ConvProblem

_Part = GatherPass | DepthwisePass | RollingPixelsPass


@dataclass(frozen=True, eq=False)
class PhasesPass(Pass):
    """The chained launches of all phases, and those that pack the weights of the phases whose tasks do not."""

    parts: tuple[_Part, ...]
    multiply: Chain
    pack: Chain | None
    packed_bytes: int
    room: int
    """Bytes of the threads' workspaces."""

    @property
    def workspace_bytes(self) -> int:
        return self.room + self.packed_bytes

    def describe(self) -> str:
        return f"{len(self.parts)} phases of the stride at once: {self.parts[0].describe()}"

    def seconds(self, rate: float) -> float:
        part = self.parts[0]
        shared = part.turning_seconds if isinstance(part, DepthwisePass) else 0.0
        again = (len(self.parts) - 1) * (model.launch_seconds(self.threads) + shared)
        return sum(part.seconds(rate) for part in self.parts) - again

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        with Buffer(self.packed_bytes) as packed:
            if self.pack is not None:
                self.pack(second, second, second, packed)
            self.multiply(first, second, result, packed)


def plan_phases(problem: ConvProblem, parts: tuple[Pass, ...], threads: int) -> PhasesPass | None:
    """Chain the passes of a gradient's phases; None for one, for other kinds, or if all weights need too much room."""
    chained = tuple(part for part in parts if isinstance(part, _Part))
    if len(chained) < max(2, len(parts)):
        return None
    launches: list[Launch] = []
    packs: list[Link] = []
    multiplies: list[Link] = []
    packed_bytes = 0
    for part in chained:
        if isinstance(part, RollingPixelsPass):
            launches.append(part.launch)
            multiplies.append(Link(part.launch, part.zeros))
            continue
        if isinstance(part, DepthwisePass):
            launches.append(part.launch)
            if part.turn and not packs:  # one exchange of the weights' channels serves all phases
                packs.append(Link(part.turn, part.zeros, target=0))
                packed_bytes = -(-part.turned_bytes // LINE) * LINE
            multiplies.append(Link(part.launch, part.zeros, other=0) if part.turn else Link(part.launch, part.zeros))
            continue
        alone = part.unpacked
        launches.append(alone or part.launch)
        if alone:  # it takes the weights as they lie
            multiplies.append(Link(alone, part.zeros))
            continue
        packs.append(Link(part.pack, part.zeros, target=packed_bytes))
        multiplies.append(Link(part.launch, part.zeros, other=packed_bytes))
        packed_bytes += -(-math.prod(part.packed_shape) * problem.itemsize // LINE) * LINE
    room = workspace_bytes(launches)
    if room + packed_bytes > scratch_limit(problem, threads):
        return None
    pack = Chain(packs, problem.dtype) if packs else None
    multiply = Chain(multiplies, problem.dtype)
    tile, first = chained[0].tile, chained[0].launch
    return PhasesPass(problem, threads, tile, first, chained, multiply, pack, packed_bytes, room)
