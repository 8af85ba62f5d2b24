"""Winograd's minimal filtering F(m0 x m1, r0 x r1): fewer multiplications than the plain sum has products.

A task takes a block of tiles of m0 x m1 target pixels. It transforms the n0 x n1 pixels, n = m + r - 1, that each
reads, multiplies the n0 n1 matrices of transformed values (tiles x source channels) with the transformed weights
(source x target channels), panel by panel of target channels, and transforms each panel back, so that nothing of the
transformed tensors leaves the second cache level. Of many source channels it takes a chunk at a time, for all of its
panels, whose products are added up: each is transformed once, and there is room for more tiles, which share the
transformed weights. Padding and edges are addresses, as in the gather kernel: a pixel in
the padding reads a row of zeros, a target past the edge is written to a row that nobody reads. Dilation is addresses as
well: a tile's pixels lie d apart, because the targets of one phase (row mod d, column mod d) are a problem without
dilation.

Weights are transformed by the tasks themselves where they come as they lie (`fastconv.kernels.winograd_packing`):
reading them transformed would move n0 n1 / (r0 r1) times as many bytes, from a slower cache.

A kernel larger than r0 x r1 is cut into pieces of that size, the last ones filled up with zeros. Each reads pixels of
its own, and its products are added to those of the pieces before: to the multiplication, pieces are more channels. So
are the phases of a stride s: the taps a, a + s and so on of a kernel are one of stride 1 on every s-th pixel. Where
phases have unequal taps, a filtering of that stride has the products of all of them side by side instead: F(2, 3) of
stride 2 has the three of F(2, 2) and two for the tap in the middle, for which nothing is transformed. In the input
gradient every phase has targets of its own, and the phases' kernels are like more target channels: their products are
those of the same transformed tiles.
"""

from __future__ import annotations

import functools

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.kernels import jit
from fastconv.kernels.activation import activate
from fastconv.kernels.params import CALL, LINE, record
from fastconv.kernels.simd import array_at, call_part, copy_first_lanes, prefetch, record_at
from fastconv.kernels.target import Tile, vector_bytes
from fastconv.kernels.tiles import CHANNEL_START, RUN_FIELDS, UNROLLED, multiply_tile
from fastconv.kernels.toomcook import Filtering
from fastconv.kernels.transforms import INPUT, OUTPUT, transform_tile

FORM = "m_r m_c r_r r_c s_r s_c matrices tile_inputs outputs_r outputs_c item vector"
"""Fields of the form F(m_r x m_c, r_r x r_c) of strides s_r and s_c (`Filtering`): its products, the inputs of a tile
and its outputs along both axes, then the bytes of a value and of a vector. With them one compiled kernel does all
forms."""

WINOGRAD = record(f"""
    {FORM}
    source_n source_r source_c source_group source_rows source_columns
    target_offset target_n target_r target_c target_group
    rows columns first_row first_column dilation_r dilation_c stride_r stride_c
    read_r read_c write_r write_c
    tile_rows tile_columns tiles block blocks parts
    reduction channels panels chunk held streams asks
    pieces_r pieces_c phases_r phases_c taps_r taps_c apart_r apart_c lead_r lead_c summed piece_bytes
    every_r every_c target_row target_column
    transformed weight_offset weight_r weight_c tap_r tap_c weight_k weight_d weight_group weight_panel weight_chunk
    start_group
    value_pitch value_step weight_step product_step product_panel zeros
    trace_inputs trace_outputs transform_inputs transform_outputs transform_weights transform_taps
    multiply multiply_last panel_lanes height
    workspace_bytes sources targets pixels values weights products value_table weight_table product_table
    weight_source unused tile_table starts buffer_table buffer
""")
"""Strides and `*_group` are in bytes. A tile at (i, j) reads from source pixel (i stride_r + first_row, j stride_c +
first_column) on, every read_r-th x read_c-th, and its first target is (i every_r + target_row, j every_c +
target_column), the others lie `write_*` apart; `every_*` are 1 but in input gradients of a stride. `trace_*` and
`transform_*` are the addresses of the compiled parts of these names, which know no register tile, `multiply` and
`multiply_last` those of the parts that do, for all panels and the last one; a panel has `panel_lanes` target channels,
a register tile `height` rows. A kernel of taps_r x taps_c has pieces_r x pieces_c pieces of phases_r x phases_c phases
of the stride; a piece has every apart_r-th x apart_c-th tap, `tap_r` and `tap_c` bytes apart. So many of them are
`summed`: all, but in input gradients of a stride, where each piece makes a phase of the targets, which lies as many
rows and columns before that of piece 0 as the piece lies behind it. The first lead_r rows and lead_c columns of the
kernel are zeros that no weights stand for. Where it `streams`, a tile's source is transformed chunk by chunk, and
the products of a panel lie `product_panel` bytes behind those of the panel before; else the source of a piece lies
`piece_bytes` behind that of the piece before. Where it `asks`, the next tile's pixels are asked for. The last lines'
fields are offsets into each thread's workspace."""


