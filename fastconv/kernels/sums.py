"""Sums of products of two signals, in one and two dimensions.

    out[i, j] = sum over a, b of taps[a, b] source[first_row + i + a, first_column + j + b]

Four kernels: `line_sums` for all that the others do not take, `row_sums` for real signals whose rows share their loads,
`run_sums` for one row of a real signal, made into rows that do, and `dot_sums` for few results. A task is a block of
results.
"""

from __future__ import annotations

import functools

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.kernels import jit
from fastconv.kernels.signal import CALL, PLAN
from fastconv.kernels.simd import array_at, call_part, record_at
from fastconv.kernels.taptile import row_tile, tap_tile
from fastconv.kernels.target import Tile


@jit.inline
def block_of(p, task):
    """The first row and column of a task's block, and its numbers of rows and columns."""
    b, c = task // p.column_blocks, task % p.column_blocks
    i, j = p.rows * b // p.row_blocks, p.columns * c // p.column_blocks
    return i, j, p.rows * (b + 1) // p.row_blocks - i, p.columns * (c + 1) // p.column_blocks - j


@jit.inline
def met(place, size, taps, width):
    """The range of taps that meet a source of `size` values from any of `width` results; `place` is of the first."""
    first = min(max(0, -place - (width - 1)), taps)
    return first, max(min(taps, size - place), first)


@functools.cache
def line_sums(dtype: str, parts: int, tile: Tile) -> CFunc:
    """The kernel for one dtype of the parts, of which complex signals have two.

    A line is a row of results. Rows that are too short for the lanes are not taken one by one: with `flat`, the block
    is one line over the ends of its rows, and what falls between two rows is left out.
    """
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, NV, NR, PARTS = tile.VL, tile.NV, tile.NR, int(parts)

    def signal_line_sums(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, PLAN)
        own = call.workspace + thread * p.workspace_bytes
        taps_row, taps_plane = p.taps_c * ITEM, p.taps_r * p.taps_c * ITEM
        call_part(p.pack_taps, (address, own))
        for task in range(begin, end):
            i, j, rows, columns = block_of(p, task)
            row, column = p.first_row + i, p.first_column + j
            call_part(p.fill_strip, (address, own + p.strip, row, column, rows + p.taps_r - 1, columns + p.taps_c - 1))
            lines, length = (1, (rows - 1) * p.pitch + columns) if p.flat != 0 else (rows, columns)
            trim = p.trim != 0 and p.flat == 0
            in_place = PARTS == 1 and length >= NR and (p.flat == 0 or p.pitch == p.columns)
            for r in range(lines):
                line = own + p.strip + r * p.pitch * ITEM
                target = call.target + ((i + r) * p.columns + j) * ITEM if in_place else own + p.scratch
                first_a, last_a = met(row + r, p.source_rows, p.taps_r, 1) if trim else (0, p.taps_r)
                for left in range(0, length, NR):
                    # The last vectors of a line overlap those before, where there are any.
                    c = min(left, max(length - NR, 0))
                    first_b, last_b = met(column + c, p.source_columns, p.taps_c, NR) if trim else (0, p.taps_c)
                    tap_tile(
                        REAL, VL, PARTS, NV, PARTS, last_a - first_a, last_b - first_b,
                        own + p.taps + first_a * taps_row + first_b * ITEM, taps_row, taps_plane,
                        line + (first_a * p.pitch + c + first_b) * ITEM, p.pitch * ITEM, p.strip_plane,
                        target + c * ITEM, p.scratch_plane,
                    )  # fmt: skip
                if not in_place:
                    for k in range(rows if p.flat != 0 else 1):
                        place = call.target + ((i + r + k) * p.columns + j) * ITEM * PARTS
                        given = array_at(place, columns * PARTS, REAL)
                        for part in range(PARTS):
                            first = own + p.scratch + part * p.scratch_plane + k * p.pitch * ITEM
                            computed = array_at(first, columns, REAL)
                            for c in range(columns):
                                given[c * PARTS + part] = computed[c]

    return jit.kernel(signal_line_sums)


