"""Depthwise convolution with channels in the lanes: every channel has a kernel of its own, so nothing is broadcast.

Small groups of channels are as many depthwise convolutions as a group has source channels: the q-th multiplies every
lane by the q-th source channel of the lane's group, which a fixed permutation of the source vector brings there.

A tile is MR neighbouring target pixels of one row for one vector of channels. A kernel row's weights stay in registers
while each source pixel is loaded once and multiplied into every target pixel that it reaches. What a tile reads is
traced once, as addresses, and used for all vectors of channels; padding is the address of a row of zeros.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import types
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

from fastconv.kernels import jit
from fastconv.kernels.activation import activate
from fastconv.kernels.addresses import pitched_places, trace_places
from fastconv.kernels.copies import copy_pixels
from fastconv.kernels.emit import Emitter, ask, literal, scalar_ir
from fastconv.kernels.groups import GroupLanes, vectors_of_part
from fastconv.kernels.params import CALL, record
from fastconv.kernels.simd import array_at, call_part, copy_run, integer_at, record_at
from fastconv.kernels.target import RowTile, vector_bytes

DEPTHWISE = record("""
    source_n source_r source_c source_rows source_columns
    target_offset target_n target_r target_c
    weight_offset weight_c weight_q
    n rows columns row_step column_step phases
    taps_r chunks row_offsets row_weights first_column
    channels zeros row_block row_blocks parts
    entry pixels reach reach_rest chunk_taps vectors overlapping lane_bytes source_lane_bytes channel_bytes
    copies given_r given_c given_weights given_weight_c given_weight_q given_row_weights taps_c group first_row last_row
    workspace_bytes tile_bytes places table rest targets unused strip kernel
""")
"""Strides are in bytes. The columns of each phase are `phases` apart, in source and target alike; a kernel row is cut
into chunks of `chunk_taps` taps and a rest. A tile of `pixels` reads `reach` pixels of a row for a chunk, `reach_rest`
for the rest if there is one; `entry` is the address of the compiled `row_of_vectors`. `tile_bytes` are those of a tile
at `places`, which with the rest of the last line's fields are offsets into each thread's workspace. A vector of target
channels takes `lane_bytes`, all of them `channel_bytes`, a vector's source channels `source_lane_bytes`. The last part
also has the one vector `overlapping` the last of `vectors`, if there is one: an activation is applied to what both hold
by one thread. Where a task
`copies` the channels that it reads, `source_r`, `source_c` and `weight_*` are those of its copies at `strip` and
`kernel`, and `given_*` say how the caller's lie; a target row reads source rows from `first_row` to `last_row`, kernels
have `taps_c` columns and `group` sources."""


@intrinsic(prefer_literal=True)
def row_tile(
    typingctx: Any, REAL: Any, VL: Any, MR: Any, KW: Any, REST: Any, S: Any, G: Any, Q: Any, T: Any,
    MASKED: Any, AHEAD: Any,
    rows: Any, table: Any, rest_rows: Any, rest: Any, source_offset: Any, offset: Any, there: Any,
    weights: Any, weight_step: Any, weight_q: Any, start: Any, floor: Any, targets: Any, ahead: Any,
) -> Any:  # fmt: skip
    """Register tile of MR pixels: ``target[m] = max(start + sum of source[r, m S + b] w[r, b] over r and b, floor)``.

    A row of KW taps is (MR - 1) S + KW + 1 integers of `table`: the addresses of its source pixels and the offset of
    its first weights from `weights`; from tap to tap these move by `weight_step`. The same holds for the rows of REST
    taps at `rest`. In groups of G sources and T targets, target lane i meets the sources i // T * G + q for q < G, each
    with weights `weight_q` after the one before; Q of them are taken at once. `source_offset` bytes are added to all
    source addresses, `offset` to those of targets and weights, and to `start`, that of the vector which the sums begin
    with. If MASKED, only `there` target lanes and their sources are touched. With AHEAD, the lines so many bytes
    `ahead` of the sources are asked for.
    """
    lanes, pixels, stride, widths = literal(VL), literal(MR), literal(S), (literal(KW), literal(REST))
    group, together, outputs, masked, asks = (literal(value) for value in (G, Q, T, MASKED, AHEAD))
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows, table, rest_rows, rest, source_offset, offset, there = args[11:18]
        weights, weight_step, weight_q, start, floor, targets, ahead = args[18:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        const, add = emit.const, emit.add
        weights = add(weights, offset)
        channels = GroupLanes(emit, group, outputs, masked, there)

        def add_rows(count: Any, entries: Any, taps: int, first: int, sums: list[Any]) -> list[Any]:
            sources = (pixels - 1) * stride + taps

            def row(r: Any, sums: list[Any]) -> list[Any]:
                entry = add(entries, builder.mul(r, const(8 * (sources + 1))))
                weight = add(weights, emit.load_int(add(entry, const(8 * sources))))
                kernel: list[list[Any]] = []
                for _ in range(taps):
                    tap = [add(weight, builder.mul(weight_q, const(q))) for q in range(first, first + together)]
                    kernel.append([channels.load(place) for place in tap])
                    weight = add(weight, weight_step)
                sums = list(sums)
                for q in range(sources):
                    reached = [(m, q - m * stride) for m in range(pixels) if 0 <= q - m * stride < taps]
                    if not reached:
                        continue
                    place = add(emit.load_int(add(entry, const(8 * q))), source_offset)
                    if asks:
                        ask(builder, add(place, ahead))
                    value = channels.load_source(place)
                    for k in range(together):
                        factor = channels.of_group(value, first + k)
                        for m, b in reached:
                            sums[m] = emit.fma(factor, kernel[b][k], sums[m])
                return sums

            return emit.loop(count, row, sums) if taps else sums

        sums = [channels.load(add(start, offset))] * pixels
        for first in range(0, group, together):
            sums = add_rows(rows, table, widths[0], first, sums)
            sums = add_rows(rest_rows, rest, widths[1], first, sums)
        lowest = emit.broadcast(floor)
        for m, value in enumerate(sums):
            # An ordered "<" is false for NaN, which therefore passes.
            below = builder.fcmp_ordered("<", value, lowest)
            place = add(emit.load_int(add(targets, const(8 * m))), offset)
            channels.store(builder.select(below, lowest, value), place)
        return context.get_dummy_value()

    integers = [types.intp] * 11
    return types.void(REAL, VL, MR, KW, REST, S, G, Q, T, MASKED, AHEAD, *integers, real, *[types.intp] * 2), codegen


@jit.inline
def trace_columns(p, count, table, column):
    """Write where in a row the `count` source pixels from `column` on lie, -1 for those in the padding."""
    pitched_places(count, column, p.phases, p.source_columns, 0, p.source_c, -1, table)


@jit.inline
def trace_row(p, count, columns, entry, above, weight):
    """Write the addresses of a tile's source pixels in the row at `above`, and the offset of their weights."""
    trace_places(count, columns, above, p.zeros, entry)
    array_at(entry, count + 1, np.int64)[count] = weight