_MOST_UNROLLED = 28
"""Sums of a tile from which on unrolling its short runs spills some."""


@jit.inline
def locate_tile(p, tile):
    """The image of a tile, and its row and column of tiles."""
    row = tile // p.tile_columns
    return row // p.tile_rows, row % p.tile_rows, tile % p.tile_columns


@jit.inline
def next_tile(p, image, a, b):
    """The place of the tile that follows: dividing again would take as long as transforming a small one."""
    b += 1
    if b == p.tile_columns:
        a, b = a + 1, 0
        if a == p.tile_rows:
            image, a = image + 1, 0
    return image, a, b


@jit.inline
def first_target(a, M, dilation):
    """The first target pixel along an axis of the tiles in row or column `a`.

    The tiles of all phases take turns, so that tiles beside each other read pixels beside each other.
    """
    return a * M if dilation == 1 else a // dilation * M * dilation + a % dilation


@jit.inline
def taps_of_piece(p, piece):
    """The first tap of a piece along both axes, and how many it has: the last ones may have fewer."""
    row, column = piece // p.pieces_c, piece % p.pieces_c
    a = row % p.phases_r + row // p.phases_r * p.r_r * p.apart_r
    b = column % p.phases_c + column // p.phases_c * p.r_c * p.apart_c
    return a, b, min(p.r_r, (p.taps_r - a - 1) // p.apart_r + 1), min(p.r_c, (p.taps_c - b - 1) // p.apart_c + 1)


@jit.inline
def inputs_of(M, S, taps):
    """Inputs that F(M, taps) of a stride reads, as `fastconv.kernels.toomcook.Filtering` has it."""
    return (M - 1) * S + taps if S > 0 else M - 1 - taps // S


@jit.inline
def last_read(start, M, S, taps, apart, size):
    """Where what a tile reads for so many taps ends: beyond lie pixels that only taps of zeros would meet."""
    return min(size, start + inputs_of(M, S, taps) * apart)


@functools.cache
def trace(height: int, width: int) -> CFunc:
    """The part that writes the addresses of height x width pixels of an image to a table; those outside are `outside`.

    `apart_*` are the image's rows and columns from one of these pixels to the next. The loops' ends are compiled in:
    without, layers of 16 and 32 channels took up to 7 % longer.
    """
    ROWS, COLUMNS = height, width

    def trace_tile(image, pitch_r, pitch_c, rows, columns, first_row, first_column, apart_r, apart_c, table, outside):
        addresses = array_at(table, (ROWS, COLUMNS), np.int64)
        last_row, last_column = first_row + (ROWS - 1) * apart_r, first_column + (COLUMNS - 1) * apart_c
        first = image + first_row * pitch_r + first_column * pitch_c
        step_r, step_c = apart_r * pitch_r, apart_c * pitch_c
        if first_row >= 0 and first_column >= 0 and last_row < rows and last_column < columns:
            for a in range(ROWS):
                for b in range(COLUMNS):
                    addresses[a, b] = first + a * step_r + b * step_c
            return
        for a in range(ROWS):
            row = first_row + a * apart_r
            for b in range(COLUMNS):
                column = first_column + b * apart_c
                inside = 0 <= row < rows and 0 <= column < columns
                addresses[a, b] = first + a * step_r + b * step_c if inside else outside

    return jit.part(trace_tile)


@jit.inline
def trace_inputs(p, taps, image, i, j, table):
    """Write the addresses of what these taps of a piece read for the tile whose first target is (i, j)."""
    a, b, taps_r, taps_c = taps
    row = i * p.stride_r + p.first_row + a * p.dilation_r
    column = j * p.stride_c + p.first_column + b * p.dilation_c
    rows = last_read(row, p.m_r, p.s_r, taps_r, p.read_r, p.source_rows)
    columns = last_read(column, p.m_c, p.s_c, taps_c, p.read_c, p.source_columns)
    call_part(
        p.trace_inputs,
        (image, p.source_r, p.source_c, rows, columns, row, column, p.read_r, p.read_c, table, p.zeros),
    )  # fmt: skip


@jit.inline
def trace_matrix(count, table, base, step):
    """Write the addresses of the `count` values of a transformed tile, `step` bytes apart."""
    addresses = array_at(table, count, np.int64)
    for e in range(count):
        addresses[e] = base + e * step


@functools.cache
def transform_pixels(dtype: str, kind: int, rows: Filtering, columns: Filtering) -> CFunc:
    """The part that transforms what is traced of tiles, one after another, by KIND's matrices.

    These are `channels` channels from an offset on, and they go to a place in a table, `pitch` bytes further for every
    tile. Channels that do not fill a vector are copied to `spare` first; the vector's other lanes are zeros. What the
    next tile reads is asked for if it `asks`, but for the columns that the tiles share.
    """
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, KIND, (M0, R0, S0), (M1, R1, S1) = vector_bytes() // ITEM, kind, rows, columns
    COUNT = rows.inputs * columns.inputs if kind == INPUT else rows.outputs * columns.outputs
    WIDTH = columns.inputs if kind == INPUT else columns.outputs
    SHARED = columns.inputs - columns.m * max(1, columns.stride) if kind == INPUT else 0
    OF_LINE = LINE // ITEM

    def transform_channels(tiles, traced, offset, channels, table, place, pitch, spare, spare_table, zeros, asks):
        for t in range(tiles):
            of_tile, there = traced + t * COUNT * 8, place + t * pitch
            pixels, following = array_at(of_tile, COUNT, np.int64), array_at(of_tile + COUNT * 8, COUNT, np.int64)
            for v in range(0, channels, VL):
                source, shift = of_tile, offset + v * ITEM
                if asks != 0 and v % OF_LINE == 0 and t + 1 < tiles:
                    for e in range(COUNT):
                        if e % WIDTH >= SHARED:
                            prefetch(following[e] + shift)
                if channels - v < VL:
                    for e in range(COUNT):
                        copy_first_lanes(REAL, VL, channels - v, pixels[e] + shift, spare + e * VL * ITEM)
                    source, shift = spare_table, 0
                transform_tile(
                    REAL, VL, KIND, M0, R0, S0, M1, R1, S1, source, shift, table, there + v * ITEM, zeros, REAL(0)
                )

    return jit.part(transform_channels)


@functools.cache
def transform_products(dtype: str, rows: Filtering, columns: Filtering) -> CFunc:
    """The part that transforms the products of `tiles` tiles with a panel of weights back into the targets `traced`.

    What the next tile writes is asked for.
    """
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, (M0, R0, S0), (M1, R1, S1) = vector_bytes() // ITEM, rows, columns
    COUNT, OF_LINE = rows.outputs * columns.outputs, LINE // ITEM

    def transform_back(address, own, products, traced, tiles, group, panel):
        call = record_at(address, CALL)
        p = record_at(call.plan, WINOGRAD)
        lowest = REAL(0) if call.relu != 0 else REAL(-np.inf)
        lanes = min(p.panel_lanes, p.channels - panel * p.panel_lanes)
        start = call.start + group * p.start_group + panel * p.panel_lanes * ITEM
        for t in range(tiles):
            table = traced + t * COUNT * 8
            written, following = array_at(table, COUNT, np.int64), array_at(table + COUNT * 8, COUNT, np.int64)
            for v in range(0, lanes, VL):
                there = min(VL, lanes - v)
                place = group * p.target_group + (panel * p.panel_lanes + v) * ITEM
                if v % OF_LINE == 0 and t + 1 < tiles:
                    for e in range(COUNT):
                        prefetch(following[e] + place)
                transform_tile(
                    REAL, VL, OUTPUT, M0, R0, S0, M1, R1, S1, own + p.product_table,
                    products + (t * p.panel_lanes + v) * ITEM, table if there == VL else own + p.buffer_table,
                    place if there == VL else 0, start + v * ITEM, lowest,
                )  # fmt: skip
                if there == VL and call.activation == 0:
                    continue
                for e in range(COUNT):
                    if written[e] == own + p.unused:
                        continue
                    if there < VL:
                        row = array_at(own + p.buffer + e * VL * ITEM, VL, REAL)
                        pixel = array_at(written[e] + place, there, REAL)
                        for d in range(there):
                            pixel[d] = row[d]
                    if call.activation != 0:
                        activate(call, written[e] + place, there)

    return jit.part(transform_back)


@functools.cache
def multiply(dtype: str, tile: Tile, matrices: int) -> CFunc:
    """The part that knows its register tile: matrices of `tiles` transformed tiles by those of a chunk of a panel.

    The tile may be narrower than the panels, for the last of them. The chunk's `count` source channels lie `shift`
    bytes behind a tile's first. The panel's products lie `products` bytes behind the first panel's, and are added to
    those so far if it `adds`.
    """
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, MR, NV, NR, COUNT = tile.VL, tile.MR, tile.NV, tile.NR, matrices
    UNROLL = UNROLLED if MR * NV < _MOST_UNROLLED else 1

    def multiply_matrices(plan, own, packed, shift, count, products, adds, tiles):
        p = record_at(plan, WINOGRAD)
        run = array_at(own + p.tile_table, MR + RUN_FIELDS, np.int64)
        run[MR], run[MR + 1], run[MR + 2] = ITEM, 0, count
        for e in range(COUNT):
            values = own + p.values + e * p.value_step + shift
            for first in range(0, tiles, MR):
                rows = own + p.targets + first * 8
                for q in range(MR):
                    run[q] = values + min(first + q, tiles - 1) * p.value_pitch
                multiply_tile(
                    REAL, VL, MR, NV, CHANNEL_START, UNROLL, 0, 1, own + p.tile_table, packed + e * p.weight_step,
                    p.panel_lanes * ITEM, 0, rows if adds != 0 else own + p.starts,
                    products + e * p.product_step if adds != 0 else 0,
                    REAL(-np.inf), rows, products + e * p.product_step, NR,
                )  # fmt: skip

    return jit.part(multiply_matrices)


@functools.cache
def winograd() -> CFunc:
    """The kernel for all dtypes and forms; its tasks are (group, block of tiles, part of the panels)."""

    def winograd_tiles(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, WINOGRAD)
        own = call.workspace + thread * p.workspace_bytes
        capacity = (p.block + p.height - 1) // p.height * p.height
        trace_matrix(p.matrices, own + p.value_table, own + p.values, p.value_step)
        trace_matrix(p.matrices, own + p.product_table, own + p.products, p.product_step)
        trace_matrix(p.matrices, own + p.buffer_table, own + p.buffer, p.vector)
        product_rows = array_at(own + p.targets, capacity, np.int64)
        array_at(own + p.starts, p.height, np.int64)[:] = p.zeros
        for t in range(capacity):
            product_rows[t] = own + p.products + t * p.panel_lanes * p.item
        pieces, chunks = p.pieces_r * p.pieces_c, (p.reduction + p.chunk - 1) // p.chunk
        panels, outputs = p.panels * (pieces // p.summed), p.outputs_r * p.outputs_c
        ready, traced, filled = -1, -1, False
        for task in range(begin, end):
            part = task % p.parts
            block = task // p.parts % p.blocks
            group = task // p.parts // p.blocks
            first = block * p.block
            tiles = min(p.block, p.tiles - first)
            if ready != task // p.parts:  # else the parts of one block follow each other
                ready, filled = task // p.parts, False
            if traced != block:  # for all groups: these are offsets
                traced = block
                source, target = call.source, call.target + p.target_offset
                for piece in range(pieces):
                    taps, table = taps_of_piece(p, piece), own + p.pixels + piece * p.block * p.tile_inputs * 8
                    phase = piece // p.summed
                    targets = own + p.sources + phase * p.block * outputs * 8
                    image, a, b = locate_tile(p, first)
                    for t in range(tiles):
                        i, j = first_target(a, p.m_r, p.dilation_r), first_target(b, p.m_c, p.dilation_c)
                        if phase == 0:
                            trace_inputs(p, taps, source + image * p.source_n, i, j, table + t * p.tile_inputs * 8)
                        if piece % p.summed == 0:
                            call_part(
                                p.trace_outputs,
                                (
                                    target + image * p.target_n, p.target_r, p.target_c, p.rows, p.columns,
                                    i * p.every_r + p.target_row - phase // p.pieces_c,
                                    j * p.every_c + p.target_column - phase % p.pieces_c,
                                    p.write_r, p.write_c, targets + t * outputs * 8, own + p.unused,
                                ),
                            )  # fmt: skip
                        image, a, b = next_tile(p, image, a, b)
            begin_panels, end_panels = panels * part // p.parts, panels * (part + 1) // p.parts
            steps = p.summed * chunks
            together = 1 if p.streams != 0 else steps
            for first_step in range(0, steps, together):
                if p.streams != 0 or not filled:
                    filled = True
                    first_piece, channel = first_step // chunks, first_step % chunks * p.chunk
                    for piece in range(first_piece, first_piece + 1 if p.streams != 0 else p.summed):
                        call_part(
                            p.transform_inputs,
                            (
                                tiles, own + p.pixels + piece * p.block * p.tile_inputs * 8,
                                group * p.source_group + channel * p.item, min(p.held, p.reduction - channel),
                                own + p.value_table, piece * p.piece_bytes, p.value_pitch, own + p.buffer,
                                own + p.buffer_table, p.zeros, p.asks,
                            ),
                        )  # fmt: skip
                for each in range(begin_panels, end_panels):
                    phase, panel = each // p.panels, each % p.panels
                    weights = call.other + p.weight_offset + group * p.weight_group
                    products = (each - begin_panels) * p.product_panel
                    for step in range(first_step, first_step + together):
                        piece, k = step // chunks, step % chunks * p.chunk
                        if p.transformed != 0:
                            packed = weights + each * p.weight_panel + step * p.weight_chunk
                        else:
                            packed = own + p.weights
                            call_part(p.transform_weights, (call.plan, own, weights, panel, phase + piece, k, packed))
                        multiply = p.multiply_last if panel == p.panels - 1 else p.multiply
                        shift, count = piece * p.piece_bytes + k % p.held * p.item, min(p.chunk, p.reduction - k)
                        adds = 1 if step > 0 else 0
                        call_part(multiply, (call.plan, own, packed, shift, count, products, adds, tiles))
                    if first_step + together == steps:
                        targets = own + p.sources + phase * p.block * outputs * 8
                        call_part(p.transform_outputs, (address, own, products, targets, tiles, group, panel))

    return jit.kernel(winograd_tiles)
