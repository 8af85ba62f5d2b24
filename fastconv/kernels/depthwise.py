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
from numba import carray, types
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

from fastconv.kernels import jit
from fastconv.kernels.activation import activate
from fastconv.kernels.emit import Emitter, literal, scalar_ir
from fastconv.kernels.groups import GroupLanes
from fastconv.kernels.params import CALL, record
from fastconv.kernels.simd import pointer, record_at
from fastconv.kernels.target import RowTile

DEPTHWISE = record("""
    source_n source_r source_c source_rows source_columns
    target_offset target_n target_r target_c
    weight_offset weight_c weight_q
    n rows columns row_step column_step phases
    taps_r chunks row_offsets row_weights first_column
    channels zeros row_block row_blocks parts
    workspace_bytes tile_bytes places table rest targets unused
""")
"""Strides are in bytes. The columns of each phase are `phases` apart, in source and target alike; a kernel row is cut
into chunks of KW taps and a rest. `tile_bytes` are those of a tile at
`places`, which with the rest of the last line's fields are offsets into each thread's workspace."""


@intrinsic(prefer_literal=True)
def row_tile(
    typingctx: Any, REAL: Any, VL: Any, MR: Any, KW: Any, REST: Any, S: Any, G: Any, Q: Any, T: Any, MASKED: Any,
    rows: Any, table: Any, rest_rows: Any, rest: Any, source_offset: Any, offset: Any, there: Any,
    weights: Any, weight_step: Any, weight_q: Any, start: Any, floor: Any, targets: Any,
) -> Any:  # fmt: skip
    """Register tile of MR pixels: ``target[m] = max(start + sum of source[r, m S + b] w[r, b] over r and b, floor)``.

    A row of KW taps is (MR - 1) S + KW + 1 integers of `table`: the addresses of its source pixels and the offset of
    its first weights from `weights`; from tap to tap these move by `weight_step`. The same holds for the rows of REST
    taps at `rest`. In groups of G sources and T targets, target lane i meets the sources i // T * G + q for q < G, each
    with weights `weight_q` after the one before; Q of them are taken at once. `source_offset` bytes are added to all
    source addresses, `offset` to those of targets and weights, and to `start`, that of the vector which the sums begin
    with. If MASKED, only `there` target lanes and their sources are touched.
    """
    lanes, pixels, stride, widths = literal(VL), literal(MR), literal(S), (literal(KW), literal(REST))
    group, together, outputs, masked = literal(G), literal(Q), literal(T), literal(MASKED)
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows, table, rest_rows, rest, source_offset, offset, there = args[10:17]
        weights, weight_step, weight_q, start, floor, targets = args[17:]
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
                    value = channels.load_source(add(emit.load_int(add(entry, const(8 * q))), source_offset))
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
    return types.void(REAL, VL, MR, KW, REST, S, G, Q, T, MASKED, *integers, real, types.intp), codegen


@jit.inline
def trace_columns(p, Q, table, column):
    """Write where in a row the Q source pixels from `column` on lie, -1 for those in the padding."""
    places = carray(pointer(table), Q, np.int64)
    for q in range(Q):
        at = column + q * p.phases
        places[q] = at * p.source_c if 0 <= at < p.source_columns else -1


@jit.inline
def trace_row(p, Q, columns, entry, above, weight):
    """Write the addresses of a tile's source pixels in the row at `above`, and the offset of their weights."""
    places = carray(pointer(columns), Q, np.int64)
    addresses = carray(pointer(entry), Q + 1, np.int64)
    for q in range(Q):
        addresses[q] = above + places[q] if places[q] >= 0 else p.zeros
    addresses[Q] = weight


@functools.cache
def depthwise(dtype: str, tile: RowTile) -> CFunc:
    """The kernel for one dtype and tile; its tasks are (image, block of rows, part of the channels)."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, MR, KW, REST, S = tile.VL, tile.MR, tile.KW, tile.REST, tile.S
    G, AT_ONCE, T, LANES, MASKED = tile.G, tile.Q, tile.T, tile.lanes, int(tile.masked)
    Q, Q_REST = (MR - 1) * S + KW, (MR - 1) * S + REST

    def depthwise_tiles(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, DEPTHWISE)
        own = call.workspace + thread * p.workspace_bytes
        targets = carray(pointer(own + p.targets), MR, np.int64)
        lowest = REAL(0) if call.relu != 0 else REAL(-np.inf)
        weights = call.other + p.weight_offset
        row_offsets = carray(pointer(p.row_offsets), p.taps_r, np.int64)
        row_weights = carray(pointer(p.row_weights), p.taps_r, np.int64)
        vectors = (p.channels + LANES - 1) // LANES
        phases = min(p.phases, p.columns)
        tiles = (p.columns + MR * p.phases - 1) // (MR * p.phases)
        for task in range(begin, end):
            part = task % p.parts
            block = task // p.parts % p.row_blocks
            image = task // p.parts // p.row_blocks
            source = call.source + image * p.source_n
            for phase in range(phases):
                for t in range(tiles):
                    columns = own + p.places + (phase * tiles + t) * p.tile_bytes
                    column = (phase + t * MR * p.phases) * S + p.first_column
                    for chunk in range(p.chunks):
                        trace_columns(p, Q, columns + chunk * Q * 8, column + chunk * KW * p.phases)
                    if REST:
                        trace_columns(p, Q_REST, columns + p.chunks * Q * 8, column + p.chunks * KW * p.phases)
            for i in range(block * p.row_block, min((block + 1) * p.row_block, p.rows)):
                line = call.target + p.target_offset + image * p.target_n + i * p.target_r
                for phase in range(phases):
                    for t in range(tiles):
                        j = phase + t * MR * p.phases
                        if j >= p.columns:
                            continue
                        columns = own + p.places + (phase * tiles + t) * p.tile_bytes
                        rows = 0
                        for a in range(p.taps_r):
                            row = i * p.row_step + row_offsets[a]
                            if row < 0 or row >= p.source_rows:
                                continue
                            above, weight = source + row * p.source_r, row_weights[a]
                            for chunk in range(p.chunks):
                                entry = own + p.table + (rows * p.chunks + chunk) * (Q + 1) * 8
                                trace_row(p, Q, columns + chunk * Q * 8, entry, above, weight)
                                weight += KW * p.weight_c
                            if REST:
                                entry = own + p.rest + rows * (Q_REST + 1) * 8
                                trace_row(p, Q_REST, columns + p.chunks * Q * 8, entry, above, weight)
                            rows += 1
                        there = min(MR, (p.columns - j + p.phases - 1) // p.phases)
                        for m in range(MR):
                            # Pixels of the tile past the end of the row are written to a place that nobody reads.
                            targets[m] = line + (j + m * p.phases) * p.target_c if m < there else own + p.unused
                        for v in range(vectors * part // p.parts, vectors * (part + 1) // p.parts):
                            channel, lanes = v * LANES, LANES
                            if MASKED:
                                lanes = min(LANES, p.channels - channel)
                            else:  # The last vector overlaps the one before where channels do not fill it.
                                channel = min(channel, p.channels - VL)
                            offset = channel * ITEM
                            row_tile(
                                REAL, VL, MR, KW, REST, S, G, AT_ONCE, T, MASKED,
                                rows * p.chunks, own + p.table, rows, own + p.rest, offset // T * G, offset, lanes,
                                weights, p.weight_c, p.weight_q, call.start, lowest, own + p.targets,
                            )  # fmt: skip
                            if call.activation != 0:
                                for m in range(there):
                                    activate(call, targets[m] + offset, lanes)

    return jit.kernel(depthwise_tiles)
