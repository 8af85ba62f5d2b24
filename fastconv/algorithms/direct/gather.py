"""Passes with output channels in the lanes: `fastconv.kernels.gather` on packed weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastconv.algorithms.base import PLAIN, Epilogue
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.base import Pass
from fastconv.algorithms.direct.grids import TASKS_PER_THREAD, Axis, roles, workspace_offsets
from fastconv.kernels import gather
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import Buffer, address, aligned, fill
from fastconv.kernels.simd import RUN_FIELDS
from fastconv.kernels.target import Tile, tile
from fastconv.problem import ConvProblem

_TABLE_BYTES = 32 << 10
"""Addresses that a block of tiles may take: most of the smallest first cache level in use."""
_COPY_BYTES = 256 << 10
"""Copies of runs at the image's border that a block may take (layouts whose channels lie apart only)."""
_MAX_TILES = 32
_PACKING_TILES = 256
"""Tiles up to which a task packs the panel that it uses, if the addresses of all take no more than `_PACKING_BYTES`."""
_PACKING_BYTES = 256 << 10
_PACKING_BALANCE = 1.25
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


@dataclass(frozen=True, eq=False)
class GatherPass(Pass):
    """One launch of the gather kernel, planned: its record but for the addresses of a call's arrays."""

    pack: Launch
    zeros: np.ndarray
    """What sums begin with where there is no bias."""
    tables: tuple[np.ndarray, ...]
    """Offsets, taps and zeros whose addresses the record holds, and which it keeps alive."""
    packed_shape: tuple[int, ...]
    in_place_weights: bool
    packing: Launch | None
    """The launch whose tasks pack the weights that they use; None where packing them all beforehand is faster."""

    @property
    def workspace_bytes(self) -> int:
        """Bytes of all threads' tables and of the packed weights."""
        if self.packing is not None:
            return self.packing.workspace_bytes
        packed = 0 if self.in_place_weights else math.prod(self.packed_shape) * self.problem.itemsize
        return self.launch.workspace_bytes + packed

    @property
    def prepared_key(self) -> Any:
        return None if self.in_place_weights else (self.tile, self.packed_shape)

    def describe(self) -> str:
        channels = int(self.launch.plan["channels"][0])
        return model.describe(self.tile, "channels", model.filled(channels, self.tile.VL))

    def seconds(self, rate: float) -> float:
        p = self.launch.plan[0]
        taps, groups, panels = int(p["taps_r"] * p["taps_c"]), *self.packed_shape[:2]
        tiles = int(p["tiles"]) * groups
        runs = int(p["taps_r"]) if p["touching"] else taps
        slots = taps * model.tile_slots(int(p["channels"]), self.tile) * int(p["reduction"])
        slots += panels * (runs * model.RUN_SLOTS + model.TILE_SLOTS)
        multiply = tiles * slots / rate
        trace = tiles * int(p["panel_parts"]) * runs * (self.tile.MR + RUN_FIELDS) * model.TRACE_SECONDS
        pack = 0.0 if self.in_place_weights else math.prod(self.packed_shape) * model.PACK_SECONDS
        scatter = 0.0
        if p["target_d"] != self.problem.itemsize:
            scatter = tiles * self.tile.MR * int(p["channels"]) * model.SCATTER_SECONDS
        work = (multiply + trace + scatter) * model.balance(self.launch.tasks, self.threads) + pack
        return model.LAUNCH_SECONDS + work / self.threads

    def prepare(self, w: np.ndarray) -> np.ndarray:
        if self.in_place_weights:
            return w
        packed = aligned((1, 1, 1, math.prod(self.packed_shape)), self.problem.dtype)
        self.pack(w, w, self.zeros, packed)
        return packed

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        if self.in_place_weights:
            prepared = second
        if prepared is not None:
            self._multiply(self.launch, first, prepared, result, epilogue)
            return
        if self.packing is not None:
            self._multiply(self.packing, first, second, result, epilogue)
            return
        size = math.prod(self.packed_shape)
        with Buffer(size * self.problem.itemsize) as buffer:
            packed = buffer[: size * self.problem.itemsize].view(self.problem.dtype).reshape(1, 1, 1, size)
            self.pack(second, second, self.zeros, packed)
            self._multiply(self.launch, first, packed, result, epilogue)

    def _multiply(
        self, launch: Launch, source: np.ndarray, packed: np.ndarray, target: np.ndarray, epilogue: Epilogue
    ) -> None:
        start = self.zeros
        if epilogue.bias is not None:
            groups, panels = self.packed_shape[:2]
            start = epilogue.start(groups, panels * self.tile.NR, self.problem.dtype)
        launch(source, packed, start, target, epilogue.relu, epilogue.activation, epilogue.failed_address)


