"""Convolution of two real signals by one complex Fourier transform: Im (f + i g) * (f + i g) = 2 f * g.

A block of n0 by n1 points, f in the real and g in the imaginary part, is transformed along both axes, squared and
transformed back. Lanes are neighbouring columns, so a transform is vector operations only: a panel of VL columns lies
row after row, VL real parts and VL imaginary ones. Between the axes squares of VL x VL values are transposed.
The order of frequencies does not matter to a product, so none is restored: forward transforms decimate in frequency,
backward ones in time. One long axis is folded into two, with a table of factors between them.

A task is a block from beginning to end. Threads that shared one would move half of it from core to core twice, which
takes longer than transforming it.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numba import carray, from_dtype, types
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

from fastconv.kernels import jit
from fastconv.kernels.emit import Emitter, literal, scalar_ir
from fastconv.kernels.launch import COUNTER, HEAD
from fastconv.kernels.params import record
from fastconv.kernels.simd import call_kernel, pointer, record_at
from fastconv.kernels.transpose import transpose_square

FOURIER = record("""
    linear n0 n1 panel_bytes workspace_bytes blocks_c tables_0 tables_1 factors
    source_r source_c taps_r taps_c rows columns
    start_r start_c step_r step_c offset_r offset_c
""")
"""`linear` folds one axis into two; its sizes are then those of the columns. `source_r` and so on are sizes, `rows` and
`columns` those of the result. Block b reads from start + b * step on, and its results begin at its point `offset`.
`tables_0` and `tables_1` are addresses of an axis' `Table`, `factors` that between folded axes."""

TABLE = record("stages radices twiddles")

TRANSFORM = record("plan source taps target scales workspace")
"""The arrays of one call, contiguous. `scales` are three numbers: of the source, of the taps, of the result."""
SCALES = TRANSFORM.itemsize

RADICES = (4, 2, 3, 5)


