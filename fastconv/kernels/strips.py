"""Direct convolution with pixels in the lanes: for layers whose channels cannot fill a vector, or lie apart.

Rows of a tile are output channels, its vectors are neighbouring output pixels of one row. The input of a block of
output pixels is first copied into a strip: one plane for each channel, padded with zeros, with the columns of each
phase of the stride side by side. Every tap then reads whole vectors, whatever the layout, stride or padding; the strip
stays in the second cache level, and all output channels share it. Weights are read as they lie, one at a time.
"""

from __future__ import annotations

import functools

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.kernels import jit
from fastconv.kernels.activation import activate
from fastconv.kernels.params import CALL, record
from fastconv.kernels.simd import array_at, call_part, copy_run, integer_at, record_at, tensor, turn_tile
from fastconv.kernels.target import Tile, vector_bytes
from fastconv.kernels.tiles import ROW_START, RUN_FIELDS, multiply_tile

STRIPS = record("""
    source_n source_r source_c source_k source_group source_rows source_columns
    target_offset target_n target_r target_c target_d target_group
    weight_r weight_c weight_k weight_d weight_group
    start_group
    n rows columns row_step column_step
    taps_r taps_c row_taps column_taps row_offsets column_offsets first_row first_column
    reduction channels along_taps
    row_block column_block row_blocks column_blocks parts strip_rows strip_columns
    tile_rows item fill_strip multiply
    workspace_bytes strip table targets rows_of_buffer buffer
""")
"""Strides and `*_group` are in bytes. `first_row` and `first_column` are the smallest offsets of a tap. Where
`along_taps` is set, the steps of a run are the taps of one kernel row, else the channels of one tap. `fill_strip` and
`multiply` are the addresses of compiled parts; a tile has `tile_rows`."""


@jit.inline
def fill_strip(
    REAL, ITEM, VL, strip, strip_rows, strip_columns, phases, planes,
    source, source_r, source_c, source_k, source_rows, source_columns, row, column, rows,
):  # fmt: skip
    """Copy `rows` of each plane from source pixel (row, column) into the strip, with zeros outside the image.

    A strip is planes x strip_rows x phases x strip_columns: column c of the source lies at phase c % phases.
    """
    columns = strip_columns * phases
    phase_bytes = strip_columns * ITEM
    row_bytes = phases * phase_bytes
    left, right = min(max(-column, 0), columns), min(max(source_columns - column, 0), columns)
    for k in range(planes):
        for r in range(rows):
            line = strip + (k * strip_rows + r) * row_bytes
            inside = 0 <= row + r < source_rows
            place = source + (row + r) * source_r + column * source_c + k * source_k
            if inside and phases == 1 and source_c == ITEM:
                copied = array_at(line, columns, REAL)
                copied[:left] = REAL(0)
                copy_run(REAL, VL, place + left * ITEM, line + left * ITEM, right - left)
                copied[right:] = REAL(0)
                continue
            for phase in range(phases):
                copied = array_at(line + phase * phase_bytes, strip_columns, REAL)
                for c in range(strip_columns):
                    at = phase + c * phases
                    if inside and left <= at < right:
                        copied[c] = array_at(place + at * source_c, 1, REAL)[0]
                    else:
                        copied[c] = REAL(0)


