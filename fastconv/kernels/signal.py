"""Two signals on their way into `fastconv.kernels.sums`, which slides the taps of one over the other, the source.

The source continues past its edges by a value, periodically or mirrored. A block of it is copied into a strip that
holds this continuation, so every tap reads whole vectors. Complex numbers are split into planes.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import from_dtype, types
from numba.core.ccallback import CFunc

from fastconv.kernels import jit
from fastconv.kernels.launch import COUNTER, HEAD
from fastconv.kernels.params import LINE, record
from fastconv.kernels.simd import array_at, call_kernel, record_at, tensor

PLAN = record("""
    entry pack_taps fill_strip tasks
    source_rows source_columns source_flip source_conjugate taps_r taps_c given_r given_c
    taps_flip taps_conjugate
    rows columns first_row first_column boundary trim fill
    row_blocks column_blocks flat pitch run
    workspace_bytes taps strip strip_plane scratch scratch_plane line
""")
"""`entry`, `pack_taps` and `fill_strip` are the addresses of the kernel and of these compiled parts, `fill` that of the
real and the imaginary part of what lies outside. With `trim` that is zero, and taps that meet nothing else are left
out. Of the `given_*` taps those meet the same values that lie `taps_*` apart, and are added up. The rows of a strip lie
`pitch` values apart; `flat` and `run` are explained with the kernels."""

CALL = record("plan source source_r source_c taps taps_r taps_c target workspace")
"""The arrays of one call, with strides in bytes; the target is contiguous."""

FILL, WRAP, SYMM = 0, 1, 2


@jit.inline
def inside(index, size, boundary):
    """Where the continued source has its value at an index: an index of the source, or -1 outside."""
    if 0 <= index < size:
        return index
    if boundary == WRAP:
        return index % size
    if boundary == SYMM:
        index %= 2 * size
        return min(index, 2 * size - 1 - index)
    return -1


@jit.inline
def write_tap(PARTS, p, packed, a, b, real, imaginary):
    """Write one tap, a complex one as the four real sums need it."""
    packed[0, 0, a, b] = real
    if PARTS == 2:
        if p.taps_conjugate != 0:
            imaginary = -imaginary
        packed[0, PARTS - 1, a, b] = -imaginary
        packed[PARTS - 1, 0, a, b] = imaginary
        packed[PARTS - 1, PARTS - 1, a, b] = real


@jit.inline
def fold_taps(REAL, ITEM, PARTS, call, p, packed):
    """Write the sums of taps that meet the same values of a source which is continued periodically."""
    first, step_r, step_c = call.taps, call.taps_r, call.taps_c
    if p.taps_flip != 0:
        first += (p.given_r - 1) * step_r + (p.given_c - 1) * step_c
        step_r, step_c = -step_r, -step_c
    for a in range(p.taps_r):
        for b in range(p.taps_c):
            count = (p.given_c - b + p.taps_c - 1) // p.taps_c
            real, imaginary = REAL(0), REAL(0)
            for row in range(a, p.given_r, p.taps_r):
                line = first + row * step_r + b * step_c
                values = tensor(REAL, 0, line, (count, PARTS), (p.taps_c * step_c, ITEM))
                for c in range(count):
                    real += values[c, 0]
                    if PARTS == 2:
                        imaginary += values[c, PARTS - 1]
            write_tap(PARTS, p, packed, a, b, real, imaginary)


@functools.cache
def taps_part(dtype: str, parts: int) -> CFunc:
    """The part of kernels that copies the taps in the order in which they meet the source."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    PARTS = int(parts)

    def pack_taps(address, own):
        call = record_at(address, CALL)
        p = record_at(call.plan, PLAN)
        rows, columns = p.taps_r, p.taps_c
        row_bytes, plane_bytes = columns * ITEM, rows * columns * ITEM
        packed = tensor(REAL, 1, own + p.taps, (PARTS, PARTS, rows, columns),
                        (PARTS * plane_bytes, plane_bytes, row_bytes, ITEM))  # fmt: skip
        given = tensor(REAL, 0, call.taps, (rows, columns, PARTS), (call.taps_r, call.taps_c, ITEM))
        if p.given_r > rows or p.given_c > columns:
            fold_taps(REAL, ITEM, PARTS, call, p, packed)
            return
        if PARTS == 1 and call.taps_c == ITEM:
            for a in range(rows):
                from_row = rows - 1 - a if p.taps_flip != 0 else a
                line = array_at(call.taps + from_row * call.taps_r, columns, REAL)
                if p.taps_flip != 0:
                    for b in range(columns):
                        packed[0, 0, a, b] = line[columns - 1 - b]
                else:
                    for b in range(columns):
                        packed[0, 0, a, b] = line[b]
            return
        for a in range(rows):
            for b in range(columns):
                here = (rows - 1 - a, columns - 1 - b) if p.taps_flip != 0 else (a, b)
                write_tap(
                    PARTS, p, packed, a, b, given[here[0], here[1], 0], given[here[0], here[1], PARTS - 1]
                )  # fmt: skip

    return jit.part(pack_taps)