class _Butterfly:
    """Emits a transform of R points."""

    def __init__(self, emit: Emitter, inverse: bool) -> None:
        self.emit = emit
        self.inverse = inverse

    def _add(self, a: Any, b: Any) -> Any:
        return tuple(map(self.emit.builder.fadd, a, b))

    def _sub(self, a: Any, b: Any) -> Any:
        return tuple(map(self.emit.builder.fsub, a, b))

    def _turned(self, centre: Any, part: Any) -> tuple[Any, Any]:
        """Return centre - i part and centre + i part; the other way round backward."""
        builder = self.emit.builder
        minus = builder.fadd(centre[0], part[1]), builder.fsub(centre[1], part[0])
        plus = builder.fsub(centre[0], part[1]), builder.fadd(centre[1], part[0])
        return (plus, minus) if self.inverse else (minus, plus)

    def _combined(self, start: Any, terms: Any) -> Any:
        """Return start plus the sum of coefficient * value; no start is zero."""
        for coefficient, value in terms:
            factor = self.emit.constant(coefficient)
            if start is None:
                start = tuple(self.emit.builder.fmul(part, factor) for part in value)
            else:
                start = tuple(self.emit.fma(part, factor, sum_) for part, sum_ in zip(value, start, strict=True))
        return start

    def __call__(self, x: list[Any]) -> list[Any]:
        """The transform of R complex values."""
        r = len(x)
        if r == 2:
            return [self._add(x[0], x[1]), self._sub(x[0], x[1])]
        if r == 4:
            even, odd = self._add(x[0], x[2]), self._add(x[1], x[3])
            second, fourth = self._turned(self._sub(x[0], x[2]), self._sub(x[1], x[3]))
            return [self._add(even, odd), second, self._sub(even, odd), fourth]
        half = range(1, r // 2 + 1)
        sums = {j: self._add(x[j], x[r - j]) for j in half}
        differences = {j: self._sub(x[j], x[r - j]) for j in half}
        y = [functools.reduce(self._add, sums.values(), x[0])] + [None] * (r - 1)
        for k in half:
            angles = {j: 2 * math.pi * j * k / r for j in half}
            centre = self._combined(x[0], [(math.cos(angles[j]), sums[j]) for j in half])
            part = self._combined(None, [(math.sin(angles[j]), differences[j]) for j in half])
            y[k], y[r - k] = self._turned(centre, part)
        return y


@intrinsic(prefer_literal=True)
def stage(
    typingctx: Any, REAL: Any, VL: Any, R: Any, INVERSE: Any, data: Any, blocks: Any, m: Any, twiddles: Any
) -> Any:  # fmt: skip
    """One stage in place: in each of the blocks of R * m rows, m transforms of R rows that are m apart.

    Forward, result j of transform k is multiplied by twiddle (k, j) afterwards; backward, before and conjugated. Those
    of k = 0 and j = 0 are one, and not read.
    """
    lanes, r, inverse = literal(VL), literal(R), bool(literal(INVERSE))
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data, blocks, m, twiddles = args[4:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        butterfly = _Butterfly(emit, inverse)
        const, add, mul = emit.const, emit.add, builder.mul
        vector = lanes * emit.item
        between = mul(m, const(2 * vector))
        block_bytes = mul(between, const(r))

        def times(value: Any, twiddle: Any) -> Any:
            w, v, minus_v = twiddle
            a, b = value
            return emit.fma(b, minus_v, builder.fmul(a, w)), emit.fma(b, w, builder.fmul(a, v))

        def transforms(first: Any, twiddle: list[Any]) -> None:
            def block(b: Any, _: list[Any]) -> list[Any]:
                rows = [add(first, mul(b, block_bytes))]
                for _j in range(r - 1):
                    rows.append(add(rows[-1], between))
                x = [(emit.load(row), emit.load(add(row, const(vector)))) for row in rows]
                if twiddle and inverse:
                    x[1:] = map(times, x[1:], twiddle)
                y = butterfly(x)
                if twiddle and not inverse:
                    y[1:] = map(times, y[1:], twiddle)
                for row, (re, im) in zip(rows, y, strict=True):
                    emit.store(re, row)
                    emit.store(im, add(row, const(vector)))
                return []

            emit.loop(blocks, block, [])

        def column(k: Any, _: list[Any]) -> list[Any]:
            k = add(k, const(1))
            here = add(twiddles, mul(k, const(2 * (r - 1) * emit.item)))
            twiddle = []
            for j in range(r - 1):
                w, v = (emit.load_broadcast(add(here, const((2 * j + part) * emit.item))) for part in range(2))
                negative = builder.fneg(v)
                twiddle.append((w, negative, v) if inverse else (w, v, negative))
            transforms(add(data, mul(k, const(2 * vector))), twiddle)
            return []

        transforms(data, [])
        emit.loop(builder.sub(m, const(1)), column, [])
        return context.get_dummy_value()

    return types.void(REAL, VL, R, INVERSE, *[types.intp] * 4), codegen


@intrinsic(prefer_literal=True)
def multiply_rows(typingctx: Any, REAL: Any, VL: Any, CONJUGATE: Any, data: Any, other: Any, count: Any) -> Any:
    """Multiply rows of complex vectors by others, or by their conjugates, in place; other may be data."""
    lanes, conjugate = literal(VL), bool(literal(CONJUGATE))
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data, other, count = args[3:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        vector = lanes * emit.item

        def row(i: Any, _: list[Any]) -> list[Any]:
            along = builder.mul(i, emit.const(2 * vector))
            here, there = emit.add(data, along), emit.add(other, along)
            a, b = emit.load(here), emit.load(emit.add(here, emit.const(vector)))
            w, v = emit.load(there), emit.load(emit.add(there, emit.const(vector)))
            if conjugate:
                v = builder.fneg(v)
            emit.store(emit.fma(builder.fneg(b), v, builder.fmul(a, w)), here)
            emit.store(emit.fma(b, w, builder.fmul(a, v)), emit.add(here, emit.const(vector)))
            return []

        emit.loop(count, row, [])
        return context.get_dummy_value()

    return types.void(REAL, VL, CONJUGATE, *[types.intp] * 3), codegen


@jit.inline
def transform(REAL, ITEM, VL, data, table, n, inverse):
    """Transform n rows of a panel in place."""
    t = record_at(table, TABLE)
    radices = carray(pointer(t.radices), t.stages, np.int64)
    twiddles, m = t.twiddles, n
    if inverse == 0:
        for s in range(t.stages):
            r = radices[s]
            blocks, m = n // m, m // r
            if r == 4:
                stage(REAL, VL, 4, 0, data, blocks, m, twiddles)
            elif r == 2:
                stage(REAL, VL, 2, 0, data, blocks, m, twiddles)
            elif r == 3:
                stage(REAL, VL, 3, 0, data, blocks, m, twiddles)
            else:
                stage(REAL, VL, 5, 0, data, blocks, m, twiddles)
            twiddles += 2 * (r - 1) * m * ITEM
        return
    for s in range(t.stages):
        m //= radices[s]
        twiddles += 2 * (radices[s] - 1) * m * ITEM
    for s in range(t.stages - 1, -1, -1):
        r = radices[s]
        blocks = n // (m * r)
        twiddles -= 2 * (r - 1) * m * ITEM
        if r == 4:
            stage(REAL, VL, 4, 1, data, blocks, m, twiddles)
        elif r == 2:
            stage(REAL, VL, 2, 1, data, blocks, m, twiddles)
        elif r == 3:
            stage(REAL, VL, 3, 1, data, blocks, m, twiddles)
        else:
            stage(REAL, VL, 5, 1, data, blocks, m, twiddles)
        m *= r


@jit.inline
def load_row(REAL, ITEM, VL, row, values, size, first, scale):
    """Fill one vector from `size` values, from number `first` on; zeros stand for those outside."""
    given = carray(pointer(row), VL, REAL)
    if first >= 0 and first + VL <= size:
        inside = carray(pointer(values + first * ITEM), VL, REAL)
        for lane in range(VL):
            given[lane] = inside[lane] * scale
        return
    for lane in range(VL):
        given[lane] = REAL(0)
    if size > 0:
        some = carray(pointer(values), size, REAL)
        for lane in range(max(0, -first), min(VL, size - first)):
            given[lane] = some[first + lane] * scale


@jit.inline
def fill_panel(REAL, ITEM, VL, p, call, panel, row, column, first):
    """Fill a panel whose first column is `first` of a block, which reads the source from `row` and `column` on."""
    scales = carray(pointer(call.scales), 3, np.float64)
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
    computed = carray(pointer(row), VL, REAL)
    if first >= begin and first + VL <= end:
        given = carray(pointer(target + first * ITEM), VL, REAL)
        for lane in range(VL):
            given[lane] = computed[lane] * scale
        return
    given = carray(pointer(target), max(end, 0), REAL)
    for lane in range(max(0, begin - first), min(VL, end - first)):
        given[first + lane] = computed[lane] * scale


@jit.inline
def store_panel(REAL, ITEM, VL, p, call, panel, block_r, block_c, first):
    """Store the results of a panel."""
    scale = REAL(carray(pointer(call.scales), 3, np.float64)[2])
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
        transform(REAL, ITEM, VL, scratch, p.tables_1, p.n1, 0)
        multiply_rows(REAL, VL, 0, scratch, scratch, p.n1)
        transform(REAL, ITEM, VL, scratch, p.tables_1, p.n1, 1)
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
                    carray(pointer(here), p.n0 * 2 * VL, REAL)[:] = REAL(0)
                    continue
                fill_panel(REAL, ITEM, VL, p, call, here, row, column, first)
                transform(REAL, ITEM, VL, here, p.tables_0, p.n0, 0)
            rows_of_block(REAL, ITEM, VL, p, own, scratch)
            for panel in range(p.n1 // VL):
                here, place = own + panel * p.panel_bytes, panel * VL - p.offset_c
                if p.linear == 0 and (place + VL <= 0 or place >= min(p.step_c, p.columns - block_c * p.step_c)):
                    continue  # no results
                transform(REAL, ITEM, VL, here, p.tables_0, p.n0, 1)
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
    scales = carray(pointer(call.scales), 3, np.float64)
    scales[0] = 1 / of_source if of_source != 0 else 1.0
    scales[1] = 1 / of_taps if of_taps != 0 else 1.0
    scales[2] = 0.5 / (p.n0 * p.n1) * of_source * of_taps
    carray(pointer(own + COUNTER), 1, np.int64)[0] = 0
    call_kernel(entry, own, 0, tasks, 0)
    return own


@functools.cache
def caller(dtype: str, rank: int) -> Any:
    """Write the record of a call, do the first tasks on the calling thread, and return the record's address."""
    real = from_dtype(np.dtype(dtype))
    given = types.Array(real, rank, "C", readonly=True)
    arrays = [given, given, types.Array(real, rank, "C"), types.Array(types.uint8, 1, "C")]
    return jit.native(types.intp(*[types.intp] * 3, *arrays))(_call)()