def plan_gather(problem: ConvProblem, direction: str, rows: Axis, columns: Axis, threads: int) -> GatherPass:
    """Plan the launch for one dense sub-problem."""
    item, groups = problem.itemsize, problem.groups
    source, target, source_size, reduction, channels, w_strides, _ = roles(problem, direction)
    pixels = problem.n * rows.count * columns.count
    shape = tile(problem.dtype, pixels, channels)
    tiles, panels = -(-pixels // shape.MR), -(-channels // shape.NR)
    taps = len(rows.taps) * len(columns.taps)
    apart = source[3] != item
    entry_bytes = taps * (shape.MR + RUN_FIELDS) * 8
    copy_bytes = taps * reduction * shape.MR * item if apart else 0
    # Weights already lie in panels where output channels are contiguous; packing them pays off over a few tiles.
    in_place = direction == "forward" and w_strides[3] == item and channels % shape.NR == 0 and tiles <= 2
    size, parts = _blocks(tiles, entry_bytes, copy_bytes, panels, groups, threads)
    # Where few tiles use a panel, the task that uses it packs it: it then never leaves the second cache level.
    panel_bytes = taps * reduction * shape.NR * item
    packs = tiles <= _PACKING_TILES and tiles * copy_bytes <= _COPY_BYTES and tiles * entry_bytes <= _PACKING_BYTES
    packs = packs and not in_place and model.balance(groups * panels, threads) <= _PACKING_BALANCE
    if packs:
        size, parts = tiles, panels

    dense = not in_place and not apart and tiles > 1
    packed_shape = (groups, panels, taps, reduction, shape.NR)

    table, counts, targets, row_parts, column_parts, spare, starts, buffer, copies, packed, total = workspace_offsets(
        size * entry_bytes, size * 8, (size + 1) * shape.MR * 8, len(rows.taps) * shape.MR * 8,
        len(columns.taps) * shape.MR * 8, shape.MR * 8, shape.MR * 8, shape.MR * shape.NR * item, size * copy_bytes,
        panel_bytes if packs else 0,
    )  # fmt: skip
    evenly = columns.offsets == tuple(range(columns.offsets[0], columns.offsets[0] + len(columns.offsets)))
    touching = evenly and not apart and source[2] == reduction * item
    zeros = np.zeros(0 if apart else reduction, problem.dtype)
    row_offsets, column_offsets = np.array(rows.offsets, np.int64), np.array(columns.offsets, np.int64)
    template = fill(
        gather.GATHER,
        source_n=source[0], source_r=source[1], source_c=source[2], source_k=source[3],
        target_offset=rows.first * target[1] + columns.first * target[2],
        target_n=target[0], target_r=target[1] * rows.every, target_c=target[2] * columns.every,
        target_d=target[3],
        source_group=reduction * source[3], target_group=channels * target[3],
        weight_group=channels * item if in_place else panels * panel_bytes,
        source_rows=source_size[0], source_columns=source_size[1],
        n=problem.n, rows=rows.count, columns=columns.count, row_step=rows.step, column_step=columns.step,
        taps_r=len(rows.taps), taps_c=len(columns.taps),
        row_offsets=address(row_offsets), column_offsets=address(column_offsets),
        first_row=min(rows.offsets), last_row=max(rows.offsets),
        first_column=min(columns.offsets), last_column=max(columns.offsets),
        reduction=reduction, channels=channels,
        weight_tap=w_strides[1] if in_place else reduction * shape.NR * item,
        weight_step=w_strides[2] if in_place else shape.NR * item,
        weight_panel=shape.NR * item if in_place else panel_bytes,
        start_group=panels * shape.NR * item,
        zeros=address(zeros), touching=touching,
        tiles=tiles, tiles_per_block=size, blocks=-(-tiles // size), panel_parts=parts, packing=0,
        workspace_bytes=total,
        table=table, counts=counts, targets=targets, row_parts=row_parts, column_parts=column_parts, spare=spare,
        starts=starts, buffer=buffer, copies=copies, packed=packed,
    )  # fmt: skip
    tables = (row_offsets, column_offsets, zeros)
    tasks = groups * -(-tiles // size) * parts

    def launch_of(plan: np.ndarray) -> Launch:
        return Launch(lambda: gather.gather(problem.dtype, shape, dense), problem.dtype, plan, tasks, threads, total)

    start = np.zeros(groups * panels * shape.NR, problem.dtype)
    pack, taps_read = _plan_pack(problem, direction, rows, columns, shape, packed_shape, threads)
    packing = None
    if packs:
        packing_template = template.copy()
        packing_template["packing"] = pack.plan.ctypes.data
        packing = launch_of(packing_template)
    kept = (*tables, *taps_read)
    return GatherPass(problem, threads, shape, launch_of(template), pack, start, kept, packed_shape, in_place, packing)


def _plan_pack(
    problem: ConvProblem, direction: str, rows: Axis, columns: Axis, shape: Tile, packed_shape: tuple[int, ...],
    threads: int,
) -> tuple[Launch, tuple[np.ndarray, ...]]:  # fmt: skip
    """Plan the packing of the weights, and the taps whose addresses its record holds."""
    part = roles(problem, direction)
    w_r, w_c, w_k, w_d = part.weights
    groups, panels, taps, reduction, lanes = packed_shape
    panel_bytes = taps * reduction * lanes * problem.itemsize
    row_taps, column_taps = np.array(rows.taps, np.int64), np.array(columns.taps, np.int64)
    template = fill(
        gather.PACK,
        source_r=w_r, source_c=w_c, source_k=w_k, source_d=w_d, source_group=part.weight_group,
        target_group=panels * panel_bytes, target_panel=panel_bytes,
        taps_r=len(row_taps), taps_c=len(column_taps), rows=address(row_taps), columns=address(column_taps),
        reduction=reduction, channels=part.channels, panels=panels,
    )  # fmt: skip
    tasks = groups * panels
    grain = max(1, _LAUNCH_WEIGHTS * tasks // math.prod(packed_shape))
    pack = Launch(lambda: gather.pack(problem.dtype, shape), problem.dtype, template, tasks, threads, 0, grain)
    return pack, (row_taps, column_taps)
