"""Direct convolution of planes (NCHW) with few channels: pixels in the lanes, what each product reads by its offset.

A task copies the rows that it reads into lines: padded with zeros, and where windows are several columns apart, the
columns of each phase by themselves. Then every tap of every channel reads vectors of pixels that lie side by side, at
an offset from a pixel's place that is the same for all pixels; a table has these offsets, and those of the weights. So
a register tile of output channels by pixels of a row goes once through the table, however few taps and channels there
are, and nothing is copied for each tap, as panels of `fastconv.kernels.columns` are.
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
from fastconv.kernels.columns import bits_between, copy_taps
from fastconv.kernels.emit import Emitter, literal, scalar_ir
from fastconv.kernels.params import CALL, record
from fastconv.kernels.simd import array_at, call_part, copy_run, record_at
from fastconv.kernels.spans import end_inside, first_inside
from fastconv.kernels.target import Tile
from fastconv.kernels.tiles import ROW_START, UNROLLED, TileSums

LINES = record("""
    source_n source_r source_k source_group source_rows source_columns
    target_n target_r target_d target_group
    weight_d weight_group start_group
    n rows columns row_step first_row first_column planes channels steps offsets phases
    row_block row_blocks parts tile_rows panels line_columns line_bytes plane_rows item
    phase_count fill multiply workspace_bytes strip masks
""")
"""Strides and `*_group` are in bytes. `offsets` is the address of two int64 for each of the `steps`: how far from a
pixel's place its vectors lie, and from a channel's first weight its scalar. A strip has `planes` of `plane_rows` rows,
of a line for each of `phase_count` phases, with `line_columns` columns, `line_bytes` apart. `phases` is the address of
their numbers from 0 on. `fill` and `multiply` are the addresses of compiled parts."""


@intrinsic(prefer_literal=True)
def offset_tile(
    typingctx: Any, REAL: Any, VL: Any, MR: Any, NV: Any, steps: Any, offsets: Any, scalars: Any, pitch: Any,
    vectors: Any, starts: Any, floor: Any, target: Any, target_pitch: Any, rows: Any, lanes: Any,
) -> Any:  # fmt: skip
    """Register tile of MR rows by NV vectors: ``target[m] = max(start[m] + sum scalar[m] * vector, floor)``.

    In each of the `steps`, `offsets` has how far after `vectors` the vectors lie, and after a row's first scalar its
    scalar; rows' scalars are `pitch` bytes apart. Those past the last of `rows` are copies of it. The first `lanes`
    lanes are stored.
    """
    height, width = literal(MR), literal(NV)
    real, vector_lanes = REAL.dtype, literal(VL)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        steps, offsets, scalars, pitch, vectors, starts, floor, target, target_pitch, rows, lanes = args[4:]
        emit = Emitter(builder, scalar_ir(real), vector_lanes)
        const, add = emit.const, emit.add
        tile = TileSums(emit, height, width, const(0), 1)
        last = builder.sub(rows, const(1))
        numbers = [emit.limited(const(m), const(0), last) for m in range(height)]
        places = [add(scalars, builder.mul(number, pitch)) for number in numbers]

        def one(k: Any, sums: list[Any]) -> list[Any]:
            entry = add(offsets, builder.mul(k, const(16)))
            return tile.add_step(places, emit.load_int(add(entry, const(8))), add(vectors, emit.load_int(entry)), sums)

        def several(k: Any, sums: list[Any]) -> list[Any]:
            for u in range(UNROLLED):
                sums = one(add(builder.mul(k, const(UNROLLED)), const(u)), sums)
            return sums

        rounds = builder.sdiv(steps, const(UNROLLED))
        sums = emit.loop(rounds, several, tile.start(ROW_START, lambda m: starts, starts))
        done = builder.mul(rounds, const(UNROLLED))
        sums = emit.loop(builder.sub(steps, done), lambda k, sums: one(add(done, k), sums), sums)
        tile.store(sums, floor, lambda m: add(target, builder.mul(numbers[m], target_pitch)), lanes)
        return context.get_dummy_value()

    return types.void(REAL, VL, MR, NV, *[types.intp] * 6, real, *[types.intp] * 4), codegen


@functools.cache
def fill(dtype: str, lanes: int, vectors: int, step: int) -> CFunc:
    """The part of the kernel that copies `rows` rows of each plane, from source row `row` on, into a strip."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, NV, NR, STEP = lanes, vectors, vectors * lanes, step

    def fill_lines(plan, own, source, row, rows):
        p = record_at(plan, LINES)
        chunks = (p.line_columns + NR - 1) // NR
        masks = array_at(own + p.masks, (chunks, STEP, STEP), np.int64)
        for chunk in range(chunks):
            count = min(NR, p.line_columns - chunk * NR)
            for phase in range(STEP):
                # The first value of the phase's vectors in a row of the source, and the bits of those inside it.
                left = p.first_column + chunk * NR * STEP + phase
                for word in range(STEP):
                    masks[chunk, phase, word] = bits_between(
                        max(0, -left) - 64 * word, min(count * STEP, p.source_columns - left) - 64 * word
                    )
        begin, end = min(first_inside(row, 1), rows), end_inside(row, 1, p.source_rows, rows)
        pitch = STEP * p.line_bytes
        for k in range(p.planes):
            strip = own + p.strip + k * p.plane_rows * pitch
            for r in range(rows):
                if r < begin or r >= end:
                    for phase in range(STEP):
                        copy_run(REAL, VL, 0, strip + r * pitch + phase * p.line_bytes, p.line_columns)
            first = source + k * p.source_k + (row + begin) * p.source_r + p.first_column * ITEM
            for chunk in range(chunks):
                column, count = chunk * NR, min(NR, p.line_columns - chunk * NR)
                left, right = p.first_column + column * STEP, p.first_column + (column + NR) * STEP + STEP
                inside = count == NR and left >= 0 and right <= p.source_columns
                copy_taps(
                    REAL, VL, NV, STEP, first + column * STEP * ITEM, p.phases, STEP,
                    0 if inside else own + p.masks + chunk * STEP * STEP * 8, strip + begin * pitch + column * ITEM,
                    p.line_bytes, count, end - begin, p.source_r, pitch,
                )  # fmt: skip

    return jit.part(fill_lines)


