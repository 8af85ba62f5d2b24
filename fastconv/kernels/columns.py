"""What windows read of planes, packed as the weights of a register tile: pixels in the lanes, a row for each product.

A panel is NR target pixels wide, as they follow each other in a plane, and has a row for every tap of every channel:
the patch matrix of these pixels alone, which stays in the second cache level while all target channels use it. Where
rows of source and target are equally long and windows skip no columns, a tap reads the pixels of a panel side by side,
too, and a mask leaves out those in the padding; otherwise a panel is packed row by row of the image. What lies behind
the last pixel of the last panel is computed with, but not stored.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

from fastconv.kernels import jit
from fastconv.kernels.emit import I64, Emitter, literal, scalar_ir
from fastconv.kernels.packing import AHEAD
from fastconv.kernels.params import LINE, record
from fastconv.kernels.simd import array_at, prefetch, record_at

COLUMNS = record("""
    entry source_group source_r source_k source_rows source_columns rows columns row_step column_step
    taps_r taps_c row_offsets column_offsets first_row last_row first_column last_column
    reduction channel_row tap_row flat panel_bytes
""")
"""`entry` is the address of `pack_columns`. Strides are in bytes, `rows` and `columns` those of the target; `first_*`
and `last_*` are the least and greatest offsets. The row of a panel for a tap of a channel is the channel times
`channel_row` plus the tap times `tap_row`. `flat` says that a tap reads a panel's pixels side by side; the masks of all
taps are kept `panel_bytes` after the panel's beginning."""

MOST_LANES = 64
"""Pixels of a panel at most: the bits of a mask."""
TOGETHER = 16
"""Channels of which a tap's values are packed one after another: what they read stays in the first cache level."""
MOST_STEPS = 4
"""Columns between windows up to which values are picked from vectors."""


def _every(emit: Emitter, step: int, vectors: list[Any]) -> Any:
    """Every `step`-th lane of so many vectors, which follow each other."""
    lanes = emit.vector.count
    found, known = vectors[0], 1 + (lanes - 1) // step  # lanes of the result that hold their values
    for number, vector in enumerate(vectors[1:], 1):
        places = [lane if lane < known else lanes + (lane * step - number * lanes) % lanes for lane in range(lanes)]
        if number == 1:
            places = [lane * step if lane < known else place for lane, place in enumerate(places)]
        found = emit.builder.shuffle_vector(found, vector, ir.Constant(ir.VectorType(ir.IntType(32), lanes), places))
        known = 1 + ((number + 1) * lanes - 1) // step
    return found


