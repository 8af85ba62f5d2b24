"""Passes on planes with few channels, planned: `fastconv.kernels.lines` on weights as they lie."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.algorithms.base import Epilogue
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.base import BoundPass
from fastconv.algorithms.direct.grids import Axis, roles, tasks_wanted, workspace_offsets
from fastconv.cost import NEAR_IMAGES_BYTES
from fastconv.kernels import lines as kernels
from fastconv.kernels.columns import MOST_STEPS
from fastconv.kernels.launch import Bound, Launch
from fastconv.kernels.params import LINE, address, fill
from fastconv.kernels.target import panel_slots, panel_tile, vector_bytes
from fastconv.problem import ConvProblem

_STRIP_BYTES = 128 << 10
"""Lines of a task: they stay near while all output channels use them."""
_MOST_ROWS = 8
"""Rows of a tile: each has an address of its own, and where these are more than a core has registers, vectors are
spilled along with them (docs/experiments.md)."""
_LOW_SHARE = 0.995
"""Speed of low tiles, which are wide: rows that fill them take them, others rather higher ones."""
_CHUNK_VECTORS = 4
"""Vectors of a row that are copied at once."""
_VALUE_SECONDS = 0.07e-9
"""Copying one value into a line, and fetching it."""


@dataclass(frozen=True, eq=False)
class LinePass(BoundPass):
    """One launch, planned: its record but for the addresses of a call's arrays."""

    zeros: np.ndarray
    """What sums begin with where there is no bias."""
    tables: tuple[np.ndarray, ...]
    """Offsets whose addresses the record holds, and which it keeps alive."""

    def describe(self) -> str:
        return model.describe(self.tile, "pixels", model.filled(int(self.launch.plan["columns"][0]), self.tile.VL))

    def seconds(self, rate: float) -> float:
        p, shape = self.launch.plan[0], self.tile
        bands = self.problem.n * self.problem.groups * int(p["row_blocks"])
        rows = self.problem.n * self.problem.groups * int(p["rows"])
        copied = bands * int(p["planes"] * p["plane_rows"] * p["phase_count"] * p["line_columns"])
        tiles = -(-int(p["channels"]) // shape.MR)
        slots = int(p["steps"]) * panel_slots(shape, int(p["columns"]), model.LINE_SHARE)
        slots += int(p["panels"]) * model.LINE_TILE_SLOTS
        work = rows * tiles * slots / model.costs().line_share / rate + copied * int(p["parts"]) * _VALUE_SECONDS
        work *= model.balance(self.launch.tasks, self.threads)
        work += max(0, copied * self.problem.itemsize - NEAR_IMAGES_BYTES) * model.PLANES_FAR_SECONDS
        return model.launch_seconds(self.threads) + work / self.threads

    def bound(self, epilogue: Epilogue, prepared: np.ndarray | None) -> Bound:
        return self.launch.bound(epilogue.start(self.zeros, self.problem.groups), epilogue.end)


def plan_lines(problem: ConvProblem, direction: str, rows: Axis, columns: Axis, threads: int) -> LinePass | None:
    """Plan the launch for one dense sub-problem; None where pixels lie apart, or few rows fill the cache."""
    if problem.layout != "NCHW" or vector_bytes() == 16:  # vectors of 16 bytes have no masked loads
        return None
    source, target, size, planes, channels, (w_r, w_c, w_k, w_d), weight_group = roles(problem, direction)
    item, step = problem.itemsize, columns.step
    if (rows.every, columns.every) != (1, 1) or target[2] != item or step > MOST_STEPS:
        return None
    shape = panel_tile(problem.dtype, channels, columns.count, highest=_MOST_ROWS, low_share=_LOW_SHARE)
    panels = -(-columns.count // shape.NR)
    first_row, first_column = min(rows.offsets), min(columns.offsets)
    reach_r, reach_c = max(rows.offsets) - first_row, max(columns.offsets) - first_column
    line_columns = columns.count + reach_c // step
    line_bytes = -(-line_columns * item // LINE) * LINE
    row_bytes = planes * step * line_bytes
    row_block = min(rows.count, (_STRIP_BYTES // row_bytes - reach_r - 1) // rows.step + 1)
    if row_block < 1:
        return None
    wanted, blocks = tasks_wanted(problem, threads), problem.n * problem.groups
    if threads > 1:
        row_block = max(1, min(row_block, -(-rows.count * blocks // wanted)))
    row_blocks = -(-rows.count // row_block)
    row_block = -(-rows.count // row_blocks)
    plane_rows = (row_block - 1) * rows.step + reach_r + 1
    tiles = -(-channels // shape.MR)
    parts = min(tiles, max(1, -(-wanted // (blocks * row_blocks)))) if threads > 1 else 1
    offsets = np.array([
        (
            ((k * plane_rows + row - first_row) * step + (column - first_column) % step) * line_bytes
            + (column - first_column) // step * item,
            k * w_k + a * w_r + b * w_c,
        )
        for k in range(planes)
        for (a, row), (b, column) in itertools.product(
            zip(rows.taps, rows.offsets, strict=True), zip(columns.taps, columns.offsets, strict=True)
        )
    ], np.int64)  # fmt: skip
    phases = np.arange(step, dtype=np.int64)
    chunks = -(-line_columns // (_CHUNK_VECTORS * shape.VL))
    strip, masks, total = workspace_offsets(
        planes * plane_rows * step * line_bytes + shape.NR * item, chunks * step * step * 8
    )
    template = fill(
        kernels.LINES,
        source_n=source[0], source_r=source[1], source_k=source[3], source_group=planes * source[3],
        source_rows=size[0], source_columns=size[1],
        target_n=target[0], target_r=target[1] * rows.every, target_d=target[3], target_group=channels * target[3],
        weight_d=w_d, weight_group=weight_group, start_group=tiles * shape.MR * item,
        n=problem.n, rows=rows.count, columns=columns.count, row_step=rows.step, first_row=first_row,
        first_column=first_column, planes=planes, channels=channels, steps=len(offsets), offsets=address(offsets),
        phases=address(phases), row_block=row_block, row_blocks=row_blocks, parts=parts, tile_rows=shape.MR,
        panels=panels, line_columns=line_columns, line_bytes=line_bytes, plane_rows=plane_rows, item=item,
        phase_count=step, fill=0, multiply=0, workspace_bytes=total, strip=strip, masks=masks,
    )  # fmt: skip

    def compiled() -> CFunc:
        template["fill"] = kernels.fill(problem.dtype, shape.VL, _CHUNK_VECTORS, step).address
        last = shape.last(columns.count).NV
        template["multiply"] = kernels.multiply(problem.dtype, shape, last).address
        return kernels.lines()

    launch = Launch(compiled, problem.dtype, template, blocks * row_blocks * parts, threads, total)
    zeros = np.zeros(problem.groups * tiles * shape.MR, problem.dtype)
    return LinePass(problem, threads, shape, launch, zeros, (offsets, phases))