@functools.cache
def row_sums(dtype: str, tile: Tile) -> CFunc:
    """The kernel for real signals of one dtype, of at least as many rows of results and MR - 1 rows of taps."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, MR, NV, NR = tile.VL, tile.MR, tile.NV, tile.NR

    def signal_row_sums(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, PLAN)
        own = call.workspace + thread * p.workspace_bytes
        call_part(p.pack_taps, (address, own))
        taps_row = p.taps_c * ITEM
        for task in range(begin, end):
            i, j, rows, columns = block_of(p, task)
            row, column = p.first_row + i, p.first_column + j
            call_part(p.fill_strip, (address, own + p.strip, row, column, rows + p.taps_r - 1, columns + p.taps_c - 1))
            for upper in range(0, rows, MR):
                # The last rows and vectors of a block overlap those before.
                r = min(upper, rows - MR)
                first, last = 0, p.taps_r + MR - 1
                if p.trim != 0:
                    first = min(max(0, -row - r), last)
                    last = min(last, p.source_rows - row - r)
                for left in range(0, columns, NR):
                    c = min(left, columns - NR)
                    first_b, last_b = met(column + c, p.source_columns, p.taps_c, NR) if p.trim != 0 else (0, p.taps_c)
                    row_tile(
                        REAL, VL, MR, NV, p.taps_r, last_b - first_b, first, last,
                        own + p.taps + first_b * ITEM, taps_row,
                        own + p.strip + (r * p.pitch + c + first_b) * ITEM, p.pitch * ITEM,
                        call.target + ((i + r) * p.columns + j + c) * ITEM, p.columns * ITEM,
                    )  # fmt: skip

    return jit.kernel(signal_row_sums)


@jit.inline
def fill_lanes(REAL, ITEM, VL, p, own):
    """Deal the line out to the lanes: a lane gets the values from `run` times its number on."""
    steps = p.run + p.taps_c - 1
    strip = array_at(own + p.strip, (steps, VL), REAL)
    for lane in range(VL):
        values = array_at(own + p.line + lane * p.run * ITEM, steps, REAL)
        for t in range(steps):
            strip[t, lane] = values[t]


@functools.cache
def run_sums(dtype: str, tile: Tile) -> CFunc:
    """The kernel for one row of real results and of taps, by tiles one vector wide.

    A row has no other to share loads with, and is made into rows: each lane computes `run` neighbouring results, and
    the taps take the place of rows of taps.
    """
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, MR, NV = tile.VL, tile.MR, tile.NV

    def signal_run_sums(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, PLAN)
        own = call.workspace + thread * p.workspace_bytes
        call_part(p.pack_taps, (address, own))
        for task in range(begin, end):
            _, j, _, columns = block_of(p, task)
            column = p.first_column + j
            call_part(p.fill_strip, (address, own + p.line, p.first_row, column, 1, VL * p.run + p.taps_c - 1))
            fill_lanes(REAL, ITEM, VL, p, own)
            for r in range(0, p.run, MR):
                t = min(r, p.run - MR)
                first, last = 0, p.taps_c + MR - 1
                if p.trim != 0:
                    first = min(max(0, -column - (VL - 1) * p.run - t), last)
                    last = min(last, p.source_columns - column - t)
                row_tile(
                    REAL, VL, MR, NV, p.taps_c, 1, first, last, own + p.taps, ITEM,
                    own + p.strip + t * VL * ITEM, VL * ITEM, own + p.scratch + t * VL * ITEM, VL * ITEM,
                )  # fmt: skip
            computed = array_at(own + p.scratch, (p.run, VL), REAL)
            for lane in range(VL):
                here = lane * p.run
                given = array_at(call.target + (j + here) * ITEM, columns, REAL)
                for t in range(min(p.run, columns - here)):
                    given[t] = computed[t, lane]

    return jit.kernel(signal_run_sums)


@jit.inline
def dot_in_place(REAL, ITEM, p, call, row, column):
    """One result from the arrays as they lie."""
    flip, total = p.taps_flip != 0, REAL(0)
    for a in range(p.taps_r):
        values = array_at(call.source + (row + a) * call.source_r + column * ITEM, p.taps_c, REAL)
        from_row = p.taps_r - 1 - a if flip else a
        taps = array_at(call.taps + from_row * call.taps_r, p.taps_c, REAL)
        along = REAL(0)
        if flip:
            for b in range(p.taps_c):
                along += values[b] * taps[p.taps_c - 1 - b]
        else:
            for b in range(p.taps_c):
                along += values[b] * taps[b]
        total += along
    return total


@functools.cache
def dot_sums(dtype: str, parts: int) -> CFunc:
    """The kernel for few results, with taps in the lanes."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    PARTS = int(parts)

    def signal_dot_sums(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, PLAN)
        own = call.workspace + thread * p.workspace_bytes
        inside = p.first_row >= 0 and p.first_row + p.rows + p.taps_r - 1 <= p.source_rows
        inside &= p.first_column >= 0 and p.first_column + p.columns + p.taps_c - 1 <= p.source_columns
        inside &= p.given_r == p.taps_r and p.given_c == p.taps_c
        if PARTS == 1 and inside and p.source_flip == 0 and call.source_c == ITEM and call.taps_c == ITEM:
            target = array_at(call.target, (p.rows, p.columns), REAL)
            for r in range(p.rows):
                for c in range(p.columns):
                    target[r, c] = dot_in_place(REAL, ITEM, p, call, p.first_row + r, p.first_column + c)
            return
        call_part(p.pack_taps, (address, own))
        rows, columns = p.rows + p.taps_r - 1, p.columns + p.taps_c - 1
        call_part(p.fill_strip, (address, own + p.strip, p.first_row, p.first_column, rows, columns))
        target = array_at(call.target, (p.rows, p.columns, PARTS), REAL)
        taps = array_at(own + p.taps, (PARTS, PARTS, p.taps_r, p.taps_c), REAL)
        for r in range(p.rows):
            for c in range(p.columns):
                for result in range(PARTS):
                    total = REAL(0)
                    for part in range(PARTS):
                        for a in range(p.taps_r):
                            here = own + p.strip + part * p.strip_plane + ((r + a) * p.pitch + c) * ITEM
                            values = array_at(here, p.taps_c, REAL)
                            along = REAL(0)
                            for b in range(p.taps_c):
                                along += values[b] * taps[result, part, a, b]
                            total += along
                    target[r, c, result] = total

    return jit.kernel(signal_dot_sums)
