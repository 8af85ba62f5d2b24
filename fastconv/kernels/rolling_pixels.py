"""Depthwise convolution with channels in the lanes, row after row: sums roll down a strip of neighbouring pixels.

A strip is one vector of channels of some target columns. Each source pixel is loaded once and added to all sums that it
reaches (`rolling_rows`), with all of the kernel's weights in registers. Columns outside the image are a row of zeros.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numba import types
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

from fastconv.kernels import jit
from fastconv.kernels.activation import activate
from fastconv.kernels.emit import Emitter, literal, scalar_ir
from fastconv.kernels.groups import vectors_of_part
from fastconv.kernels.params import CALL, record
from fastconv.kernels.pixel_columns import PixelColumns
from fastconv.kernels.rolling_rows import (
    PairRows,
    Product,
    Rows,
    kernel_weights,
    pair_offsets,
    pair_phases,
    roll_pairs,
    roll_rows,
)
from fastconv.kernels.simd import call_part, record_at
from fastconv.kernels.spans import end_inside, first_inside, steps_in
from fastconv.kernels.target import PixelPairTile, PixelStripTile

ROLLING_PIXELS = record("""
    source_n source_r source_c source_rows source_columns
    target_offset target_n target_r target_c
    weight_offset weight_r weight_c zeros
    rows columns target_columns first_row first_column row_step phases pace
    channels vectors overlapping row_block row_blocks strips parts entry width
