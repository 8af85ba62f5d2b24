"""The weight gradient: `fastconv.kernels.correlate`, planned."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.algorithms.base import PLAIN, Epilogue, canonical_strides, canonical_weight_strides, scratch_limit
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.base import Pass
from fastconv.algorithms.direct.copies import sets_of
from fastconv.algorithms.direct.grids import Axis, even_step, forward_axis, met_share, workspace_offsets
from fastconv.algorithms.slabs import MOST_SLABS, SLABS_BYTES, Slabs, slabs_up_to
from fastconv.algorithms.turning import transposition
from fastconv.cost import far_bytes
from fastconv.kernels import correlate
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import LINE, Buffer, address, fill, odd_lines
from fastconv.kernels.target import Tile, gradient_slots, gradient_tile, registers, vector_bytes
from fastconv.kernels.tiles import RUN_FIELDS
from fastconv.kernels.transpose import MOST_INTERLEAVED
from fastconv.problem import CHANNELS_LAST, IMAGES_LAST, ConvProblem

_PANEL_BYTES = 32 << 10
"""Packed output gradients of a block of pixels: they stay in the first cache level for all taps."""
_NARROW_PANEL_BYTES = 12 << 10
"""The same where registers are few and a pixel's inputs take several lines: beside narrow panels these need as much."""
_JOINED_CHANNELS = 16
"""Input channels of a group up to which the taps of a kernel row are joined."""
_IN_PLACE_PASSES, _MEETING_PASSES, _FEW_SETS = {32: 16, 16: 10}, 4, 2
"""Tiles that may read output gradients as they lie, by registers, and how many where their pixels spread over so few
sets of a cache: vectors there mostly straddle cache lines, packed ones do not."""
_SLAB_PIXELS = 400
"""Pixels of a slab: with so many, adding its partial gradient takes some hundredth of computing it."""
_PACKED_BYTES = 512 << 10
"""Packed inputs of a block of pixels: they stay in the second."""
_FAR_BYTES = 1 << 20
"""Weight gradients that leave the second cache level: each block of pixels reads and writes them once more."""
_FAR_PANEL_BYTES = {32: 256 << 10, 16: 32 << 10}
"""Packed output gradients of a block then, which is larger, by registers: CPUs with 16 have smaller caches."""
_FAR_PARTS = 8
"""Parts of the input channels at most that make blocks larger still."""
_FEW_PIXELS = 64
"""Blocks of fewer pixels take parts as well: with their taps far apart, all channels would leave room for a few."""


