"""Convolution of planes as they lie (NCHW), with pixels in the lanes: for depthwise layers and those of few channels.

A depthwise layer of few channels side by side (NHWC) is one plane too, whose weights differ from lane to lane.

A tile is MR target rows by a few vectors of pixels. Each vector of the source is loaded once for every column of the
kernel and multiplied into all target rows that it reaches, while the weights of KH kernel rows stay in registers.
Nothing is copied: columns outside the image are lanes that a mask leaves out, and rows outside are the address of a row
of zeros. Of a dilated kernel the target rows of a tile lie as far apart as its taps do.
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
from fastconv.kernels.addresses import pitched_places
from fastconv.kernels.emit import I32, Emitter, literal, scalar_ir
from fastconv.kernels.params import CALL, record
from fastconv.kernels.simd import array_at, call_part, record_at
from fastconv.kernels.target import StencilTile

STENCIL = record("""
    source_r source_k source_group source_rows source_columns
    target_offset target_r target_d target_group
    weight_offset weight_r weight_c weight_k weight_d weight_group
    start_group
    parts_of_problem groups rows columns phases first_row first_column column_spread
    chunks rest_rows taps_c reduction channels
    entry tile_rows row_step chunk_rows sources sources_rest
    zeros row_tiles phase_tiles row_block shares parts
    workspace_bytes table rest
