"""Passes with pixels in the lanes: `fastconv.kernels.strips` on weights as they lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.algorithms.base import Epilogue
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.base import BoundPass
from fastconv.algorithms.direct.grids import Axis, roles, tasks_wanted, workspace_offsets
from fastconv.kernels import strips
from fastconv.kernels.launch import Bound, Launch
from fastconv.kernels.params import address, fill
from fastconv.kernels.target import pixel_tile
from fastconv.kernels.tiles import RUN_FIELDS
from fastconv.problem import ConvProblem

_STRIP_BYTES = 256 << 10
"""Strip of a block of pixels: it stays in the second cache level for all output channels."""
_FEW_TILES = 2
"""Tiles of channels up to which turning a pixel's channels takes the time of few."""


@dataclass(frozen=True, eq=False)
class StripPass(BoundPass):
    """One launch of the strip kernel, planned: its record but for the addresses of a call's arrays."""

    zeros: np.ndarray
    """What sums begin with where there is no bias."""
    tables: tuple[np.ndarray, ...]
    """Offsets and taps whose addresses the record holds, and which it keeps alive."""

    def _lanes_share(self) -> float:
        return model.filled(int(self.launch.plan["columns"][0]), self.tile.NR)

    def describe(self) -> str:
        return model.describe(self.tile, "pixels", self._lanes_share())

    def seconds(self, rate: float) -> float:
        p, shape, item = self.launch.plan[0], self.tile, self.problem.itemsize
        blocks = int(p["row_blocks"] * p["column_blocks"] * p["n"]) * self.problem.groups
        values = int(p["reduction"] * p["strip_rows"] * p["strip_columns"] * p["column_step"])
        side_by_side = p["source_c"] == item and p["column_step"] == 1
        copy = blocks * int(p["parts"]) * values * (model.COPY_SECONDS if side_by_side else model.SCATTER_SECONDS)
        pixels = int(p["n"] * p["rows"] * p["columns"]) * self.problem.groups
        vectors = pixels / self._lanes_share() / shape.VL
        tiles = -(-int(p["channels"]) // shape.MR)
        taps, reduction = int(p["taps_r"] * p["taps_c"]), int(p["reduction"])
        runs = taps * reduction // (int(p["taps_c"]) if p["along_taps"] else reduction)
        slots = (
            taps * reduction * max(shape.MR, model.STRIP_ROWS) / model.STRIP_SHARE[shape.NV]
            + runs * model.STRIP_RUN_SLOTS / shape.NV
        )
        # Of many channels each tile writes a small part of every cache line.
        turned = strips.turns(shape) and p["target_d"] == item and tiles <= _FEW_TILES
        each = model.TURN_SECONDS if turned else model.costs().transpose_seconds
        scatter = 0.0 if p["target_c"] == item else pixels * int(p["channels"]) * each
        trace = blocks * tiles * runs * (shape.MR + RUN_FIELDS) * model.TRACE_SECONDS
        if reduction * int(p["taps_r"]) * shape.NR * item > model.NEAR_BYTES:
            slots /= model.STRIP_FAR_SHARE
        if side_by_side and reduction > model.MANY_PLANES:
            copy /= model.PLANES_SHARE
        each = vectors / shape.NV * tiles * model.STRIP_TILE_SECONDS
        work = copy + trace + scatter + each + vectors * tiles * slots / rate
        return model.launch_seconds(self.threads) + work * model.balance(self.launch.tasks, self.threads) / self.threads

    def bound(self, epilogue: Epilogue, prepared: np.ndarray | None) -> Bound:
        return self.launch.bound(epilogue.start(self.zeros, self.problem.groups), epilogue.end)


def plan_strips(problem: ConvProblem, direction: str, rows: Axis, columns: Axis, threads: int) -> StripPass | None:
    """Plan the launch for one dense sub-problem; None where not even the strip of one row stays in the cache."""
    item, groups = problem.itemsize, problem.groups
    source, target, source_size, reduction, channels, weights, weight_group = roles(problem, direction)
    w_r, w_c, w_k, w_d = weights

    shape = pixel_tile(problem.dtype, channels, columns.count, beyond=target[2] * columns.every != item)
    first_row, first_column = min(rows.offsets), min(columns.offsets)
    reach_r, reach_c = max(rows.offsets) - first_row, max(columns.offsets) - first_column
    column_block = min(columns.count, 16 * shape.NR)
    strip_columns = max(column_block, shape.NR) + reach_c // columns.step + 1
    row_bytes = reduction * strip_columns * columns.step * item
    row_block = min(rows.count, max(1, (_STRIP_BYTES // row_bytes - reach_r - 1) // rows.step + 1))
    if row_bytes * (reach_r + 1) > 2 * _STRIP_BYTES:
        return None
    blocks = problem.n * groups * -(-columns.count // column_block)
    wanted = tasks_wanted(problem, threads)
    if threads > 1:
        even = -(-rows.count * blocks // wanted)
        row_block = max(1, min(row_block, even))
    strip_rows = (row_block - 1) * rows.step + reach_r + 1
    row_blocks, column_blocks = -(-rows.count // row_block), -(-columns.count // column_block)
    tiles = -(-channels // shape.MR)
    parts = min(tiles, -(-wanted // (blocks * row_blocks)))
    # The taps of a kernel row make longer runs than the channels do, where their columns are evenly spaced.
    along_taps = columns.step == 1 and len(columns.taps) > reduction
    runs = len(rows.taps) * (reduction if along_taps else len(columns.taps))
    strip, table, targets, rows_of_buffer, buffer, total = workspace_offsets(
        strip_rows * row_bytes,
        runs * (shape.MR + RUN_FIELDS) * 8,
        shape.MR * 8,
        shape.MR * 8,
        shape.MR * shape.NR * item,
    )
    tables = tuple(np.array(a, np.int64) for a in (rows.taps, columns.taps, rows.offsets, columns.offsets))
    row_taps, column_taps, row_offsets, column_offsets = tables
    template = fill(
        strips.STRIPS,
        source_n=source[0], source_r=source[1], source_c=source[2], source_k=source[3],
        source_group=reduction * source[3], source_rows=source_size[0], source_columns=source_size[1],
        target_offset=rows.first * target[1] + columns.first * target[2],
        target_n=target[0], target_r=target[1] * rows.every, target_c=target[2] * columns.every,
        target_d=target[3], target_group=channels * target[3],
        weight_r=w_r, weight_c=w_c, weight_k=w_k, weight_d=w_d, weight_group=weight_group,
        start_group=tiles * shape.MR * item,
        n=problem.n, rows=rows.count, columns=columns.count, row_step=rows.step, column_step=columns.step,
        taps_r=len(rows.taps), taps_c=len(columns.taps), row_taps=address(row_taps), column_taps=address(column_taps),
        row_offsets=address(row_offsets), column_offsets=address(column_offsets),
        first_row=first_row, first_column=first_column,
        reduction=reduction, channels=channels, along_taps=along_taps,
        row_block=row_block, column_block=column_block, row_blocks=row_blocks, column_blocks=column_blocks,
        parts=parts, strip_rows=strip_rows, strip_columns=strip_columns,
        tile_rows=shape.MR, item=item, fill_strip=0, multiply=0,
        workspace_bytes=total, strip=strip, table=table, targets=targets,
        rows_of_buffer=rows_of_buffer, buffer=buffer,
    )  # fmt: skip

    def compiled() -> CFunc:
        template["fill_strip"] = strips.strip_part(problem.dtype).address
        template["multiply"] = strips.multiply(problem.dtype, shape).address
        return strips.strips()

    launch = Launch(compiled, problem.dtype, template, blocks * row_blocks * parts, threads, total)
    return StripPass(problem, threads, shape, launch, np.zeros(groups * tiles * shape.MR, problem.dtype), tables)
