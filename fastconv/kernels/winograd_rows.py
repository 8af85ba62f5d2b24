"""Winograd's minimal filtering F(m, r) along the rows of images of few channels.

Few channels leave the products of a transformed tile with little to add up, so none of them leaves the registers. A
register tile holds all n = m + r - 1 sums of some tiles of m target pixels, for a vector of target channels; it adds
the products of all kernel rows, source channels and pieces of the kernel's rows, transforms the sums back and stores
the target pixels. What it reads was transformed once: the weights before all tasks, and each source row of a task's
block of target rows for all target rows and channels that read it.

A kernel's row of more than r taps is cut into pieces, and that of a stride into its phases, as in
`fastconv.kernels.winograd`: both are more channels. Padding beside a row are zeros around its copy; kernel rows that
meet padding above or below are left out.
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
from fastconv.kernels.activation import activate
from fastconv.kernels.emit import Emitter, literal, scalar_ir
from fastconv.kernels.params import CALL, LINE, record
from fastconv.kernels.simd import array_at, copy_first_lanes, copy_run, prefetch, record_at
from fastconv.kernels.target import TileRow
from fastconv.kernels.toomcook import Filtering, transforms, transposed
from fastconv.kernels.transforms import WEIGHTS, Combiner, transform_tile

WINOGRAD_ROWS = record("""
    source_n source_r source_k source_rows
    target_n target_r target_c target_d
    rows columns row_block blocks tiles panels channels
    row_step tap_rows first_row taps_r taps_c
    reduction pieces phases step
    weight_offset weight_r weight_c weight_k weight_d panel_bytes
    source_start strip_start strip_runs strip_run strip_values strip_c strip_k
    value_r value_t asks
    workspace_bytes strip values offsets sources
""")
"""Strides are in bytes. A task has a block of `row_block` target rows of an image, of which there are `blocks`; a row
has `tiles` tiles, whole register tiles of them, and target channels are `panels` vectors, each with `panel_bytes` of
transformed weights. Target row i reads source row i row_step + first_row, and so do the other kernel rows, `tap_rows`
apart. Of each source row, `strip_runs` runs of `strip_run` values from `source_start` on, one for each channel where
these lie in planes, are copied to `strip_start` bytes behind the beginning of a strip of `strip_values`; the others are
padding. Target pixel j reads from the strip's pixel j step on. Transformed rows and tiles lie `value_r` and `value_t`
apart. Where a pass `asks`, it asks for what the next tile of whole pixels writes. The last line's fields but the first
are offsets into each thread's workspace."""

POINTS = 8
"""Lanes of the vectors that hold a transformed tile: the most points."""


@intrinsic(prefer_literal=True)
def transform_points(typingctx: Any, REAL: Any, M: Any, R: Any, source: Any, step: Any, target: Any) -> Any:
    """Transform the n source pixels of a tile, `step` bytes apart; lanes beyond n are written as zeros."""
    matrix = transforms(literal(M), literal(R)).input
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, step, target = args[3:]
        emit = Emitter(builder, scalar_ir(real), POINTS)
        total = None
        for i, column in enumerate(transposed(matrix)):
            lanes = ir.Constant(emit.vector, [*column, *[0.0] * (POINTS - len(column))])
            pixel = emit.load_broadcast(emit.add(source, builder.mul(step, emit.const(i))))
            total = builder.fmul(pixel, lanes) if total is None else emit.fma(pixel, lanes, total)
        emit.store(total, target)
        return context.get_dummy_value()

    return types.void(REAL, M, R, *[types.intp] * 3), codegen


