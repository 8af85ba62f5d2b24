"""Direct convolution as gathered register tiles: no patch matrix, no padded copy of the input.

One kernel computes a grid of target pixels, each the sum over taps (a, b) and channels c of
``source[n, i * step_r + row_offset[a], j * step_c + column_offset[b], c] * weight[a, b, c, d]``. That is the forward
pass; it is also the input gradient, whose offsets and weights the caller derives (`fastconv.algorithms.direct`).

Pixels are numbered through the whole batch, so that a tile runs over the ends of rows and images and only the last
tile of a problem is partly wasted. What a tile reads is written down first, as addresses: one run for each tap with
the address of each of the tile's MR pixels. Padding is then a matter of addresses too: a run that lies wholly in the
padding is left out, and a pixel in the padding reads a row of zeros.
"""

from __future__ import annotations

import functools

import numpy as np
from numba import carray
from numba.core.ccallback import CFunc

from fastconv.kernels import jit
from fastconv.kernels.activation import activate
from fastconv.kernels.params import CALL, record
from fastconv.kernels.simd import CHANNEL_START, RUN_FIELDS, multiply_tile, pointer, record_at, trace_run
from fastconv.kernels.target import Tile

GATHER = record("""
    source_n source_r source_c source_k
    target_offset target_n target_r target_c target_d
    source_group target_group weight_group
    source_rows source_columns n rows columns row_step column_step
    taps_r taps_c row_offsets column_offsets
    reduction channels
    weight_tap weight_step weight_panel start_group
    zeros touching
    tiles tiles_per_block blocks panel_parts
    workspace_bytes
    table counts targets row_parts column_parts spare buffer copies
""")
"""Strides and `*_group` are in bytes; `source_k` and `target_d` are those of the channels. `failed` is the address of a
flag that a failing activation sets; `touching` says that the taps of a kernel row read neighbouring channels. The last
line's fields are offsets into each thread's workspace."""

_OUTSIDE = -(1 << 62)
"""Offset of a row or column in the padding: added to any other it stays negative."""


@jit.inline
def trace_pixels(p, own, target, t, first, MR):
    """Write what the MR pixels from `first` read, as row and column parts of addresses, and the targets they write."""
    row_offsets = carray(pointer(p.row_offsets), p.taps_r, np.int64)
    column_offsets = carray(pointer(p.column_offsets), p.taps_c, np.int64)
    row_parts = carray(pointer(own + p.row_parts), (p.taps_r, MR), np.int64)
    column_parts = carray(pointer(own + p.column_parts), (p.taps_c, MR), np.int64)
    targets = carray(pointer(own + p.targets + t * 8 * MR), MR, np.int64)
    last = p.n * p.rows * p.columns - 1
    image = first // (p.rows * p.columns)
    i = first // p.columns - image * p.rows
    j = first - (image * p.rows + i) * p.columns
    for m in range(MR):
        targets[m] = target + image * p.target_n + i * p.target_r + j * p.target_c
        same_row = m > 0 and j > 0
        for a in range(p.taps_r):
            if same_row:
                row_parts[a, m] = row_parts[a, m - 1]
                continue
            row = i * p.row_step + row_offsets[a]
            inside = 0 <= row < p.source_rows
            row_parts[a, m] = image * p.source_n + row * p.source_r if inside else _OUTSIDE
        for b in range(p.taps_c):
            column = j * p.column_step + column_offsets[b]
            inside = 0 <= column < p.source_columns
            column_parts[b, m] = column * p.source_c if inside else _OUTSIDE
        # Tile rows past the end repeat the last pixel: they write the same value to the same place.
        if first + m < last:
            j += 1
            if j == p.columns:
                j = 0
                i += 1
                if i == p.rows:
                    i = 0
                    image += 1


@jit.inline
def copy_run(p, REAL, MR, destination, row_parts, column_parts, source):
    """Copy what a run reads, channel by channel, with zeros for pixels in the padding."""
    copy = carray(pointer(destination), (p.reduction, MR), REAL)
    for m in range(MR):
        offset = row_parts[m] + column_parts[m]
        if offset < 0:
            for k in range(p.reduction):
                copy[k, m] = REAL(0)
        else:
            for k in range(p.reduction):
                copy[k, m] = carray(pointer(source + offset + k * p.source_k), 1, REAL)[0]


@jit.inline
def trace_tile(p, REAL, ITEM, MR, source, target, own, t, first):
    """Write the runs and targets of the tile that begins at pixel `first`; the number of runs."""
    trace_pixels(p, own, target, t, first, MR)
    taps = p.taps_r * p.taps_c
    row_parts = carray(pointer(own + p.row_parts), (p.taps_r, MR), np.int64)
    column_parts = carray(pointer(own + p.column_parts), (p.taps_c, MR), np.int64)
    table_at = own + p.table + t * taps * (MR + RUN_FIELDS) * 8
    table = carray(pointer(table_at), (taps, MR + RUN_FIELDS), np.int64)
    runs = 0
    for a in range(p.taps_r):
        row_at = own + p.row_parts + a * MR * 8
        joined = False
        for b in range(p.taps_c):
            place = table_at + runs * (MR + RUN_FIELDS) * 8
            column_at = own + p.column_parts + b * MR * 8
            inside = trace_run(MR, row_at, column_at, source, p.zeros, place)
            if b == 0 and p.touching != 0 and inside == MR:
                # Touching taps are one run where the last of them lies inside too; the first one's addresses hold.
                last = own + p.column_parts + (p.taps_c - 1) * MR * 8
                spare = own + p.spare
                joined = trace_run(MR, row_at, last, source, p.zeros, spare) == MR
            if inside == 0:
                continue
            table[runs, MR] = p.source_k
            table[runs, MR + 1] = (a * p.taps_c + b) * p.weight_tap
            table[runs, MR + 2] = p.reduction * (p.taps_c if joined else 1)
            if inside < MR and p.source_k != ITEM:
                # A row of zeros can stand for a pixel only where its channels lie side by side.
                copy = own + p.copies + (t * taps + runs) * p.reduction * MR * ITEM
                copy_run(p, REAL, MR, copy, row_parts[a], column_parts[b], source)
                for m in range(MR):
                    table[runs, m] = copy + m * ITEM
                table[runs, MR] = MR * ITEM
            runs += 1
            if joined:
                break
    return runs