@functools.cache
def strip_part(dtype: str) -> CFunc:
    """The part of the kernel that fills a strip, with as many rows as `rows` say, from a source pixel on."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL = vector_bytes() // ITEM

    def fill_planes(plan, strip, source, row, column, rows):
        p = record_at(plan, STRIPS)
        fill_strip(
            REAL, ITEM, VL, strip, p.strip_rows, p.strip_columns, p.column_step, p.reduction,
            source, p.source_r, p.source_c, p.source_k, p.source_rows, p.source_columns, row, column, rows,
        )  # fmt: skip

    return jit.part(fill_planes)


@jit.inline
def trace_weights(p, own, weights, first):
    """Write the runs of the output channels from `first`: their weights' addresses and their place in the strip."""
    MR = p.tile_rows
    row_taps = array_at(p.row_taps, p.taps_r, np.int64)
    column_taps = array_at(p.column_taps, p.taps_c, np.int64)
    row_offsets = array_at(p.row_offsets, p.taps_r, np.int64)
    column_offsets = array_at(p.column_offsets, p.taps_c, np.int64)
    inner = p.reduction if p.along_taps != 0 else p.taps_c
    table = array_at(own + p.table, (p.taps_r * inner, MR + RUN_FIELDS), np.int64)
    for a in range(p.taps_r):
        for q in range(inner):
            b, k = (0, q) if p.along_taps != 0 else (q, 0)
            run = a * inner + q
            tap = weights + row_taps[a] * p.weight_r + column_taps[b] * p.weight_c + k * p.weight_k
            for m in range(MR):
                # Tile rows past the last channel repeat it: they write the same value to the same place.
                table[run, m] = tap + min(first + m, p.channels - 1) * p.weight_d
            column = column_offsets[b] - p.first_column
            line = (k * p.strip_rows + row_offsets[a] - p.first_row) * p.column_step + column % p.column_step
            table[run, MR + 2] = p.taps_c if p.along_taps != 0 else p.reduction
            table[run, MR] = p.weight_k
            if p.along_taps != 0:
                table[run, MR] = (column_taps[1] - column_taps[0]) * p.weight_c
            table[run, MR + 1] = (line * p.strip_columns + column // p.column_step) * p.item


def _side(tile: Tile) -> int:
    """Lanes of the squares in which a tile is turned: few for few channels."""
    return min(tile.VL, 4 if tile.MR <= 4 else 8)


def turns(tile: Tile) -> bool:
    """Whether a tile's pixels are turned in registers where their channels lie side by side in the target."""
    return 1 < tile.MR <= _side(tile)


@functools.cache
def multiply(dtype: str, tile: Tile) -> CFunc:
    """The part of the kernel that knows its register tile: rows of a block for the output channels from `d` on."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, MR, NV, NR = tile.VL, tile.MR, tile.NV, tile.NR
    SIDE, TURNS = _side(tile), int(turns(tile))

    def multiply_rows(address, own, base, start, d, rows, columns, runs, vector_step):
        call = record_at(address, CALL)
        p = record_at(call.plan, STRIPS)
        targets = array_at(own + p.targets, MR, np.int64)
        buffer_rows = array_at(own + p.rows_of_buffer, MR, np.int64)
        for m in range(MR):
            buffer_rows[m] = own + p.buffer + m * NR * ITEM
        lowest = REAL(0) if call.relu != 0 else REAL(-np.inf)
        depth = min(MR, p.channels - d)
        # What a whole vector writes of the next pixel, that writes anew, if it comes later in the same task.
        adjoin = depth == p.channels and p.target_c == depth * ITEM
        rows_adjoin = adjoin and p.target_r == columns * p.target_c
        for r in range(rows):
            line = own + p.strip + r * p.row_step * p.column_step * p.strip_columns * ITEM
            for left in range(0, columns, NR):
                # The last vectors of a row overlap those before, where there are any.
                column = min(left, max(columns - NR, 0))
                in_place = p.target_c == ITEM and column + NR <= columns
                here = base + d * p.target_d + r * p.target_r + column * p.target_c
                if in_place:
                    for m in range(MR):
                        targets[m] = here + min(m, depth - 1) * p.target_d
                rows_at = own + (p.targets if in_place else p.rows_of_buffer)
                multiply_tile(
                    REAL, VL, MR, NV, ROW_START, 0, 0, runs, own + p.table, line + column * ITEM, vector_step, 1,
                    start, 0, lowest, rows_at, 0, NR,
                )  # fmt: skip
                width = min(NR, columns - column)
                if call.activation != 0:
                    for m in range(depth):
                        activate(call, integer_at(rows_at + m * 8), width)
                if in_place:
                    continue
                if TURNS and p.target_d == ITEM:
                    follows = column + width < columns or (rows_adjoin and r + 1 < rows)
                    for c in range(0, width, SIDE):
                        count = min(SIDE, width - c)
                        whole = 0
                        if depth == SIDE or (adjoin and (follows or c + count < width)):
                            whole = count
                        elif adjoin:
                            whole = count - 1
                        turn_tile(
                            REAL, SIDE, own + p.buffer + c * ITEM, NR * ITEM, depth,
                            here + c * p.target_c, p.target_c, count, whole,
                        )  # fmt: skip
                    continue
                tile_values = array_at(own + p.buffer, (MR, NR), REAL)
                pixels = tensor(REAL, 0, here, (width, depth), (p.target_c, p.target_d))
                for c in range(width):
                    for m in range(depth):
                        pixels[c, m] = tile_values[m, c]

    return jit.part(multiply_rows)


@functools.cache
def strips() -> CFunc:
    """The kernel for all dtypes and tiles; its tasks are (group, image, block of pixels, part of the channels)."""

    def strip_tiles(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, STRIPS)
        own = call.workspace + thread * p.workspace_bytes
        column_offsets = array_at(p.column_offsets, p.taps_c, np.int64)
        tiles = (p.channels + p.tile_rows - 1) // p.tile_rows
        runs = p.taps_r * (p.reduction if p.along_taps != 0 else p.taps_c)
        vector_step = p.strip_rows * p.column_step * p.strip_columns * p.item
        if p.along_taps != 0:
            vector_step = (column_offsets[1] - column_offsets[0]) * p.item
        blocks = p.row_blocks * p.column_blocks
        for task in range(begin, end):
            part = task % p.parts
            block = task // p.parts % blocks
            image = task // p.parts // blocks % p.n
            group = task // p.parts // blocks // p.n
            i = block // p.column_blocks * p.row_block
            j = block % p.column_blocks * p.column_block
            rows, columns = min(p.row_block, p.rows - i), min(p.column_block, p.columns - j)
            source = call.source + group * p.source_group + image * p.source_n
            row, column = i * p.row_step + p.first_row, j * p.column_step + p.first_column
            there = p.strip_rows - (p.row_block - rows) * p.row_step
            call_part(p.fill_strip, (call.plan, own + p.strip, source, row, column, there))
            base = call.target + p.target_offset + group * p.target_group
            base += image * p.target_n + i * p.target_r + j * p.target_c
            for t in range(tiles * part // p.parts, tiles * (part + 1) // p.parts):
                d = t * p.tile_rows
                trace_weights(p, own, call.other + group * p.weight_group, d)
                start = call.start + group * p.start_group + d * p.item
                call_part(p.multiply, (address, own, base, start, d, rows, columns, runs, vector_step))

    return jit.kernel(strip_tiles)
