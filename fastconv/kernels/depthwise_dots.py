"""Weight gradient of depthwise convolution with channels in the lanes.

Every weight is a sum over pixels of one vector of the input times one of the output gradient. A kernel row's sums stay
in registers over all pixels of a block; each input pixel is loaded once for all the taps that meet it. Blocks of rows
write partial gradients, which the caller adds in order, so the result has the same bits for any number of threads.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import carray, types
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

from fastconv.kernels import jit
from fastconv.kernels.emit import Emitter, literal, scalar_ir
from fastconv.kernels.params import CALL, record
from fastconv.kernels.simd import pointer, record_at
from fastconv.kernels.target import RowTile

DEPTHWISE_DOTS = record("""
    source_n source_r source_c source_rows source_columns
    gradient_n gradient_r gradient_c
    rows columns row_step column_step phases
    taps_r row_offsets first_column
    channels zeros row_block row_blocks parts block_bytes
    workspace_bytes table singles
""")
"""Strides are in bytes. The columns of each phase are `phases` apart in the input. The target is an array (blocks,
taps_r, KW, channels) with the blocks of all images, `block_bytes` each; the last two fields are offsets into a thread's
workspace."""

_CHAINS = 8
"""Sums that are added to in turn: fewer would wait for their own results."""


@intrinsic(prefer_literal=True)
def row_dots(
    typingctx: Any, REAL: Any, VL: Any, MR: Any, KW: Any, S: Any,
    tiles: Any, table: Any, pixels: Any, singles: Any, offset: Any, target: Any, target_step: Any,
) -> Any:  # fmt: skip
    """Sums of one kernel row: ``target[b] = sum over pixels m of source[m S + b] gradient[m]`` for KW taps b.

    A tile of MR pixels is (MR - 1) S + KW + MR integers of `table`, the addresses of its source and then its gradient
    pixels; a single pixel is KW + 1 integers of `singles`. `offset` bytes are added to all addresses.
    """
    lanes, height, taps, stride = literal(VL), literal(MR), literal(KW), literal(S)
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        tiles, table, pixels, singles, offset, target, target_step = args[5:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        const, add = emit.const, emit.add
        sets = min(height, -(-_CHAINS // taps))

        def add_pixels(count: Any, entries: Any, height: int, sums: list[Any]) -> list[Any]:
            sources = (height - 1) * stride + taps

            def tile(t: Any, sums: list[Any]) -> list[Any]:
                entry = add(entries, builder.mul(t, const(8 * (sources + height))))

                def value(index: int) -> Any:
                    return emit.load(add(emit.load_int(add(entry, const(8 * index))), offset))

                gradient = [value(sources + m) for m in range(height)]
                sums = list(sums)
                for q in range(sources):
                    reached = [(m, q - m * stride) for m in range(height) if 0 <= q - m * stride < taps]
                    if not reached:
                        continue
                    source = value(q)
                    for m, b in reached:
                        chain = m % sets * taps + b
                        sums[chain] = emit.fma(source, gradient[m], sums[chain])
                return sums

            return emit.loop(count, tile, sums)

        nothing = emit.constant(0.0)
        sums = add_pixels(tiles, table, height, [nothing] * (sets * taps))
        sums = add_pixels(pixels, singles, 1, sums)
        place = add(target, offset)
        for b in range(taps):
            total = sums[b]
            for chain in range(1, sets):
                total = builder.fadd(total, sums[chain * taps + b])
            emit.store(total, place)
            place = add(place, target_step)
        return context.get_dummy_value()

    return types.void(REAL, VL, MR, KW, S, *[types.intp] * 7), codegen


@jit.inline
def trace_pixel(p, REACH, HEIGHT, place, above, column, gradient):
    """Write the addresses of the REACH source pixels from `column` on and of HEIGHT gradient pixels."""
    entry = carray(pointer(place), REACH + HEIGHT, np.int64)
    for q in range(REACH):
        at = column + q * p.phases
        entry[q] = above + at * p.source_c if 0 <= at < p.source_columns else p.zeros
    for m in range(HEIGHT):
        entry[REACH + m] = gradient + m * p.phases * p.gradient_c


@functools.cache
def depthwise_dots(dtype: str, tile: RowTile) -> CFunc:
    """The kernel for one dtype and tile; its tasks are (image, block of rows, part of the channels)."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, MR, KW, S = tile.VL, tile.MR, tile.KW, tile.S
    Q = (MR - 1) * S + KW

    def depthwise_dot_tiles(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, DEPTHWISE_DOTS)
        own = call.workspace + thread * p.workspace_bytes
        row_offsets = carray(pointer(p.row_offsets), p.taps_r, np.int64)
        vectors = (p.channels + VL - 1) // VL
        for task in range(begin, end):
            part = task % p.parts
            block = task // p.parts
            image, first = block // p.row_blocks, block % p.row_blocks * p.row_block
            source = call.source + image * p.source_n
            gradient = call.other + image * p.gradient_n
            for a in range(p.taps_r):
                tiles, singles = 0, 0
                for i in range(first, min(first + p.row_block, p.rows)):
                    row = i * p.row_step + row_offsets[a]
                    if row < 0 or row >= p.source_rows:
                        continue
                    above, line = source + row * p.source_r, gradient + i * p.gradient_r
                    for phase in range(min(p.phases, p.columns)):
                        j = phase
                        while j < p.columns:
                            column, place = j * S + p.first_column, line + j * p.gradient_c
                            if j + (MR - 1) * p.phases < p.columns:
                                entry = own + p.table + tiles * (Q + MR) * 8
                                trace_pixel(p, Q, MR, entry, above, column, place)
                                tiles += 1
                                j += MR * p.phases
                            else:
                                # Pixels that do not fill a tile are added one by one: 0 times a NaN would be NaN.
                                entry = own + p.singles + singles * (KW + 1) * 8
                                trace_pixel(p, KW, 1, entry, above, column, place)
                                singles += 1
                                j += p.phases
                target = call.target + block * p.block_bytes + a * KW * p.channels * ITEM
                for v in range(vectors * part // p.parts, vectors * (part + 1) // p.parts):
                    # The last vector overlaps the one before where channels do not fill it.
                    offset = min(v * VL, p.channels - VL) * ITEM
                    row_dots(
                        REAL, VL, MR, KW, S, tiles, own + p.table, singles, own + p.singles, offset, target,
                        p.channels * ITEM,
                    )  # fmt: skip

    return jit.kernel(depthwise_dot_tiles)
