"""Convolution of two real signals by one complex Fourier transform: Im (f + i g) * (f + i g) = 2 f * g.

A block of n0 by n1 points, f in the real and g in the imaginary part, is transformed along both axes, squared and
transformed back. Lanes are neighbouring columns (`fastconv.kernels.fft`), and between the axes squares of VL x VL
values are transposed. One long axis is folded into two, with a table of factors between them.

A task is a block from beginning to end. Threads that shared one would move half of it from core to core twice, which
takes longer than transforming it.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numba import from_dtype, types
from numba.core.ccallback import CFunc

from fastconv.kernels import jit
from fastconv.kernels.fft import multiply_rows
from fastconv.kernels.launch import COUNTER, HEAD
from fastconv.kernels.params import record
from fastconv.kernels.simd import array_at, call_kernel, call_part, record_at
from fastconv.kernels.transpose import transpose_square

FOURIER = record("""
    linear n0 n1 panel_bytes workspace_bytes blocks_c transform tables_0 tables_1 factors
    source_r source_c taps_r taps_c rows columns
    start_r start_c step_r step_c offset_r offset_c
""")
"""`linear` folds one axis into two; its sizes are then those of the columns. `source_r` and so on are sizes, `rows` and
`columns` those of the result. Block b reads from start + b * step on, and its results begin at its point `offset`.
`transform` is the address of `fft.transform`, `tables_0` and `tables_1` are those of the axes' `fft.TABLE`, `factors`
that of the table between folded axes."""

TRANSFORM = record("plan source taps target scales workspace")
"""The arrays of one call, contiguous. `scales` are three numbers: of the source, of the taps, of the result."""
SCALES = TRANSFORM.itemsize


@jit.inline
def load_row(REAL, ITEM, VL, row, values, size, first, scale):
    """Fill one vector from `size` values, from number `first` on; zeros stand for those outside."""
    given = array_at(row, VL, REAL)
    if first >= 0 and first + VL <= size:
        inside = array_at(values + first * ITEM, VL, REAL)
        for lane in range(VL):
            given[lane] = inside[lane] * scale
        return
    for lane in range(VL):
        given[lane] = REAL(0)
    if size > 0:
        some = array_at(values, size, REAL)
        for lane in range(max(0, -first), min(VL, size - first)):
            given[lane] = some[first + lane] * scale


@jit.inline
def fill_panel(REAL, ITEM, VL, p, call, panel, row, column, first):
    """Fill a panel whose first column is `first` of a block, which reads the source from `row` and `column` on."""
    scales = array_at(call.scales, 3, np.float64)
    source_scale, taps_scale = REAL(scales[0]), REAL(scales[1])
    for r in range(p.n0):
        here = panel + r * 2 * VL * ITEM
        if p.linear != 0:
            along = r * p.n1 + first
            load_row(REAL, ITEM, VL, here, call.source, p.source_c, column + along, source_scale)
            load_row(REAL, ITEM, VL, here + VL * ITEM, call.taps, p.taps_c, along, taps_scale)
        else:
            size = p.source_c if 0 <= row + r < p.source_r else 0
            source, taps = call.source + (row + r) * p.source_c * ITEM, call.taps + r * p.taps_c * ITEM
            load_row(REAL, ITEM, VL, here, source, size, column + first, source_scale)
            size = p.taps_c if r < p.taps_r else 0
            load_row(REAL, ITEM, VL, here + VL * ITEM, taps, size, first, taps_scale)


@jit.inline
def store_row(REAL, ITEM, VL, row, target, begin, end, first, scale):
    """Store those of a vector's values that have numbers from `begin` to before `end`; the first has number `first`."""
    computed = array_at(row, VL, REAL)
    if first >= begin and first + VL <= end:
        given = array_at(target + first * ITEM, VL, REAL)
        for lane in range(VL):
            given[lane] = computed[lane] * scale
        return
    given = array_at(target, max(end, 0), REAL)
    for lane in range(max(0, begin - first), min(VL, end - first)):
        given[first + lane] = computed[lane] * scale


@jit.inline
def store_panel(REAL, ITEM, VL, p, call, panel, block_r, block_c, first):
    """Store the results of a panel."""
    scale = REAL(array_at(call.scales, 3, np.float64)[2])
    begin_c, end_c = block_c * p.step_c, min((block_c + 1) * p.step_c, p.columns)
    begin_r, end_r = block_r * p.step_r, min((block_r + 1) * p.step_r, p.rows)
    for r in range(p.n0):
        here = panel + (2 * r + 1) * VL * ITEM
        if p.linear != 0:
            place = begin_c + r * p.n1 + first - p.offset_c
            store_row(REAL, ITEM, VL, here, call.target, begin_c, end_c, place, scale)
        else:
            row = begin_r + r - p.offset_r
            if begin_r <= row < end_r:
                target = call.target + row * p.columns * ITEM
                store_row(REAL, ITEM, VL, here, target, begin_c, end_c, begin_c + first - p.offset_c, scale)


