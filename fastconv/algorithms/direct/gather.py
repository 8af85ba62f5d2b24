"""Passes with output channels in the lanes: `fastconv.kernels.gather` on packed weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fastconv.algorithms.base import Epilogue
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.grids import TASKS_PER_THREAD, Axis, roles, workspace_offsets
from fastconv.kernels import gather, launch
from fastconv.kernels.params import address, aligned, fill, scratch
from fastconv.kernels.simd import RUN_FIELDS
from fastconv.kernels.target import Tile, tile
from fastconv.problem import ConvProblem

_TABLE_BYTES = 32 << 10
"""Addresses that a block of tiles may take: most of the smallest first cache level in use."""
_COPY_BYTES = 256 << 10
"""Copies of runs at the image's border that a block may take (layouts whose channels lie apart only)."""
_MAX_TILES = 16
_LAUNCH_WEIGHTS = 1 << 14
"""Weights whose packing takes as long as starting another thread."""


def _blocks(tiles: int, entry_bytes: int, copy_bytes: int, panels: int, groups: int, threads: int) -> tuple[int, int]:
    """How many tiles a task takes, and in how many parts it splits the channel panels.

    Tasks first get shorter, then narrower, until every thread has several: a short task shares a panel of weights
    between fewer tiles, a narrow one traces the same addresses again.
    """
    size = min(_MAX_TILES, tiles, max(1, _TABLE_BYTES // entry_bytes), max(1, _COPY_BYTES // max(copy_bytes, 1)))
    wanted = TASKS_PER_THREAD * threads if threads > 1 else 1
    while size > 4 and groups * -(-tiles // size) < wanted:
        size = max(4, size // 2)
    parts = min(panels, -(-wanted // (groups * -(-tiles // size))))
    while size > 1 and groups * -(-tiles // size) * parts < wanted:
        size //= 2
    return size, parts


@dataclass(frozen=True)
class GatherPass:
    """One launch of the gather kernel, planned: its record but for the addresses of a call's arrays."""

    problem: ConvProblem
    direction: str
    threads: int
    template: np.ndarray
    tile: Tile
    tasks: int
    target_offset: int
    tables: tuple[np.ndarray, ...]
    """Offsets, taps and zeros whose addresses the record holds, and which it keeps alive."""
    packed_shape: tuple[int, ...]
    in_place_weights: bool

    @property
    def workspace_bytes(self) -> int:
        """Bytes of all threads' tables and of the packed weights."""
        packed = 0 if self.in_place_weights else math.prod(self.packed_shape) * self.problem.itemsize
        return self.threads * int(self.template["workspace_bytes"][0]) + packed

    @property
    def prepared_key(self) -> tuple[object, ...]:
        """What the packed weights depend on besides the weights."""
        return "gather", self.tile, self.in_place_weights

    def describe(self) -> str:
        """The tile in words."""
        channels = int(self.template["channels"][0])
        return model.describe(self.tile, "channels", model.filled(channels, self.tile.VL))

    def seconds(self, rate: float) -> float:
        """Predicted time of a call that packs its weights, with `rate` slots a second on each thread."""
        p = self.template[0]
        taps, groups, panels = int(p["taps_r"] * p["taps_c"]), *self.packed_shape[:2]
        slots = model.tile_slots(int(p["channels"]), self.tile) * int(p["reduction"]) + panels * model.RUN_SLOTS
        tiles = int(p["tiles"]) * groups
        multiply = tiles * taps * slots / rate
        trace = tiles * int(p["panel_parts"]) * taps * (self.tile.MR + RUN_FIELDS) * model.TRACE_SECONDS
        pack = 0.0 if self.in_place_weights else math.prod(self.packed_shape) * model.PACK_SECONDS
        scatter = 0.0
        if p["target_d"] != self.problem.itemsize:
            scatter = tiles * self.tile.MR * int(p["channels"]) * model.SCATTER_SECONDS
        work = (multiply + trace + scatter) * model.balance(self.tasks, self.threads) + pack
        return model.LAUNCH_SECONDS + work / self.threads

    def prepare(self, w: np.ndarray) -> np.ndarray:
        """The weights in panels, or the weights themselves where they are used in place."""
        if self.in_place_weights:
            return w
        packed = aligned(self.packed_shape, self.problem.dtype)
        self._pack(w, packed)
        return packed

    def _pack(self, w: np.ndarray, packed: np.ndarray) -> None:
        problem = self.problem
        part = roles(problem, self.direction)
        w_r, w_c, w_k, w_d = part.weights
        groups, panels, _, reduction, _ = self.packed_shape
        _, _, row_taps, column_taps, _ = self.tables
        params = fill(
            gather.PACK,
            source=address(w), source_r=w_r, source_c=w_c, source_k=w_k, source_d=w_d, source_group=part.weight_group,
            target=address(packed), target_group=packed.strides[0], target_panel=packed.strides[1],
            taps_r=len(row_taps), taps_c=len(column_taps), rows=address(row_taps), columns=address(column_taps),
            reduction=reduction, channels=part.channels, panels=panels,
        )  # fmt: skip
        grain = max(1, _LAUNCH_WEIGHTS * groups * panels // packed.size)
        kernel = gather.pack(problem.dtype, self.tile)
        launch.run(kernel, params, groups * panels, threads=self.threads, grain=grain)

    def run(
        self, source: np.ndarray, w: np.ndarray, prepared: np.ndarray | None, epilogue: Epilogue, target: np.ndarray
    ) -> None:
        """Compute the pass's targets from `source` and the weights; `prepared` is what `prepare` made of these."""
        if prepared is not None or self.in_place_weights:
            self._multiply(source, w if prepared is None else prepared, epilogue, target)
            return
        with scratch("panels", self.packed_shape, self.problem.dtype) as packed:
            self._pack(w, packed)
            self._multiply(source, packed, epilogue, target)

    def _multiply(self, source: np.ndarray, packed: np.ndarray, epilogue: Epilogue, target: np.ndarray) -> None:
        groups, panels = self.packed_shape[:2]
        start = epilogue.start(groups, panels * self.tile.NR, self.problem.dtype)
        launch.run_template(
            gather.gather(self.problem.dtype, self.tile), self.template, self.tasks, threads=self.threads,
            source=address(source), target=address(target) + self.target_offset, weights=address(packed),
            start=address(start), relu=epilogue.relu, activation=epilogue.address, failed=address(epilogue.failed),
        )  # fmt: skip


def plan_gather(problem: ConvProblem, direction: str, rows: Axis, columns: Axis, threads: int) -> GatherPass:
    """Plan the launch for one dense sub-problem."""
    item, groups = problem.itemsize, problem.groups
    source, target, source_size, reduction, channels, w_strides, _ = roles(problem, direction)
    pixels = problem.n * rows.count * columns.count
    shape = tile(problem.dtype, pixels)
    tiles, panels = -(-pixels // shape.MR), -(-channels // shape.NR)
    taps = len(rows.taps) * len(columns.taps)
    apart = source[3] != item
    entry_bytes = taps * (shape.MR + RUN_FIELDS) * 8
    copy_bytes = taps * reduction * shape.MR * item if apart else 0
    size, parts = _blocks(tiles, entry_bytes, copy_bytes, panels, groups, threads)

    # Weights already lie in panels where output channels are contiguous; packing them pays off over a few tiles.
    in_place = direction == "forward" and w_strides[3] == item and channels % shape.VL == 0 and tiles <= 2
    packed_shape = (groups, panels, taps, reduction, shape.NR)
    panel_bytes = taps * reduction * shape.NR * item

    table, counts, targets, row_parts, column_parts, spare, buffer, copies, total = workspace_offsets(
        size * entry_bytes, size * 8, (size + 1) * shape.MR * 8, len(rows.taps) * shape.MR * 8,
        len(columns.taps) * shape.MR * 8, shape.MR * 8, shape.MR * shape.NR * item, size * copy_bytes,
    )  # fmt: skip
    evenly = columns.offsets == tuple(range(columns.offsets[0], columns.offsets[0] + len(columns.offsets)))
    touching = evenly and not apart and source[2] == reduction * item
    zeros = np.zeros(0 if apart else reduction, problem.dtype)
    row_offsets, column_offsets = np.array(rows.offsets, np.int64), np.array(columns.offsets, np.int64)
    template = fill(
        gather.GATHER,
        source=0, source_n=source[0], source_r=source[1], source_c=source[2], source_k=source[3],
        target=0, target_n=target[0], target_r=target[1] * rows.every, target_c=target[2] * columns.every,
        target_d=target[3],
        source_group=reduction * source[3], target_group=channels * target[3],
        weight_group=channels * item if in_place else panels * panel_bytes,
        source_rows=source_size[0], source_columns=source_size[1],
        n=problem.n, rows=rows.count, columns=columns.count, row_step=rows.step, column_step=columns.step,
        taps_r=len(rows.taps), taps_c=len(columns.taps),
        row_offsets=address(row_offsets), column_offsets=address(column_offsets),
        reduction=reduction, channels=channels,
        weights=0, weight_tap=w_strides[1] if in_place else reduction * shape.NR * item,
        weight_step=w_strides[2] if in_place else shape.NR * item,
        weight_panel=shape.NR * item if in_place else panel_bytes,
        start=0, start_group=panels * shape.NR * item,
        relu=0, activation=0, failed=0, zeros=address(zeros), touching=touching,
        tiles=tiles, tiles_per_block=size, blocks=-(-tiles // size), panel_parts=parts,
        workspace=0, workspace_bytes=total,
        table=table, counts=counts, targets=targets, row_parts=row_parts, column_parts=column_parts, spare=spare,
        buffer=buffer, copies=copies,
    )  # fmt: skip
    return GatherPass(
        problem, direction, threads, template, shape, groups * -(-tiles // size) * parts,
        rows.first * target[1] + columns.first * target[2],
        (row_offsets, column_offsets, np.array(rows.taps, np.int64), np.array(columns.taps, np.int64), zeros),
        packed_shape, in_place,
    )  # fmt: skip
