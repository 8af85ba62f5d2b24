"""Weight gradient as dot products over pixels with channels in the lanes, of small groups and depth multipliers.

Every weight is a sum over pixels of one vector of the input times one of the output gradient. The lanes hold target
channels, and a fixed permutation brings the q-th source channel of its group to each.

A kernel row's sums stay in registers over all pixels of a block; each input pixel is loaded once for all the taps that
meet it. Slabs of pixels have partial gradients, which are added in order (`fastconv.kernels.slabs`), so the result has
the same bits for any number of threads.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import types
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

from fastconv.kernels import jit
from fastconv.kernels.emit import Emitter, literal, scalar_ir
from fastconv.kernels.groups import GroupLanes
from fastconv.kernels.params import CALL, record
from fastconv.kernels.simd import array_at, call_part, record_at
from fastconv.kernels.target import RowTile

CHANNEL_DOTS = record("""
    source_n source_r source_c source_rows source_columns
    gradient_n gradient_r gradient_c
    rows columns row_step column_step phases
    taps_r row_offsets first_column
    channels zeros row_block row_blocks blocks parts slabs slab_bytes line_bytes
    entry pixels taps_c reach sums vectors vector_bytes
    workspace_bytes table singles
""")
"""Strides are in bytes. The columns of each phase are `phases` apart in the input. The target is an array (slabs,
taps_r, `sums`, channels), slabs `slab_bytes` and lines of channels `line_bytes` apart. A tile of `pixels` reads `reach`
pixels of a row; `entry` is the address of the compiled `row_of_sums`. The last two fields are offsets into a thread's
workspace."""

_CHAINS = 8
"""Sums that are added to in turn: fewer would wait for their own results."""


@intrinsic(prefer_literal=True)
def row_dots(
    typingctx: Any, REAL: Any, VL: Any, MR: Any, KW: Any, S: Any, G: Any, Q: Any, T: Any, MASKED: Any,
    tiles: Any, table: Any, pixels: Any, singles: Any, source_offset: Any, offset: Any, there: Any,
    target: Any, target_step: Any, target_q: Any,
) -> Any:  # fmt: skip
    """Sums of one kernel row: ``target[b, q] += sum over pixels m of source[m S + b] gradient[m]`` for KW taps b.

    A tile of MR pixels is (MR - 1) S + KW + MR integers of `table`, the addresses of its source and then its gradient
    pixels; a single pixel is KW + 1 integers of `singles`. `source_offset` and `offset` bytes are added to them. Lane i
    meets the source channels i // T * G + q for q < G, of which Q are taken at once. If MASKED, only `there` target
    lanes and their sources are touched.
    """
    lanes, height, taps, stride = literal(VL), literal(MR), literal(KW), literal(S)
    group, together, outputs, masked = literal(G), literal(Q), literal(T), literal(MASKED)
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        tiles, table, pixels, singles, source_offset, offset, there, target, target_step, target_q = args[9:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        const, add = emit.const, emit.add
        sets = min(height, -(-_CHAINS // (taps * together)))
        channels = GroupLanes(emit, group, outputs, masked, there)

        def add_pixels(count: Any, entries: Any, height: int, first: int, sums: list[Any]) -> list[Any]:
            sources = (height - 1) * stride + taps

            def tile(t: Any, sums: list[Any]) -> list[Any]:
                entry = add(entries, builder.mul(t, const(8 * (sources + height))))

                def place(index: int, offset: Any) -> Any:
                    return add(emit.load_int(add(entry, const(8 * index))), offset)

                gradient = [channels.load(place(sources + m, offset)) for m in range(height)]
                sums = list(sums)
                for s in range(sources):
                    reached = [(m, s - m * stride) for m in range(height) if 0 <= s - m * stride < taps]
                    if not reached:
                        continue
                    value = channels.load_source(place(s, source_offset))
                    for q in range(together):
                        factor = channels.of_group(value, first + q)
                        for m, b in reached:
                            chain = (m % sets * taps + b) * together + q
                            sums[chain] = emit.fma(factor, gradient[m], sums[chain])
                return sums

            return emit.loop(count, tile, sums)

        for first in range(0, group, together):
            sums = [emit.constant(0.0)] * (sets * taps * together)
            sums = add_pixels(tiles, table, height, first, sums)
            sums = add_pixels(pixels, singles, 1, first, sums)
            for b in range(taps):
                for q in range(together):
                    total = sums[b * together + q]
                    for chain in range(1, sets):
                        total = builder.fadd(total, sums[(chain * taps + b) * together + q])
                    here = add(target, builder.mul(target_step, const(b)))
                    here = add(here, builder.mul(target_q, const(first + q)))
                    channels.store(builder.fadd(channels.load(here), total), here)
        return context.get_dummy_value()

    return types.void(REAL, VL, MR, KW, S, G, Q, T, MASKED, *[types.intp] * 10), codegen


@jit.inline
def trace_pixel(p, reach, height, place, above, column, gradient):
    """Write the addresses of `reach` source pixels from `column` on and of `height` gradient pixels."""
    entry = array_at(place, reach + height, np.int64)
    for q in range(reach):
        at = column + q * p.phases
        entry[q] = above + at * p.source_c if 0 <= at < p.source_columns else p.zeros
    for m in range(height):
        entry[reach + m] = gradient + m * p.phases * p.gradient_c


@functools.cache
def row_of_sums(dtype: str, tile: RowTile) -> CFunc:
    """The part of the kernel that knows dtype and tile: a kernel row's sums for vectors from `first` to `last`."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, MR, KW, S = tile.VL, tile.MR, tile.KW, tile.S
    G, AT_ONCE, T, LANES, MASKED = tile.G, tile.Q, tile.T, tile.lanes, int(tile.masked)

    def channel_dot_vectors(plan, own, tiles, singles, first, last, target):
        p = record_at(plan, CHANNEL_DOTS)
        for v in range(first, last):
            lanes, along = min(LANES, p.channels - v * LANES), v * LANES * ITEM
            row_dots(
                REAL, VL, MR, KW, S, G, AT_ONCE, T, MASKED, tiles, own + p.table, singles, own + p.singles,
                along // T * G, along, lanes, target + along, G * p.line_bytes, p.line_bytes,
            )  # fmt: skip

    return jit.part(channel_dot_vectors)