@jit.inline
def rows_of_block(REAL, ITEM, VL, p, own, scratch):
    """Transform a block along its rows, square it and transform it back, VL rows at a time."""
    row_bytes, part_bytes = 2 * VL * ITEM, VL * ITEM
    for group in range(p.n0 // VL):
        first = own + group * VL * row_bytes
        for c in range(p.n1 // VL):
            for part in range(2):
                transpose_square(
                    REAL, VL, first + c * p.panel_bytes + part * part_bytes, row_bytes, VL,
                    scratch + c * VL * row_bytes + part * part_bytes, row_bytes,
                )  # fmt: skip
        factors = p.factors + group * p.n1 * row_bytes
        if p.linear != 0:
            multiply_rows(REAL, VL, 0, scratch, factors, p.n1)
        call_part(p.transform, (scratch, p.tables_1, p.n1, 0))
        multiply_rows(REAL, VL, 0, scratch, scratch, p.n1)
        call_part(p.transform, (scratch, p.tables_1, p.n1, 1))
        if p.linear != 0:
            multiply_rows(REAL, VL, 1, scratch, factors, p.n1)
        for c in range(p.n1 // VL):
            for part in range(2):
                transpose_square(
                    REAL, VL, scratch + c * VL * row_bytes + part * part_bytes, row_bytes, VL,
                    first + c * p.panel_bytes + part * part_bytes, row_bytes,
                )  # fmt: skip


@functools.cache
def fourier(dtype: str, lanes: int) -> CFunc:
    """The kernel; a task is a block."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL = int(lanes)

    def signal_fourier(address, begin, end, thread):
        call = record_at(address, TRANSFORM)
        p = record_at(call.plan, FOURIER)
        own = call.workspace + thread * p.workspace_bytes
        scratch = own + p.n1 // VL * p.panel_bytes
        for task in range(begin, end):
            block_r, block_c = task // p.blocks_c, task % p.blocks_c
            row, column = p.start_r + block_r * p.step_r, p.start_c + block_c * p.step_c
            for panel in range(p.n1 // VL):
                here, first = own + panel * p.panel_bytes, panel * VL
                if p.linear == 0 and column + first >= p.source_c and first >= p.taps_c:
                    array_at(here, p.n0 * 2 * VL, REAL)[:] = REAL(0)
                    continue
                fill_panel(REAL, ITEM, VL, p, call, here, row, column, first)
                call_part(p.transform, (here, p.tables_0, p.n0, 0))
            rows_of_block(REAL, ITEM, VL, p, own, scratch)
            for panel in range(p.n1 // VL):
                here, place = own + panel * p.panel_bytes, panel * VL - p.offset_c
                if p.linear == 0 and (place + VL <= 0 or place >= min(p.step_c, p.columns - block_c * p.step_c)):
                    continue  # no results
                call_part(p.transform, (here, p.tables_0, p.n0, 1))
                store_panel(REAL, ITEM, VL, p, call, here, block_r, block_c, panel * VL)

    return jit.kernel(signal_fourier)


@jit.inline
def magnitude(values, points):
    """A power of two near a signal's norm over that many points; 0 if it has nothing but zeros."""
    square = 0.0
    for value in values.flat:
        square += np.float64(value) * np.float64(value)
    if 1e-200 < square < 1e200:
        return 2.0 ** math.floor(0.5 * math.log2(square * points / values.size) + 0.5)
    largest = 0.0
    for value in values.flat:
        largest = max(largest, abs(np.float64(value)))
    if 0 < largest < np.inf:
        return 2.0 ** math.floor(math.log2(largest) + 0.5)
    return 0.0 if square == 0 else 1.0


def _call(entry, plan, tasks, source, taps, target, buffer):
    own = buffer.ctypes.data
    call = record_at(own, TRANSFORM)
    p = record_at(plan, FOURIER)
    call.plan, call.workspace = plan, own + HEAD
    call.source, call.taps, call.target = source.ctypes.data, taps.ctypes.data, target.ctypes.data
    # The signals share a transform: the smaller one would drown in the larger one's rounding errors.
    of_source, of_taps = magnitude(source, min(source.size, p.n0 * p.n1)), magnitude(taps, taps.size)
    call.scales = own + SCALES
    scales = array_at(call.scales, 3, np.float64)
    scales[0] = 1 / of_source if of_source != 0 else 1.0
    scales[1] = 1 / of_taps if of_taps != 0 else 1.0
    scales[2] = 0.5 / (p.n0 * p.n1) * of_source * of_taps
    array_at(own + COUNTER, 1, np.int64)[0] = 0
    call_kernel(entry, own, 0, tasks, 0)
    return own


@functools.cache
def caller(dtype: str, rank: int) -> Any:
    """Write the record of a call, do the first tasks on the calling thread, and return the record's address."""
    real = from_dtype(np.dtype(dtype))
    given = types.Array(real, rank, "C", readonly=True)
    arrays = [given, given, types.Array(real, rank, "C"), types.Array(types.uint8, 1, "C")]
    return jit.native(types.intp(*[types.intp] * 3, *arrays))(_call)()