@functools.cache
def multiply(dtype: str, tile: Tile, last: int) -> CFunc:
    """The part of the kernel that knows its register tile: `rows` rows for the output channels from `d` on.

    The last tile of a row has `last` vectors.
    """
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, MR, NV, NR, LAST = tile.VL, tile.MR, tile.NV, tile.NR, last

    def multiply_rows(address, own, target, weights, start, d, rows):
        call = record_at(address, CALL)
        p = record_at(call.plan, LINES)
        lowest = REAL(0) if call.relu != 0 else REAL(-np.inf)
        depth, pitch = min(MR, p.channels - d), p.row_step * (p.line_bytes * p.phase_count)
        for r in range(rows):
            line, here = own + p.strip + r * pitch, target + r * p.target_r
            for panel in range(p.panels - 1):
                offset_tile(
                    REAL, VL, MR, NV, p.steps, p.offsets, weights, p.weight_d, line + panel * NR * ITEM, start, lowest,
                    here + panel * NR * ITEM, p.target_d, depth, NR,
                )  # fmt: skip
            column = (p.panels - 1) * NR
            offset_tile(
                REAL, VL, MR, LAST, p.steps, p.offsets, weights, p.weight_d, line + column * ITEM, start, lowest,
                here + column * ITEM, p.target_d, depth, p.columns - column,
            )  # fmt: skip
            if call.activation != 0:
                for m in range(depth):
                    activate(call, here + m * p.target_d, p.columns)

    return jit.part(multiply_rows)


@functools.cache
def lines() -> CFunc:
    """The kernel for all dtypes and tiles; its tasks are (group, image, block of rows, part of the channels)."""

    def line_tiles(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, LINES)
        own = call.workspace + thread * p.workspace_bytes
        tiles = (p.channels + p.tile_rows - 1) // p.tile_rows
        for task in range(begin, end):
            part, block = task % p.parts, task // p.parts % p.row_blocks
            image = task // p.parts // p.row_blocks % p.n
            group = task // p.parts // p.row_blocks // p.n
            i = block * p.row_block
            rows = min(p.row_block, p.rows - i)
            source = call.source + group * p.source_group + image * p.source_n
            there = p.plane_rows - (p.row_block - rows) * p.row_step
            call_part(p.fill, (call.plan, own, source, i * p.row_step + p.first_row, there))
            target = call.target + group * p.target_group + image * p.target_n + i * p.target_r
            for t in range(tiles * part // p.parts, tiles * (part + 1) // p.parts):
                d = t * p.tile_rows
                weights = call.other + group * p.weight_group + d * p.weight_d
                start = call.start + group * p.start_group + d * p.item
                call_part(p.multiply, (address, own, target + d * p.target_d, weights, start, d, rows))

    return jit.kernel(line_tiles)
