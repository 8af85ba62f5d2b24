"""Weight gradient of planes (NCHW), with pixels in the lanes: for layers whose groups have one source channel.

Every weight is a sum over pixels of a plane of the input times one of the output gradient. The sums of a kernel row
stay in registers while vectors of pixels run down strips of the planes. Padding takes no part: rows outside the image
are not visited, and lanes outside are masked in both operands, as a zero times NaN is no zero.

Slabs of pixels have partial gradients, which are added in order (`fastconv.kernels.slabs`), so the result has the same
bits for any number of threads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

from fastconv.kernels import jit
from fastconv.kernels.emit import I32, Emitter, literal, scalar_ir
from fastconv.kernels.params import CALL, LINE, record
from fastconv.kernels.plane_taps import PlaneTap, StridedTaps, mask_if
from fastconv.kernels.simd import array_at, prefetch, record_at
from fastconv.kernels.spans import end_inside, first_inside, steps_in
from fastconv.kernels.target import IN_FLIGHT, masks_have_registers

PLANE_DOTS = record("""
    source_n source_d source_r source_rows source_columns
    gradient_n gradient_d gradient_r
    rows columns row_step first_row first_column tap_rows tap_columns taps_r tap_step line_step source_step
    channels multiplier row_block row_blocks blocks parts slabs slab_bytes fetches
