"""Depthwise convolution of planes (NCHW), row after row, with pixels in the lanes.

Vectors of pixels run down a plane. Each source row is loaded once for every column of the kernel and added to the sums
of all target rows that it reaches, which roll through the registers: with every row one is complete, and one begins.
Padding takes no part: columns outside the image are lanes that a mask leaves out, and rows outside are not read.

An input gradient of stride 2 does the same with rows of the output gradient: each is added to the sums of two rows, of
even and of odd columns, which are stored side by side.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

from fastconv.kernels import jit
from fastconv.kernels.activation import activate
from fastconv.kernels.emit import I32, Emitter, literal, scalar_ir
from fastconv.kernels.params import CALL, LINE, record
from fastconv.kernels.plane_taps import PlaneTap, StridedTaps, by_finiteness
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
from fastconv.kernels.simd import call_part, prefetch, record_at
from fastconv.kernels.spans import end_inside, first_inside, steps_in
from fastconv.kernels.target import PairTile, RollingTile, masks_have_registers

ROLLING = record("""
    source_d source_r source_rows source_columns target_d target_r rows columns
    first_row first_column row_step tap_rows tap_columns line_step source_step
    weight_offset weight_r weight_c weight_d item multiplier channels images row_block row_blocks
    entry entry_narrow entry_inside wide_strips strips vector_columns width whole column_step reach reach_rows fetches
    last_first
