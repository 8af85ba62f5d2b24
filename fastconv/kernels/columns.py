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
from numba import carray, types
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

from fastconv.kernels import jit
from fastconv.kernels.emit import Emitter, literal, scalar_ir
from fastconv.kernels.gather import AHEAD
from fastconv.kernels.params import LINE, record
from fastconv.kernels.simd import pointer, prefetch, record_at

COLUMNS = record("""
    entry source_group source_r source_k source_rows source_columns rows columns row_step column_step
    taps_r taps_c row_offsets column_offsets reduction channel_row tap_row flat panel_bytes
""")
"""`entry` is the address of `pack_columns`. Strides are in bytes, `rows` and `columns` those of the target. The row of
a panel for a tap of a channel is the channel times `channel_row` plus the tap times `tap_row`. `flat` says that a tap
reads a panel's pixels side by side; the masks of all taps are kept `panel_bytes` after the panel's beginning."""

MOST_LANES = 64
"""Pixels of a panel at most: the bits of a mask."""


@intrinsic(prefer_literal=True)
def copy_lanes(
    typingctx: Any, REAL: Any, VL: Any, NV: Any, STEP: Any, source: Any, masks: Any, target: Any, count: Any
) -> Any:  # fmt: skip
    """Copy every STEP-th value, `count` of at most NV vectors of VL, and write zeros for those that masks leave out.

    `masks` is the address of STEP int64, with a bit for each value of the source, also for those stepped over.
    """
    lanes, vectors, step = literal(VL), literal(NV), literal(STEP)
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, masks, target, count = args[4:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        chosen = ir.VectorType(ir.IntType(1), lanes)
        words = [emit.load_int(emit.add(masks, emit.const(8 * word))) for word in range(step)]
        stepped = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [step * lane for lane in range(lanes)])

        def load(part: int) -> Any:
            word, shift = divmod(part * lanes, 64)
            bits = builder.trunc(builder.lshr(words[word], emit.const(shift)), ir.IntType(lanes))
            place = emit.add(source, emit.const(part * emit.vector_bytes))
            return emit.load_masked(place, builder.bitcast(bits, chosen))

        def value(v: int) -> Any:
            if step == 1:
                return load(v)
            return builder.shuffle_vector(load(2 * v), load(2 * v + 1), stepped)

        places = [emit.add(target, emit.const(v * emit.vector_bytes)) for v in range(vectors)]
        whole = builder.icmp_signed("==", count, emit.const(vectors * lanes))
        with builder.if_else(whole) as (all_vectors, some_vectors):
            with all_vectors:
                for v in range(vectors):
                    emit.store(value(v), places[v])
            with some_vectors:
                for v in range(vectors):
                    with builder.if_then(builder.icmp_signed("<", emit.const(v * lanes), count)):
                        emit.store_masked(value(v), places[v], emit.below(count, v * lanes))
        return context.get_dummy_value()

    return types.void(REAL, VL, NV, STEP, *[types.intp] * 4), codegen


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
    row_offsets = carray(pointer(q.row_offsets), q.taps_r, np.int64)
    column_offsets = carray(pointer(q.column_offsets), q.taps_c, np.int64)
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
        row_offsets = carray(pointer(q.row_offsets), q.taps_r, np.int64)
        column_offsets = carray(pointer(q.column_offsets), q.taps_c, np.int64)
        taps = q.taps_r * q.taps_c
        at_masks = target + q.panel_bytes
        masks = carray(pointer(at_masks), (taps, STEPS), np.int64)
        pixel = panel * NR
        there = min(NR, q.rows * q.columns - pixel)
        row, column = pixel // q.columns, pixel % q.columns
        ahead, place = max(1, AHEAD // taps), 0
        while place < there:
            count = min(there - place, q.columns - column)
            if STEP > 0:
                masks[:] = 0
                mark_inside(q, STEP, masks, row, column, 0, count)
                if q.flat != 0:
                    i = row + 1
                    while count < there:
                        along = min(there - count, q.columns)
                        mark_inside(q, STEP, masks, i, 0, count, along)
                        i, count = i + 1, count + along
            for k in range(q.reduction):
                for byte in range(0, NR * ITEM, LINE):
                    prefetch(source + (k + ahead) * q.source_k + row * q.row_step * q.source_r + column * ITEM + byte)
                plane, here = source + k * q.source_k, target + k * q.channel_row * NR * ITEM + place * ITEM
                for a in range(q.taps_r):
                    line = row * q.row_step + row_offsets[a]
                    for b in range(q.taps_c):
                        left, tap = column * q.column_step + column_offsets[b], a * q.taps_c + b
                        start, there_at = plane + line * q.source_r + left * ITEM, here + tap * q.tap_row * NR * ITEM
                        if STEP > 0:
                            copy_lanes(REAL, VL, NV, STEPS, start, at_masks + tap * STEPS * 8, there_at, count)
                            continue
                        inside = 0 <= line < q.source_rows
                        copied = carray(pointer(there_at), count, REAL)
                        for c in range(count):
                            at = left + c * q.column_step
                            if inside and 0 <= at < q.source_columns:
                                copied[c] = carray(pointer(start + c * q.column_step * ITEM), 1, REAL)[0]
                            else:
                                copied[c] = REAL(0)
            place, row, column = place + count, row + 1, 0

    return jit.part(pack_panel)