@intrinsic(prefer_literal=True)
def row_tile(
    typingctx: Any, REAL: Any, VL: Any, M: Any, R: Any, T: Any, PLANES: Any,
    values: Any, value_r: Any, value_t: Any, rows: Any, count: Any, weights: Any,
    start: Any, floor: Any, target: Any, target_c: Any, target_d: Any, pixels: Any, channels: Any,
) -> Any:  # fmt: skip
    """Register tile of T tiles of M pixels by a vector of channels, of which `pixels` and `channels` are stored.

    The sums over `rows` rows of transformed values, `value_r` bytes apart, of `count` times n values of each tile; the
    tiles lie `value_t` apart. Weights are as many vectors one after another. The vector at `start` is added to each
    pixel, and no value is below `floor`. PLANES is 1 where pixels lie side by side, 0 where channels do.
    """
    lanes, m, r, tiles, planes = (literal(value) for value in (VL, M, R, T, PLANES))
    n = m + r - 1
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values, value_r, value_t, rows, count, weights = args[6:12]
        start, floor, target, target_c, target_d, pixels, channels = args[12:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        const, add, multiply = emit.const, emit.add, builder.mul
        firsts = [add(values, multiply(value_t, const(t))) for t in range(tiles)]

        def row(a: Any, carried: list[Any]) -> list[Any]:
            along = multiply(a, value_r)

            def step(_: Any, carried: list[Any]) -> list[Any]:
                weight, at, *sums = carried
                for p in range(n):
                    vector = emit.load(add(weight, const(p * emit.vector_bytes)))
                    for t, first in enumerate(firsts):
                        value = emit.load_broadcast(add(add(first, at), const(p * emit.item)))
                        sums[t * n + p] = emit.fma(value, vector, sums[t * n + p])
                return [add(weight, const(n * emit.vector_bytes)), add(at, const(n * emit.item)), *sums]

            weight, *sums = carried
            weight, _, *sums = emit.loop(count, step, [weight, along, *sums])
            return [weight, *sums]

        sums = emit.loop(rows, row, [weights, *[emit.constant(0.0)] * (tiles * n)])[1:]
        back = Combiner(emit, transforms(m, r).output)
        first, lowest = emit.load(start), emit.broadcast(floor)
        results = []
        for t in range(tiles):
            for value in back(sums[t * n : t * n + n]):
                value = builder.fadd(value, first)
                # An ordered "<" is false for NaN, which therefore passes.
                results.append(builder.select(builder.fcmp_ordered("<", value, lowest), lowest, value))
        if planes:
            _store_planes(emit, results, target, target_d, pixels, channels)
            return context.get_dummy_value()
        places = [add(target, multiply(target_c, const(k))) for k in range(len(results))]
        whole = builder.and_(
            builder.icmp_signed(">=", pixels, const(len(results))), builder.icmp_signed(">=", channels, const(lanes))
        )
        with builder.if_else(whole) as (all_stored, some_stored):
            with all_stored:
                for value, place in zip(results, places, strict=True):
                    emit.store(value, place)
            with some_stored:
                mask = emit.below(channels, 0)
                for k, (value, place) in enumerate(zip(results, places, strict=True)):
                    with builder.if_then(builder.icmp_signed(">", pixels, const(k))):
                        emit.store_masked(value, place, mask)
        return context.get_dummy_value()

    return types.void(REAL, VL, M, R, T, PLANES, *[types.intp] * 7, real, *[types.intp] * 5), codegen


def _store_planes(emit: Emitter, values: list[Any], target: Any, target_d: Any, pixels: Any, channels: Any) -> None:
    """Store `pixels` of these vectors of channels to planes, `target_d` apart, turned square by square."""
    builder, const, lanes = emit.builder, emit.const, emit.vector.count
    squares = []
    for j in range(0, len(values), lanes):
        vectors = values[j : j + lanes]
        squares.append(emit.transposed([*vectors, *[vectors[-1]] * (lanes - len(vectors))]))
    places = [emit.add(target, builder.mul(target_d, const(d))) for d in range(lanes)]
    pixels = emit.limited(pixels, const(0), const(len(values)))
    whole = builder.and_(
        builder.icmp_signed("==", pixels, const(len(values))), builder.icmp_signed(">=", channels, const(lanes))
    )

    def store(d: int, pixels: Any) -> None:
        for j, square in enumerate(squares):
            mask = emit.below(builder.sub(pixels, const(j * lanes)), 0)
            emit.store_masked(square[d], emit.add(places[d], const(j * emit.vector_bytes)), mask)

    with builder.if_else(whole) as (all_stored, some_stored):
        with all_stored:
            for d in range(lanes):
                store(d, const(len(values)))
        with some_stored:
            for d in range(lanes):
                with builder.if_then(builder.icmp_signed(">", channels, const(d))):
                    store(d, pixels)


@jit.inline
def step_of(p, k):
    """The source channel, the piece and the phase of a step, in the order of weights and of transformed values."""
    together = p.pieces * p.phases
    return k // together, k % together // p.phases, k % p.phases


@functools.cache
def winograd_rows(dtype: str, filtering: Filtering, tile: TileRow, planes: bool) -> CFunc:
    """The kernel for one dtype, form and order of axes; its tasks are (image, block of rows)."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, (M, R, _), N, T, PLANES = tile.VL, filtering, filtering.n, tile.tiles, int(planes)

    def winograd_row_tiles(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, WINOGRAD_ROWS)
        own = call.workspace + thread * p.workspace_bytes
        lowest = REAL(0) if call.relu != 0 else REAL(-np.inf)
        steps = p.reduction * p.pieces * p.phases
        array_at(own + p.strip, p.strip_values, REAL)[:] = REAL(0)
        offsets = array_at(own + p.offsets, steps, np.int64)
        for k in range(steps):
            channel, piece, phase = step_of(p, k)
            offsets[k] = channel * p.strip_k + (piece * R * p.step + phase) * p.strip_c
        for task in range(begin, end):
            first = task % p.blocks * p.row_block
            last = min(first + p.row_block, p.rows)
            source = call.source + task // p.blocks * p.source_n + p.source_start
            target = call.target + task // p.blocks * p.target_n
            top = first * p.row_step + p.first_row
            bottom = (last - 1) * p.row_step + p.first_row + (p.taps_r - 1) * p.tap_rows + 1
            for row in range(max(0, top), min(p.source_rows, bottom)):
                for k in range(p.strip_runs):
                    copy_run(
                        REAL, VL, source + row * p.source_r + k * p.source_k,
                        own + p.strip + p.strip_start + k * p.strip_k, p.strip_run,
                    )  # fmt: skip
                value = own + p.values + (row - top) * p.value_r
                for t in range(p.tiles):
                    place = own + p.strip + t * M * p.step * p.strip_c
                    for k in range(steps):
                        transform_points(REAL, M, R, place + offsets[k], p.step * p.strip_c, value)
                        value += N * ITEM
            for i in range(first, last):
                row = i * p.row_step + p.first_row
                low = max(0, (p.tap_rows - 1 - row) // p.tap_rows)
                high = min(p.taps_r, (p.source_rows - row + p.tap_rows - 1) // p.tap_rows)
                values = own + p.values + (row + low * p.tap_rows - top) * p.value_r
                # The channels of a pixel are written one after another, and so are the pixels of a plane.
                groups = p.tiles // T
                for outer in range(p.panels if PLANES != 0 else groups):
                    if p.asks != 0:
                        ahead = target + i * p.target_r + (outer + 1) * T * M * p.target_c
                        for place in range(ahead, ahead + T * M * p.target_c, LINE):
                            prefetch(place)
                    for inner in range(groups if PLANES != 0 else p.panels):
                        panel, first_tile = (outer, inner * T) if PLANES != 0 else (inner, outer * T)
                        channels, pixels = p.channels - panel * VL, p.columns - first_tile * M
                        here = target + i * p.target_r + panel * VL * p.target_d + first_tile * M * p.target_c
                        row_tile(
                            REAL, VL, M, R, T, PLANES, values + first_tile * p.value_t, p.tap_rows * p.value_r,
                            p.value_t, max(0, high - low), steps,
                            call.other + panel * p.panel_bytes + low * steps * N * VL * ITEM,
                            call.start + panel * VL * ITEM, lowest, here, p.target_c, p.target_d, pixels, channels,
                        )  # fmt: skip
                        if call.activation != 0:
                            there, wide = min(VL, channels), min(pixels, T * M)
                            if PLANES != 0:
                                for d in range(there):
                                    activate(call, here + d * p.target_d, wide)
                            else:
                                for j in range(wide):
                                    activate(call, here + j * p.target_c, there)

    return jit.kernel(winograd_row_tiles)


@functools.cache
def pack(dtype: str, filtering: Filtering, lanes: int) -> CFunc:
    """Transform all weights once; a task is a vector of target channels, whose lanes past the last one are zeros."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, (M, R, _), N = lanes, filtering, filtering.n

    def transform_rows(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, WINOGRAD_ROWS)
        own = call.workspace + thread * p.workspace_bytes
        places = array_at(own + p.sources, R + N, np.int64)
        taps = array_at(own + p.strip, R * VL, REAL)
        for r in range(R):
            places[r] = own + p.strip + r * VL * ITEM
        for e in range(N):
            places[R + e] = e * VL * ITEM
        for panel in range(begin, end):
            packed = call.target + panel * p.panel_bytes
            there = min(VL, p.channels - panel * VL)
            for a in range(p.taps_r):
                for k in range(p.reduction * p.pieces * p.phases):
                    channel, piece, phase = step_of(p, k)
                    weight = call.source + p.weight_offset + channel * p.weight_k
                    weight += a * p.weight_r + panel * VL * p.weight_d
                    for r in range(R):
                        b = (piece * R + r) * p.step + phase
                        if b >= p.taps_c:
                            taps[r * VL : (r + 1) * VL] = REAL(0)
                        elif p.weight_d == ITEM:
                            copy_first_lanes(REAL, VL, there, weight + b * p.weight_c, places[r])
                        else:
                            for d in range(VL):
                                value = REAL(0)
                                if d < there:
                                    value = array_at(weight + b * p.weight_c + d * p.weight_d, 1, REAL)[0]
                                taps[r * VL + d] = value
                    transform_tile(
                        REAL, VL, WEIGHTS, 1, 1, 1, M, R, 1, own + p.sources, 0, own + p.sources + R * 8, packed, 0,
                        REAL(0),
                    )  # fmt: skip
                    packed += N * VL * ITEM

    return jit.kernel(transform_rows)
