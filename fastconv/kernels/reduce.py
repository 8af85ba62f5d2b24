"""Direct convolution for few target channels: source channels lie in the lanes, whose products are added up at the end.

Pixels are gathered as in `fastconv.kernels.gather`, but a run is read vector by vector instead of value by value, and
multiplied by the weights of up to NV target channels. Where the taps of a kernel row touch, their channels fill the
vectors together.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
from numba import types
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

from fastconv.kernels import jit
from fastconv.kernels.activation import activate
from fastconv.kernels.addresses import pitched_places
from fastconv.kernels.emit import Emitter, literal, scalar_ir
from fastconv.kernels.gather import GATHER
from fastconv.kernels.params import CALL, LINE
from fastconv.kernels.simd import array_at, call_part, integer_at, prefetch, record_at
from fastconv.kernels.target import Tile
from fastconv.kernels.tiles import RUN_FIELDS


@intrinsic(prefer_literal=True)
def sum_tile(
    typingctx: Any, REAL: Any, VL: Any, MR: Any, ND: Any, runs: Any, table: Any, weights: Any, tap_bytes: Any,
    starts: Any, floor: Any, targets: Any, shift: Any, count: Any, adjoin: Any,
) -> Any:  # fmt: skip
    """Register tile of MR pixels by ND channels: ``target[m, d] = max(start[d] + sum source[m] * weight[d], floor)``.

    The sums go over runs of values. Run r is MR + RUN_FIELDS integers of `table`, as in `multiply_tile`; its weights
    begin that many `tap_bytes` as its tap after the ND addresses at `weights`. Lanes past a run's end are neither read
    nor multiplied. Only the first `count` channels are stored, side by side, `shift` bytes after the MR addresses at
    `targets`; where `adjoin` is not 0 these are all channels, and each pixel's follow those of the pixel before.
    """
    lanes, pixels, channels = literal(VL), literal(MR), literal(ND)
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        runs, table, weights, tap_bytes, starts, floor, targets, shift, count, adjoin = args[4:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        const, add = emit.const, emit.add
        kernels = [emit.load_int(add(weights, const(8 * d))) for d in range(channels)]

        def run(r: Any, sums: list[Any]) -> list[Any]:
            entry = add(table, builder.mul(r, const(8 * (pixels + RUN_FIELDS))))
            sources = [emit.load_int(add(entry, const(8 * m))) for m in range(pixels)]
            tap = builder.mul(emit.load_int(add(entry, const(8 * (pixels + 1)))), tap_bytes)
            length = emit.load_int(add(entry, const(8 * (pixels + 2))))
            whole, rest = builder.sdiv(length, const(lanes)), builder.srem(length, const(lanes))
            inside = emit.below(rest, 0)

            def multiply(along: Any, load: Any, sums: list[Any]) -> list[Any]:
                w = [load(add(kernel, add(tap, along))) for kernel in kernels]
                following = []
                for m in range(pixels):
                    x = load(add(sources[m], along))
                    following += [emit.fma(x, w[d], sums[m * channels + d]) for d in range(channels)]
                return following

            def step(k: Any, sums: list[Any]) -> list[Any]:
                return multiply(builder.mul(k, const(emit.vector_bytes)), emit.load, sums)

            def tail(_: Any, sums: list[Any]) -> list[Any]:
                along = builder.mul(whole, const(emit.vector_bytes))
                return multiply(along, lambda place: emit.load_masked(place, inside), sums)

            once = builder.zext(builder.icmp_signed(">", rest, const(0)), emit.const(0).type)
            return emit.loop(once, tail, emit.loop(whole, step, sums))

        totals, lowest = emit.loop(runs, run, [emit.constant(0.0)] * (pixels * channels)), emit.broadcast(floor)
        together = max(1, lanes // channels)
        places = [add(emit.load_int(add(targets, const(8 * m))), shift) for m in range(pixels)]
        # The sums of several pixels fill a vector: fewer permutations than for each pixel's own.
        for m, first in itertools.product(range(0, pixels, together), range(0, channels, lanes)):
            here, along = emit.below(count, first), const(first * emit.item)
            start = emit.load_masked(add(starts, along), here)
            pixels_here, channels_here = min(together, pixels - m), min(lanes, channels - first)
            if pixels_here > 1:
                start = emit.lanes_of(start, [i % channels for i in range(lanes)])
            part = [totals[(m + i) * channels + first + d] for i in range(pixels_here) for d in range(channels_here)]
            value = builder.fadd(emit.sums_of_lanes(part), start)
            # An ordered "<" is false for NaN, which therefore passes.
            value = builder.select(builder.fcmp_ordered("<", value, lowest), lowest, value)
            if pixels_here == 1:
                emit.store_masked(value, add(places[m], along), here)
                continue
            whole = builder.icmp_signed("!=", adjoin, const(0))
            with builder.if_else(whole) as (side_by_side, apart):
                with side_by_side:
                    emit.store_masked(value, places[m], emit.below(const(pixels_here * channels), 0))
                with apart:
                    for i in range(pixels_here):
                        own = emit.lanes_of(value, [(i * channels + lane) % lanes for lane in range(lanes)])
                        emit.store_masked(own, places[m + i], here)
        return context.get_dummy_value()

    return types.void(REAL, VL, MR, ND, *[types.intp] * 5, real, *[types.intp] * 4), codegen


@jit.inline
def list_inside(p, MR, first, table_at):
    """Write the runs of a tile whose taps all lie inside the image, from the address of its first pixel.

    Returns their number and where they lie.
    """
    inside = array_at(p.inside, (p.inside_runs, 1 + RUN_FIELDS), np.int64)
    for run in range(p.inside_runs):
        entry = table_at + run * (MR + RUN_FIELDS) * 8
        pitched_places(MR, 0, 1, MR, first + inside[run, 0], p.column_step * p.source_c, 0, entry)
        fields = array_at(entry, MR + RUN_FIELDS, np.int64)
        for q in range(RUN_FIELDS):
            fields[MR + q] = inside[run, 1 + q]
    return p.inside_runs, table_at


@functools.cache
def reduce(dtype: str, tile: Tile) -> CFunc:
    """The kernel for one dtype and tile, whose NV is the number of channels.

    Tasks are (group, block of pixels, part of the channels).
    """
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, MR, ND = tile.VL, tile.MR, tile.NV

    def reduce_tiles(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, GATHER)
        own = call.workspace + thread * p.workspace_bytes
        sums = array_at(own + p.buffer, (MR, ND), REAL)
        buffer_rows = array_at(own + p.buffer_rows, MR, np.int64)
        for m in range(MR):
            buffer_rows[m] = own + p.buffer + m * ND * ITEM
        in_place = p.target_d == ITEM
        kernels = array_at(own + p.starts, ND, np.int64)
        pixels = p.n * p.rows * p.columns
        tap_bytes = p.reduction * ITEM
        # Behind the tables of a block, which the last run's addresses may reach into.
        inside_at = own + p.table + (p.tiles + p.blocks - 1) // p.blocks * p.most_runs * (MR + RUN_FIELDS) * 8
        lowest = REAL(0) if call.relu != 0 else REAL(-np.inf)
        for task in range(begin, end):
            part, block = task % p.panel_parts, task // p.panel_parts % p.blocks
            group = task // p.panel_parts // p.blocks
            passes = (p.channels + ND - 1) // ND
            begin_channel, end_channel = passes * part // p.panel_parts * ND, passes * (part + 1) // p.panel_parts * ND
            source = call.source + group * p.source_group
            target = call.target + p.target_offset + group * p.target_group
            weights = call.other + group * p.packed_group
            start = call.start + group * p.start_group
            first = p.tiles * block // p.blocks
            tiles = p.tiles * (block + 1) // p.blocks - first
            call_part(p.trace, (call.plan, own, source, target, first, tiles))
            for t in range(tiles):
                runs, table = integer_at(own + p.counts + t * 8), integer_at(own + p.tables + t * 8)
                in_a_row = runs < 0
                if p.tiles_ahead != 0 and t + p.tiles_ahead < tiles:
                    # Only the lowest row is new. What the CPU fetches ahead of MR pixels at once is too little.
                    ahead = t + p.tiles_ahead
                    if integer_at(own + p.counts + ahead * 8) < 0:
                        lowest_row = integer_at(own + p.tables + ahead * 8) + p.last_row * p.source_r
                        for line in range(0, MR * p.column_step * p.source_c, LINE):
                            prefetch(lowest_row + p.last_column * p.source_c + line)
                if in_a_row:
                    runs, table = list_inside(p, MR, table, inside_at)
                places = own + p.targets + t * MR * 8
                targets = array_at(places, MR, np.int64)
                there = min(MR, pixels - (first + t) * MR)
                for d in range(begin_channel, min(end_channel, p.channels), ND):
                    lanes = min(ND, p.channels - d)
                    for q in range(ND):
                        # Channels past the last repeat it; they are not stored.
                        kernels[q] = weights + (d + min(q, lanes - 1)) * p.taps_r * p.taps_c * tap_bytes
                    adjoin = lanes == ND and (not in_place or (in_a_row and p.target_c == ND * ITEM))
                    sum_tile(
                        REAL, VL, MR, ND, runs, table, own + p.starts, tap_bytes, start + d * ITEM, lowest,
                        places if in_place else own + p.buffer_rows, d * ITEM if in_place else 0, lanes, int(adjoin),
                    )  # fmt: skip
                    if not in_place:
                        for q in range(lanes):
                            for m in range(there):
                                array_at(targets[m] + (d + q) * p.target_d, 1, REAL)[0] = sums[m, q]
                    if call.activation != 0:
                        for m in range(there):
                            for q in range(lanes):
                                activate(call, targets[m] + (d + q) * p.target_d, 1)

    return jit.kernel(reduce_tiles)
