"""Convolution of images by products of spectra, in blocks that stay in the second cache level (overlap-save).

Two blocks of an image are one complex block, the first its real and the second its imaginary part: weights are real, so
one transform, one product and one transform back serve both. A block of n0 by n1 points gives those results that no
point reaches by wrapping around.

A block in space is panels of VL columns, row after row (`fastconv.kernels.fft`). Its spectrum is groups of VL
frequencies of the rows, each n1 frequencies of the columns; between the two, squares of VL x VL values are transposed.

The weight gradient sums products of spectra over blocks of the input and of the output gradient: of both, two blocks
are one complex block, and what the product with the conjugate has as its real part is the sum over the two.
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
from fastconv.kernels.emit import Emitter, literal, scalar_ir
from fastconv.kernels.fft import sum_products
from fastconv.kernels.params import CALL, record
from fastconv.kernels.simd import array_at, call_part, record_at
from fastconv.kernels.target import vector_bytes
from fastconv.kernels.transpose import transpose_square

_TRANSFORMS = "n0 n1 transform tables_0 tables_1 panel_bytes spectrum_bytes"

SPECTRA = record(f"""
    {_TRANSFORMS}
    weight_offset weight_r weight_c weight_k weight_d weight_group taps_r taps_c
    first_group reduction channels
    workspace_bytes
""")
"""`weight_offset` is where the tap lies that meets a window's first pixel; strides lead to those that follow."""

OVERLAP_SAVE = record(f"""
    {_TRANSFORMS}
    source_n source_r source_c source_k source_group source_rows source_columns first_row first_column
    target_n target_r target_c target_d target_group rows columns
    start_group first_group n reduction channels
    step_r step_c blocks_c blocks pairs
    workspace_bytes spectra scratch
""")
"""Strides and `*_group` are in bytes. An image has `blocks` blocks of step_r by step_c results, `blocks_c` of them side
by side, in `pairs` pairs. Spectra of weights follow each other, the first of them of group `first_group`. `spectra` and
`scratch` are offsets into each thread's workspace, which begins with the panels."""

WEIGHT_SPECTRA = record(f"""
    {_TRANSFORMS}
    source_n source_r source_c source_k source_group source_rows source_columns first_row first_column
    gradient_n gradient_r gradient_c gradient_d gradient_group rows columns
    target_r target_c target_k target_d target_group slab_bytes taps_r taps_c
    n reduction channels
    step_r step_c blocks_c blocks pairs slabs
    workspace_bytes spectra scratch sums
""")
"""The same for the weight gradient; blocks are numbered through all images."""


def _rows(emit: Emitter, count: Any, first: Any, end: Any, row: Any) -> None:
    """Emit `row(i, mask)` for each of `count` rows; the mask has the lanes that stand for numbers from 0 to `end`.

    Lane 0 is number `first`. Where all lanes are inside, the mask is None: not every CPU has masked loads.
    """
    builder, lanes = emit.builder, emit.const(emit.vector.count)
    inside = builder.and_(
        builder.icmp_signed(">=", first, emit.const(0)), builder.icmp_signed("<=", emit.add(first, lanes), end)
    )
    with builder.if_else(inside) as (whole, some):
        with whole:
            emit.loop(count, lambda i, _: row(i, None) or [], [])
        with some:
            mask = emit.between(builder.neg(first), builder.sub(end, first))
            emit.loop(count, lambda i, _: row(i, mask) or [], [])