@jit.inline
def fill_line(REAL, ITEM, line, source, step, size, column, columns, boundary, outside, sign):
    """Copy `columns` values of the continued source from `column` on; `source` and `step` lead to its values."""
    copied = array_at(line, columns, REAL)
    left, right = min(max(-column, 0), columns), min(max(size - column, 0), columns)
    right = max(left, right)
    # Indices count from 0: any that might be negative would keep the loops from being vectorised.
    between = array_at(line + left * ITEM, right - left, REAL)
    if step == ITEM:
        values = array_at(source + (column + left) * step, right - left, REAL)
        for c in range(right - left):
            between[c] = values[c] * sign
    elif step == -ITEM:
        values = array_at(source + (column + right - 1) * step, right - left, REAL)
        for c in range(right - left):
            between[c] = values[right - left - 1 - c] * sign
    else:
        strided = tensor(REAL, 0, source + (column + left) * step, (right - left,), (step,))
        for c in range(right - left):
            between[c] = strided[c] * sign
    if boundary == FILL:
        copied[:left] = outside
        copied[right:] = outside
        return
    for c in range(left):
        copied[c] = array_at(source + inside(column + c, size, boundary) * step, 1, REAL)[0] * sign
    for c in range(right, columns):
        copied[c] = array_at(source + inside(column + c, size, boundary) * step, 1, REAL)[0] * sign


@functools.cache
def strip_part(dtype: str, parts: int) -> CFunc:
    """The part of kernels that copies a block of the continued source to `strip`, one plane for each part."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    PARTS = int(parts)

    def fill_strip(address, strip, row, column, rows, columns):
        call = record_at(address, CALL)
        p = record_at(call.plan, PLAN)
        outside = array_at(p.fill, PARTS, REAL)
        source, source_r, source_c = call.source, call.source_r, call.source_c
        if p.source_flip != 0:
            source += (p.source_rows - 1) * source_r + (p.source_columns - 1) * source_c
            source_r, source_c = -source_r, -source_c
        for part in range(PARTS):
            sign = REAL(-1) if part == 1 and p.source_conjugate != 0 else REAL(1)
            for r in range(rows):
                line = strip + part * p.strip_plane + r * p.pitch * ITEM
                place = inside(row + r, p.source_rows, p.boundary)
                if place < 0:
                    array_at(line, columns, REAL)[:] = outside[part]
                else:
                    fill_line(REAL, ITEM, line, source + place * source_r + part * ITEM, source_c, p.source_columns,
                              column, columns, p.boundary, outside[part], sign)  # fmt: skip

    return jit.part(fill_strip)


@jit.inline
def describe(own, plan, source, taps, target, workspace):
    """Write the record of a call."""
    call = record_at(own, CALL)
    call.plan = plan
    call.source, call.source_r, call.source_c = source.ctypes.data, source.strides[0], source.strides[source.ndim - 1]
    call.taps, call.taps_r, call.taps_c = taps.ctypes.data, taps.strides[0], taps.strides[taps.ndim - 1]
    call.target, call.workspace = target.ctypes.data, workspace


def _call(plan, source, taps, target):
    p = record_at(plan, PLAN)
    memory = np.empty(HEAD + p.workspace_bytes + LINE, np.uint8)
    own = (memory.ctypes.data + LINE - 1) // LINE * LINE
    describe(own, plan, source, taps, target, own + HEAD)
    call_kernel(p.entry, own, 0, p.tasks, 0)
    return memory.size  # a later use: the compiler sees addresses only, and would free the memory before the call


def _prepare(plan, source, taps, target, buffer):
    own = buffer.ctypes.data
    describe(own, plan, source, taps, target, own + HEAD)
    array_at(own + COUNTER, 1, np.int64)[0] = 0
    return own


def _arrays(dtype: str, rank: int) -> list[types.Array]:
    real = from_dtype(np.dtype(dtype))
    given = types.Array(real, rank, "A", readonly=True)
    return [given, given, types.Array(real, rank, "A")]


@functools.cache
def caller(dtype: str, rank: int) -> Any:
    """Run a kernel on arrays of one dtype and any strides, on the calling thread."""
    return jit.native(types.intp(types.intp, *_arrays(dtype, rank)))(_call)()


@functools.cache
def preparer(dtype: str, rank: int) -> Any:
    """Write the record of a call for `launch.spread`, and return its address."""
    return jit.native(types.intp(types.intp, *_arrays(dtype, rank), types.Array(types.uint8, 1, "C")))(_prepare)()