""")
"""Strides and `*_group` are in bytes; the groups of all images follow one another. A group has `shares` tasks: blocks
of rows, each in `parts` parts of the target channels. The rows of a tile are `phases` apart, as are the source rows of
its taps; a phase has `phase_tiles` tiles from top to bottom, and all phases `row_tiles`. The kernel's rows are cut into
`chunks` of `chunk_rows` and `rest_rows`, which are REST or none; a tile of `tile_rows` reads `sources` rows for a chunk
and `sources_rest` for the rest. `entry` is the address of the compiled `columns`. A strided input gradient has
`parts_of_problem` such records one after another, for every phase of the stride, and its tasks take blocks of all. The
last line's fields but the first are offsets into each thread's workspace."""


@intrinsic(prefer_literal=True)
def stencil_tile(
    typingctx: Any, REAL: Any, VL: Any, MR: Any, NV: Any, KH: Any, REST: Any, SR: Any, SC: Any, EC: Any, MIXED: Any,
    runs: Any, table: Any, rest_runs: Any, rest: Any, column: Any, column_spread: Any, columns: Any,
    weights: Any, weight_r: Any, weight_c: Any, taps: Any,
    start: Any, floor: Any, target: Any, target_r: Any, rows: Any, lanes: Any,
) -> Any:  # fmt: skip
    """Register tile of MR rows by NV vectors of pixels, of which `rows` rows and `lanes` lanes are stored.

    A run is (MR - 1) SR + KH + 1 integers of `table`: the addresses of source rows, and the offset of its weights from
    `weights`; the same holds for the runs of REST kernel rows at `rest`. The first lane meets the source column
    `column`, and `column_spread` more with each of the `taps` columns of the kernel; source rows have `columns` of
    them. All sums begin with the scalar at `start`. Lanes are stored EC columns apart, and nothing between them. Where
    MIXED is 1, weights are NV vectors each instead of scalars, and so is what sums begin with.
    """
    vector_lanes, height, width, heights = literal(VL), literal(MR), literal(NV), (literal(KH), literal(REST))
    row_step, column_step, apart, mixed = literal(SR), literal(SC), literal(EC), literal(MIXED)
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        runs, table, rest_runs, rest, column, column_spread, columns = args[10:17]
        weights, weight_r, weight_c, taps, start, floor, target, target_r, rows, lanes = args[17:]
        emit = Emitter(builder, scalar_ir(real), vector_lanes)
        const, add = emit.const, emit.add
        masks_type = ir.VectorType(ir.IntType(1), vector_lanes)
        places_type = ir.VectorType(I32, vector_lanes)
        every = ir.Constant(places_type, [lane * column_step for lane in range(vector_lanes)])

        def along_row(place: Any) -> list[Any]:
            """What all vectors of a row get from a place."""
            if mixed:
                return [emit.load(add(place, const(j * emit.vector_bytes))) for j in range(width)]
            return [emit.load_broadcast(place)] * width

        def tap(b: Any, sums: list[Any]) -> list[Any]:
            first = add(column, builder.mul(b, column_spread))
            along = builder.mul(first, const(emit.item))
            masks = []
            for j in range(width * column_step):
                here = add(first, const(j * vector_lanes))
                masks.append(emit.between(builder.neg(here), builder.sub(columns, here)))
            weight = add(weights, builder.mul(b, weight_c))

            def load(row: Any) -> list[Any]:
                """The vectors of a source row."""
                place = add(row, along)
                vectors = [
                    emit.load_masked(add(place, const(j * emit.vector_bytes)), mask) for j, mask in enumerate(masks)
                ]
                if column_step == 1:
                    return vectors
                pairs = zip(vectors[::2], vectors[1::2], strict=True)
                return [builder.shuffle_vector(left, right, every) for left, right in pairs]

            def add_runs(count: Any, entries: Any, height_here: int, sums: list[Any]) -> list[Any]:
                sources = (height - 1) * row_step + height_here

                def run(r: Any, sums: list[Any]) -> list[Any]:
                    entry = add(entries, builder.mul(r, const(8 * (sources + 1))))
                    place = add(weight, emit.load_int(add(entry, const(8 * sources))))
                    kernel = []
                    for _ in range(height_here):
                        kernel.append(along_row(place))
                        place = add(place, weight_r)
                    sums = list(sums)
                    for q in range(sources):
                        reached = [(m, q - m * row_step) for m in range(height) if 0 <= q - m * row_step < height_here]
                        if not reached:
                            continue
                        vectors = load(emit.load_int(add(entry, const(8 * q))))
                        for m, a in reached:
                            for j, vector in enumerate(vectors):
                                sums[m * width + j] = emit.fma(kernel[a][j], vector, sums[m * width + j])
                    return sums

                return emit.loop(count, run, sums) if height_here else sums

            return add_runs(rest_runs, rest, heights[1], add_runs(runs, table, heights[0], sums))

        sums = emit.loop(taps, tap, along_row(start) * height)
        lowest = emit.broadcast(floor)
        # An ordered "<" is false for NaN, which therefore passes.
        values = [builder.select(builder.fcmp_ordered("<", value, lowest), lowest, value) for value in sums]
        places = [add(target, builder.mul(target_r, const(m))) for m in range(height)]

        def store_some() -> None:
            ours = ir.Constant(masks_type, [lane % apart == 0 for lane in range(vector_lanes)])
            left = builder.mul(lanes, const(apart))
            masks = [
                builder.and_(emit.between(const(0), builder.sub(left, const(k * vector_lanes))), ours)
                for k in range(width * apart)
            ]
            for m in range(height):
                with builder.if_then(builder.icmp_signed(">", rows, const(m))):
                    for k, mask in enumerate(masks):
                        lowest_lane = k % apart * vector_lanes // apart
                        spread = [lowest_lane + lane // apart for lane in range(vector_lanes)]
                        value = values[m * width + k // apart]
                        part = builder.shuffle_vector(value, value, ir.Constant(places_type, spread))
                        emit.store_masked(part, add(places[m], const(k * emit.vector_bytes)), mask)

        if apart > 1:
            store_some()
            return context.get_dummy_value()
        whole = builder.and_(
            builder.icmp_signed(">=", rows, const(height)),
            builder.icmp_signed(">=", lanes, const(width * vector_lanes)),
        )
        with builder.if_else(whole) as (all_stored, some_stored):
            with all_stored:
                for i, value in enumerate(values):
                    emit.store(value, add(places[i // width], const(i % width * emit.vector_bytes)))
            with some_stored:
                store_some()
        return context.get_dummy_value()

    integers = [types.intp] * 12
    return types.void(REAL, VL, MR, NV, KH, REST, SR, SC, EC, MIXED, *integers, real, *[types.intp] * 4), codegen


@jit.inline
def trace_rows(p, sources, entries, count, plane, row, weight):
    """Write the run of so many source rows from `row` on, unless all lie outside; the number of runs there are then."""
    last = row + (sources - 1) * p.phases
    if last < 0 or row >= p.source_rows:
        return count
    run = entries + count * (sources + 1) * 8
    pitched_places(sources, row, p.phases, p.source_rows, plane, p.source_r, p.zeros, run)
    array_at(run, sources + 1, np.int64)[sources] = weight
    return count + 1


@functools.cache
def columns(dtype: str, tile: StencilTile) -> CFunc:
    """The part of the kernel that knows dtype and tile: traced rows from left to right, for channels `first` to `last`.

    `plan` is the record of the part of the problem that the rows belong to.
    """
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, MR, NV, NR, KH, REST = tile.VL, tile.MR, tile.NV, tile.NR, tile.KH, tile.REST
    SR, SC, EC, MIXED = tile.SR, tile.SC, tile.EC, tile.MIXED

    def stencil_columns(address, plan, own, runs, rest_runs, target, weights, start, rows, first, last):
        call = record_at(address, CALL)
        p = record_at(plan, STENCIL)
        lowest = REAL(0) if call.relu != 0 else REAL(-np.inf)
        for d in range(first, last):
            for left in range(0, p.columns, NR):
                width = min(NR, p.columns - left)
                here = target + d * p.target_d + left * EC * ITEM
                stencil_tile(
                    REAL, VL, MR, NV, KH, REST, SR, SC, EC, MIXED, runs, own + p.table, rest_runs, own + p.rest,
                    left * SC + p.first_column, p.column_spread, p.source_columns,
                    weights + d * p.weight_d, p.weight_r, p.weight_c, p.taps_c,
                    start + d * ITEM, lowest, here, p.target_r * p.phases, rows, width,
                )  # fmt: skip
                if call.activation != 0:
                    for m in range(rows):
                        activate(call, here + m * p.target_r * p.phases, width)

    return jit.part(stencil_columns)


@functools.cache
def stencil() -> CFunc:
    """The kernel for all dtypes and tiles; its tasks are (group of an image, block of rows, part of the channels)."""
    RECORD = STENCIL.itemsize

    def stencil_tiles(address, begin, end, thread):
        call = record_at(address, CALL)
        common = record_at(call.plan, STENCIL)
        own = call.workspace + thread * common.workspace_bytes
        table, rest, height = own + common.table, own + common.rest, common.tile_rows
        # Divisions take as long as a small plane does: tasks are counted, and none is made whose result is known.
        plane = begin // common.shares
        group, share = plane % common.groups, begin - plane * common.shares - 1
        for _ in range(begin, end):
            share += 1
            if share == common.shares:
                share, plane, group = 0, plane + 1, group + 1
                if group == common.groups:
                    group = 0
            block, part = share, 0
            if common.parts > 1:
                block, part = share // common.parts, share % common.parts
            first = block * common.row_block
            for tile_of_all in range(
                first * common.parts_of_problem, (first + common.row_block) * common.parts_of_problem
            ):
                # All parts of the problem write to the same lines, which are then still in the first cache level.
                plan, t = call.plan, tile_of_all
                if common.parts_of_problem > 1:
                    plan = call.plan + tile_of_all % common.parts_of_problem * RECORD
                    t = tile_of_all // common.parts_of_problem
                p = record_at(plan, STENCIL)
                if t >= p.row_tiles:
                    continue
                top = t * height
                if p.phases > 1:
                    top = t // p.phase_tiles + t % p.phase_tiles * height * p.phases
                if top >= p.rows:
                    continue
                source = call.source + plane * p.source_group
                target = call.target + p.target_offset + plane * p.target_group + top * p.target_r
                weights = call.other + p.weight_offset + group * p.weight_group
                start = call.start + group * p.start_group
                rows = p.rows - top
                if p.phases > 1:
                    rows = (rows + p.phases - 1) // p.phases
                rows = min(height, rows)
                runs = rest_runs = 0
                for k in range(p.reduction):
                    above, row = source + k * p.source_k, top * p.row_step + p.first_row
                    weight = k * p.weight_k
                    for _ in range(p.chunks):
                        runs = trace_rows(p, p.sources, table, runs, above, row, weight)
                        weight += p.chunk_rows * p.weight_r
                        row += p.chunk_rows * p.phases
                    if p.rest_rows != 0:
                        rest_runs = trace_rows(p, p.sources_rest, rest, rest_runs, above, row, weight)
                begin_channel, end_channel = 0, p.channels
                if p.parts > 1:
                    begin_channel, end_channel = p.channels * part // p.parts, p.channels * (part + 1) // p.parts
                call_part(
                    common.entry,
                    (address, plan, own, runs, rest_runs, target, weights, start, rows, begin_channel, end_channel),
                )

    return jit.kernel(stencil_tiles)