""")
"""Strides are in bytes; `multiplier` of the target's planes read one source plane. Kernel rows lie `tap_rows` source
rows apart, kernel columns `tap_columns`. Target rows are summed `line_step` apart, source rows lie `source_step` apart.
Rows are cut into `strips`, the first `wide_strips` of which have `width` vectors of `vector_columns`, the others one
less: `entry` and `entry_narrow` are the addresses of their parts, `entry_inside`, if it is not 0, that for wide strips
whose `reach` columns from their first tap's on all lie inside. Targets lie `column_step` source columns apart, and read
`reach_rows` source rows. Where it `fetches`, rows are asked for as they lie. `whole` says that all tasks' planes are
done by one call of a part: none is cut. Where strips are done `last_first`, the last one's vectors may reach over the
ends of rows: what they write of the next rows is written anew."""


@intrinsic(prefer_literal=True)
def rolling_strip(
    typingctx: Any, REAL: Any, VL: Any, KH: Any, KW: Any, AT: Any, S: Any, NV: Any, INNER: Any,
    lines: Any, begin: Any, end: Any, columns: Any, first: Any, spread: Any, size: Any,
    source: Any, source_line: Any, row: Any, rows_apart: Any, step: Any, source_rows: Any,
    weights: Any, weight_r: Any, weight_c: Any, start: Any, floor: Any, target: Any, target_line: Any, whole_lines: Any,
) -> Any:  # fmt: skip
    """Sums of `lines` target rows of NV vectors: ``target[i] = max(start + sum weight[a, b] source[i + a], floor)``.

    Of the KH kernel rows every AT-th meets a source row by the target row at hand, and the ones AT on by those before.
    Source row `row` + `step` i + `rows_apart` q lies `source_line` for each from `source`, if it is one of
    `source_rows`; from row `begin` to `end` all are. Lanes meet the source's columns S apart from `first` on, of
    `size`, and `spread` more with each of the KW columns of the kernel. Of the target there are `columns`; the
    first `whole_lines` rows are stored in whole vectors where masks have no registers, and cost a dozen cycles. Where
    INNER is 1, only the first and the last vector meet columns outside; where it is 2 none does, and all lanes are
    targets.
    """
    lanes, height, taps, apart, column_step, width = (literal(value) for value in (VL, KH, KW, AT, S, NV))
    inner = literal(INNER)
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lines, begin, end, columns, first, spread, size = args[8:15]
        source, source_line, row, rows_apart, step, source_rows = args[15:21]
        weights, weight_r, weight_c, start, floor, target, target_line, whole_lines = args[21:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        const, add, multiply = emit.const, emit.add, builder.mul
        vectors = range(width)
        edges = {0: set(vectors), 1: {0, width - 1}, 2: set()}[inner]
        kernel = kernel_weights(emit, (height, taps), emit.load_broadcast, weights, weight_r, weight_c)
        begins, lowest = emit.load_broadcast(start), emit.broadcast(floor)
        last = emit.below(columns, (width - 1) * lanes)
        # Where columns share loads, one vector is done after the other; else one column, which many sums wait for.
        order = (
            [(v, b) for v in vectors for b in range(taps)]
            if column_step == 2
            else [(v, b) for b in range(taps) for v in vectors]
        )

        def store(v: int, value: Any, there: Any, line: Any) -> None:
            place = add(there, const(v * emit.vector_bytes))
            if v < width - 1 or inner == 2:
                emit.store(value, place)
            elif masks_have_registers():
                emit.store_masked(value, place, last)
            else:
                with builder.if_else(builder.icmp_signed("<", line, whole_lines)) as (whole, in_part):
                    with whole:
                        emit.store(value, place)
                    with in_part:
                        emit.store_masked(value, place, last)

        rows = Rows(lines, begin, end, row, rows_apart, step, source, source_line, source_rows, target, target_line)

        def roll(finite: bool) -> None:
            every = [
                [
                    PlaneTap(
                        emit, add(add(first, const(v * lanes * column_step)), multiply(spread, const(b))), column_step,
                        size, builder.sub(columns, const(v * lanes)), v in edges, finite,
                    )
                    for b in range(taps)
                ]
                for v in vectors
            ]  # fmt: skip
            strided = StridedTaps(emit, first, taps, width, size, edges) if column_step == 2 else None

            def products(place: Any, exists: Any) -> Iterator[Product]:
                met = None if strided is None else strided.in_row(place, exists)
                for v, b in order:
                    value = every[v][b].load(place, exists) if met is None else met(v, b)
                    yield v, b, functools.partial(every[v][b].add, value, meets=exists)

            roll_rows(emit, rows, kernel, apart, width, begins, lowest, products, store)

        if edges:
            by_finiteness(emit, list(itertools.chain(*kernel)), roll)
        else:
            roll(False)  # nothing is masked but rows that are not there
        return context.get_dummy_value()

    integers = [types.intp] * 17
    return types.void(REAL, VL, KH, KW, AT, S, NV, INNER, *integers, real, *[types.intp] * 3), codegen


@intrinsic(prefer_literal=True)
def rolling_pairs(
    typingctx: Any, REAL: Any, VL: Any, KH: Any, KW: Any, PR: Any, PC: Any, NV: Any, INNER: Any,
    lines: Any, begin: Any, end: Any, low: Any, high: Any, columns: Any, first: Any, size: Any,
    source: Any, source_line: Any, weights: Any, weight_r: Any, weight_c: Any, target: Any, target_line: Any,
) -> Any:  # fmt: skip
    """Sums of `lines` target rows in pairs, of 2 NV vectors: ``target[2 i + p] = sum of weight[a, b] source[i + o]``.

    Row p of a pair, and column, meets the taps whose number has the parity of p + PR, or p + PC; tap a reads the source
    ``o = (p + PR - a) / 2`` rows on. Source rows from `low` to `high` are there, of which those from `begin` to `end`
    are visited; row 0 is at `source`, and row 0 of the target's at `target`. Lanes meet the source's columns from
    `first` on, of `size`; `columns` of the target are stored. Where INNER is 1, only the first and the last vector meet
    columns outside.
    """
    lanes, heights, width, inner = literal(VL), (literal(KH), literal(KW)), literal(NV), literal(INNER)
    parity = literal(PR), literal(PC)
    real = REAL.dtype
    phases = pair_phases(heights[0], parity[0]), pair_phases(heights[1], parity[1])
    shifts = sorted({shift for phase in phases[1] for _, shift in phase})

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lines, begin, end, low, high, columns, first, size = args[8:16]
        source, source_line, weights, weight_r, weight_c, target, target_line = args[16:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        const, add = emit.const, emit.add
        vectors, half = range(width), lanes // 2
        kernel = kernel_weights(emit, heights, emit.load_broadcast, weights, weight_r, weight_c)
        lanes_of = [[i for lane in range(h * half, (h + 1) * half) for i in (lane, lanes + lane)] for h in range(2)]
        interleaved = [ir.Constant(ir.VectorType(I32, lanes), order) for order in lanes_of]
        masks = [emit.below(columns, k * lanes) for k in range(2 * width)]

        def store(sums: list[Any], place: Any) -> None:
            for k in range(2 * width):
                value = builder.shuffle_vector(sums[k // 2], sums[width + k // 2], interleaved[k % 2])
                emit.store_masked(value, add(place, const(k * emit.vector_bytes)), masks[k])

        rows = PairRows(lines, begin, end, low, high, source, source_line, target, target_line)

        def roll(finite: bool) -> None:
            every = {
                (v, shift): PlaneTap(
                    emit, add(first, const(v * lanes + shift)), 1, size, const(lanes), not inner or v in (0, width - 1),
                    finite,
                )
                for v in vectors
                for shift in shifts
            }  # fmt: skip

            def products(place: Any) -> Iterator[Product]:
                for (v, shift), tap in every.items():
                    yield v, shift, functools.partial(tap.add, tap.load(place))

            roll_pairs(emit, rows, kernel, phases, width, products, store)

        by_finiteness(emit, list(itertools.chain(*kernel)), roll)
        return context.get_dummy_value()

    return types.void(REAL, VL, KH, KW, PR, PC, NV, INNER, *[types.intp] * 15), codegen


@jit.inline
def operands_of(call, p, plane):
    """Where the source, the weights, what sums begin with and the target of a target plane lie."""
    channel, above = plane, plane
    if p.images > 1:
        channel = plane % p.channels
    if p.multiplier > 1:
        above = plane // p.multiplier
    weights = call.other + p.weight_offset + channel * p.weight_d
    return call.source + above * p.source_d, weights, call.start + channel * p.item, call.target + plane * p.target_d


@functools.cache
def strip(dtype: str, tile: RollingTile) -> CFunc:
    """The part of the kernel that knows dtype and tile: a strip of the rows from `top` on, every `line_step`-th.

    It does so for `planes` planes, one after another, which have all masks in common.
    """
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, KH, KW, AT, S, NV, INNER = tile.VL, tile.KH, tile.KW, tile.AT, tile.S, tile.NV, tile.INNER

    def rolling_rows(address, plan, plane, planes, top, lines, left, columns):
        call = record_at(address, CALL)
        p = record_at(plan, ROLLING)
        row = top * p.row_step + p.first_row
        lowest = REAL(0) if call.relu != 0 else REAL(-np.inf)
        lowest_row = row + (min(KH, AT) - 1) * p.tap_rows
        all_lines = lines + (KH + AT - 1) // AT - 1
        begin = min(all_lines, first_inside(row, p.source_step))
        end = max(begin, end_inside(lowest_row, p.source_step, p.source_rows, all_lines))
        whole_lines = 0
        if p.last_first != 0 and left + columns == p.columns:
            whole_lines = lines - steps_in(NV * VL - columns, p.columns)
        for k in range(plane, plane + planes):
            source, weights, start, target = operands_of(call, p, k)
            here = target + top * p.target_r + left * ITEM
            rolling_strip(
                REAL, VL, KH, KW, AT, S, NV, INNER, lines, begin, end, columns,
                left * S + p.first_column, p.tap_columns, p.source_columns,
                source, p.source_r, row, p.tap_rows, p.source_step, p.source_rows,
                weights, p.weight_r, p.weight_c, start, lowest, here, p.line_step * p.target_r, whole_lines,
            )  # fmt: skip
            if call.activation != 0:
                for i in range(lines):
                    activate(call, here + i * p.line_step * p.target_r, columns)

    return jit.part(rolling_rows)


@functools.cache
def pair_strip(dtype: str, tile: PairTile) -> CFunc:
    """The same for an input gradient of stride 2: a strip of pairs of rows, `top` of them before."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, KH, KW, PR, PC, NV, INNER = tile.VL, tile.KH, tile.KW, tile.PR, tile.PC, tile.NV, tile.INNER
    LEAST, MOST = pair_offsets(KH, PR)

    def rolling_rows(address, plan, plane, planes, top, lines, left, columns):
        call = record_at(address, CALL)
        p = record_at(plan, ROLLING)
        row = top // 2 + p.first_row
        for k in range(plane, plane + planes):
            source, weights, _, target = operands_of(call, p, k)
            rolling_pairs(
                REAL, VL, KH, KW, PR, PC, NV, INNER, lines, LEAST, (lines + 1) // 2 + MOST, -row, p.source_rows - row,
                columns, left // 2 + p.first_column, p.source_columns, source + row * p.source_r, p.source_r,
                weights, p.weight_r, p.weight_c, target + top * p.target_r + left * ITEM, p.target_r,
            )  # fmt: skip

    return jit.part(rolling_rows)


