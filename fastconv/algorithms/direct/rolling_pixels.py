"""Depthwise passes with channels in the lanes whose sums roll down the rows: `fastconv.kernels.rolling_pixels`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.base import Pass, ZerosPass
from fastconv.algorithms.direct.copies import sets_of
from fastconv.algorithms.direct.grids import TASKS_PER_THREAD, Axis, Roles, met_taps, roles, spread_of, tap_order
from fastconv.cost import leaves_caches
from fastconv.kernels import rolling_pixels as kernels
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import address, fill
from fastconv.kernels.target import PixelPairTile, PixelStripTile, registers, vector_bytes
from fastconv.problem import CHANNELS_LAST, ConvProblem

_MOST_TAPS = 16
"""Taps of a kernel whose weights stay in registers, or few of which do not."""
_MOST_PAIR_TAPS = 25
"""The same of an input gradient of stride 2, where each sum meets a part of them."""
MOST_WIDTH = 7
"""Pixels of a strip at most."""
STRIP_SLOTS = 6
"""Lost with every row of a strip, its pixels and the loads beside them aside."""
_LEAST_ROWS = 16
"""Rows of a block, at the beginning and end of which some source rows are read twice."""
_BLOCK_BYTES = 512 << 10
"""Source bytes of a strip's block, of all channels: a vector's lines are fetched with those of the one before."""
_ASKED_BLOCK_BYTES = 128 << 10
"""The same where the next strip's block is asked for meanwhile."""
_MEETING_SHARE = 0.7
"""Speed of strips whose pixels meet in one set of a cache."""


@dataclass(frozen=True, eq=False)
class RollingPixelsPass(ZerosPass):
    """The launch of a depthwise pass whose sums roll, planned; the zeros are padding, too."""

    def describe(self) -> str:
        p, width = self.launch.plan[0], self.tile.NV
        used = int(p["columns"]) / (int(p["strips"]) * width)
        return f"sums that roll down strips of {width} pixels with channels in the lanes, {used:.0%} of them new"

    def _row(self) -> tuple[int, float]:
        """Source rows that a strip visits, and the slots that one takes."""
        p, shape = self.launch.plan[0], self.tile
        blocks, height = int(p["row_blocks"]), shape.KH - 1
        there = int(p["source_rows"]) + height * (blocks - 1)
        row = shape.NV * (shape.KH * shape.KW + _around(1)) + shape.KW - 1 + STRIP_SLOTS
        return min(int(p["rows"]) + height * blocks * int(p["row_step"]), there), row

    def seconds(self, rate: float) -> float:
        p, (rows, row) = self.launch.plan[0], self._row()
        strips = self.problem.n * int(p["strips"] * (p["vectors"] + p["overlapping"]))
        costs = model.costs()
        slots = strips * (rows * row + int(p["row_blocks"] * p["row_step"]) * costs.rolling_plane)
        return strips_seconds(self, slots / costs.pixel_rolling_share, rate)


