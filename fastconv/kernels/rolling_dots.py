"""Depthwise weight gradient with channels in the lanes, row after row: gradients roll down a strip of pixels.

A strip is one vector of channels of some output columns. The sums of all taps stay in registers, and so do the output
gradients of as many rows as the kernel has: each source pixel is loaded once and multiplied by all gradients that it
meets. Columns outside the image are a row of zeros; rows outside are left out.

Slabs of strips have partial gradients, which are added in order (`fastconv.kernels.slabs`), so the result has the same
bits for any number of threads.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import types
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

from fastconv.kernels import jit
from fastconv.kernels.emit import I64, Emitter, ask, literal, scalar_ir
from fastconv.kernels.groups import vectors_of_part
from fastconv.kernels.params import CALL, record
from fastconv.kernels.pixel_columns import PixelColumns
from fastconv.kernels.simd import array_at, call_part, record_at
from fastconv.kernels.spans import end_inside, first_inside, steps_in
from fastconv.kernels.target import PixelStripTile

ROLLING_DOTS = record("""
    source_n source_r source_c source_rows source_columns gradient_n gradient_r gradient_c zeros
    rows columns first_row first_column row_step phases
    channels vectors overlapping lane_bytes channel_bytes taps
    row_block row_blocks strips width units slabs slab_bytes parts entry entry_narrow
