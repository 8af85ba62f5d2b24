"""Weight gradient as register tiles: rows are input channels, vectors are output channels, the sum goes over pixels.

Pixels are taken block by block. A block's input is packed pixel by pixel, its output gradients into panels of NR
channels, both once for all taps, so that they come from the nearer cache levels in a straight line, whatever the
layout; planes are read as they lie instead, as a tile's scalars may come from anywhere. A tap reads the packed rows
where it meets the image, so padding is never multiplied.

Few input channels leave most of a tile's rows empty. The taps of a kernel row are joined then: packed pixels touch,
with zeros around the rows, and the rows of a tile are the channels of all these taps, which lie side by side.

Blocks form slabs, which sum into partial gradients of their own where the weights are few. Every tile of a partial
gradient belongs to one task, which adds the blocks in order, and the partial gradients are added in order, so the
result has the same bits for any number of threads, and its rounding error grows with the number of blocks plus the
pixels of one block rather than with all pixels.
"""

from __future__ import annotations

import functools

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.kernels import jit
from fastconv.kernels.copies import AHEAD
from fastconv.kernels.params import CALL, LINE, record
from fastconv.kernels.simd import array_at, call_part, copy_first_lanes, copy_run, prefetch, record_at, turn_row
from fastconv.kernels.spans import end_inside, first_inside
from fastconv.kernels.target import Tile, lanes_dividing, vector_bytes
from fastconv.kernels.tiles import RUN_FIELDS, added_tile
from fastconv.kernels.transpose import MOST_INTERLEAVED, interleave_planes

CORRELATE = record("""
    source_n source_r source_c source_k source_group source_rows source_columns
    gradient_n gradient_r gradient_c gradient_d gradient_group
    n rows columns row_step column_step
    taps_r taps_c row_offsets column_offsets first_row first_column
    inputs reduction channels joined in_place even
    target_a target_b target_k target_d target_group slab_bytes
    image_block row_block column_block image_blocks row_blocks column_blocks slabs
    panels panel_parts channel_tiles channel_parts
    tile_rows tile_channels row_bytes pack_source pack_gradient add add_last
    packed_rows packed_columns packed_row_step packed_column_step pixel_bytes image_bytes planes
    workspace_bytes packed panel table buffer
""")
"""Strides and `*_group` are in bytes. Packed rows and columns are those of the input in steps of `packed_*_step`, its
pixels `pixel_bytes` and images `image_bytes` apart; where `planes` is not 0, these are the input as it lies.
`reduction` counts the rows of all tiles: the `inputs` channels, of each of the joined taps. `in_place` tells that
output gradients are read as they lie, `even` that a tile's rows of the weight gradient are `target_k` apart and their
output channels side by side. A tile has `tile_rows` of `tile_channels`, `row_bytes` a row in a panel; `pack_source`,
`pack_gradient`, `add` and `add_last`, for the last panel, are the addresses of compiled parts that are called. The last
line's fields are offsets into a thread's workspace."""


@jit.inline
def first_packed(position, step, size, packed):
    """The first input position that is packed of those from one on: none outside the image where all are inside it."""
    return max(0, min(position, size - packed)) if step == 1 and packed <= size else position


@jit.inline
def first_row(p, i):
    """The input row that is packed first for output row i."""
    return first_packed(i * p.row_step + p.first_row, p.packed_row_step, p.source_rows, p.packed_rows)


@jit.inline
def first_column(p, j):
    """The input column that is packed first for output column j; joined taps read the zeros beside the image, too."""
    if p.joined != 0:
        return j * p.column_step + p.first_column
    return first_packed(j * p.column_step + p.first_column, p.packed_column_step, p.source_columns, p.packed_columns)


@functools.cache
def pack_source(dtype: str) -> CFunc:
    """The part of the kernel that copies the inputs of a block, the channels of a pixel side by side.

    What lies in the padding is left as it is, or zero beside a row whose taps are joined.
    """
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL = vector_bytes() // ITEM

    def pack_pixels(plan, source, packed, image, images, i, j, channels):
        p = record_at(plan, CORRELATE)
        top, left = first_row(p, i), first_column(p, j)
        begin = min(first_inside(left, p.packed_column_step), p.packed_columns)
        end = max(end_inside(left, p.packed_column_step, p.source_columns, p.packed_columns), begin)
        step = p.packed_column_step * p.source_c
        for slot in range(images):
            for r in range(p.packed_rows):
                row = top + r * p.packed_row_step
                if row < 0 or row >= p.source_rows:
                    continue
                line = source + (image + slot) * p.source_n + row * p.source_r + left * p.source_c
                place = packed + (slot * p.packed_rows + r) * p.packed_columns * p.pixel_bytes
                if p.source_k == ITEM and step == p.pixel_bytes == channels * ITEM:
                    copy_run(REAL, VL, line + begin * step, place + begin * step, (end - begin) * channels)
                elif p.source_k == ITEM:
                    for c in range(begin, end):
                        copy_run(REAL, VL, line + c * step, place + c * p.pixel_bytes, channels)
                elif step == ITEM and p.pixel_bytes == channels * ITEM and channels <= MOST_INTERLEAVED:
                    interleave_planes(
                        REAL, VL, channels, line + begin * ITEM, p.source_k, place + begin * p.pixel_bytes, end - begin
                    )
                elif step == ITEM and (p.joined == 0 or channels <= VL):
                    # Lanes past the last channel fall on what is not read, or on what is written after them.
                    for k in range(0, channels, VL):
                        turn_row(
                            REAL, VL, line + begin * ITEM, k, channels, p.source_k, end - begin,
                            place + begin * p.pixel_bytes + k * ITEM, p.pixel_bytes,
                        )  # fmt: skip
                else:
                    for k in range(channels):
                        for c in range(begin, end):
                            value = array_at(line + c * step + k * p.source_k, 1, REAL)[0]
                            array_at(place + c * p.pixel_bytes + k * ITEM, 1, REAL)[0] = value
                if p.joined != 0:
                    copy_run(REAL, VL, 0, place, begin * channels)
                    copy_run(REAL, VL, 0, place + end * p.pixel_bytes, (p.packed_columns - end) * channels)

    return jit.part(pack_pixels)