@dataclass(frozen=True, eq=False)
class CorrelatePass(Pass):
    """The launch of the weight gradient, planned: its record but for the addresses of a call's arrays."""

    slabs: Slabs
    unused: np.ndarray
    """Stands for what sums begin with, which is nothing."""
    tables: tuple[np.ndarray, ...]
    """Offsets whose addresses the record holds, and which it keeps alive."""
    turn: Turn | None
    """Lays a gradient whose output channels lie side by side as the caller's lies; None where that does so, too."""

    @property
    def workspace_bytes(self) -> int:
        """Bytes of the threads' packed blocks and of the partial gradients."""
        turned = math.prod(self.problem.w_shape) * self.problem.itemsize if self.turn else 0
        return self.launch.workspace_bytes + self.slabs.workspace_bytes + turned

    def describe(self) -> str:
        channels = self.problem.oc_per_group
        return model.describe(self.tile, "output channels", model.filled(channels, self.tile.VL))

    def seconds(self, rate: float) -> float:
        p, problem, shape = self.launch.plan[0], self.problem, self.tile
        pixels = problem.n * math.prod(problem.output_size)
        taps = int(p["taps_r"] * p["taps_c"])
        channel_tiles, panels = int(p["channel_tiles"]), int(p["panels"])
        tiles = channel_tiles * taps * problem.groups
        slots = gradient_slots(shape, problem.oc_per_group)
        met = met_share(forward_axis(problem, 0), problem.input_size[0])
        if not p["joined"]:
            met *= met_share(forward_axis(problem, 1), problem.input_size[1])
        multiply = tiles * pixels * shape.MR * slots * met / rate
        blocks = int(p["image_blocks"] * p["row_blocks"] * p["column_blocks"])
        far = math.prod(problem.w_shape) * problem.itemsize > model.NEAR_SCATTER_BYTES
        scatter = model.costs().far_scatter_seconds if far else model.SCATTER_SECONDS
        if p["target_d"] == problem.itemsize:
            scatter = model.CORRELATE_ROW_SECONDS
        each = model.CORRELATE_ADD_SECONDS if p["even"] else scatter
        add = tiles * blocks * panels * (shape.MR * shape.NR * each + model.TILE_SLOTS / rate)
        inputs = blocks * int(p["packed_rows"] * p["packed_columns"] * p["image_block"])
        channels, each = problem.ic_per_group, model.CORRELATE_COPY_SECONDS
        beside = p["packed_column_step"] * p["source_c"] == problem.itemsize
        few = channels <= MOST_INTERLEAVED and beside and p["pixel_bytes"] == channels * problem.itemsize
        if p["source_k"] != problem.itemsize and not few:
            many = problem.ic > model.TURNED_PLANES
            channels = channels if many else -(-channels // shape.VL) * shape.VL
            each = model.MANY_LINES_SECONDS if many else model.CORRELATE_TURN_SECONDS
        pack = 0.0 if p["planes"] else inputs * channels * each * int(p["panel_parts"])
        if not p["in_place"]:
            each = model.CORRELATE_COPY_SECONDS if p["gradient_d"] == problem.itemsize else model.CORRELATE_LINE_SECONDS
            pack += pixels * panels * int(p["channel_parts"]) * shape.NR * each
        work = (multiply + add + pack * problem.groups) * model.balance(self.launch.tasks, self.threads)
        total = self.slabs.workspace_bytes * model.STREAM_SECONDS
        total += far_bytes(problem) * model.PLANE_SECONDS * self.threads
        if self.turn:
            total += self.turn.seconds
        return model.launch_seconds(self.threads) + (work + total) / self.threads

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        if self.turn is None:
            self.slabs.run(self.launch, second, first, self.unused, result)
            return
        with Buffer(result.nbytes) as buffer:
            turned = buffer[: result.nbytes].view(result.dtype).reshape(self.turn.shape)
            self.slabs.run(self.launch, second, first, self.unused, turned)
            self.turn(turned, result)


class Turn:
    """Lays gradients whose output channels lie side by side as the caller's lie.

    Those of `joined` taps are in the order (row, column, input, output), as a tile's rows follow each other: for NCHW a
    matrix to transpose for each input. Others are in the order (input, row, column, output): one matrix.
    """

    def __init__(self, problem: ConvProblem, joined: bool, threads: int) -> None:
        kh, kw = problem.kernel_size
        ic, oc, taps, item = problem.ic_per_group, problem.oc, kh * kw, problem.itemsize
        self._copies = joined and problem.layout == CHANNELS_LAST  # whole rows, of few weights
        self.shape = (kh, kw, ic, oc) if joined else (ic, kh, kw, oc)
        self.layout = "NHWC" if joined else CHANNELS_LAST
        matrices, rows = (ic, taps) if joined else (1, ic * taps)
        self._launch = transposition(
            problem.dtype, matrices, rows, oc, (oc * item, matrices * oc * item), (rows * item, ic * taps * item),
            threads, by_rows=True,
        )  # fmt: skip
        self._unused = np.zeros(1, problem.dtype)
        self.seconds = ic * taps * oc * (model.SCATTER_SECONDS if joined else model.costs().transpose_seconds)
        """Of one thread."""

    def __call__(self, gradient: np.ndarray, result: np.ndarray) -> None:
        if self._copies:
            result[...] = gradient.transpose(2, 0, 1, 3)
        else:
            self._launch(gradient, gradient, self._unused, result)


_EXCHANGED_SHARE = 0.95
"""Speed where the inputs' channels lie side by side: the fewer rows, the less a load is used."""
_WAIT_SECONDS = 0.02e-9
"""Waiting for a byte of far images whose many channels are the lanes: few rows leave little to do meanwhile."""


@dataclass(frozen=True, eq=False)
class ExchangedPass(Pass):
    """The weight gradient of a pointwise layer as that of the layer whose input and output have changed places.

    The other's gradient is turned, but for planes, where it is written as the caller's lies.
    """

    other: CorrelatePass
    turn: Launch | None

    @property
    def workspace_bytes(self) -> int:
        """What the exchanged layer takes, and its gradient."""
        turned = math.prod(self.problem.w_shape) * self.problem.itemsize if self.turn else 0
        return self.other.workspace_bytes + turned

    def describe(self) -> str:
        channels = self.problem.ic
        return model.describe(self.tile, "input channels", model.filled(channels, self.tile.VL))

    def seconds(self, rate: float) -> float:
        seconds = self.other.seconds(rate)
        if self.turn is None:
            return seconds
        turning = math.prod(self.problem.w_shape) * model.costs().transpose_seconds / self.turn.threads
        turning += model.again_seconds(self.turn.threads)
        return seconds / _EXCHANGED_SHARE + far_bytes(self.problem) * _WAIT_SECONDS + turning

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        if self.turn is None:
            self.other.run(second, first, result)
            return
        with Buffer(result.nbytes) as buffer:
            turned = buffer[: result.nbytes].view(result.dtype).reshape(self.other.problem.w_shape)
            self.other.run(second, first, turned)
            self.turn(turned, turned, self.other.unused, result)


def plan_exchanged(problem: ConvProblem, threads: int) -> ExchangedPass | None:
    """Plan a pointwise layer with the inputs in the lanes; None for others, and where these should not be.

    With channels side by side they should be where the outputs are fewer, as the fewer channels then are the rows. Of
    planes the rows are read as they lie, and the fewer channels are those that are packed.
    """
    pointwise = problem.kernel_size == problem.stride == (1, 1) and problem.input_size == problem.output_size
    if not pointwise or problem.groups > 1 or problem.layout == IMAGES_LAST:
        return None
    more_inputs = problem.ic > problem.oc
    if problem.ic == problem.oc or more_inputs == (problem.layout == "NCHW"):
        return None
    if math.prod(problem.w_shape) * problem.itemsize > SLABS_BYTES and problem.layout != "NCHW":
        return None
    in_planes, turn = problem.layout == "NCHW", None
    other = plan_correlate(replace(problem, ic=problem.oc, oc=problem.ic), threads, exchanged=in_planes)
    if not in_planes:
        ic, oc, item = problem.ic, problem.oc, problem.itemsize
        sharing = threads if ic * oc >= model.SHARED_WEIGHTS else 1
        turn = transposition(problem.dtype, 1, oc, ic, (0, ic * item), (0, oc * item), sharing)
    return ExchangedPass(problem, threads, other.tile, other.launch, other, turn)


def plan_correlate(problem: ConvProblem, threads: int, exchanged: bool = False) -> CorrelatePass:
    """Plan the launch of the weight gradient, of planes that are `exchanged` for a result of the caller's layer."""
    item, groups = problem.itemsize, problem.groups
    rows, columns = forward_axis(problem, 0), forward_axis(problem, 1)
    joined = _joins(problem, columns)
    taps_c = 1 if joined else len(columns.taps)
    reduction = problem.ic_per_group * len(columns.taps) // taps_c
    shape = gradient_tile(problem.dtype, reduction, problem.oc_per_group)
    x = canonical_strides(problem.x_shape, item, problem.layout)
    y = canonical_strides(problem.y_shape, item, problem.layout)
    w_bytes, turn = math.prod(problem.w_shape) * item, None
    w = canonical_weight_strides(problem.w_shape, item, problem.layout)
    if exchanged:
        w = canonical_weight_strides((problem.ic, 1, 1, problem.oc), item, CHANNELS_LAST)
    far = w_bytes > _FAR_BYTES
    room = int(scratch_limit(problem, 1)) - _panel_bytes(problem, far) - _PACKED_BYTES
    if not _lies_even(problem, w, joined) and w_bytes <= room:
        turn, room = Turn(problem, joined, threads), room - w_bytes
        w = canonical_weight_strides(turn.shape, item, turn.layout)
    panels, channel_tiles = -(-problem.oc_per_group // shape.NR), -(-reduction // shape.MR)
    in_place = y[3] == item and problem.oc_per_group % shape.VL == 0
    passes = _MEETING_PASSES if sets_of(y[2]) <= _FEW_SETS else _IN_PLACE_PASSES[registers()]
    in_place = in_place and len(rows.taps) * taps_c * channel_tiles <= passes
    even = _lies_even(problem, w, joined)
    planes = problem.layout == "NCHW" and not joined and reduction >= shape.MR

    # Blocks and slabs must not depend on the threads: the result's bits depend on them.
    pixels = problem.n * math.prod(problem.output_size)
    fitting = (min(SLABS_BYTES, room) if turn else SLABS_BYTES) // max(1, w_bytes)
    slabs = slabs_up_to(min(MOST_SLABS, fitting, pixels // _SLAB_PIXELS))
    divisible = 1 if joined else channel_tiles  # tiles whose channels need not be packed together
    block, least_parts = _block(problem, rows, columns, shape, -(-pixels // slabs), divisible, far)
    blocks = [-(-count // size) for count, size in zip((problem.n, rows.count, columns.count), block, strict=True)]
    slabs = max(1, min(slabs, math.prod(blocks)))
    partial = Slabs(problem, slabs, threads)
    channel_parts, panel_parts = _parts(problem, divisible, panels, slabs, threads, least_parts)
    packed_rows, row_step = _packed(rows, block.rows, problem.input_size[0])
    packed_columns, column_step = _packed(columns, block.columns, None if joined else problem.input_size[1])
    channels = problem.ic_per_group if joined else min(reduction, -(-channel_tiles // channel_parts) * shape.MR)
    pixel_bytes = channels * item if joined else odd_lines(channels * item)
    # Rows of the last tile that no channel has read what lies behind, and the last pixel's vector reaches there.
    image_bytes = packed_rows * packed_columns * pixel_bytes
    packed_bytes = block.images * image_bytes + max(shape.MR * item, vector_bytes())
    if planes:
        (packed_rows, packed_columns), row_step, column_step = problem.input_size, 1, 1
        pixel_bytes, image_bytes, packed_bytes = item, x[0], 0
    packed, panel, table, buffer, total = workspace_offsets(
        packed_bytes, 0 if in_place else block.pixels * shape.NR * item,
        block.images * block.rows * (1 + RUN_FIELDS) * 8, shape.MR * shape.NR * item,
    )  # fmt: skip
    row_offsets, column_offsets = np.array(rows.offsets, np.int64), np.array(columns.offsets, np.int64)
    template = fill(
        correlate.CORRELATE,
        source_n=x[0], source_r=x[1], source_c=x[2], source_k=x[3],
        source_group=problem.ic_per_group * x[3],
        source_rows=problem.input_size[0], source_columns=problem.input_size[1],
        gradient_n=y[0], gradient_r=y[1], gradient_c=y[2], gradient_d=y[3],
        gradient_group=problem.oc_per_group * y[3],
        n=problem.n, rows=rows.count, columns=columns.count, row_step=rows.step, column_step=columns.step,
        taps_r=len(rows.taps), taps_c=taps_c,
        row_offsets=address(row_offsets), column_offsets=address(column_offsets),
        first_row=min(rows.offsets), first_column=min(columns.offsets),
        inputs=problem.ic_per_group, reduction=reduction, channels=problem.oc_per_group,
        joined=joined, in_place=in_place, even=even,
        target_a=w[0], target_b=w[1], target_k=w[2], target_d=w[3],
        target_group=problem.oc_per_group * w[3], slab_bytes=partial.bytes_each,
        image_block=block.images, row_block=block.rows, column_block=block.columns,
        image_blocks=blocks[0], row_blocks=blocks[1], column_blocks=blocks[2], slabs=slabs,
        panels=panels, panel_parts=panel_parts, channel_tiles=channel_tiles, channel_parts=channel_parts,
        tile_rows=shape.MR, tile_channels=shape.NR, row_bytes=shape.NR * item, pack_source=0, pack_gradient=0, add=0,
        add_last=0,
        packed_rows=packed_rows, packed_columns=packed_columns, packed_row_step=row_step,
        packed_column_step=column_step, pixel_bytes=pixel_bytes, image_bytes=image_bytes,
        planes=planes,
        workspace_bytes=total, packed=packed, panel=panel, table=table, buffer=buffer,
    )  # fmt: skip

    def compiled() -> CFunc:
        if not planes:
            template["pack_source"] = correlate.pack_source(problem.dtype).address
        if not in_place:
            template["pack_gradient"] = correlate.pack_gradient(problem.dtype, shape.NR).address
        if panels > 1:
            template["add"] = correlate.add_tiles(problem.dtype, shape, planes).address
        last = shape.last(problem.oc_per_group)
        template["add_last"] = correlate.add_tiles(problem.dtype, last, planes).address
        return correlate.correlate()

    launch = Launch(compiled, problem.dtype, template, groups * slabs * channel_parts * panel_parts, threads, total)
    unused, tables = np.zeros(1, problem.dtype), (row_offsets, column_offsets)
    return CorrelatePass(problem, threads, shape, launch, partial, unused, tables, turn)


def _lies_even(problem: ConvProblem, w: tuple[int, int, int, int], joined: bool) -> bool:
    """Whether a tile's output channels lie side by side in a gradient of these strides, and its rows at one pitch."""
    return w[3] == problem.itemsize and (not joined or w[1] == problem.ic_per_group * w[2])


def _joins(problem: ConvProblem, columns: Axis) -> bool:
    """Whether the taps of a kernel row are joined: they touch, and channels are fewer than a tile has rows."""
    return even_step(columns.offsets) == 1 and len(columns.offsets) > 1 and problem.ic_per_group <= _JOINED_CHANNELS


def _parts(
    problem: ConvProblem, channel_tiles: int, panels: int, slabs: int, threads: int, least: int
) -> tuple[int, int]:
    """In how many parts tasks split input and output channels: evenly, and so that little is packed again.

    Input channels are split in `least` parts at least.
    """
    inputs, gradients = (math.prod(shape) for shape in (problem.x_shape, problem.y_shape))
    products = gradients * problem.ic_per_group * math.prod(problem.kernel_size)
    lanes = vector_bytes() // problem.itemsize

    def seconds(parts: int, others: int) -> float:
        largest = -(-channel_tiles // parts) / channel_tiles * -(-panels // others) / panels
        rounds = -(-problem.groups * slabs * parts * others // threads)
        multiply = products / lanes / model.nominal_rate() * largest * rounds / (problem.groups * slabs)
        return multiply + (inputs * others + gradients * parts) * model.COPY_SECONDS / threads

    most = 2 * threads if threads > 1 else 1
    splits = itertools.product(range(least, max(least, min(channel_tiles, most)) + 1), range(1, min(panels, most) + 1))
    return min(splits, key=lambda split: seconds(*split))


class _Block(NamedTuple):
    """How many images, output rows and output columns are packed at once."""

    images: int
    rows: int
    columns: int

    @property
    def pixels(self) -> int:
        return self.images * self.rows * self.columns


def _packed(axis: Axis, count: int, size: int | None) -> tuple[int, int]:
    """How many input positions `count` outputs read along an axis, and how far apart those are.

    Those outside an image of that size do not count.
    """
    if len(axis.taps) == 1 and axis.step > 1:
        return count, axis.step
    reach = (count - 1) * axis.step + max(axis.offsets) - min(axis.offsets) + 1
    return reach if size is None else min(reach, size), 1


def _panel_bytes(problem: ConvProblem, far: bool) -> int:
    """Packed output gradients of a block at most."""
    if far:
        return _FAR_PANEL_BYTES[registers()]
    lines = problem.ic_per_group * problem.itemsize > LINE
    return _NARROW_PANEL_BYTES if lines and registers() == 16 else _PANEL_BYTES


def _block(
    problem: ConvProblem, rows: Axis, columns: Axis, shape: Tile, most_pixels: int, channel_tiles: int, far: bool
) -> tuple[_Block, int]:
    """The largest block of whole rows, or whole images, whose packed copies stay in the second cache level.

    And in how many parts its input channels must be packed at least: more than one where that makes blocks larger, and
    the weight gradient is `far` or blocks have few pixels.
    """
    panel_bytes = _panel_bytes(problem, far)
    found: list[tuple[int, int, _Block]] = []
    for parts in range(1, min(channel_tiles, _FAR_PARTS) + 1):
        if found and not far and -found[0][0] >= _FEW_PIXELS:
            break
        tiles = -(-channel_tiles // parts)
        channels = problem.ic_per_group if parts == 1 else min(problem.ic_per_group, tiles * shape.MR)
        block = _largest_block(problem, rows, columns, most_pixels, channels, panel_bytes // shape.NR)
        found.append((-block.pixels, parts, block))
    _, parts, block = min(found)
    return block, parts


def _largest_block(
    problem: ConvProblem, rows: Axis, columns: Axis, most_pixels: int, channels: int, pixel_bytes: int
) -> _Block:
    """The same for so many input channels that are packed together, and so many bytes for a channel of the gradient."""
    joined = _joins(problem, columns)

    def fits(block: _Block) -> bool:
        width = None if joined else problem.input_size[1]
        inputs = block.images * _packed(rows, block.rows, problem.input_size[0])[0]
        inputs *= _packed(columns, block.columns, width)[0]
        if inputs * channels * problem.itemsize > _PACKED_BYTES or block.pixels * problem.itemsize > pixel_bytes:
            return False
        return block.pixels <= most_pixels

    def most(block: Callable[[int], _Block], count: int) -> int:
        """The largest number up to `count` of which a block fits, at least 1; even shares of `count`."""
        low, high = 1, count
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(block(middle)) else (low, middle - 1)
        return -(-count // -(-count // low))

    width = most(lambda count: _Block(1, 1, count), columns.count)
    height = most(lambda count: _Block(1, count, width), rows.count) if width == columns.count else 1
    images = most(lambda count: _Block(count, height, width), problem.n) if height == rows.count else 1
    return _Block(images, height, width)