@intrinsic(prefer_literal=True)
def load_rows(
    typingctx: Any, REAL: Any, VL: Any, panel: Any, source: Any, source_r: Any, count: Any, first: Any, end: Any,
    scale: Any,
) -> Any:  # fmt: skip
    """Fill `count` vectors of a panel from numbers `first` and following of rows that have `end`; zeros outside."""
    lanes = literal(VL)
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        panel, source, source_r, count, first, end, scale = args[2:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        factor = emit.broadcast(scale)
        along = emit.add(source, builder.mul(first, emit.const(emit.item)))

        def row(i: Any, mask: Any) -> None:
            place = emit.add(along, builder.mul(i, source_r))
            values = emit.load(place) if mask is None else emit.load_masked(place, mask)
            emit.store(builder.fmul(values, factor), emit.add(panel, builder.mul(i, emit.const(2 * emit.vector_bytes))))

        _rows(emit, count, first, end, row)
        return context.get_dummy_value()

    return types.void(REAL, VL, *[types.intp] * 6, real), codegen


@intrinsic(prefer_literal=True)
def store_rows(
    typingctx: Any, REAL: Any, VL: Any, panel: Any, target: Any, target_r: Any, count: Any, width: Any, start: Any,
    floor: Any,
) -> Any:  # fmt: skip
    """Store the first `width` values of `count` vectors of a panel, plus `start` and not below `floor`."""
    lanes = literal(VL)
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        panel, target, target_r, count, width, start, floor = args[2:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        more, lowest = emit.broadcast(start), emit.broadcast(floor)

        def row(i: Any, mask: Any) -> None:
            value = emit.load(emit.add(panel, builder.mul(i, emit.const(2 * emit.vector_bytes))))
            value = builder.fadd(value, more)
            # An ordered "<" is false for NaN, which therefore passes.
            value = builder.select(builder.fcmp_ordered("<", value, lowest), lowest, value)
            place = emit.add(target, builder.mul(i, target_r))
            if mask is None:
                emit.store(value, place)
            else:
                emit.store_masked(value, place, mask)

        _rows(emit, count, emit.const(0), width, row)
        return context.get_dummy_value()

    return types.void(REAL, VL, *[types.intp] * 5, real, real), codegen


@jit.inline
def load_part(REAL, ITEM, VL, panel, n0, source, pitch_r, pitch_c, row, rows, column, columns, scale):
    """Fill the real or imaginary parts of a panel from an image's `rows` and `columns`, from (row, column) on."""
    row_bytes = 2 * VL * ITEM
    above = min(max(-row, 0), n0)
    below = max(min(rows - row, n0), above) if columns > 0 else above
    for r in range(n0):
        if r < above or r >= below:
            array_at(panel + r * row_bytes, VL, REAL)[:] = REAL(0)
    first = source + (row + above) * pitch_r
    if pitch_c == ITEM:
        load_rows(REAL, VL, panel + above * row_bytes, first, pitch_r, below - above, column, columns, scale)
        return
    for r in range(below - above):
        values = array_at(panel + (above + r) * row_bytes, VL, REAL)
        for lane in range(VL):
            values[lane] = REAL(0)
        for lane in range(max(0, -column), min(VL, columns - column)):
            values[lane] = array_at(first + r * pitch_r + (column + lane) * pitch_c, 1, REAL)[0] * scale


@jit.inline
def load_pair(
    REAL, ITEM, VL, p, panels, pitch_r, pitch_c, scale, source, row, rows, column, columns,
    source_2, row_2, rows_2, column_2, columns_2,
):  # fmt: skip
    """Fill the panels of two blocks and transform them along the rows; `columns` is 0 where there is no block."""
    for panel in range(p.n1 // VL):
        here, first, first_2 = panels + panel * p.panel_bytes, column + panel * VL, column_2 + panel * VL
        if (first >= columns or first + VL <= 0) and (first_2 >= columns_2 or first_2 + VL <= 0):
            array_at(here, p.n0 * 2 * VL, REAL)[:] = REAL(0)
            continue
        load_part(REAL, ITEM, VL, here, p.n0, source, pitch_r, pitch_c, row, rows, first, columns, scale)
        load_part(
            REAL, ITEM, VL, here + VL * ITEM, p.n0, source_2, pitch_r, pitch_c, row_2, rows_2, first_2, columns_2, scale
        )
        call_part(p.transform, (here, p.tables_0, p.n0, 0))


@jit.inline
def turn_group(REAL, ITEM, VL, p, panels, group, place, back):
    """Transpose VL rows of the panels into a group of a spectrum, or back."""
    row_bytes, part_bytes = 2 * VL * ITEM, VL * ITEM
    for c in range(p.n1 // VL):
        for part in range(2):
            there = panels + group * VL * row_bytes + c * p.panel_bytes + part * part_bytes
            here = place + c * VL * row_bytes + part * part_bytes
            source, target = (here, there) if back != 0 else (there, here)
            transpose_square(REAL, VL, source, row_bytes, VL, target, row_bytes)


@jit.inline
def spectrum_of(REAL, ITEM, VL, p, panels, spectrum):
    """Transform panels along the columns."""
    group_bytes = p.n1 * 2 * VL * ITEM
    for group in range(p.n0 // VL):
        here = spectrum + group * group_bytes
        turn_group(REAL, ITEM, VL, p, panels, group, here, 0)
        call_part(p.transform, (here, p.tables_1, p.n1, 0))


@functools.cache
def weight_spectra(dtype: str) -> CFunc:
    """The spectra of weights; a task is the kernel of one source and target channel."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL = vector_bytes() // ITEM

    def transform_weights(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, SPECTRA)
        panels = call.workspace + thread * p.workspace_bytes
        scale = REAL(1.0 / (p.n0 * p.n1))
        for task in range(begin, end):
            k, d, group = task % p.reduction, task // p.reduction % p.channels, task // (p.reduction * p.channels)
            weights = call.other + p.weight_offset + (p.first_group + group) * p.weight_group
            weights += k * p.weight_k + d * p.weight_d
            load_pair(
                REAL, ITEM, VL, p, panels, p.weight_r, p.weight_c, scale, weights, 0, p.taps_r, 0, p.taps_c,
                weights, 0, 0, 0, 0,
            )  # fmt: skip
            spectrum_of(REAL, ITEM, VL, p, panels, call.target + task * p.spectrum_bytes)

    return jit.kernel(transform_weights)


@jit.inline
def store_part(REAL, ITEM, VL, call, panel, rows, width, target, pitch_r, pitch_c, start, lowest):
    """Add `start` to the first `width` values of the panel's rows, apply the activation and store them."""
    row_bytes = 2 * VL * ITEM
    if pitch_c == ITEM and call.activation == 0:
        store_rows(REAL, VL, panel, target, pitch_r, rows, width, start, lowest)
        return
    store_rows(REAL, VL, panel, panel, row_bytes, rows, width, start, lowest)
    for r in range(rows):
        if call.activation != 0:
            activate(call, panel + r * row_bytes, width)
        values = array_at(panel + r * row_bytes, VL, REAL)
        for lane in range(width):
            array_at(target + r * pitch_r + lane * pitch_c, 1, REAL)[0] = values[lane]


@functools.cache
def overlap_save(dtype: str) -> CFunc:
    """The results from the spectra of the weights; a task is a pair of blocks of one group of one image."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL = vector_bytes() // ITEM

    def convolve_pairs(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, OVERLAP_SAVE)
        panels = call.workspace + thread * p.workspace_bytes
        spectra, scratch = panels + p.spectra, panels + p.scratch
        group_bytes = p.n1 * 2 * VL * ITEM
        alone = p.reduction == 1 and p.channels == 1
        lowest = REAL(0) if call.relu != 0 else REAL(-np.inf)
        for task in range(begin, end):
            pair, image, group = task % p.pairs, task // p.pairs % p.n, task // (p.pairs * p.n)
            weights = call.other + group * p.reduction * p.channels * p.spectrum_bytes
            group += p.first_group
            block, block_2 = 2 * pair, 2 * pair + 1
            top, left = block // p.blocks_c * p.step_r, block % p.blocks_c * p.step_c
            top_2, left_2 = block_2 // p.blocks_c * p.step_r, block_2 % p.blocks_c * p.step_c
            height, width = min(p.step_r, p.rows - top), min(p.step_c, p.columns - left)
            height_2, width_2 = min(p.step_r, p.rows - top_2), min(p.step_c, p.columns - left_2)
            columns_2 = p.source_columns
            if block_2 >= p.blocks:
                height_2 = width_2 = columns_2 = 0
            for k in range(p.reduction):
                source = call.source + image * p.source_n + group * p.source_group + k * p.source_k
                load_pair(
                    REAL, ITEM, VL, p, panels, p.source_r, p.source_c, REAL(1),
                    source, top + p.first_row, p.source_rows, left + p.first_column, p.source_columns,
                    source, top_2 + p.first_row, p.source_rows, left_2 + p.first_column, columns_2,
                )  # fmt: skip
                if not alone:
                    spectrum_of(REAL, ITEM, VL, p, panels, spectra + k * p.spectrum_bytes)
            for d in range(p.channels):
                for g in range(p.n0 // VL):
                    given = spectra + g * group_bytes
                    if alone:  # nothing else needs the spectrum: a group of it stays in the first cache level
                        given = scratch
                        turn_group(REAL, ITEM, VL, p, panels, g, scratch, 0)
                        call_part(p.transform, (scratch, p.tables_1, p.n1, 0))
                    sum_products(
                        REAL, VL, 0, scratch, given, p.spectrum_bytes,
                        weights + d * p.reduction * p.spectrum_bytes + g * group_bytes, p.spectrum_bytes,
                        p.reduction, p.n1,
                    )  # fmt: skip
                    call_part(p.transform, (scratch, p.tables_1, p.n1, 1))
                    turn_group(REAL, ITEM, VL, p, panels, g, scratch, 1)
                start = array_at(call.start + group * p.start_group + d * ITEM, 1, REAL)[0]
                target = call.target + image * p.target_n + group * p.target_group + d * p.target_d
                for panel in range((max(width, width_2) + VL - 1) // VL):
                    here, first = panels + panel * p.panel_bytes, panel * VL
                    call_part(p.transform, (here, p.tables_0, p.n0, 1))
                    store_part(
                        REAL, ITEM, VL, call, here, height, min(VL, max(width - first, 0)),
                        target + top * p.target_r + (left + first) * p.target_c, p.target_r, p.target_c, start, lowest,
                    )  # fmt: skip
                    store_part(
                        REAL, ITEM, VL, call, here + VL * ITEM, height_2, min(VL, max(width_2 - first, 0)),
                        target + top_2 * p.target_r + (left_2 + first) * p.target_c, p.target_r, p.target_c, start,
                        lowest,
                    )  # fmt: skip

    return jit.kernel(convolve_pairs)


@functools.cache
def overlap_save_weights(dtype: str) -> CFunc:
    """The weight gradient; a task is a slab of the pairs of blocks, for one group."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL = vector_bytes() // ITEM

    def correlate_pairs(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, WEIGHT_SPECTRA)
        panels = call.workspace + thread * p.workspace_bytes
        spectra, scratch, sums = panels + p.spectra, panels + p.scratch, panels + p.sums
        group_bytes = p.n1 * 2 * VL * ITEM
        scale = REAL(1.0 / (p.n0 * p.n1))
        total = p.blocks
        for task in range(begin, end):
            slab, group = task % p.slabs, task // p.slabs
            array_at(sums, p.reduction * p.channels * p.spectrum_bytes // ITEM, REAL)[:] = REAL(0)
            for pair in range(p.pairs * slab // p.slabs, p.pairs * (slab + 1) // p.slabs):
                block, block_2 = 2 * pair, 2 * pair + 1
                image, block = block // total, block % total
                image_2, block_2 = block_2 // total, block_2 % total
                there_2 = image_2 < p.n
                if not there_2:
                    image_2 = 0
                top, left = block // p.blocks_c * p.step_r, block % p.blocks_c * p.step_c
                top_2, left_2 = block_2 // p.blocks_c * p.step_r, block_2 % p.blocks_c * p.step_c
                source = call.source + image * p.source_n + group * p.source_group
                source_2 = call.source + image_2 * p.source_n + group * p.source_group
                for k in range(p.reduction):
                    load_pair(
                        REAL, ITEM, VL, p, panels, p.source_r, p.source_c, REAL(1),
                        source + k * p.source_k, top + p.first_row, p.source_rows,
                        left + p.first_column, p.source_columns,
                        source_2 + k * p.source_k, top_2 + p.first_row, p.source_rows,
                        left_2 + p.first_column, p.source_columns if there_2 else 0,
                    )  # fmt: skip
                    spectrum_of(REAL, ITEM, VL, p, panels, spectra + k * p.spectrum_bytes)
                gradient = call.other + image * p.gradient_n + group * p.gradient_group
                gradient_2 = call.other + image_2 * p.gradient_n + group * p.gradient_group
                for d in range(p.channels):
                    load_pair(
                        REAL, ITEM, VL, p, panels, p.gradient_r, p.gradient_c, scale,
                        gradient + d * p.gradient_d, top, min(p.rows, top + p.step_r),
                        left, min(p.columns, left + p.step_c),
                        gradient_2 + d * p.gradient_d, top_2, min(p.rows, top_2 + p.step_r),
                        left_2, min(p.columns, left_2 + p.step_c) if there_2 else 0,
                    )  # fmt: skip
                    for g in range(p.n0 // VL):
                        turn_group(REAL, ITEM, VL, p, panels, g, scratch, 0)
                        call_part(p.transform, (scratch, p.tables_1, p.n1, 0))
                        for k in range(p.reduction):
                            sum_products(
                                REAL, VL, 1, sums + (d * p.reduction + k) * p.spectrum_bytes + g * group_bytes,
                                spectra + k * p.spectrum_bytes + g * group_bytes, 0, scratch, 0, 1, p.n1,
                            )  # fmt: skip
            for d in range(p.channels):
                for k in range(p.reduction):
                    here = sums + (d * p.reduction + k) * p.spectrum_bytes
                    for g in range(p.n0 // VL):
                        call_part(p.transform, (here + g * group_bytes, p.tables_1, p.n1, 1))
                        turn_group(REAL, ITEM, VL, p, panels, g, here + g * group_bytes, 1)
                    target = call.target + slab * p.slab_bytes + group * p.target_group
                    target += k * p.target_k + d * p.target_d
                    for panel in range((p.taps_c + VL - 1) // VL):
                        place, first = panels + panel * p.panel_bytes, panel * VL
                        call_part(p.transform, (place, p.tables_0, p.n0, 1))
                        store_part(
                            REAL, ITEM, VL, call, place, p.taps_r, min(VL, p.taps_c - first),
                            target + first * p.target_c, p.target_r, p.target_c, REAL(0), REAL(-np.inf),
                        )  # fmt: skip

    return jit.kernel(correlate_pairs)
