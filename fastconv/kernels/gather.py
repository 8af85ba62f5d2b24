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
from fastconv.kernels.params import CALL, LINE, record
from fastconv.kernels.simd import CHANNEL_START, RUN_FIELDS, multiply_tile, pointer, prefetch, record_at, trace_run
from fastconv.kernels.target import Tile

GATHER = record("""
    source_n source_r source_c source_k
    target_offset target_n target_r target_c target_d
    source_group target_group weight_group
    source_rows source_columns n rows columns row_step column_step
    taps_r taps_c row_offsets column_offsets first_row last_row first_column last_column
    reduction channels
    weight_tap weight_step weight_panel start_group
    zeros touching
    tiles tiles_per_block blocks panel_parts packing
    workspace_bytes
    table counts targets row_parts column_parts spare starts buffer copies packed
""")
"""Strides and `*_group` are in bytes; `source_k` and `target_d` are those of channels. `touching` says that the taps
of a kernel row read neighbouring channels, `packing` is the address of the `PACK` record where tasks pack the weights
themselves, else 0. The last line's fields are offsets into each thread's workspace."""

AHEAD = 16
"""Rows of weights to ask for ahead of packing: they lie too far apart for the CPU to foresee."""

_OUTSIDE = -(1 << 62)
"""Offset of a row or column in the padding: added to any other it stays negative."""


@jit.inline
def trace_inside(p, MR, source, target, own, t, image, i, j):
    """Write the runs and targets of a tile in one row whose taps all lie inside the image; the number of runs."""
    row_offsets = carray(pointer(p.row_offsets), p.taps_r, np.int64)
    column_offsets = carray(pointer(p.column_offsets), p.taps_c, np.int64)
    targets = carray(pointer(own + p.targets + t * 8 * MR), MR, np.int64)
    taps = p.taps_r * p.taps_c
    table = carray(pointer(own + p.table + t * taps * (MR + RUN_FIELDS) * 8), (taps, MR + RUN_FIELDS), np.int64)
    line = target + image * p.target_n + i * p.target_r + j * p.target_c
    for m in range(MR):
        targets[m] = line + m * p.target_c
    first = source + image * p.source_n + i * p.row_step * p.source_r + j * p.column_step * p.source_c
    pitch = p.column_step * p.source_c
    joined = p.taps_c if p.touching != 0 else 1
    run = 0
    for a in range(p.taps_r):
        above = first + row_offsets[a] * p.source_r
        for b in range(0, p.taps_c, joined):
            place = above + column_offsets[b] * p.source_c
            for m in range(MR):
                table[run, m] = place + m * pitch
            table[run, MR] = p.source_k
            table[run, MR + 1] = (a * p.taps_c + b) * p.weight_tap
            table[run, MR + 2] = p.reduction * joined
            run += 1
    return run


@jit.inline
def trace_pixels(p, own, target, t, image, i, j, first, MR):
    """Write what the MR pixels from (image, i, j) on read, as parts of addresses, and the targets that they write."""
    row_offsets = carray(pointer(p.row_offsets), p.taps_r, np.int64)
    column_offsets = carray(pointer(p.column_offsets), p.taps_c, np.int64)
    row_parts = carray(pointer(own + p.row_parts), (p.taps_r, MR), np.int64)
    column_parts = carray(pointer(own + p.column_parts), (p.taps_c, MR), np.int64)
    targets = carray(pointer(own + p.targets + t * 8 * MR), MR, np.int64)
    last = p.n * p.rows * p.columns - 1
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
    image = first // (p.rows * p.columns)
    i = first // p.columns - image * p.rows
    j = first - (image * p.rows + i) * p.columns
    left, right = j * p.column_step + p.first_column, (j + MR - 1) * p.column_step + p.last_column
    above, below = i * p.row_step + p.first_row, i * p.row_step + p.last_row
    if j + MR <= p.columns and left >= 0 and right < p.source_columns and above >= 0 and below < p.source_rows:
        return trace_inside(p, MR, source, target, own, t, image, i, j)
    trace_pixels(p, own, target, t, image, i, j, first, MR)
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
            step = p.source_k
            if inside < MR and p.source_k != ITEM:
                # A row of zeros can stand for a pixel only where its channels lie side by side.
                copy = own + p.copies + (t * taps + a * p.taps_c + b) * p.reduction * MR * ITEM
                copy_run(p, REAL, MR, copy, row_parts[a], column_parts[b], source)
                for m in range(MR):
                    table[runs, m] = copy + m * ITEM
                step = MR * ITEM
            table[runs, MR] = step
            table[runs, MR + 1] = (a * p.taps_c + b) * p.weight_tap
            table[runs, MR + 2] = p.reduction * (p.taps_c if joined else 1)
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


