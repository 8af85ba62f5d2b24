"""Weight gradient of planes (NCHW), with pixels in the lanes: for layers whose groups have one source channel.

Every weight is a sum over pixels of a plane of the input times one of the output gradient. The sums of a kernel row
stay in registers while vectors of pixels run down strips of the planes. Padding takes no part: rows outside the image
are not visited, and lanes outside are masked in both operands, as a zero times NaN is no zero.

Slabs of pixels have partial gradients, which are added in order (`fastconv.kernels.slabs`), so the result has the same
bits for any number of threads.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

from fastconv.kernels import jit
from fastconv.kernels.emit import I32, Emitter, literal, scalar_ir
from fastconv.kernels.params import CALL, record
from fastconv.kernels.simd import pointer, record_at
from fastconv.kernels.spans import end_inside, first_inside
from fastconv.kernels.target import IN_FLIGHT, vector_bytes

PLANE_DOTS = record("""
    source_n source_d source_r source_rows source_columns
    gradient_n gradient_d gradient_r
    rows columns row_step first_row first_column tap_rows tap_columns taps_r
    channels multiplier row_block row_blocks blocks parts slabs slab_bytes
""")
"""Strides are in bytes. `channels` are those of the gradient, `multiplier` of which read one source plane. Kernel rows
lie `tap_rows` source rows apart, kernel columns `tap_columns`. The target is an array (slabs, channels, taps_r,
taps_c), slabs `slab_bytes` apart."""


class _Tap:
    """The source values that a kernel column meets in a strip, and which of its lanes meet any."""

    def __init__(self, emit: Emitter, column: Any, step: int, size: Any, there: Any) -> None:
        builder, const, lanes = emit.builder, emit.const, emit.vector.count
        self._emit, self._step, self._offset = emit, step, builder.mul(column, const(emit.item))
        before, behind = builder.neg(column), builder.sub(size, column)
        parts = [(builder.sub(before, const(h * lanes)), builder.sub(behind, const(h * lanes))) for h in range(step)]
        self._masks = [emit.between(*part) for part in parts]
        if step > 1:  # lane l stands for position 2 l: half of these, rounded up
            before, behind = (builder.ashr(emit.add(end, const(1)), const(1)) for end in (before, behind))
        end = builder.select(builder.icmp_signed("<", behind, there), behind, there)
        self.inside = emit.between(before, end)
        if step == 1:
            self._masks = [self.inside]

    def load(self, row: Any) -> Any:
        """The lanes' values in a source row."""
        emit, lanes = self._emit, self._emit.vector.count
        place = emit.add(row, self._offset)
        found = [
            emit.load_masked(emit.add(place, emit.const(h * emit.vector_bytes)), mask)
            for h, mask in enumerate(self._masks)
        ]
        if self._step == 1:
            return found[0]
        every = ir.Constant(ir.VectorType(I32, lanes), [2 * lane for lane in range(lanes)])
        return self.only(emit.builder.shuffle_vector(found[0], found[1], every))

    def only(self, value: Any) -> Any:
        """A vector with zeros where no source value is met."""
        return self._emit.builder.select(self.inside, value, self._emit.constant(0.0))