""")
"""Strides are in bytes. Kernel rows lie `row_step` source rows apart, kernel columns `phases` columns, as the pixels of
a strip do: of each phase there are `strips`, the first of `width` pixels, the others of one less. `entry` and
`entry_narrow` are the addresses of the compiled `strip` for both. A slab has some of the `units`, each the strip of a
block of rows; the last part of the channels also has the vector `overlapping` the one before. A vector of channels
takes `lane_bytes`, all of them `channel_bytes`."""


@intrinsic(prefer_literal=True)
def rolling_sums(
    typingctx: Any, REAL: Any, VL: Any, KH: Any, KW: Any, NV: Any, AHEAD: Any,
    lines: Any, low: Any, high: Any, first: Any, spread: Any, size: Any,
    source: Any, source_line: Any, source_c: Any, zeros: Any, gradient: Any, gradient_line: Any, gradient_c: Any,
    target: Any, target_row: Any, target_step: Any, known: Any, ahead: Any, gradient_ahead: Any,
) -> Any:  # fmt: skip
    """Add to all taps ``target[a, b] += sum over i, v of source[i + a, v + b] gradient[i, v]``, of NV pixels v.

    The gradient has `lines` rows i; rows of the source from `low` to `high` are there. Source columns lie `source_c`
    bytes apart, of which pixel v meets `first` + `spread` (v + b), of `size`; the others are at `zeros`. The first
    `known` lanes are left as they are. With AHEAD, the lines so many bytes `ahead` of the source's and
    `gradient_ahead` of the gradient's are asked for.
    """
    lanes, height, taps, width, asks = (literal(value) for value in (VL, KH, KW, NV, AHEAD))
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lines, low, high, first, spread, size = args[6:12]
        source, source_line, source_c, zeros, gradient, gradient_line, gradient_c = args[12:19]
        target, target_row, target_step, known, ahead, gradient_ahead = args[19:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        const, add, multiply = emit.const, emit.add, builder.mul
        columns = PixelColumns(
            emit, width, taps, first, spread, size, source_c, zeros, ahead if asks else None
        )  # fmt: skip
        offsets = [emit.opaque(multiply(gradient_c, const(v))) for v in range(width)]
        kept = (height - 1) * width

        def with_row(row: Any, tap_rows: range, gradients: list[Any], sums: list[Any]) -> list[Any]:
            """The sums with the products of a source row added, which these kernel rows meet."""
            sums = list(sums)
            for v, b, value in columns.in_row(row):
                for a in tap_rows:
                    sums[a * taps + b] = emit.fma(value, gradients[a * width + v], sums[a * taps + b])
            return sums

        def rows_between(begin: Any, end: Any, carried: list[Any], edge: bool) -> list[Any]:
            def line(i: Any, carried: list[Any]) -> list[Any]:
                i = add(i, begin)
                before, sums = carried[:kept], carried[kept:]
                row = add(source, multiply(i, source_line))
                line = add(gradient, multiply(i, gradient_line))
                if not edge:
                    for offset in offsets if asks else ():
                        ask(builder, add(add(line, offset), gradient_ahead))
                    gradients = [*(emit.load(add(line, offset)) for offset in offsets), *before]
                    return [*gradients[:kept], *with_row(row, range(height), gradients, sums)]
                there = builder.icmp_signed("<", i, lines)
                places = [builder.select(there, add(line, offset), zeros) for offset in offsets]
                gradients = [*(emit.load(place) for place in places), *before]
                exists = builder.and_(builder.icmp_signed(">=", i, low), builder.icmp_signed("<", i, high))
                for a in range(height):  # a NaN must not meet the zeros that stand for rows of no gradient
                    met = builder.icmp_unsigned("<", builder.sub(i, const(a)), lines)

                    def tap_row(_: Any, sums: list[Any], a: int = a) -> list[Any]:
                        return with_row(row, range(a, a + 1), gradients, sums)

                    sums = emit.loop(builder.zext(builder.and_(exists, met), I64), tap_row, sums)
                return [*gradients[:kept], *sums]

            return emit.loop(builder.sub(end, begin), line, carried)

        nothing, end = emit.constant(0.0), add(lines, const(height - 1))
        begins = emit.limited(low, const(height - 1), end)
        ends = emit.limited(builder.select(builder.icmp_signed("<", lines, high), lines, high), begins, end)
        carried = rows_between(const(0), begins, [nothing] * (kept + height * taps), True)
        carried = rows_between(begins, ends, carried, False)
        sums = rows_between(ends, end, carried, True)[kept:]
        new = builder.not_(emit.below(known, 0))
        for a in range(height):
            for b in range(taps):
                place = add(add(target, multiply(target_row, const(a))), multiply(target_step, const(b)))
                emit.store(builder.fadd(emit.load(place), builder.select(new, sums[a * taps + b], nothing)), place)
        return context.get_dummy_value()

    return types.void(REAL, VL, KH, KW, NV, AHEAD, *[types.intp] * 19), codegen


@functools.cache
def strip(dtype: str, tile: PixelStripTile) -> CFunc:
    """The part of the kernel that knows dtype and tile: a strip's vectors of channels, from `begin` to `end`.

    Its `lines` rows begin at `top`, its columns at `left`; `image` is the image's number. The next strip is so many
    rows and columns on.
    """
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, KH, KW, NV, AHEAD = tile.VL, tile.KH, tile.KW, tile.NV, int(tile.asks)

    def rolling_vectors(address, image, top, lines, left, slab, begin, end, rows_on, columns_on):
        call = record_at(address, CALL)
        p = record_at(call.plan, ROLLING_DOTS)
        row = top + p.first_row
        low = first_inside(row, p.row_step)
        high = end_inside(row, p.row_step, p.source_rows, lines + KH - 1)
        source = call.source + image * p.source_n + row * p.source_r
        gradient = call.other + image * p.gradient_n + top * p.gradient_r + left * p.gradient_c
        for v in range(begin, end):
            channel = min(v * VL, p.channels - VL)
            offset = channel * ITEM
            rolling_sums(
                REAL, VL, KH, KW, NV, AHEAD, lines, low, high, left + p.first_column, p.phases, p.source_columns,
                source + offset, p.row_step * p.source_r, p.source_c, p.zeros + offset,
                gradient + offset, p.row_step * p.gradient_r, p.phases * p.gradient_c,
                slab + offset, KW * p.channels * ITEM, p.channels * ITEM, v * VL - channel,
                rows_on * p.source_r + columns_on * p.source_c, rows_on * p.gradient_r + columns_on * p.gradient_c,
            )  # fmt: skip

    return jit.part(rolling_vectors)


@functools.cache
def rolling_dots() -> CFunc:
    """The kernel for all dtypes and tiles; its tasks are (slab, part of the channels)."""

    def rolling_strips(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, ROLLING_DOTS)
        for task in range(begin, end):
            part, slab = task % p.parts, task // p.parts
            first, last = vectors_of_part(p, part)
            target = call.target + slab * p.slab_bytes
            begin_byte, end_byte = first * p.lane_bytes, min(last * p.lane_bytes, p.channel_bytes)
            for tap in range(p.taps):
                sums = array_at(target + tap * p.channel_bytes, p.channel_bytes, np.uint8)
                sums[begin_byte:end_byte] = 0
            for unit in range(p.units * slab // p.slabs, p.units * (slab + 1) // p.slabs):
                number, block = unit % p.strips, unit // p.strips
                phase, block = block % p.phases, block // p.phases
                image, block = block // p.row_blocks, block % p.row_blocks
                top, bottom = block * p.row_block, min((block + 1) * p.row_block, p.rows)
                wide = steps_in(p.columns - phase, p.phases) - p.strips * (p.width - 1)
                if p.width == 1 and number >= wide:  # dilated by more than there are columns
                    continue
                left = phase + (number * (p.width - 1) + min(number, wide)) * p.phases
                entry = p.entry if number < wide else p.entry_narrow
                rows_on, columns_on = 0, (p.width - int(number >= wide)) * p.phases
                if number == p.strips - 1:
                    rows_on, columns_on = bottom - top, -left
                for k in range(min(p.row_step, bottom - top)):
                    lines = steps_in(bottom - top - k, p.row_step)
                    call_part(entry, (address, image, top + k, lines, left, target, first, last, rows_on, columns_on))

    return jit.kernel(rolling_strips)