@intrinsic(prefer_literal=True)
def copy_taps(
    typingctx: Any, REAL: Any, VL: Any, NV: Any, STEP: Any,
    source: Any, offsets: Any, taps: Any, masks: Any, target: Any, pitch: Any, count: Any,
    rows: Any, source_row: Any, target_row: Any,
) -> Any:  # fmt: skip
    """Copy what each tap of a kernel row reads of `rows` rows: every STEP-th value, the first `count` of NV vectors.

    `offsets` is the address of how many values after `source` each tap's begin; their targets are `pitch` bytes apart.
    Rows are `source_row` and `target_row` bytes apart. `masks` is the address of STEP int64 for each tap, with a bit
    for each value of the source, also for those stepped over: zeros are written where it is not set. 0 says that all
    are; NV vectors of VL are copied then.
    """
    lanes, vectors, step = literal(VL), literal(NV), literal(STEP)
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, offsets, taps, masks, target, pitch, count, rows, source_row, target_row = args[4:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        const, add, multiply = emit.const, emit.add, builder.mul
        bits, size = ir.IntType(lanes), emit.vector_bytes

        def mask(words: Any, part: Any) -> Any:
            first = multiply(part, const(lanes))
            if lanes % 8 == 0:
                place = add(words, builder.lshr(first, const(3)))
                own = builder.load(builder.inttoptr(place, bits.as_pointer()), align=1)
                return emit.chosen(builder.zext(own, I64))
            word = emit.load_int(add(words, multiply(builder.lshr(first, const(6)), const(8))))
            return emit.chosen(builder.lshr(word, builder.and_(first, const(63))))

        def each_tap(numbers: list[Any], masked: bool, named: Any = None) -> None:
            """Copy the vectors of these numbers of each row, or the `named` lanes of one."""
            parts = [add(multiply(v, const(step)), const(i)) for v in numbers for i in range(step)]

            def tap(b: Any, _: list[Any]) -> list[Any]:
                offset = emit.load_int(add(offsets, multiply(b, const(8))))
                begin = add(source, multiply(offset, const(emit.item)))
                words, there = add(masks, multiply(b, const(8 * step))), add(target, multiply(b, pitch))
                known = [mask(words, part) for part in parts] if masked else []

                def row(r: Any, _: list[Any]) -> list[Any]:
                    here, to = add(begin, multiply(r, source_row)), add(there, multiply(r, target_row))
                    places = [add(here, multiply(part, const(size))) for part in parts]
                    loaded = list(map(emit.load_masked, places, known)) if masked else list(map(emit.load, places))
                    for i, v in enumerate(numbers):
                        value = _every(emit, step, loaded[i * step : (i + 1) * step])
                        place = add(to, multiply(v, const(size)))
                        if named is None:
                            emit.store(value, place)
                        else:
                            emit.store_masked(value, place, named)
                    return []

                emit.loop(rows, row, [])
                return []

            emit.loop(taps, tap, [])

        def first_vectors(v: Any, _: list[Any]) -> list[Any]:
            each_tap([v], masked=True, named=emit.below(builder.sub(count, multiply(v, const(lanes))), 0))
            return []

        every = list(map(const, range(vectors)))
        with builder.if_else(builder.icmp_signed("==", masks, const(0))) as (everything, something):
            with everything:
                each_tap(every, masked=False)
            with something:
                whole = builder.icmp_signed("==", count, const(vectors * lanes))
                with builder.if_else(whole) as (all_vectors, some_vectors):
                    with all_vectors:
                        each_tap(every, masked=True)
                    with some_vectors:
                        begun = builder.sdiv(add(count, const(lanes - 1)), const(lanes))
                        emit.loop(begun, first_vectors, [])
        return context.get_dummy_value()

    return types.void(REAL, VL, NV, STEP, *[types.intp] * 10), codegen


@jit.inline
def bits_between(first, end):
    """A mask of the bits from `first` to `end`, as far as they are among 64."""
    first, end = max(first, 0), min(end, 64)
    if end <= first:
        return 0
    return (-1 if end - first == 64 else (1 << (end - first)) - 1) << first


@jit.inline
def mark_inside(q, STEP, masks, row, column, place, count):
    """Add to each tap's masks what it reads inside the image, for the windows of `count` lanes from `place` on."""
    row_offsets = array_at(q.row_offsets, q.taps_r, np.int64)
    column_offsets = array_at(q.column_offsets, q.taps_c, np.int64)
    for b in range(q.taps_c):
        left = column * STEP + column_offsets[b]
        first, end = place + min(max(0, -left), count * STEP), place + min(count * STEP, q.source_columns - left)
        for word in range(STEP):
            bits = bits_between(first - 64 * word, end - 64 * word)
            for a in range(q.taps_r):
                if 0 <= row * q.row_step + row_offsets[a] < q.source_rows:
                    masks[a * q.taps_c + b, word] |= bits


@functools.cache
def pack_columns(dtype: str, vectors: int, lanes: int, step: int) -> CFunc:
    """The part of kernels that packs a panel of `vectors` vectors; windows are `step` columns apart, 0 for any."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, NV, NR, STEP, STEPS = lanes, vectors, vectors * lanes, step, max(1, step)

    def pack_panel(plan, source, panel, target, begin, end):
        q = record_at(plan, COLUMNS)
        row_offsets = array_at(q.row_offsets, q.taps_r, np.int64)
        column_offsets = array_at(q.column_offsets, q.taps_c, np.int64)
        taps = q.taps_r * q.taps_c
        at_masks = target + q.panel_bytes
        masks = array_at(at_masks, (taps, STEPS), np.int64)
        pixel = panel * NR
        there = min(NR, q.rows * q.columns - pixel)
        row, column = pixel // q.columns, pixel % q.columns
        ahead, place = max(1, AHEAD // taps), 0
        pitch, tap_pitch = q.channel_row * NR * ITEM, q.tap_row * NR * ITEM
        while place < there:
            count, known, line = min(there - place, q.columns - column), at_masks, row * q.row_step
            if STEP > 0:
                left, right = column * STEP + q.first_column, (column + NR) * STEP - 1 + q.last_column
                above, below = line + q.first_row, line + q.last_row
                if count == NR and left >= 0 and right < q.source_columns and above >= 0 and below < q.source_rows:
                    known = 0
                else:
                    masks[:] = 0
                    mark_inside(q, STEP, masks, row, column, 0, count)
                    i = row + 1
                    while q.flat != 0 and count < there:
                        along = min(there - count, q.columns)
                        mark_inside(q, STEP, masks, i, 0, count, along)
                        i, count = i + 1, count + along
            for k in range(0, q.reduction, TOGETHER):
                channels, first = min(TOGETHER, q.reduction - k), source + k * q.source_k
                for c in range(channels):
                    for byte in range(0, NR * ITEM, LINE):
                        prefetch(first + (c + ahead) * q.source_k + line * q.source_r + column * ITEM + byte)
                here = target + (k * q.channel_row * NR + place) * ITEM
                for a in range(q.taps_r):
                    at, there_at = line + row_offsets[a], here + a * q.taps_c * tap_pitch
                    start = first + at * q.source_r + column * q.column_step * ITEM
                    if STEP > 0:
                        own = known + a * q.taps_c * STEPS * 8 if known != 0 else 0
                        copy_taps(
                            REAL, VL, NV, STEPS, start, q.column_offsets, q.taps_c, own, there_at, tap_pitch, count,
                            channels, q.source_k, pitch,
                        )  # fmt: skip
                        continue
                    inside = 0 <= at < q.source_rows
                    for b in range(q.taps_c):
                        for c in range(channels):
                            copied = array_at(there_at + b * tap_pitch + c * pitch, count, REAL)
                            for i in range(count):
                                along = column_offsets[b] + i * q.column_step
                                if inside and 0 <= column * q.column_step + along < q.source_columns:
                                    copied[i] = array_at(start + c * q.source_k + along * ITEM, 1, REAL)[0]
                                else:
                                    copied[i] = REAL(0)
            place, row, column = place + count, row + 1, 0

    return jit.part(pack_panel)
