"""Pointwise convolution of planes (NCHW): `fastconv.kernels.gather` with the operands' roles exchanged.

Every image is a matrix of channels by pixels, which the weights multiply from the left. To the kernel the rows of the
weights are pixels, and the planes of the image are weights that lie in panels already: pixels fill the lanes, and
nothing is transposed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.algorithms.base import PLAIN, Epilogue, scratch_limit
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.base import Pass
from fastconv.algorithms.direct.gather import CONFLICT_BYTES, blocks_of
from fastconv.algorithms.direct.grids import Axis, roles, tasks_wanted, workspace_offsets
from fastconv.algorithms.transposed import transposition
from fastconv.cost import conv_flops
from fastconv.kernels import gather
from fastconv.kernels.addresses import ADDRESS_BYTES, list_bytes
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import Buffer, address, fill
from fastconv.kernels.simd import ANYWHERE, ROW_START, RUN_FIELDS, UNROLLED
from fastconv.kernels.target import Tile, tile
from fastconv.problem import ConvProblem

_PAGE_BYTES = 4 << 10
_MOST_PAGES = 60
"""Pages that a CPU knows without looking them up, less those of weights and results."""
_TURNING_FLOPS = 8_000_000
"""Work from which on it pays to turn weights first of which many meet in the same few cache lines."""
_MOST_SHARING = 8
"""Lines that a cache keeps of those that meet in one place."""


@dataclass(frozen=True, eq=False)
class PlanePass(Pass):
    """One launch, planned: its record but for the addresses of a call's arrays."""

    zeros: np.ndarray
    """What sums begin with where there is no bias."""
    tables: tuple[np.ndarray, ...]
    """Records and offsets whose addresses the record holds, and which it keeps alive."""
    turn: Launch | None
    """Lays each target channel's weights side by side; None where they lie so, or well enough."""

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
        slots = model.tile_slots(pixels, shape) * reduction + panels * (model.RUN_SLOTS + model.TILE_SLOTS)
        packed = pixels % shape.NR if p["in_place"] else pixels
        pack = matrices * int(p["blocks"]) * packed * reduction * model.PACK_SECONDS
        multiply = tiles * slots / rate
        if p["source_k"] % CONFLICT_BYTES == 0:
            multiply /= model.APART_SHARE
        work = (multiply + pack) * model.balance(self.launch.tasks, self.threads)
        turn = 0.0
        if self.turn:
            turn = model.launch_seconds(self.turn.threads) + math.prod(self.problem.w_shape) * model.PACK_SECONDS
        return model.launch_seconds(self.threads) + work / self.threads + turn

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        start = self.zeros
        if epilogue.bias is not None:
            groups = self.problem.groups
            start = epilogue.start(groups, self.zeros.size // groups, self.problem.dtype)
        if self.turn:
            with Buffer(self._weights_bytes) as buffer:
                turned = buffer[: self._weights_bytes].view(self.problem.dtype).reshape(1, 1, 1, -1)
                self.turn(second, second, self.zeros, turned)
                self.launch(turned, first, start, result, epilogue.relu, epilogue.activation, epilogue.failed_address)
            return
        self.launch(second, first, start, result, epilogue.relu, epilogue.activation, epilogue.failed_address)


def _lies_well(step: int, reduction: int) -> bool:
    """Whether the source rows of a panel, so many bytes apart, can be read in place over and over."""
    pages = reduction * min(step, _PAGE_BYTES) // _PAGE_BYTES
    sharing = reduction * math.gcd(step, _PAGE_BYTES) // _PAGE_BYTES  # rows that meet in the same lines of a cache
    return pages <= _MOST_PAGES and sharing <= _MOST_SHARING


def _packing_blocks(tiles: int, panels: int, shape: Tile, threads: int) -> int:
    """In how many blocks of tiles to use panels that each task packs anew: more tasks balance, but pack more often."""
    multiply, pack = tiles * shape.MR * shape.NV / model.NOMINAL_RATE, shape.NR * model.PACK_SECONDS

    def seconds(blocks: int) -> float:
        return model.balance(panels * blocks, threads) * (multiply + blocks * pack)

    return min((blocks for blocks in (1, 2, 3, 4, 6, 8, 16) if blocks <= tiles), key=seconds)


def plan_planes(problem: ConvProblem, direction: str, rows: Axis, columns: Axis, threads: int) -> PlanePass | None:
    """Plan the launch; None where it is not pointwise, or the pixels of a channel do not lie side by side."""
    if problem.layout != "NCHW":  # an NHWC image of one channel looks alike, but not its strides
        return None
    item = problem.itemsize
    part = roles(problem, direction)
    source, target, size, reduction, channels, weights, weight_group = part
    pixels = math.prod(size)
    alone = all(axis.offsets == (0,) and axis.step == axis.every == 1 for axis in (rows, columns))
    flat = all(stride[2] == item and stride[1] == columns.count * item for stride in (source, target))
    if not (alone and flat and (rows.count, columns.count) == size):
        return None
    turn = None
    fits = math.prod(problem.w_shape) * item <= scratch_limit(problem, 1)
    if fits and weights[2] % CONFLICT_BYTES == 0 and conv_flops(problem) >= _TURNING_FLOPS:
        line = reduction * item
        turn = transposition(
            problem.dtype,
            problem.groups,
            reduction,
            channels,
            (weight_group, weights[2]),
            (weight_group, line),
            threads,
        )
        weights = (0, 0, item, line)
    shape = tile(problem.dtype, channels, pixels)
    tiles, panels = -(-channels // shape.MR), -(-pixels // shape.NR)
    matrices = problem.n * problem.groups
    panel_bytes = reduction * shape.NR * item
    in_place = pixels >= shape.NR and (tiles <= 2 or _lies_well(source[3], reduction))
    entry_bytes = (shape.MR + RUN_FIELDS) * 8
    wanted = tasks_wanted(problem, threads)
    count, parts = blocks_of(tiles, entry_bytes, 0, panels, matrices, wanted)
    if not in_place:
        blocks = _packing_blocks(tiles, panels * matrices, shape, threads)
        count, parts = -(-tiles // blocks), min(panels, -(-wanted // (matrices * blocks)))
    packs = not in_place or pixels % shape.NR != 0
    listed = list_bytes(shape.MR)
    table, counts, tables, targets, numbers, row_parts, column_parts, spare, buffer, packed, total = workspace_offsets(
        count * entry_bytes + ADDRESS_BYTES, *[count * 8] * 2, count * shape.MR * 8 + ADDRESS_BYTES, 3 * listed,
        *[listed] * 3, shape.MR * shape.NR * item, panel_bytes if packs else 0,
    )  # fmt: skip
    taps = np.zeros(1, np.int64)
    inside = np.array([(0, weights[2], 0, reduction)], np.int64)
    pack = fill(
        gather.PACK, source_r=0, source_c=0, source_k=source[3], source_d=item, source_group=reduction * source[3],
        target_group=0, target_panel=0, taps_r=1, taps_c=1, rows=address(taps), columns=address(taps),
        reduction=reduction, channels=pixels, panels=panels,
        lines=0, line=0, line_offsets=0, line_bytes=0, slots=0, period=1, entry=0,
    )  # fmt: skip
    template = fill(
        gather.GATHER,
        source_n=0, source_r=0, source_c=weights[3], source_k=weights[2],
        target_offset=0, target_n=0, target_r=0, target_c=target[3], target_d=item,
        source_group=weight_group, target_group=channels * target[3], groups=problem.groups,
        source_rows=1, source_columns=channels,
        n=1, rows=1, columns=channels, row_step=1, column_step=1,
        taps_r=1, taps_c=1, row_offsets=address(taps), column_offsets=address(taps),
        first_row=0, last_row=0, first_column=0, last_column=0,
        reduction=reduction, channels=pixels,
        in_place=in_place, weight_tap=0, weight_step=source[3], weight_panel=shape.NR * item,
        weight_group=reduction * source[3], packed_group=0, packing=pack.ctypes.data,
        start_group=tiles * shape.MR * item,
        zeros=0, touching=0, inside=address(inside), inside_runs=1, most_runs=1, padding=0, scatter=0, chunk=1,
        tiles=tiles, tiles_per_block=count, blocks=-(-tiles // count), panel_parts=parts,
        tile_pixels=shape.MR, tile_channels=shape.NR, row_bytes=shape.NR * item, item=item, trace=0,
        multiply=0, finish=0, list_bytes=listed,
        workspace_bytes=total,
        table=table, counts=counts, tables=tables, runs=counts, targets=targets, numbers=numbers, row_parts=row_parts,
        column_parts=column_parts, spare=spare, starts=spare, buffer_rows=spare, buffer=buffer, copies=buffer,
        packed=packed, strip=buffer,
    )  # fmt: skip
    unroll = UNROLLED if weights[2] == item else ANYWHERE
    tasks = matrices * -(-tiles // count) * parts

    def compiled() -> CFunc:
        if packs:
            pack["entry"] = gather.pack_part(problem.dtype, shape.NR).address
        template["trace"] = gather.trace().address
        template["multiply"] = gather.multiply(problem.dtype, shape, unroll, ROW_START).address
        template["finish"] = gather.finish().address
        return gather.gather()

    launch = Launch(compiled, problem.dtype, template, tasks, threads, total)
    zeros = np.zeros(problem.groups * tiles * shape.MR, problem.dtype)
    return PlanePass(problem, threads, shape, launch, zeros, (taps, inside, pack), turn)
