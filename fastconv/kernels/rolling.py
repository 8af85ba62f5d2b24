"""Depthwise convolution of planes (NCHW), row after row, with pixels in the lanes.

Vectors of pixels run down a plane. Each source row is loaded once for every column of the kernel and added to the sums
of all target rows that it reaches, which roll through the registers: with every row one is complete, and one begins.
Padding takes no part: columns outside the image are lanes that a mask leaves out, and rows outside are not read.

An input gradient of stride 2 does the same with rows of the output gradient: each is added to the sums of two rows, of
even and of odd columns, which are stored side by side.
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
from fastconv.kernels.emit import I32, Emitter, literal, scalar_ir
from fastconv.kernels.params import CALL, record
from fastconv.kernels.plane_taps import PlaneTap, StridedTaps
from fastconv.kernels.simd import call_part, record_at
from fastconv.kernels.spans import end_inside, first_inside, steps_in
from fastconv.kernels.target import PairTile, RollingTile

ROLLING = record("""
    source_d source_r source_rows source_columns target_d target_r rows columns
    first_row first_column row_step tap_rows tap_columns line_step source_step
    weight_offset weight_r weight_c weight_d item multiplier channels images row_block row_blocks
    entry entry_narrow wide_strips strips vector_columns width whole
""")
"""Strides are in bytes; `multiplier` of the target's planes read one source plane. Kernel rows lie `tap_rows` source
rows apart, kernel columns `tap_columns`. Target rows are summed `line_step` apart, source rows lie `source_step` apart.
Rows are cut into `strips`, the first `wide_strips` of which have `width` vectors of `vector_columns`, the others one
less: `entry` and `entry_narrow` are the addresses of their parts. `whole` says that all tasks' planes are done by one
call of a part: none is cut."""


def _weights(emit: Emitter, size: tuple[int, int], weights: Any, weight_r: Any, weight_c: Any) -> list[list[Any]]:
    """The weights of a kernel of so many rows and columns, each in all lanes."""

    def weight(a: int, b: int) -> Any:
        along = emit.add(emit.builder.mul(weight_r, emit.const(a)), emit.builder.mul(weight_c, emit.const(b)))
        return emit.load_broadcast(emit.add(weights, along))

    return [[weight(a, b) for b in range(size[1])] for a in range(size[0])]


@intrinsic(prefer_literal=True)
def rolling_strip(
    typingctx: Any, REAL: Any, VL: Any, KH: Any, KW: Any, AT: Any, S: Any, NV: Any, INNER: Any,
    lines: Any, begin: Any, end: Any, columns: Any, first: Any, spread: Any, size: Any,
    source: Any, source_line: Any, row: Any, rows_apart: Any, step: Any, source_rows: Any,
    weights: Any, weight_r: Any, weight_c: Any, start: Any, floor: Any, target: Any, target_line: Any,
) -> Any:  # fmt: skip
    """Sums of `lines` target rows of NV vectors: ``target[i] = max(start + sum weight[a, b] source[i + a], floor)``.

    Of the KH kernel rows every AT-th meets a source row by the target row at hand, and the ones AT on by those before.
    Source row `row` + `step` i + `rows_apart` q lies `source_line` for each from `source`, if it is one of
    `source_rows`; from row `begin` to `end` all are. Lanes meet the source's columns S apart from `first` on, of
    `size`, and `spread` more with each of the KW columns of the kernel. Of the target there are `columns`. Where INNER
    is 1, only the first and the last vector meet columns outside.
    """
    lanes, height, taps, apart, column_step, width = (literal(value) for value in (VL, KH, KW, AT, S, NV))
    inner, depth = literal(INNER), -(-literal(KH) // literal(AT))
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lines, begin, end, columns, first, spread, size = args[8:15]
        source, source_line, row, rows_apart, step, source_rows = args[15:21]
        weights, weight_r, weight_c, start, floor, target, target_line = args[21:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        const, add, multiply = emit.const, emit.add, builder.mul
        vectors, met_rows = range(width), min(apart, height)
        kernel = _weights(emit, (height, taps), weights, weight_r, weight_c)
        begins, lowest = emit.load_broadcast(start), emit.broadcast(floor)
        every = [
            [
                PlaneTap(
                    emit, add(add(first, const(v * lanes * column_step)), multiply(spread, const(b))), column_step,
                    size, builder.sub(columns, const(v * lanes)), not inner or v in (0, width - 1),
                )
                for b in range(taps)
            ]
            for v in vectors
        ]  # fmt: skip
        last = emit.below(columns, (width - 1) * lanes)
        # Where columns share loads, one vector is done after the other; else one column, which many sums wait for.
        order = (
            [(v, b) for v in vectors for b in range(taps)]
            if column_step == 2
            else [(v, b) for b in range(taps) for v in vectors]
        )
        strided = StridedTaps(emit, first, taps, width, size, bool(inner)) if column_step == 2 else None

        def rows_between(low: Any, high: Any, carried: list[Any], edge: bool) -> list[Any]:
            def line(i: Any, carried: list[Any]) -> list[Any]:
                i = add(i, low)
                sums = [*[begins] * width, *carried]
                here = add(row, multiply(step, i))
                # At an edge, some of the rows that a line meets are not there: of one row, it is not.
                for q in range(0 if edge and met_rows == 1 else met_rows):
                    place = add(here, multiply(rows_apart, const(q)))
                    exists = builder.icmp_unsigned("<", place, source_rows) if edge else None
                    place = add(source, multiply(place, source_line))
                    if strided is not None:
                        met = strided.in_row(place, exists)
                    for v, b in order:
                        value = every[v][b].load(place, exists) if strided is None else met(v, b)
                        for m, a in enumerate(range(q, height, apart)):
                            k = m * width + v
                            sums[k] = every[v][b].add(value, kernel[a][b], sums[k], exists)
                done = builder.sub(i, const(depth - 1))
                with builder.if_then(builder.icmp_signed(">=", done, const(0))):
                    there = add(target, multiply(done, target_line))
                    for v, total in enumerate(sums[(depth - 1) * width :]):
                        # An ordered "<" is false for NaN, which therefore passes.
                        value = builder.select(builder.fcmp_ordered("<", total, lowest), lowest, total)
                        to = add(there, const(v * emit.vector_bytes))
                        if v == width - 1:
                            emit.store_masked(value, to, last)
                        else:
                            emit.store(value, to)
                return sums[: (depth - 1) * width]

            return emit.loop(builder.sub(high, low), line, carried)

        carried = rows_between(const(0), begin, [begins] * ((depth - 1) * width), True)
        carried = rows_between(begin, end, carried, False)
        rows_between(end, add(lines, const(depth - 1)), carried, True)
        return context.get_dummy_value()

    integers = [types.intp] * 17
    return types.void(REAL, VL, KH, KW, AT, S, NV, INNER, *integers, real, types.intp, types.intp), codegen


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
    # The taps of each phase along both axes, with what they read.
    rows_of, columns_of = (
        [[(a, (p + odd - a) // 2) for a in range(count) if (p + odd - a) % 2 == 0] for p in range(2)]
        for count, odd in zip(heights, parity, strict=True)
    )
    shifts = sorted({shift for phase in columns_of for _, shift in phase})

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lines, begin, end, low, high, columns, first, size = args[8:16]
        source, source_line, weights, weight_r, weight_c, target, target_line = args[16:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        const, add, multiply = emit.const, emit.add, builder.mul
        vectors, half = range(width), lanes // 2
        kernel = _weights(emit, heights, weights, weight_r, weight_c)
        every = {
            (v, shift): PlaneTap(
                emit, add(first, const(v * lanes + shift)), 1, size, const(lanes), not inner or v in (0, width - 1)
            )
            for v in vectors
            for shift in shifts
        }
        lanes_of = [[i for lane in range(h * half, (h + 1) * half) for i in (lane, lanes + lane)] for h in range(2)]
        interleaved = [ir.Constant(ir.VectorType(I32, lanes), order) for order in lanes_of]
        masks = [emit.below(columns, k * lanes) for k in range(2 * width)]
        nothing = emit.constant(0.0)
        depths = [max(o for _, o in phase) - min(o for _, o in phase) + 1 for phase in rows_of]

        def rows_between(low: Any, high: Any, carried: list[Any], edge: bool) -> list[Any]:
            def line(i: Any, carried: list[Any]) -> list[Any]:
                i = add(i, low)
                place = add(source, multiply(i, source_line))
                values = {} if edge else {key: tap.load(place) for key, tap in every.items()}
                following, begun = [], 0
                for p, phase in enumerate(rows_of):
                    nearest, each = min(o for _, o in phase), 2 * width
                    before = carried[begun : begun + (depths[p] - 1) * each]
                    begun += len(before)
                    sums = [*[nothing] * each, *before]  # by target row, the newest first, column's phase and vector
                    for a, o in () if edge else phase:  # no row at an edge is there
                        for q in range(2):
                            for b, shift in columns_of[q]:
                                for v in vectors:
                                    k = (o - nearest) * each + q * width + v
                                    sums[k] = every[v, shift].add(values[v, shift], kernel[a][b], sums[k])
                    done = builder.sub(i, const(nearest + depths[p] - 1))
                    row = add(multiply(done, const(2)), const(p))
                    wanted = builder.and_(
                        builder.icmp_signed(">=", done, const(0)), builder.icmp_signed("<", row, lines)
                    )
                    with builder.if_then(wanted):
                        here = add(target, multiply(row, target_line))
                        complete = sums[(depths[p] - 1) * each :]
                        for k in range(each):
                            pair = complete[k // 2], complete[width + k // 2]
                            value = builder.shuffle_vector(*pair, interleaved[k % 2])
                            emit.store_masked(value, add(here, const(k * emit.vector_bytes)), masks[k])
                    following += sums[: (depths[p] - 1) * each]
                return following

            return emit.loop(builder.sub(high, low), line, carried)

        begin_there = emit.limited(low, begin, end)
        end_there = emit.limited(high, begin_there, end)
        carried = rows_between(begin, begin_there, [nothing] * sum(2 * width * (depth - 1) for depth in depths), True)
        carried = rows_between(begin_there, end_there, carried, False)
        rows_between(end_there, end, carried, True)
        return context.get_dummy_value()

    return types.void(REAL, VL, KH, KW, PR, PC, NV, INNER, *[types.intp] * 15), codegen


def pair_offsets(taps: int, odd: int) -> tuple[int, int]:
    """How far before and behind its own a pair of targets reads sources: the least and the largest offset."""
    offsets = [(p + odd - a) // 2 for p in range(2) for a in range(taps) if (p + odd - a) % 2 == 0]
    return min(offsets), max(offsets)


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
        for k in range(plane, plane + planes):
            source, weights, start, target = operands_of(call, p, k)
            here = target + top * p.target_r + left * ITEM
            rolling_strip(
                REAL, VL, KH, KW, AT, S, NV, INNER, lines, begin, end, columns,
                left * S + p.first_column, p.tap_columns, p.source_columns,
                source, p.source_r, row, p.tap_rows, p.source_step, p.source_rows,
                weights, p.weight_r, p.weight_c, start, lowest, here, p.line_step * p.target_r,
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
            left = 0
            for number in range(p.strips):
                width = p.width if number < p.wide_strips else p.width - 1
                entry = p.entry if number < p.wide_strips else p.entry_narrow
                columns = min(width * p.vector_columns, p.columns - left)
                for phase in range(min(p.line_step, last - first)):
                    lines = steps_in(last - first - phase, p.line_step)
                    call_part(entry, (address, call.plan, plane, planes, first + phase, lines, left, columns))
                left += columns

    return jit.kernel(rolling_planes)