@jit.inline
def copy_kernel(p, WORDS, weights, kernel, begin, count):
    """Copy bytes `begin` to `begin + count` of all taps' weights, side by side."""
    given, rows = array_at(p.given_row_weights, p.taps_r, np.int64), weights + p.given_weights + begin
    for a in range(p.taps_r):
        for b in range(p.taps_c):
            for q in range(p.group):
                place = (a * p.taps_c + b) * p.weight_c + q * p.weight_q
                tap = rows + given[a] + b * p.given_weight_c + q * p.given_weight_q
                copy_run(np.float32, WORDS, tap, kernel + place, count // 4)


@functools.cache
def row_of_vectors(dtype: str, tile: RowTile) -> CFunc:
    """The part of the kernel that knows dtype and tile: a traced tile's vectors of channels, from `first` to `last`.

    `there` of its pixels are in the image; weights are those at `other`.
    """
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, MR, KW, REST, S = tile.VL, tile.MR, tile.KW, tile.REST, tile.S
    G, AT_ONCE, T, LANES, MASKED, AHEAD = tile.G, tile.Q, tile.T, tile.lanes, int(tile.masked), int(tile.asks)

    def depthwise_vectors(address, own, rows, first, last, there, other):
        call = record_at(address, CALL)
        p = record_at(call.plan, DEPTHWISE)
        lowest = REAL(0) if call.relu != 0 else REAL(-np.inf)
        for v in range(first, last):
            channel, lanes = v * LANES, LANES
            if MASKED:
                lanes = min(LANES, p.channels - channel)
            else:  # The last vector overlaps the one before where channels do not fill it.
                channel = min(channel, p.channels - VL)
            offset = channel * ITEM
            row_tile(
                REAL, VL, MR, KW, REST, S, G, AT_ONCE, T, MASKED, AHEAD,
                rows * p.chunks, own + p.table, rows, own + p.rest, offset // T * G, offset, lanes,
                other + p.weight_offset, p.weight_c, p.weight_q, call.start, lowest, own + p.targets,
                MR * S * p.phases * p.source_c,
            )  # fmt: skip
            if call.activation != 0:
                for m in range(there):
                    activate(call, integer_at(own + p.targets + m * 8) + offset, lanes)

    return jit.part(depthwise_vectors)


@functools.cache
def depthwise() -> CFunc:
    """The kernel for all dtypes and tiles; its tasks are (image, block of rows, part of the channels)."""
    WORDS = vector_bytes() // 4

    def depthwise_tiles(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, DEPTHWISE)
        own = call.workspace + thread * p.workspace_bytes
        row_offsets = array_at(p.row_offsets, p.taps_r, np.int64)
        row_weights = array_at(p.row_weights, p.taps_r, np.int64)
        phases = min(p.phases, p.columns)
        tiles = (p.columns + p.pixels * p.phases - 1) // (p.pixels * p.phases)
        row_bytes, tile_bytes = (p.reach + 1) * 8, p.tile_bytes
        for task in range(begin, end):
            part = task % p.parts
            block = task // p.parts % p.row_blocks
            image = task // p.parts // p.row_blocks
            source, other = call.source + image * p.source_n, call.other
            first, last = vectors_of_part(p, part)
            begin_row, end_row = block * p.row_block, min((block + 1) * p.row_block, p.rows)
            if p.copies != 0:
                at, count = first * p.lane_bytes, min(last * p.lane_bytes, p.channel_bytes) - first * p.lane_bytes
                at_source = first * p.source_lane_bytes
                sources = min(last * p.source_lane_bytes, p.given_c) - at_source
                top = max(0, begin_row * p.row_step + p.first_row)
                bottom = min(p.source_rows, (end_row - 1) * p.row_step + p.last_row + 1)
                copy_pixels(
                    WORDS, source + top * p.given_r + at_source, p.given_r, p.given_c, own + p.strip, p.source_r,
                    p.source_c, bottom - top, p.source_columns, sources,
                )  # fmt: skip
                copy_kernel(p, WORDS, other, own + p.kernel, at, count)
                source, other = own + p.strip - top * p.source_r - at_source, own + p.kernel - at
            for phase in range(phases):
                for t in range(tiles):
                    columns = own + p.places + (phase * tiles + t) * tile_bytes
                    column = (phase + t * p.pixels * p.phases) * p.column_step + p.first_column
                    for chunk in range(p.chunks):
                        trace_columns(
                            p, p.reach, columns + chunk * p.reach * 8, column + chunk * p.chunk_taps * p.phases
                        )
                    if p.reach_rest != 0:
                        left = column + p.chunks * p.chunk_taps * p.phases
                        trace_columns(p, p.reach_rest, columns + p.chunks * p.reach * 8, left)
            for i in range(begin_row, end_row):
                line = call.target + p.target_offset + image * p.target_n + i * p.target_r
                for phase in range(phases):
                    for t in range(tiles):
                        j = phase + t * p.pixels * p.phases
                        if j >= p.columns:
                            continue
                        columns = own + p.places + (phase * tiles + t) * tile_bytes
                        rows = 0
                        for a in range(p.taps_r):
                            row = i * p.row_step + row_offsets[a]
                            if row < 0 or row >= p.source_rows:
                                continue
                            above, weight = source + row * p.source_r, row_weights[a]
                            for chunk in range(p.chunks):
                                entry = own + p.table + (rows * p.chunks + chunk) * row_bytes
                                trace_row(p, p.reach, columns + chunk * p.reach * 8, entry, above, weight)
                                weight += p.chunk_taps * p.weight_c
                            if p.reach_rest != 0:
                                entry = own + p.rest + rows * (p.reach_rest + 1) * 8
                                beyond = columns + p.chunks * p.reach * 8
                                trace_row(p, p.reach_rest, beyond, entry, above, weight)
                            rows += 1
                        there = min(p.pixels, (p.columns - j + p.phases - 1) // p.phases)
                        # Pixels of the tile past the end of the row are written to a place that nobody reads.
                        pitched_places(
                            p.pixels, 0, 1, there, line + j * p.target_c, p.phases * p.target_c,
                            own + p.unused, own + p.targets,
                        )  # fmt: skip
                        call_part(p.entry, (address, own, rows, first, last, there, other))

    return jit.kernel(depthwise_tiles)