""")
"""Strides are in bytes. `channels` are those of the gradient, `multiplier` of which read one source plane. Kernel rows
lie `tap_rows` source rows apart, kernel columns `tap_columns`. A source row meets every `tap_step`-th kernel row, by
every `line_step`-th row of the gradient, and so does the source row `source_step` on. The target is an array (slabs,
channels, taps_r, taps_c), slabs `slab_bytes` apart. Where it `fetches`, rows are asked for as they lie before strips of
them are read: the CPU fetches nothing ahead of these."""


@intrinsic(prefer_literal=True)
def plane_row(
    typingctx: Any, REAL: Any, VL: Any, KW: Any, S: Any, ALONE: Any, strips: Any, lines: Any, columns: Any,
    first: Any, spread: Any, size: Any, source: Any, source_line: Any, gradient: Any, gradient_line: Any, target: Any,
) -> Any:  # fmt: skip
    """Sums of a kernel row's taps over `lines` rows: ``target[b] += sum of source[i, j S + b] gradient[i, j]``.

    Rows have `columns` pixels in `strips` vectors, of which the first reads from source position `first` of `size`;
    taps lie `spread` positions apart, and rows as many bytes as their `*_line` says.
    """
    lanes, taps, step = literal(VL), literal(KW), literal(S)
    sets = -(-IN_FLIGHT // taps)
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        strips, lines, columns, first, spread, size, source, source_line, gradient, gradient_line, target = args[5:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        const, add, multiply = emit.const, emit.add, builder.mul
        groups = builder.udiv(lines, const(sets))
        grouped = multiply(groups, const(sets))

        def strip(v: Any, sums: list[Any], masked: bool) -> list[Any]:
            left = multiply(v, const(lanes))
            there = builder.sub(columns, left)
            begin = add(first, multiply(left, const(step)))
            every = [
                PlaneTap(emit, add(begin, multiply(spread, const(b))), step, size, there, masked) for b in range(taps)
            ]
            pixels = emit.below(there, 0)
            here = add(gradient, multiply(left, const(emit.item)))

            def line(i: Any, sums: list[Any]) -> list[Any]:
                row, place = add(source, multiply(i, source_line)), add(here, multiply(i, gradient_line))
                value = emit.load_masked(place, pixels) if masked else emit.load(place)
                return [tap.add(tap.load(row), value, total) for tap, total in zip(every, sums, strict=True)]

            def group(i: Any, sums: list[Any]) -> list[Any]:
                begin = multiply(i, const(sets))
                parts = [line(add(begin, const(k)), sums[k * taps : (k + 1) * taps]) for k in range(sets)]
                return [total for part in parts for total in part]

            def rest(i: Any, sums: list[Any]) -> list[Any]:
                return [*line(add(grouped, i), sums[:taps]), *sums[taps:]]

            return emit.loop(builder.sub(lines, grouped), rest, emit.loop(groups, group, sums))

        reach = add(const(step * lanes), multiply(spread, const(taps - 1)))
        inside = columns, first, size, step, reach
        sums = _over_strips(emit, literal(ALONE), strips, inside, strip, [emit.constant(0.0)] * (taps * sets))
        totals = sums[:taps]
        for k in range(1, sets):
            totals = [builder.fadd(*pair) for pair in zip(totals, sums[k * taps : (k + 1) * taps], strict=True)]
        _add_totals(emit, totals, taps, target, const(0))
        return context.get_dummy_value()

    return types.void(REAL, VL, KW, S, ALONE, *[types.intp] * 11), codegen


def _strips_inside(
    emit: Emitter, strips: Any, columns: Any, first: Any, size: Any, step: int, reach: Any
) -> tuple[Any, Any]:  # fmt: skip
    """The first of the strips that meet the image only, in all their lanes, and the one behind the last of them.

    The first strip reads `reach` positions from `first` on, and each one `step` further for each lane before it.
    """
    builder, const, limited = emit.builder, emit.const, emit.limited
    lanes, width = const(emit.vector.count), const(emit.vector.count * step)
    before = limited(builder.neg(first), const(0), size)
    begin = limited(builder.sdiv(emit.add(before, emit.const(emit.vector.count * step - 1)), width), const(0), strips)
    room = builder.sub(builder.sub(size, first), reach)
    fitting = builder.select(
        builder.icmp_signed("<", room, const(0)), const(0), emit.add(builder.sdiv(room, width), const(1))
    )
    return begin, limited(limited(fitting, const(0), builder.sdiv(columns, lanes)), begin, strips)


def _over_strips(
    emit: Emitter, alone: int, strips: Any, inside: tuple[Any, ...], strip: Callable[[Any, list[Any], bool], list[Any]],
    sums: list[Any],
) -> list[Any]:  # fmt: skip
    """Go over the strips of a plane, those between the edges last and without masks where these cost something.

    `inside` is what `_strips_inside` takes besides. All masks of a strip that is `alone` are known before the planes
    are.
    """
    if alone:
        return strip(emit.const(0), sums, True)
    if masks_have_registers():
        return emit.loop(strips, lambda v, sums: strip(v, sums, True), sums)
    builder = emit.builder
    begin, end = _strips_inside(emit, strips, *inside)
    count = builder.sub(end, begin)

    def at_edge(k: Any, sums: list[Any]) -> list[Any]:
        behind = builder.icmp_signed(">=", k, begin)
        return strip(builder.select(behind, emit.add(k, count), k), sums, True)

    sums = emit.loop(builder.sub(strips, count), at_edge, sums)
    return emit.loop(count, lambda k, sums: strip(emit.add(begin, k), sums, False), sums)


def _add_totals(emit: Emitter, sums: list[Any], taps: int, target: Any, target_line: Any) -> None:
    """Add the sums of the lanes to rows of so many weights."""
    lanes = emit.vector.count
    totals = [emit.sums_of_lanes(sums[first : first + lanes]) for first in range(0, len(sums), lanes)]
    for row in range(len(sums) // taps):
        for first in range(0, taps, lanes):
            i, lane = divmod(row * taps + first, lanes)
            pair = totals[i], totals[min(i + 1, len(totals) - 1)]
            order = ir.Constant(ir.VectorType(I32, lanes), [lane + k for k in range(lanes)])
            total = emit.builder.shuffle_vector(*pair, order)
            place = emit.add(target, emit.builder.mul(target_line, emit.const(row)))
            place, there = emit.add(place, emit.const(first * emit.item)), emit.below(emit.const(taps), first)
            emit.store_masked(emit.builder.fadd(total, emit.load_masked(place, there)), place, there)


@intrinsic(prefer_literal=True)
def plane_rows(
    typingctx: Any, REAL: Any, VL: Any, KH: Any, KW: Any, S: Any, SHARES: Any, ALONE: Any,
    strips: Any, begin: Any, end: Any, lines: Any, columns: Any, first: Any, spread: Any, size: Any,
    source: Any, source_line: Any, gradient: Any, gradient_line: Any, target: Any, target_line: Any,
) -> Any:  # fmt: skip
    """Sums of KH kernel rows' taps: ``target[a, b] += sum of source[i + a, j S + b] gradient[i, j]``.

    Source rows from `begin` to `end` are loaded once for all kernel rows, which meet the gradient's row at hand and
    those before, as far as these are among its `lines`. Where SHARES is 1, S is 2 and neighbouring taps share their
    loads. All else is as for `plane_row`.
    """
    lanes, height, taps, step, shares = (literal(value) for value in (VL, KH, KW, S, SHARES))
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        strips, begin, end, lines, columns, first, spread, size = args[7:15]
        source, source_line, gradient, gradient_line, target, target_line = args[15:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        const, add, multiply = emit.const, emit.add, builder.mul
        # Between these all kernel rows meet a row of the gradient.
        begin_all = emit.limited(const(height - 1), begin, end)
        end_all = emit.limited(lines, begin_all, end)

        def exists(i: Any) -> Any:
            return builder.icmp_unsigned("<", i, lines)

        def strip(v: Any, sums: list[Any], masked: bool) -> list[Any]:
            left = multiply(v, const(lanes))
            there, begin_columns = builder.sub(columns, left), add(first, multiply(left, const(step)))
            every = [
                PlaneTap(emit, add(begin_columns, multiply(spread, const(b))), step, size, there, masked)
                for b in range(taps)
            ]
            shared = StridedTaps(emit, begin_columns, taps, 1, size, {0} if masked else set()) if shares else None
            pixels = emit.below(there, 0) if masked else None
            here = add(gradient, multiply(left, const(emit.item)))

            def gradient_row(i: Any, edge: bool) -> Any:
                place = add(here, multiply(i, gradient_line))
                mask = mask_if(emit, exists(i), pixels) if edge else pixels
                return emit.load(place) if mask is None else emit.load_masked(place, mask)

            def rows_between(low: Any, high: Any, carried: list[Any], edge: bool) -> list[Any]:
                def line(i: Any, carried: list[Any]) -> list[Any]:
                    i = add(i, low)
                    sums, before = carried[: height * taps], carried[height * taps :]
                    row, gradients = add(source, multiply(i, source_line)), [gradient_row(i, edge), *before]
                    meets = [exists(builder.sub(i, const(a))) for a in range(height)] if edge else [None] * height
                    met = None if shared is None else shared.in_row(row)
                    for b, tap in enumerate(every):
                        value = tap.load(row) if met is None else met(0, b)
                        for a in range(height):
                            sums[a * taps + b] = tap.add(value, gradients[a], sums[a * taps + b], meets[a])
                    return [*sums, *gradients[:-1]]

                return emit.loop(builder.sub(high, low), line, carried)

            for a in range(1, height):
                i = builder.sub(begin, const(a))
                sums = [*sums, gradient_row(i, True)]
            carried = rows_between(begin, begin_all, sums, True)
            carried = rows_between(begin_all, end_all, carried, False)
            return rows_between(end_all, end, carried, True)[: height * taps]

        reach = add(const(step * lanes), multiply(spread, const(taps - 1)))
        if shares:
            reach = const((2 + (taps > 2)) * lanes)
        inside = columns, first, size, step, reach
        sums = _over_strips(emit, literal(ALONE), strips, inside, strip, [emit.constant(0.0)] * (height * taps))
        _add_totals(emit, sums, taps, target, target_line)
        return context.get_dummy_value()

    return types.void(REAL, VL, KH, KW, S, SHARES, ALONE, *[types.intp] * 14), codegen


@functools.cache
def plane_dots(dtype: str, lanes: int, taps: int, step: int, height: int, shares: bool, alone: bool) -> CFunc:
    """The kernel for kernel rows of so many taps and so many columns from window to window.

    `height` kernel rows are summed at once, and their columns may share loads. Of a plane whose rows are one vector,
    this is `alone`. Tasks are (slab of blocks of rows, part of the channels).
    """
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, KH, KW, S, SHARES, ALONE = int(lanes), int(height), int(taps), int(step), int(shares), int(alone)

    def plane_dot_tiles(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, PLANE_DOTS)
        strips = (p.columns + VL - 1) // VL
        for task in range(begin, end):
            part, slab = task % p.parts, task // p.parts
            first_block, last_block = p.blocks * slab // p.slabs, p.blocks * (slab + 1) // p.slabs
            for d in range(p.channels * part // p.parts, p.channels * (part + 1) // p.parts):
                target = call.target + slab * p.slab_bytes + d * p.taps_r * KW * ITEM
                array_at(target, p.taps_r * KW, REAL)[:] = 0
                # Divisions take as long as rows of small planes do.
                above = d if p.multiplier == 1 else d // p.multiplier
                for block in range(first_block, last_block):
                    image, first = block, 0
                    if p.row_blocks > 1:
                        image, first = block // p.row_blocks, block % p.row_blocks * p.row_block
                    last = min(first + p.row_block, p.rows)
                    source = call.source + image * p.source_n + above * p.source_d
                    gradient = call.other + image * p.gradient_n + d * p.gradient_d
                    if p.fetches != 0:
                        for line in range(first * p.gradient_r, last * p.gradient_r, LINE):
                            prefetch(gradient + line)
                        upper = max(0, p.first_row + first * p.row_step)
                        lower = p.first_row + (last - 1) * p.row_step + (p.taps_r - 1) * p.tap_rows + 1
                        if d == above * p.multiplier:
                            for line in range(upper * p.source_r, min(lower, p.source_rows) * p.source_r, LINE):
                                prefetch(source + line)
                    for q in range(p.tap_step):
                        rows = steps_in(p.taps_r - q, p.tap_step)
                        for m in range(rows):
                            a = q + m * p.tap_step
                            row, weights = p.first_row + a * p.tap_rows, target + a * KW * ITEM
                            if KH > 1 and m // KH < rows // KH:
                                if m % KH != 0:
                                    continue  # the first of these rows has summed them all
                                for phase in range(min(p.line_step, last - first)):
                                    upper = row + (first + phase) * p.row_step
                                    lines = steps_in(last - first - phase, p.line_step)
                                    begin_line = first_inside(upper, p.source_step)
                                    end_line = end_inside(upper, p.source_step, p.source_rows, lines + KH - 1)
                                    if begin_line < end_line:
                                        plane_rows(
                                            REAL, VL, KH, KW, S, SHARES, ALONE, strips, begin_line, end_line, lines,
                                            p.columns, p.first_column, p.tap_columns, p.source_columns,
                                            source + upper * p.source_r, p.source_step * p.source_r,
                                            gradient + (first + phase) * p.gradient_r, p.line_step * p.gradient_r,
                                            weights, p.tap_step * KW * ITEM,
                                        )  # fmt: skip
                                continue
                            top = max(first, first_inside(row, p.row_step))
                            bottom = end_inside(row, p.row_step, p.source_rows, last)
                            if top < bottom:
                                plane_row(
                                    REAL, VL, KW, S, ALONE, strips, bottom - top, p.columns,
                                    p.first_column, p.tap_columns, p.source_columns,
                                    source + (row + top * p.row_step) * p.source_r, p.row_step * p.source_r,
                                    gradient + top * p.gradient_r, p.gradient_r, weights,
                                )  # fmt: skip

    return jit.kernel(plane_dot_tiles)