PACK = record("""
    source_r source_c source_k source_d source_group
    target_group target_panel
    taps_r taps_c rows columns reduction channels panels
""")
"""Where weights lie; `rows` and `columns` are the addresses of the taps to take."""


@jit.inline
def pack_panel(q, REAL, ITEM, NR, source, panel, target):
    """Pack the weights of NR output channels in the order (tap, input channel, output channel), filled up with zeros.

    A tile then reads a panel from front to end.
    """
    rows = carray(pointer(q.rows), q.taps_r, np.int64)
    columns = carray(pointer(q.columns), q.taps_c, np.int64)
    lanes = min(NR, q.channels - panel * NR)
    packed = carray(pointer(target), (q.taps_r, q.taps_c, q.reduction, NR), REAL)
    if lanes < NR:
        packed[:] = REAL(0)
    first = source + panel * NR * q.source_d
    for a in range(q.taps_r):
        for b in range(q.taps_c):
            tap = first + rows[a] * q.source_r + columns[b] * q.source_c
            if q.source_d == ITEM and lanes == NR:
                for k in range(q.reduction):
                    row = carray(pointer(tap + k * q.source_k), NR, REAL)
                    for line in range(0, NR * ITEM, LINE):
                        prefetch(tap + (k + AHEAD) * q.source_k + line)
                    for d in range(NR):
                        packed[a, b, k, d] = row[d]
            else:
                for d in range(lanes):
                    for k in range(q.reduction):
                        value = carray(pointer(tap + k * q.source_k + d * q.source_d), 1, REAL)
                        packed[a, b, k, d] = value[0]


@functools.cache
def gather(dtype: str, tile: Tile, dense: bool) -> CFunc:
    """The kernel for one dtype and tile; its tasks are (group, block of pixels, part of the channel panels).

    `dense` promises packed weights and channels side by side.
    """
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, MR, NV, NR = tile.VL, tile.MR, tile.NV, tile.NR
    DENSE = NV if dense else 0

    def gather_tiles(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, GATHER)
        own = call.workspace + thread * p.workspace_bytes
        counts = carray(pointer(own + p.counts), p.tiles_per_block, np.int64)
        tile_rows = own + p.targets + p.tiles_per_block * 8 * MR
        for m in range(MR):
            carray(pointer(tile_rows), MR, np.int64)[m] = own + p.buffer + m * NR * ITEM
            carray(pointer(own + p.starts), MR, np.int64)[m] = call.start
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
                if p.packing != 0:
                    q = record_at(p.packing, PACK)
                    weights = own + p.packed
                    pack_panel(q, REAL, ITEM, NR, call.other + group * q.source_group, panel, weights)
                start = group * p.start_group + panel * NR * ITEM
                shift = panel * NR * p.target_d
                in_place = p.target_d == ITEM and lanes == NR
                for t in range(tiles):
                    table = own + p.table + t * p.taps_r * p.taps_c * (MR + RUN_FIELDS) * 8
                    rows = carray(pointer(own + p.targets + t * 8 * MR), MR, np.int64)
                    targets = rows.ctypes.data if in_place else tile_rows
                    move = shift if in_place else 0
                    multiply_tile(
                        REAL, VL, MR, NV, CHANNEL_START, DENSE, counts[t], table, weights, p.weight_step,
                        own + p.starts, start, lowest, targets, move,
                    )  # fmt: skip
                    there = min(MR, pixels - (first + t) * MR)
                    if call.activation != 0:
                        written = carray(pointer(targets), MR, np.int64)
                        for m in range(there):
                            activate(call, written[m] + move, lanes)
                    if not in_place:
                        scatter_tile(p, REAL, NR, own + p.buffer, rows, shift, there, lanes)

    return jit.kernel(gather_tiles)


@functools.cache
def pack(dtype: str, tile: Tile) -> CFunc:
    """Pack all weights; tasks are (group, panel)."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    NR = tile.NR

    def pack_panels(address, begin, end, thread):
        call = record_at(address, CALL)
        q = record_at(call.plan, PACK)
        for task in range(begin, end):
            group, panel = task // q.panels, task % q.panels
            target = call.target + group * q.target_group + panel * q.target_panel
            pack_panel(q, REAL, ITEM, NR, call.source + group * q.source_group, panel, target)

    return jit.kernel(pack_panels)