@functools.cache
def pack_gradient(dtype: str, lanes: int) -> CFunc:
    """The part of the kernel that copies a block of output gradients into a panel of so many lanes a pixel.

    Lanes past the last channel are not used.
    """
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    NR = lanes
    VL = lanes_dividing(NR, ITEM)

    def pack_panel(plan, gradient, panel, images, lines, columns, lanes):
        p = record_at(plan, CORRELATE)
        if p.gradient_r == columns * p.gradient_c:  # whole rows follow each other
            lines, columns = 1, lines * columns
        for r in range(images * lines):
            base = gradient + r // lines * p.gradient_n + r % lines * p.gradient_r
            place = panel + r * columns * NR * ITEM
            if p.gradient_d == ITEM:
                for j in range(columns):
                    for line in range(0, NR * ITEM, LINE):
                        prefetch(base + (j + AHEAD) * p.gradient_c + line)
                    for v in range(NR // VL):
                        part = v * VL * ITEM
                        copy_first_lanes(
                            REAL, VL, lanes - v * VL, base + j * p.gradient_c + part, place + j * NR * ITEM + part
                        )
                continue
            for v in range(0, NR, VL):
                turn_row(REAL, VL, base, v, lanes, p.gradient_d, columns, place + v * ITEM, NR * ITEM)

    return jit.part(pack_panel)


@jit.inline
def trace_tap(p, table_at, vector_n, vector_r, vector_c, a, b, images, i, j, lines, columns):
    """Write the runs of a tap over a block; the number of runs.

    A run's scalars are an offset into the packed channels of a tile, its vectors one into the block's gradients, whose
    images, rows and pixels are `vector_n`, `vector_r` and `vector_c` bytes apart.
    """
    row_offsets = array_at(p.row_offsets, p.taps_r, np.int64)
    column_offsets = array_at(p.column_offsets, p.taps_c, np.int64)
    table = array_at(table_at, (images * lines, 1 + RUN_FIELDS), np.int64)
    left, length = j, columns
    if p.joined == 0:
        left = max(j, first_inside(column_offsets[b], p.column_step))
        length = end_inside(column_offsets[b], p.column_step, p.source_columns, j + columns) - left
    if length <= 0:
        return 0
    step = p.column_step // p.packed_column_step * p.pixel_bytes
    column = (left * p.column_step + column_offsets[b] - first_column(p, j)) // p.packed_column_step
    runs, top = 0, first_row(p, i)
    for r in range(images * lines):
        slot, line = r // lines, r % lines
        row = (i + line) * p.row_step + row_offsets[a]
        if row < 0 or row >= p.source_rows:
            continue
        row = (row - top) // p.packed_row_step
        first = slot * p.image_bytes + (row * p.packed_columns + column) * p.pixel_bytes
        offset = slot * vector_n + line * vector_r + (left - j) * vector_c
        if runs > 0:
            done = table[runs - 1, 3]
            if first == table[runs - 1, 0] + done * step and offset == table[runs - 1, 2] + done * vector_c:
                table[runs - 1, 3] = done + length  # rows that follow each other make one run
                continue
        table[runs, 0], table[runs, 1], table[runs, 2], table[runs, 3] = first, step, offset, length
        runs += 1
    return runs


@jit.inline
def scatter_tile(p, REAL, ITEM, NR, buffer, target, first, rows, lanes, adds):
    """Add a tile, whose rows are those from `first` on, to a weight gradient, channel by channel."""
    tile = array_at(buffer, (rows, NR), REAL)
    for m in range(rows):
        place = target + (first + m) // p.inputs * p.target_b + (first + m) % p.inputs * p.target_k
        if p.target_d == ITEM:
            row = array_at(place, lanes, REAL)
            for d in range(lanes):
                row[d] = row[d] + tile[m, d] if adds else tile[m, d]
            continue
        for d in range(lanes):
            value = array_at(place + d * p.target_d, 1, REAL)
            value[0] = value[0] + tile[m, d] if adds else tile[m, d]


@functools.cache
def add_tiles(dtype: str, tile: Tile, planes: bool) -> CFunc:
    """The part of the kernel that knows its register tile: a tap's tiles from `first_tile` to `end_tile`.

    That of the last panel of output channels may be narrower.

    Their scalars begin at `scalars`, channel by channel side by side, or in `planes`: the last tile overlaps the one
    before then, as nothing may be read behind the last plane.
    """
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, MR, NV, NR, PLANES = tile.VL, tile.MR, tile.NV, tile.NR, int(planes)

    def add_tap(plan, own, scalars, first_tile, end_tile, runs, vectors, vector_c, target, lanes, adds):
        p = record_at(plan, CORRELATE)
        scalar_pitch = p.source_k if PLANES else ITEM
        for t in range(first_tile, end_tile):
            rows = min(MR, p.reduction - t * MR)
            before = MR - rows if PLANES else 0
            here = scalars + ((t - first_tile) * MR - before) * scalar_pitch
            place, pitch, added = target + t * MR * p.target_k, p.target_k, adds
            if p.even == 0 or before > 0:
                place, pitch, added = own + p.buffer, NR * ITEM, 0
            for m in range(rows):
                for line in range(0, NR * ITEM, LINE):
                    prefetch(place + m * pitch + line)
            added_tile(
                REAL, VL, MR, NV, PLANES, runs, own + p.table, here, scalar_pitch, vectors, vector_c,
                place, pitch, rows + before, lanes, added,
            )  # fmt: skip
            if p.even == 0 or before > 0:
                scatter_tile(p, REAL, ITEM, NR, place + before * NR * ITEM, target, t * MR, rows, lanes, adds)

    return jit.part(add_tap)


@functools.cache
def correlate() -> CFunc:
    """The kernel for all dtypes and tiles; tasks are (group, slab, part of the input channels, of the panels)."""

    def correlate_tiles(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, CORRELATE)
        own = call.workspace + thread * p.workspace_bytes
        for task in range(begin, end):
            panel_part = task % p.panel_parts
            part = task // p.panel_parts % p.channel_parts
            slab = task // p.panel_parts // p.channel_parts % p.slabs
            group = task // p.panel_parts // p.channel_parts // p.slabs
            first_tile = p.channel_tiles * part // p.channel_parts
            end_tile = p.channel_tiles * (part + 1) // p.channel_parts
            source = call.source + group * p.source_group + first_tile * p.tile_rows * p.source_k
            blocks = p.image_blocks * p.row_blocks * p.column_blocks
            first_block = blocks * slab // p.slabs
            for block in range(first_block, blocks * (slab + 1) // p.slabs):
                image = block // p.column_blocks // p.row_blocks * p.image_block
                i = block // p.column_blocks % p.row_blocks * p.row_block
                j = block % p.column_blocks * p.column_block
                images, lines = min(p.image_block, p.n - image), min(p.row_block, p.rows - i)
                columns = min(p.column_block, p.columns - j)
                channels = min(end_tile * p.tile_rows, p.reduction) - first_tile * p.tile_rows
                if p.joined != 0:
                    channels = p.inputs
                if p.planes == 0:
                    scalars = own + p.packed
                    call_part(p.pack_source, (call.plan, source, scalars, image, images, i, j, channels))
                else:
                    scalars = source + image * p.source_n
                first_panel = p.panels * panel_part // p.panel_parts
                for panel in range(first_panel, p.panels * (panel_part + 1) // p.panel_parts):
                    lanes = min(p.tile_channels, p.channels - panel * p.tile_channels)
                    vectors = call.other + group * p.gradient_group + panel * p.tile_channels * p.gradient_d
                    vectors += image * p.gradient_n + i * p.gradient_r + j * p.gradient_c
                    vector_n, vector_r, vector_c = p.gradient_n, p.gradient_r, p.gradient_c
                    if p.in_place == 0:
                        call_part(p.pack_gradient, (call.plan, vectors, own + p.panel, images, lines, columns, lanes))
                        vectors, vector_c = own + p.panel, p.row_bytes
                        vector_r, vector_n = columns * vector_c, lines * columns * vector_c
                    for tap in range(p.taps_r * p.taps_c):
                        a, b = tap // p.taps_c, tap % p.taps_c
                        runs = trace_tap(
                            p, own + p.table, vector_n, vector_r, vector_c, a, b, images, i, j, lines, columns
                        )
                        if runs == 0 and block > first_block:
                            continue
                        target = call.target + slab * p.slab_bytes + group * p.target_group
                        target += panel * p.tile_channels * p.target_d + a * p.target_a + b * p.target_b
                        adds = 1 if block > first_block else 0
                        call_part(
                            p.add_last if panel == p.panels - 1 else p.add,
                            (
                                call.plan, own, scalars, first_tile, end_tile, runs, vectors, vector_c, target, lanes,
                                adds,
                            ),
                        )  # fmt: skip

    return jit.kernel(correlate_tiles)