""")
"""Strides are in bytes. Kernel rows lie `row_step` source rows apart, and so do the target rows that roll together; the
columns of each phase are `phases` apart, in source and target alike. Of `strips` in a row each has `width` columns of a
phase: the last one overlaps the one before, as the one vector `overlapping` the last of `vectors` does where channels
do not fill it. Of an input gradient of stride 2 `columns` are pairs, of `target_columns`, and `pace` is
2: the target rows of a source row. `entry` is the address of the compiled `strip` or `pair_strip`."""


@intrinsic(prefer_literal=True)
def rolling_columns(
    typingctx: Any, REAL: Any, VL: Any, KH: Any, KW: Any, NV: Any, AHEAD: Any,
    lines: Any, begin: Any, end: Any, first: Any, spread: Any, size: Any,
    source: Any, source_line: Any, source_c: Any, zeros: Any, row: Any, step: Any, source_rows: Any,
    weights: Any, weight_r: Any, weight_c: Any, start: Any, floor: Any, target: Any, target_line: Any, target_c: Any,
    again: Any, ahead: Any,
) -> Any:  # fmt: skip
    """Sums of `lines` rows of NV pixels: ``target[i, v] = max(start + sum w[a, b] source[i + a, v + b], floor)``.

    The rows are those of `rolling_strip`. Source columns lie `source_c` bytes apart, of which target pixel v meets
    `first` + `spread` (v + b) by kernel column b, of `size`; the others are at `zeros`. The first `again` pixels, which
    another strip has, are not stored. With AHEAD, the lines so many bytes `ahead` of the source's are asked for.
    """
    lanes, height, taps, width, asks = (literal(value) for value in (VL, KH, KW, NV, AHEAD))
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lines, begin, end, first, spread, size = args[6:12]
        source, source_line, source_c, zeros, row, step, source_rows = args[12:19]
        weights, weight_r, weight_c, start, floor, target, target_line, target_c, again, ahead = args[19:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        columns = PixelColumns(
            emit, width, taps, first, spread, size, source_c, zeros, ahead if asks else None
        )  # fmt: skip

        def products(place: Any, exists: Any) -> Iterator[Product]:
            for v, b, value in columns.in_row(place):
                yield v, b, functools.partial(emit.fma, value)

        # A pixel of another strip, which may be another thread's, goes to the place of the first that is not.
        places = [emit.limited(emit.const(v), again, emit.const(width - 1)) for v in range(width)]
        offsets = [emit.opaque(builder.mul(target_c, place)) for place in places]

        def store(v: int, value: Any, there: Any, _: Any) -> None:
            emit.store(value, emit.add(there, offsets[v]))

        kernel = kernel_weights(emit, (height, taps), emit.load, weights, weight_r, weight_c)
        rows = Rows(lines, begin, end, row, emit.const(0), step, source, source_line, source_rows, target, target_line)
        roll_rows(emit, rows, kernel, 1, width, emit.load(start), emit.broadcast(floor), products, store)
        return context.get_dummy_value()

    integers = [types.intp] * 17
    return types.void(REAL, VL, KH, KW, NV, AHEAD, *integers, real, *[types.intp] * 5), codegen


@intrinsic(prefer_literal=True)
def rolling_column_pairs(
    typingctx: Any, REAL: Any, VL: Any, KH: Any, KW: Any, PR: Any, PC: Any, NV: Any, AHEAD: Any,
    lines: Any, begin: Any, end: Any, low: Any, high: Any, columns: Any, first: Any, size: Any,
    source: Any, source_line: Any, source_c: Any, zeros: Any, weights: Any, weight_r: Any, weight_c: Any,
    target: Any, target_line: Any, target_c: Any, again: Any, ahead: Any,
) -> Any:  # fmt: skip
    """Sums of `lines` target rows of NV pairs of pixels, as `fastconv.kernels.rolling.rolling_pairs` has vectors.

    Source columns lie `source_c` bytes apart; pair v meets those from `first` + v on, of `size`. Of the target there
    are `columns`, of which the last pair may lack one; the first `again` pairs are not stored. AHEAD is as above.
    """
    lanes, heights, width, parity = literal(VL), (literal(KH), literal(KW)), literal(NV), (literal(PR), literal(PC))
    asks = literal(AHEAD)
    real = REAL.dtype
    phases = pair_phases(heights[0], parity[0]), pair_phases(heights[1], parity[1])
    least, most = pair_offsets(heights[1], parity[1])

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lines, begin, end, low, high, count, first, size = args[8:16]
        source, source_line, source_c, zeros, weights, weight_r, weight_c = args[16:23]
        target, target_line, target_c, again, ahead = args[23:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        const, add = emit.const, emit.add
        met = PixelColumns(
            emit, width, most - least + 1, add(first, const(least)), const(1), size, source_c, zeros,
            ahead if asks else None,
        )  # fmt: skip
        # What is not to be stored goes to the place of something that is, and is stored after it: pairs of another
        # strip, and the last pixel where there is none.
        offsets: list[list[Any]] = [[], []]
        for q in range(2):
            for v in range(width):
                pair = emit.limited(const(v), again, const(width - 1))
                pixel = add(pair, add(pair, const(q)))
                there = builder.icmp_signed("<", pixel, count)
                pixel = builder.select(there, pixel, builder.sub(pixel, const(q)))
                offsets[q].append(emit.opaque(builder.mul(target_c, pixel)))

        def products(place: Any) -> Iterator[Product]:
            for v, tap, value in met.in_row(place):
                yield v, tap + least, functools.partial(emit.fma, value)

        def store(sums: list[Any], place: Any) -> None:
            for q in (1, 0):
                for v in range(width):
                    emit.store(sums[q * width + v], add(place, offsets[q][v]))

        kernel = kernel_weights(emit, heights, emit.load, weights, weight_r, weight_c)
        rows = PairRows(lines, begin, end, low, high, source, source_line, target, target_line)
        roll_pairs(emit, rows, kernel, phases, width, products, store)
        return context.get_dummy_value()

    return types.void(REAL, VL, KH, KW, PR, PC, NV, AHEAD, *[types.intp] * 20), codegen


@functools.cache
def strip(dtype: str, tile: PixelStripTile) -> CFunc:
    """The part of the kernel that knows dtype and tile: a strip's vectors of channels, from `begin` to `end`.

    Its rows are every `row_step`-th from `top` on, its columns those from `left` on, but for those done `again`. The
    next strip lies so many bytes `ahead`.
    """
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, KH, KW, NV, AHEAD = tile.VL, tile.KH, tile.KW, tile.NV, int(tile.asks)

    def rolling_vectors(address, image, top, lines, left, again, begin, end, ahead):
        call = record_at(address, CALL)
        p = record_at(call.plan, ROLLING_PIXELS)
        row = top + p.first_row
        lowest = REAL(0) if call.relu != 0 else REAL(-np.inf)
        all_lines = lines + KH - 1
        inside = min(all_lines, first_inside(row, p.row_step))
        outside = max(inside, end_inside(row, p.row_step, p.source_rows, all_lines))
        source = call.source + image * p.source_n
        target = call.target + p.target_offset + image * p.target_n + top * p.target_r + left * p.target_c
        for v in range(begin, end):
            offset = min(v * VL, p.channels - VL) * ITEM
            rolling_columns(
                REAL, VL, KH, KW, NV, AHEAD, lines, inside, outside,
                left + p.first_column, p.phases, p.source_columns,
                source + offset, p.source_r, p.source_c, p.zeros + offset, row, p.row_step,
                p.source_rows, call.other + p.weight_offset + offset, p.weight_r, p.weight_c, call.start + offset,
                lowest, target + offset, p.row_step * p.target_r, p.phases * p.target_c, again, ahead,
            )  # fmt: skip
            if call.activation != 0:
                for i in range(lines):
                    for m in range(again, NV):
                        place = target + offset + i * p.row_step * p.target_r + m * p.phases * p.target_c
                        activate(call, place, VL)

    return jit.part(rolling_vectors)


@functools.cache
def pair_strip(dtype: str, tile: PixelPairTile) -> CFunc:
    """The same for an input gradient of stride 2: a strip of pairs of pixels, `left` of them before."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, KH, KW, PR, PC, NV, AHEAD = tile.VL, tile.KH, tile.KW, tile.PR, tile.PC, tile.NV, int(tile.asks)
    LEAST, MOST = pair_offsets(KH, PR)

    def rolling_vectors(address, image, top, lines, left, again, begin, end, ahead):
        call = record_at(address, CALL)
        p = record_at(call.plan, ROLLING_PIXELS)
        row = top // 2 + p.first_row
        source = call.source + image * p.source_n + row * p.source_r
        target = call.target + image * p.target_n + top * p.target_r + 2 * left * p.target_c
        for v in range(begin, end):
            offset = min(v * VL, p.channels - VL) * ITEM
            rolling_column_pairs(
                REAL, VL, KH, KW, PR, PC, NV, AHEAD, lines, LEAST, (lines + 1) // 2 + MOST, -row, p.source_rows - row,
                p.target_columns - 2 * left, left + p.first_column, p.source_columns,
                source + offset, p.source_r, p.source_c, p.zeros + offset, call.other + offset, p.weight_r, p.weight_c,
                target + offset, p.target_r, p.target_c, again, ahead,
            )  # fmt: skip

    return jit.part(rolling_vectors)


@functools.cache
def rolling_pixels() -> CFunc:
    """The kernel for all dtypes and tiles; its tasks are (image, block of rows, strip, part of the channels)."""

    def rolling_strips(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, ROLLING_PIXELS)
        for task in range(begin, end):
            part, strip = task % p.parts, task // p.parts
            block, strip = strip // p.strips, strip % p.strips
            image, block = block // p.row_blocks, block % p.row_blocks
            first, last = vectors_of_part(p, part)
            top, bottom = block * p.row_block, min((block + 1) * p.row_block, p.rows)
            phase, number = strip % p.phases, strip // p.phases
            columns = steps_in(p.columns - phase, p.phases)
            before = min(number * p.width, columns - p.width)
            left, again = phase + before * p.phases, number * p.width - before
            ahead = p.width * p.phases * p.source_c
            if number * p.width + p.width >= columns:  # in the next rows
                ahead = (bottom - top) // p.pace * p.source_r - left * p.source_c
            for k in range(min(p.row_step, bottom - top)):
                lines = steps_in(bottom - top - k, p.row_step)
                call_part(p.entry, (address, image, top + k, lines, left, again, first, last, ahead))

    return jit.kernel(rolling_strips)