@functools.cache
def rolling() -> CFunc:
    """The kernel for all dtypes and tiles; its tasks are (plane of the target, block of rows)."""

    def rolling_planes(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, ROLLING)
        task = begin
        while task < end:
            plane, first = task // p.row_blocks, task % p.row_blocks * p.row_block
            last = min(first + p.row_block, p.rows)
            planes = end - begin if p.whole != 0 else 1
            task += planes
            if p.fetches != 0:
                source = operands_of(call, p, plane)[0]
                upper = max(0, p.first_row + first * p.row_step)
                lower = min(p.source_rows, p.first_row + (last - 1) * p.row_step + p.reach_rows)
                for line in range(upper * p.source_r, lower * p.source_r, LINE):
                    prefetch(source + line)
            for count in range(p.strips):
                number = count if p.last_first == 0 else p.strips - 1 - count
                left = (number * (p.width - 1) + min(number, p.wide_strips)) * p.vector_columns
                width = p.width if number < p.wide_strips else p.width - 1
                entry = p.entry if number < p.wide_strips else p.entry_narrow
                columns = min(width * p.vector_columns, p.columns - left)
                begin_at = left * p.column_step + p.first_column
                all_inside = begin_at >= 0 and begin_at + p.reach <= p.source_columns
                if p.entry_inside != 0 and entry == p.entry and columns == width * p.vector_columns and all_inside:
                    entry = p.entry_inside
                for phase in range(min(p.line_step, last - first)):
                    lines = steps_in(last - first - phase, p.line_step)
                    call_part(entry, (address, call.plan, plane, planes, first + phase, lines, left, columns))

    return jit.kernel(rolling_planes)