@jit.inline
def scatter_tile(p, REAL, NR, buffer, targets, offset, rows, lanes):
    """Copy a tile from the buffer to its target pixels, `lanes` channels of each."""
    tile = carray(pointer(buffer), (rows, NR), REAL)
    for d in range(lanes):
        for m in range(rows):
            carray(pointer(targets[m] + offset + d * p.target_d), 1, REAL)[0] = tile[m, d]


@functools.cache
def gather(dtype: str, tile: Tile) -> CFunc:
    """The kernel for one dtype and tile; its tasks are (group, block of pixels, part of the channel panels)."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, MR, NV, NR = tile.VL, tile.MR, tile.NV, tile.NR

    def gather_tiles(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, GATHER)
        own = call.workspace + thread * p.workspace_bytes
        counts = carray(pointer(own + p.counts), p.tiles_per_block, np.int64)
        tile_rows = own + p.targets + p.tiles_per_block * 8 * MR
        for m in range(MR):
            carray(pointer(tile_rows), MR, np.int64)[m] = own + p.buffer + m * NR * ITEM
        lowest = REAL(0) if call.relu != 0 else REAL(-np.inf)
        panels = (p.channels + NR - 1) // NR
        pixels = p.n * p.rows * p.columns
        for task in range(begin, end):
            part = task % p.panel_parts
            block = task // p.panel_parts % p.blocks
            group = task // p.panel_parts // p.blocks
            first = block * p.tiles_per_block
            tiles = min(p.tiles_per_block, p.tiles - first)
            source = call.source + group * p.source_group
            target = call.target + p.target_offset + group * p.target_group
            for t in range(tiles):
                counts[t] = trace_tile(p, REAL, ITEM, MR, source, target, own, t, (first + t) * MR)
            for panel in range(panels * part // p.panel_parts, panels * (part + 1) // p.panel_parts):
                lanes = min(NR, p.channels - panel * NR)
                weights = call.other + group * p.weight_group + panel * p.weight_panel
                start = call.start + group * p.start_group + panel * NR * ITEM
                shift = panel * NR * p.target_d
                in_place = p.target_d == ITEM and lanes % VL == 0
                for t in range(tiles):
                    table = own + p.table + t * p.taps_r * p.taps_c * (MR + RUN_FIELDS) * 8
                    rows = carray(pointer(own + p.targets + t * 8 * MR), MR, np.int64)
                    targets = rows.ctypes.data if in_place else tile_rows
                    move = shift if in_place else 0
                    if lanes > VL:
                        multiply_tile(
                            REAL, VL, MR, NV, CHANNEL_START, counts[t], table, weights, p.weight_step,
                            start, lowest, targets, move,
                        )  # fmt: skip
                    else:
                        multiply_tile(
                            REAL, VL, MR, 1, CHANNEL_START, counts[t], table, weights, p.weight_step,
                            start, lowest, targets, move,
                        )  # fmt: skip
                    there = min(MR, pixels - (first + t) * MR)
                    if call.activation != 0:
                        written = carray(pointer(targets), MR, np.int64)
                        for m in range(there):
                            activate(call, written[m] + move, lanes)
                    if not in_place:
                        scatter_tile(p, REAL, NR, own + p.buffer, rows, shift, there, lanes)

    return jit.kernel(gather_tiles)


PACK = record("""
    source_r source_c source_k source_d source_group
    target_group target_panel
    taps_r taps_c rows columns reduction channels panels
""")


@functools.cache
def pack(dtype: str, tile: Tile) -> CFunc:
    """Pack weights into panels of NR output channels, the last one filled up with zeros.

    A panel is ordered (tap, input channel, output channel), so that a tile reads it from front to end. `rows` and
    `columns` are the addresses of the taps to take. Tasks are (group, panel).
    """
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    NR = tile.NR

    def pack_panels(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, PACK)
        rows = carray(pointer(p.rows), p.taps_r, np.int64)
        columns = carray(pointer(p.columns), p.taps_c, np.int64)
        for task in range(begin, end):
            group, panel = task // p.panels, task % p.panels
            lanes = min(NR, p.channels - panel * NR)
            base = call.target + group * p.target_group + panel * p.target_panel
            packed = carray(pointer(base), (p.taps_r, p.taps_c, p.reduction, NR), REAL)
            if lanes < NR:
                packed[:] = REAL(0)
            source = call.source + group * p.source_group + panel * NR * p.source_d
            for a in range(p.taps_r):
                for b in range(p.taps_c):
                    tap = source + rows[a] * p.source_r + columns[b] * p.source_c
                    if p.source_d == ITEM:
                        for k in range(p.reduction):
                            row = carray(pointer(tap + k * p.source_k), lanes, REAL)
                            for d in range(lanes):
                                packed[a, b, k, d] = row[d]
                    else:
                        for d in range(lanes):
                            for k in range(p.reduction):
                                value = carray(pointer(tap + k * p.source_k + d * p.source_d), 1, REAL)
                                packed[a, b, k, d] = value[0]

    return jit.kernel(pack_panels)