@intrinsic(prefer_literal=True)
def plane_row(
    typingctx: Any, REAL: Any, VL: Any, KW: Any, S: Any, strips: Any, lines: Any, columns: Any,
    first: Any, spread: Any, size: Any, source: Any, source_line: Any, gradient: Any, gradient_line: Any, target: Any,
) -> Any:  # fmt: skip
    """Sums of a kernel row's taps over `lines` rows: ``target[b] += sum of source[i, j S + b] gradient[i, j]``.

    Rows have `columns` pixels in `strips` vectors, of which the first reads from source position `first` of `size`;
    taps lie `spread` positions apart, and rows as many bytes as their `*_line` says.
    """
    lanes, taps, step = literal(VL), literal(KW), literal(S)
    sets = -(-IN_FLIGHT // taps)
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        strips, lines, columns, first, spread, size, source, source_line, gradient, gradient_line, target = args[4:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        const, add, multiply = emit.const, emit.add, builder.mul
        groups = builder.udiv(lines, const(sets))
        grouped = multiply(groups, const(sets))

        def strip(v: Any, sums: list[Any]) -> list[Any]:
            left = multiply(v, const(lanes))
            there = builder.sub(columns, left)
            begin = add(first, multiply(left, const(step)))
            every = [_Tap(emit, add(begin, multiply(spread, const(b))), step, size, there) for b in range(taps)]
            pixels = emit.below(there, 0)
            here = add(gradient, multiply(left, const(emit.item)))

            def line(i: Any, sums: list[Any]) -> list[Any]:
                row = add(source, multiply(i, source_line))
                value = emit.load_masked(add(here, multiply(i, gradient_line)), pixels)
                pairs = zip(every, sums, strict=True)
                return [emit.fma(tap.load(row), tap.only(value), total) for tap, total in pairs]

            def group(i: Any, sums: list[Any]) -> list[Any]:
                begin = multiply(i, const(sets))
                parts = [line(add(begin, const(k)), sums[k * taps : (k + 1) * taps]) for k in range(sets)]
                return [total for part in parts for total in part]

            def rest(i: Any, sums: list[Any]) -> list[Any]:
                return [*line(add(grouped, i), sums[:taps]), *sums[taps:]]

            return emit.loop(builder.sub(lines, grouped), rest, emit.loop(groups, group, sums))

        sums = emit.loop(strips, strip, [emit.constant(0.0)] * (taps * sets))
        for b in range(taps):
            total = sums[b]
            for one in sums[b + taps :: taps]:
                total = builder.fadd(total, one)
            place = builder.inttoptr(add(target, const(b * emit.item)), emit.scalar.as_pointer())
            builder.store(builder.fadd(builder.load(place), emit.sum_lanes(total)), place)
        return context.get_dummy_value()

    return types.void(REAL, VL, KW, S, *[types.intp] * 11), codegen


@functools.cache
def plane_dots(dtype: str, taps: int, step: int) -> CFunc:
    """The kernel for kernel rows of so many taps and so many columns from window to window.

    Tasks are (slab of blocks of rows, part of the channels).
    """
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, KW, S = vector_bytes() // ITEM, int(taps), int(step)

    def plane_dot_tiles(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, PLANE_DOTS)
        strips = (p.columns + VL - 1) // VL
        for task in range(begin, end):
            part, slab = task % p.parts, task // p.parts
            for d in range(p.channels * part // p.parts, p.channels * (part + 1) // p.parts):
                target = call.target + slab * p.slab_bytes + d * p.taps_r * KW * ITEM
                carray(pointer(target), p.taps_r * KW, REAL)[:] = 0
                for block in range(p.blocks * slab // p.slabs, p.blocks * (slab + 1) // p.slabs):
                    image, first = block // p.row_blocks, block % p.row_blocks * p.row_block
                    last = min(first + p.row_block, p.rows)
                    source = call.source + image * p.source_n + d // p.multiplier * p.source_d
                    gradient = call.other + image * p.gradient_n + d * p.gradient_d
                    for a in range(p.taps_r):
                        row = p.first_row + a * p.tap_rows
                        top = max(first, first_inside(row, p.row_step))
                        bottom = end_inside(row, p.row_step, p.source_rows, last)
                        if top < bottom:
                            plane_row(
                                REAL, VL, KW, S, strips, bottom - top, p.columns,
                                p.first_column, p.tap_columns, p.source_columns,
                                source + (row + top * p.row_step) * p.source_r, p.row_step * p.source_r,
                                gradient + top * p.gradient_r, p.gradient_r, target + a * KW * ITEM,
                            )  # fmt: skip

    return jit.kernel(plane_dot_tiles)