@dataclass(frozen=True, eq=False)
class PixelPairsPass(RollingPixelsPass):
    """The same for an input gradient of stride 2."""

    def describe(self) -> str:
        return f"sums of all phases that roll down strips of {2 * self.tile.NV} pixels with channels in the lanes"

    def _row(self) -> tuple[int, float]:
        p, shape = self.launch.plan[0], self.tile
        rows = int(p["source_rows"]) + int(p["row_blocks"] - 1) * (shape.KH // 2)
        return rows, shape.NV * (shape.KH * shape.KW + _around(4)) + shape.KW // 2 + STRIP_SLOTS


def strips_seconds(step: Pass, slots: float, rate: float) -> float:
    """The time of a launch that spends so many slots on strips of pixels."""
    work = slots / rate
    if sets_of(int(step.launch.plan["source_c"][0])) == 1:
        work /= _MEETING_SHARE
    work = max(work, model.planes_seconds(step.problem)) * model.balance(step.launch.tasks, step.threads)
    return model.launch_seconds(step.threads) + work / step.threads


def _around(targets: int) -> float:
    """Slots of loading a source vector and of storing so many target vectors."""
    return 1 + targets * model.costs().pixel_store


def _width(taps: int, sums: int, columns: int, slots: float) -> int:
    """Pixels of a strip, with `sums` and `slots` each, of so many columns.

    Weights and sums share the registers, but most weights may stay in memory. Among the widths that fit, the one wins
    that takes the fewest slots, also for what is computed twice.
    """
    room = registers() - min(taps, registers() // 4)
    most = max(1, min(MOST_WIDTH, room // sums, columns))
    return min(range(most, 0, -1), key=lambda width: -(-columns // width) * (width * slots + STRIP_SLOTS))


def plan_rolling_pixels(
    problem: ConvProblem, direction: str, rows: Axis, columns: Axis, threads: int
) -> RollingPixelsPass | None:
    """Plan the launch for one dense sub-problem; None for strides, groups of several channels, and large kernels."""
    part = roles(problem, direction)
    rows, columns = met_taps(rows, part.source_size[0]), met_taps(columns, part.source_size[1])
    taps = len(rows.taps) * len(columns.taps)
    if not is_depthwise(problem) or (rows.step, columns.step) != (1, 1) or taps > _MOST_TAPS:
        return None
    (offset_r, w_r), (offset_c, w_c) = tap_order(rows, part.weights[0]), tap_order(columns, part.weights[1])
    spread_r, spread_c = abs(spread_of(rows)), abs(spread_of(columns))
    width = _width(taps, len(rows.taps), columns.count // spread_c, taps + _around(1))
    lanes = vector_bytes() // problem.itemsize
    shape = PixelStripTile(lanes, len(rows.taps), len(columns.taps), width, asks=leaves_caches(problem))
    strips = sum(-(-len(range(phase, columns.count, spread_c)) // width) for phase in range(spread_c))
    row_bytes = (width + len(columns.taps) - 1) * part.source[2]
    row_block = row_block_of(rows.count, row_bytes, asks=shape.asks)
    zeros = np.zeros(problem.groups, problem.dtype)
    plan, tasks = _planned(
        problem, part, threads,
        target_offset=rows.first * part.target[1] + columns.first * part.target[2],
        target_r=part.target[1] * rows.every, target_c=part.target[2] * columns.every,
        weight_offset=offset_r + offset_c, weight_r=w_r, weight_c=w_c, zeros=address(zeros),
        rows=rows.count, columns=columns.count, target_columns=columns.count, first_row=min(rows.offsets),
        first_column=min(columns.offsets), row_step=spread_r, phases=spread_c, pace=1, row_block=row_block,
        strips=strips, width=width,
    )  # fmt: skip

    def compiled() -> CFunc:
        plan["entry"] = kernels.strip(problem.dtype, shape).address
        return kernels.rolling_pixels()

    return RollingPixelsPass(problem, threads, shape, Launch(compiled, problem.dtype, plan, tasks, threads), zeros)


def plan_pixel_pairs(problem: ConvProblem, threads: int) -> PixelPairsPass | None:
    """Plan the launch of an input gradient of stride 2, all phases at once; None for others, as the above."""
    kh, kw = problem.kernel_size
    if not is_depthwise(problem) or (problem.stride, problem.dilation) != ((2, 2), (1, 1)):
        return None
    if min(kh, kw) < 2 or kh * kw > _MOST_PAIR_TAPS:
        return None
    part = roles(problem, "grad_input")
    (low_r, _), (low_c, _) = problem.padding
    rows, columns = problem.input_size
    pairs = -(-columns // 2)
    width = _width(kh * kw, 2 * kh, pairs, kh * kw + _around(4))
    lanes = vector_bytes() // problem.itemsize
    shape = PixelPairTile(VL=lanes, KH=kh, KW=kw, PR=low_r % 2, PC=low_c % 2, NV=width, asks=leaves_caches(problem))
    row_block = row_block_of(rows, (width + kw // 2) * part.source[2] // 2, 2, shape.asks)
    zeros = np.zeros(problem.groups, problem.dtype)
    plan, tasks = _planned(
        problem, part, threads,
        target_offset=0, target_r=part.target[1], target_c=part.target[2],
        weight_offset=0, weight_r=part.weights[0], weight_c=part.weights[1], zeros=address(zeros),
        rows=rows, columns=pairs, target_columns=columns, first_row=low_r // 2, first_column=low_c // 2,
        row_step=1, phases=1, pace=2, row_block=row_block, strips=-(-pairs // width), width=width,
    )  # fmt: skip

    def compiled() -> CFunc:
        plan["entry"] = kernels.pair_strip(problem.dtype, shape).address
        return kernels.rolling_pixels()

    return PixelPairsPass(problem, threads, shape, Launch(compiled, problem.dtype, plan, tasks, threads), zeros)


def is_depthwise(problem: ConvProblem) -> bool:
    """Whether pixels of single channels with kernels of their own fill vectors."""
    alone = max(problem.ic_per_group, problem.oc_per_group) == 1
    lanes = vector_bytes() // problem.itemsize
    return alone and problem.groups >= lanes and problem.layout in ("NHWC", CHANNELS_LAST)


def row_block_of(rows: int, row_bytes: int, together: int = 1, asks: bool = False) -> int:
    """Rows of a block, a multiple of `together`, each of which has so many source bytes in a strip."""
    most_bytes = _ASKED_BLOCK_BYTES if asks else _BLOCK_BYTES
    blocks = max(1, rows // max(_LEAST_ROWS, most_bytes // row_bytes))
    return -(-rows // (blocks * together)) * together


def _planned(
    problem: ConvProblem, part: Roles, threads: int, row_block: int, strips: int, **given: int
) -> tuple[np.ndarray, int]:
    """The record of a launch, and the number of its tasks."""
    lanes = vector_bytes() // problem.itemsize
    vectors, blocks = problem.groups // lanes, -(-given["rows"] // row_block)
    tasks = problem.n * blocks * strips
    parts = min(vectors, max(1, TASKS_PER_THREAD * threads // tasks)) if threads > 1 else 1
    plan = fill(
        kernels.ROLLING_PIXELS,
        source_n=part.source[0], source_r=part.source[1], source_c=part.source[2],
        source_rows=part.source_size[0], source_columns=part.source_size[1], target_n=part.target[0],
        channels=problem.groups, vectors=vectors, overlapping=int(problem.groups % lanes > 0),
        row_block=row_block, row_blocks=blocks, strips=strips, parts=parts, entry=0, **given,
    )  # fmt: skip
    return plan, tasks * parts
