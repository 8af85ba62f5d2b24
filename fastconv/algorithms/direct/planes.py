"""Convolution of planes (NCHW): `fastconv.kernels.gather` with the operands' roles exchanged.

Every image is a matrix of taps by pixels, which the weights multiply from the left. To the kernel the rows of the
weights are pixels, and the windows of the image are weights: pixels fill the lanes, and nothing is transposed. Where
layers are pointwise the planes are panels of such weights already; otherwise tasks pack what windows read
(`fastconv.kernels.columns`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.algorithms.base import PLAIN, Epilogue, scratch_limit
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.base import Pass
from fastconv.algorithms.direct.copies import SET_BYTES, sets_of
from fastconv.algorithms.direct.frames import Windows, windows_of
from fastconv.algorithms.direct.gather import CONFLICT_BYTES
from fastconv.algorithms.direct.grids import Axis, roles, tasks_wanted, workspace_offsets
from fastconv.algorithms.turning import transposition
from fastconv.cost import far_bytes
from fastconv.kernels import columns as kernels
from fastconv.kernels import gather
from fastconv.kernels.addresses import ADDRESS_BYTES, list_bytes
from fastconv.kernels.last_pixel import last_pixel
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import LINE, Buffer, address, fill
from fastconv.kernels.target import (
    Tile,
    halves_vectors,
    masks_or_fills,
    panel_slots,
    panel_tile,
    rows_meeting,
    vector_bytes,
)
from fastconv.kernels.tiles import ANYWHERE, ROW_START, RUN_FIELDS, UNROLLED
from fastconv.problem import ConvProblem

_TURNING_PIXELS = 600
"""Pixels from which on it pays to turn weights first of which many meet in the same few cache lines."""
_MOST_SHARING = 8
"""Lines that a cache keeps of those that meet in one place."""
_MEETING_ROWS = 8
"""Rows of weights that a tile may have which meet there."""
_NEAR_BYTES = 1 << 10
"""Rows that lie no further apart are read nearly side by side."""
_FEW_TILES = 12
"""Tiles for which packing does not pay."""
_HIDING_SLOTS, _HIDDEN_BYTES = 24, 100 << 10
"""Slots of a step that hide what its row takes to come where a core takes a cycle for each, and the largest panel that
stays near although nothing foresees its rows."""
_READ_SECONDS = 0.02e-9
"""What each block of tiles takes to read a value of a panel that lies in no near cache."""
_TASK_SECONDS = 0.2e-6
"""What a task takes besides packing and multiplying."""
_FEW_NARROW_TILES = 10
"""The same where vectors have 32 bytes: in place every other one of them lies in two cache lines."""
_PANEL_BYTES = 1 << 20
"""Largest panel that is packed: it stays in the second cache level."""


@dataclass(frozen=True, eq=False)
class PlanePass(Pass):
    """One launch, planned: its record but for the addresses of a call's arrays."""

    zeros: np.ndarray
    """What sums begin with where there is no bias."""
    tables: tuple[np.ndarray, ...]
    """Records and offsets whose addresses the record holds, and which it keeps alive."""
    windows: Windows
    """How panels are packed that are not read in place."""
    turn: Launch | None
    """Lays each target channel's weights side by side; None where they lie so, or well enough."""
    alone_last: bool
    """Whether the last pixel is computed apart from the panels of the others."""

    @property
    def workspace_bytes(self) -> int:
        return super().workspace_bytes + (self._weights_bytes if self.turn else 0)

    @property
    def _weights_bytes(self) -> int:
        return math.prod(self.problem.w_shape) * self.problem.itemsize

    def describe(self) -> str:
        return model.describe(self.tile, "pixels", model.filled(int(self.launch.plan["channels"][0]), self.tile.NR))

    def seconds(self, rate: float) -> float:
        p, shape = self.launch.plan[0], self.tile
        matrices = self.problem.n * self.problem.groups
        tiles, pixels, reduction = int(p["tiles"]) * matrices, int(p["channels"]), int(p["reduction"])
        panels = -(-pixels // shape.NR)
        slots = panel_slots(shape, pixels, model.GATHER_SHARE) * reduction
        slots += panels * model.PLANE_TILE_SLOTS
        pack, multiply = 0.0, tiles * slots / rate / model.costs().plane_share
        if self.alone_last:
            dots = matrices * int(p["columns"])
            multiply += dots * (model.LAST_PIXEL_LOADS * reduction / shape.VL + model.SUM_SLOTS) / rate
        if not p["in_place"]:
            pack = matrices * int(p["blocks"]) * reduction * self.windows.seconds_per_row
        else:
            step = int(p["weight_step"])
            multiply /= model.SPREAD_SHARE if reduction * step > model.SPREAD_BYTES else 1.0
            multiply /= model.costs().in_place_share
            multiply /= model.MEETING_SHARE if reduction // sets_of(step) > _MOST_SHARING else 1.0
        if p["source_k"] % CONFLICT_BYTES == 0:
            multiply /= model.costs().row_apart_share
        work = (multiply + pack) * model.balance(self.launch.tasks, self.threads)
        turn = 0.0
        if self.turn:
            turned = math.prod(self.problem.w_shape) * model.PACK_SECONDS
            turn = model.launch_seconds(self.turn.threads) + turned / self.turn.threads
        times = 1 if p["in_place"] else 2
        far = far_bytes(self.problem) * times * model.PLANES_FAR_SECONDS / self.threads
        return model.launch_seconds(self.threads) + work / self.threads + far + turn

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        start = epilogue.start(self.zeros, self.problem.groups)
        if self.turn:
            with Buffer(self._weights_bytes) as buffer:
                turned = buffer[: self._weights_bytes].view(self.problem.dtype).reshape(1, 1, 1, -1)
                self.turn(second, second, self.zeros, turned)
                self.launch(turned, first, start, result, epilogue.end)
            return
        self.launch(second, first, start, result, epilogue.end)


def _stays_in_place(step: int, reduction: int, tiles: int, shape: Tile, panel_bytes: int) -> bool:
    """Whether the source rows of a panel, so many bytes apart, are read as they lie, by so many tiles.

    A packed panel costs a copy, and saves what rows take that meet in few lines of a cache.
    """
    if vector_bytes() == 32:
        return tiles < _FEW_NARROW_TILES
    hidden = halves_vectors() and shape.MR * shape.NV * shape.slots >= _HIDING_SLOTS
    hidden = hidden and panel_bytes <= _HIDDEN_BYTES
    return step <= _NEAR_BYTES or tiles <= _FEW_TILES or reduction // sets_of(step) <= _MOST_SHARING or hidden


def _blocks_of_tiles(
    tiles: int, pixels: int, matrices: int, reduction: int, shape: Tile, reading: float, threads: int, wanted: int
) -> tuple[int, int]:  # fmt: skip
    """Tiles of a block, and parts of the panels: more tasks balance, but each block reads the panels anew."""
    panels = -(-pixels // shape.NR)
    multiply = tiles * panel_slots(shape, pixels, model.GATHER_SHARE) / model.nominal_rate()
    largest = min(1.0, shape.NR / pixels)

    def parts_of(blocks: int, finer: int) -> int:
        return min(panels, finer * -(-wanted // (matrices * blocks)))

    def seconds(cut: tuple[int, int]) -> float:
        blocks, finer = cut
        count, share = -(-tiles // blocks), tiles * panels * matrices / threads
        blocks = -(-tiles // count)
        each = count * -(-panels // parts_of(blocks, finer))
        work = reduction * (multiply + blocks * reading) + panels * blocks * _TASK_SECONDS
        # On average a thread waits for half of the largest task at the end.
        late = 0.0 if threads == 1 else reduction * (multiply / blocks + reading) * largest / 2
        return matrices * work / threads * math.ceil(share / each) * each / share + late

    cuts = [(blocks, finer) for blocks in (1, 2, 3, 4, 6, 8, 16, 24) if blocks <= tiles for finer in (1, 2)]
    blocks, finer = min(cuts, key=seconds)
    count = -(-tiles // blocks)
    return count, parts_of(-(-tiles // count), finer)


def plan_planes(problem: ConvProblem, direction: str, rows: Axis, columns: Axis, threads: int) -> PlanePass | None:
    """Plan the launch for one dense sub-problem; None where its pixels lie apart, or panels are too large.

    Weights that do not lie in the order of a panel's rows are turned first, where that is worth it.
    """
    if problem.layout != "NCHW":  # an NHWC image of one channel looks alike, but not its strides
        return None
    item = problem.itemsize
    part = roles(problem, direction)
    source, target, size, channels, weights = part.source, part.target, part.source_size, part.channels, part.weights
    if (rows.every, columns.every) != (1, 1) or (target[1], target[2]) != (columns.count * item, item):
        return None
    taps = len(rows.taps) * len(columns.taps)
    reduction, pixels = part.reduction * taps, rows.count * columns.count
    alone = taps == 1 and rows.offsets == columns.offsets == (0,) and rows.step == columns.step == 1
    pointwise = alone and (rows.count, columns.count) == size
    lanes = vector_bytes() // item
    alone_last = pointwise and pixels > lanes and pixels % lanes == 1 and vector_bytes() > 16
    in_order = weights[2] == taps * item and direction == "forward"
    wanted = not in_order
    if taps == 1:
        wanted = weights[2] % CONFLICT_BYTES == 0 and problem.n * pixels >= _TURNING_PIXELS
    # Tiles of half vectors read the weights once more; those of an input gradient lie too far apart for that.
    row_bytes = reduction * item if in_order or wanted else weights[3]
    highest = rows_meeting(row_bytes, SET_BYTES, _MEETING_ROWS)
    shape = panel_tile(problem.dtype, channels, pixels - alone_last, halves=direction == "forward", highest=highest)
    shape = replace(shape, NV=min(shape.NV, kernels.MOST_LANES // shape.VL))
    panel_bytes = reduction * shape.NR * item
    if not pointwise and (vector_bytes() == 16 or panel_bytes > _PANEL_BYTES):
        return None
    turn, weights_row, weights_step = None, weights[3], item if in_order else weights[2]
    if wanted and math.prod(problem.w_shape) * item + panel_bytes <= scratch_limit(problem, 1):
        turn = transposition(
            problem.dtype, problem.groups, part.reduction, channels * taps, (part.weight_group, weights[2]),
            (part.weight_group, part.reduction * item), threads,
        )  # fmt: skip
        weights_row, weights_step = reduction * item, item
    elif taps > 1 and not in_order:
        return None
    # Where planes have one pixel more than vectors hold, that one is a product of the weights' rows.
    alone_last = alone_last and weights_step == item
    pixels -= alone_last
    channel_row, tap_row = (taps, 1) if turn is None else (1, part.reduction)
    tiles = -(-channels // shape.MR)
    matrices = problem.n * problem.groups
    in_place = pointwise and masks_or_fills(shape, pixels)
    in_place = in_place and _stays_in_place(source[3], reduction, tiles, shape, panel_bytes)
    entry_bytes = (shape.MR + RUN_FIELDS) * 8
    if pointwise:  # a panel may begin in one row and end in another: to its pixels they are one
        part = part._replace(source_size=(1, pixels))
        rows, columns = replace(rows, count=1), replace(columns, count=pixels)
    windows = windows_of(part, rows, columns, problem.dtype, shape.NR, channel_row, tap_row)
    tasks = tasks_wanted(problem, threads)
    reading = pixels * _READ_SECONDS if in_place else windows.seconds_per_row
    count, parts = _blocks_of_tiles(tiles, pixels, matrices, reduction, shape, reading, threads, tasks)
    listed = list_bytes(shape.MR)
    (
        table, counts, tables, targets, numbers, row_parts, column_parts, spare, buffer, packed, column, total,
    ) = workspace_offsets(
        count * entry_bytes + ADDRESS_BYTES, *[count * 8] * 2, count * shape.MR * 8 + ADDRESS_BYTES, 3 * listed,
        *[listed] * 3, shape.MR * shape.NR * item, 0 if in_place else panel_bytes + windows.mask_bytes,
        reduction * item if alone_last else 0,
    )  # fmt: skip
    lines = -(-shape.NR * columns.step * item // LINE) + 1
    zero = np.zeros(1, np.int64)
    inside = np.array([(0, weights_step, 0, reduction)], np.int64)
    template = fill(
        gather.GATHER,
        source_n=0, source_r=0, source_c=weights_row, source_k=weights_step,
        target_offset=0, target_n=0, target_r=0, target_c=target[3], target_d=item,
        source_group=part.weight_group, target_group=channels * target[3], groups=problem.groups,
        source_rows=1, source_columns=channels,
        n=1, rows=1, columns=channels, row_step=1, column_step=1,
        taps_r=1, taps_c=1, row_offsets=address(zero), column_offsets=address(zero),
        first_row=0, last_row=0, first_column=0, last_column=0,
        reduction=reduction, channels=pixels,
        in_place=in_place, weight_tap=0, weight_step=source[3], weight_panel=shape.NR * item,
        weight_group=part.reduction * source[3], packed_group=0, packing=windows.record.ctypes.data, keeps=0,
        start_group=tiles * shape.MR * item,
        zeros=0, touching=0, inside=address(inside), inside_runs=1, most_runs=1, padding=0, scatter=0, chunk=1,
        tiles_ahead=0, asks_targets=0, asked_lines=lines if taps == 1 else 0, asked_columns=columns.count,
        asked_row=rows.step * source[1], asked_column=columns.step * source[2],
        tiles=tiles, blocks=-(-tiles // count), panel_parts=parts,
        tile_pixels=shape.MR, tile_channels=shape.NR, row_bytes=shape.NR * item, item=item, trace=0,
        multiply=0, multiply_last=0, finish=0, last_pixel=0, list_bytes=listed,
        workspace_bytes=total,
        table=table, counts=counts, tables=tables, runs=counts, targets=targets, numbers=numbers, row_parts=row_parts,
        column_parts=column_parts, spare=spare, starts=spare, buffer_rows=spare, buffer=buffer, copies=buffer,
        packed=packed, strip=buffer, results=0, column=column,
    )  # fmt: skip
    unroll = UNROLLED if weights_step == item else ANYWHERE

    def compiled() -> CFunc:
        if not in_place:
            windows.record["entry"] = kernels.pack_columns(problem.dtype, shape.NV, shape.VL, windows.step).address
        template["trace"] = gather.trace().address
        parts = gather.multiplies(problem.dtype, shape, pixels, unroll, False, ROW_START, in_place)
        for name, compiled_part in parts.items():
            template[name] = compiled_part.address
        template["finish"] = gather.finish().address
        if alone_last:
            template["last_pixel"] = last_pixel(problem.dtype).address
        return gather.gather()

    launch = Launch(compiled, problem.dtype, template, matrices * -(-tiles // count) * parts, threads, total)
    zeros = np.zeros(problem.groups * tiles * shape.MR, problem.dtype)
    return PlanePass(problem, threads, shape, launch, zeros, (zero, inside), windows, turn, alone_last)