@functools.cache
def channel_dots() -> CFunc:
    """The kernel for all dtypes and tiles; its tasks are (slab of blocks of rows, part of the channels)."""

    def channel_dot_tiles(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, CHANNEL_DOTS)
        own = call.workspace + thread * p.workspace_bytes
        row_offsets = array_at(p.row_offsets, p.taps_r, np.int64)
        for task in range(begin, end):
            part, slab = task % p.parts, task // p.parts
            first_vector, last_vector = p.vectors * part // p.parts, p.vectors * (part + 1) // p.parts
            slab_target = call.target + slab * p.slab_bytes
            first_byte, last_byte = first_vector * p.vector_bytes, min(last_vector * p.vector_bytes, p.line_bytes)
            for line in range(p.taps_r * p.sums):
                array_at(slab_target + line * p.line_bytes, p.line_bytes, np.uint8)[first_byte:last_byte] = 0
            for block in range(p.blocks * slab // p.slabs, p.blocks * (slab + 1) // p.slabs):
                image, first = block // p.row_blocks, block % p.row_blocks * p.row_block
                source = call.source + image * p.source_n
                image_gradient = call.other + image * p.gradient_n
                for a in range(p.taps_r):
                    tiles, singles = 0, 0
                    for i in range(first, min(first + p.row_block, p.rows)):
                        row = i * p.row_step + row_offsets[a]
                        if row < 0 or row >= p.source_rows:
                            continue
                        above, line_gradient = source + row * p.source_r, image_gradient + i * p.gradient_r
                        for phase in range(min(p.phases, p.columns)):
                            j = phase
                            while j < p.columns:
                                column, place = j * p.column_step + p.first_column, line_gradient + j * p.gradient_c
                                if j + (p.pixels - 1) * p.phases < p.columns:
                                    entry = own + p.table + tiles * (p.reach + p.pixels) * 8
                                    trace_pixel(p, p.reach, p.pixels, entry, above, column, place)
                                    tiles += 1
                                    j += p.pixels * p.phases
                                else:
                                    # Pixels that do not fill a tile are added one by one: 0 times a NaN would be NaN.
                                    entry = own + p.singles + singles * (p.taps_c + 1) * 8
                                    trace_pixel(p, p.taps_c, 1, entry, above, column, place)
                                    singles += 1
                                    j += p.phases
                    target = slab_target + a * p.sums * p.line_bytes
                    call_part(p.entry, (call.plan, own, tiles, singles, first_vector, last_vector, target))

    return jit.kernel(channel_dot_tiles)
