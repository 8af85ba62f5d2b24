"""Transposition of matrices: between layouts of images, and of weights, at the speed of the caches.

Squares of VL x VL values are loaded, transposed in registers and stored; matrices with a shorter side are copied value
by value.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import types
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

from fastconv.kernels import jit
from fastconv.kernels.emit import Emitter, literal, scalar_ir
from fastconv.kernels.params import CALL, record
from fastconv.kernels.simd import array_at, copy_run, interleave, record_at
from fastconv.kernels.target import vector_bytes

TRANSPOSE = record("""
    rows columns source_matrix source_row target_matrix target_row
    by_rows block blocks
""")
"""Strides are in bytes, from matrix to matrix and from row to row; the values of a row lie side by side."""


@intrinsic(prefer_literal=True)
def transpose_square(
    typingctx: Any, REAL: Any, VL: Any, source: Any, source_row: Any, rows: Any, target: Any, target_row: Any
) -> Any:  # fmt: skip
    """Transpose VL rows of VL values, `source_row` bytes apart, into as many that are `target_row` bytes apart.

    Rows past the first `rows` are not read: the last of these stands for them.
    """
    lanes = literal(VL)
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, source_row, rows, target, target_row = args[2:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        vectors = []
        for i in range(lanes):
            vectors.append(emit.load(source))
            more = builder.icmp_signed("<", emit.const(i + 1), rows)
            source = builder.select(more, emit.add(source, source_row), source)
        for vector in emit.transposed(vectors):
            emit.store(vector, target)
            target = emit.add(target, target_row)
        return context.get_dummy_value()

    return types.void(REAL, VL, *[types.intp] * 5), codegen


MOST_INTERLEAVED = 4
"""Planes that are interleaved without wasted lanes."""


@jit.inline
def interleave_planes(REAL, VL, planes, source, plane_bytes, target, pixels):
    """Write the pixels of up to `MOST_INTERLEAVED` planes one after another, the values of each side by side."""
    if planes == 1:
        copy_run(REAL, VL, source, target, pixels)
    elif planes == 2:
        interleave(REAL, VL, 2, source, plane_bytes, target, pixels)
    elif planes == 3:
        interleave(REAL, VL, 3, source, plane_bytes, target, pixels)
    else:
        interleave(REAL, VL, 4, source, plane_bytes, target, pixels)


@jit.inline
def turn_square(REAL, ITEM, VL, p, source, target, row, column):
    """Transpose the square that begins there."""
    transpose_square(
        REAL, VL, source + row * p.source_row + column * ITEM, p.source_row, VL,
        target + column * p.target_row + row * ITEM, p.target_row,
    )  # fmt: skip


@jit.inline
def lead_of(VL, ITEM, address):
    """Values before the first that begins an aligned vector."""
    return -address // ITEM % VL


@jit.inline
def block_of(p, block, size, lead):
    """The values of an axis that are a task's, or all: but for the first's and the last's, whole vectors."""
    first = block * p.block + lead if block > 0 else 0
    return first, (block + 1) * p.block + lead if 0 <= block < p.blocks - 1 else size


@jit.inline
def squares_of(VL, first, last, lead):
    """Where the squares of a block begin; the first and the last are moved inside (`inside`)."""
    return range(lead - VL if first == 0 and lead > 0 else first, last, VL)


@jit.inline
def inside(VL, first, last, at):
    """The beginning of a square moved inside its block."""
    return min(max(at, first), last - VL)


@functools.cache
def transpose(dtype: str) -> CFunc:
    """Transpose matrices; a task is a block of columns of one, or of rows.

    Squares begin where vectors of the source's rows, and of the target's, are aligned, but for the first and the last
    of an axis, which overlap their neighbours: else each vector meets two cache lines, which are gone from the first
    cache level before the next vector where rows lie a multiple of 4 KiB apart.
    """
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL = vector_bytes() // ITEM

    def transpose_blocks(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, TRANSPOSE)
        for task in range(begin, end):
            matrix, block = task // p.blocks, task % p.blocks
            source = call.source + matrix * p.source_matrix
            target = call.target + matrix * p.target_matrix
            lead_r, lead_c = lead_of(VL, ITEM, target), lead_of(VL, ITEM, source)
            top, bottom = block_of(p, block if p.by_rows != 0 else -1, p.rows, lead_r)
            first, last = block_of(p, -1 if p.by_rows != 0 else block, p.columns, lead_c)
            if bottom - top < VL or last - first < VL:
                for r in range(top, bottom):
                    row = array_at(source + r * p.source_row, p.columns, REAL)
                    for c in range(first, last):
                        array_at(target + c * p.target_row + r * ITEM, 1, REAL)[0] = row[c]
            elif p.by_rows != 0:
                for c in squares_of(VL, first, last, lead_c):
                    column = inside(VL, first, last, c)
                    for r in squares_of(VL, top, bottom, lead_r):
                        turn_square(REAL, ITEM, VL, p, source, target, inside(VL, top, bottom, r), column)
            else:
                for r in squares_of(VL, top, bottom, lead_r):
                    row = inside(VL, top, bottom, r)
                    for c in squares_of(VL, first, last, lead_c):
                        column = inside(VL, first, last, c)
                        turn_square(REAL, ITEM, VL, p, source, target, row, column)

    return jit.kernel(transpose_blocks)


TURN_GROUPS = record("taps groups inputs outputs")
"""Weights (taps, inputs, groups, outputs), of which (taps, outputs, groups, inputs) are made; all lie side by side."""


@functools.cache
def turn_groups(dtype: str) -> CFunc:
    """Exchange the channels of each group of weights; tasks are taps."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize

    def turn_taps(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, TURN_GROUPS)
        size, row = p.inputs * p.groups * p.outputs, p.groups * p.outputs
        for tap in range(begin, end):
            source = array_at(call.source + tap * size * ITEM, size, REAL)
            target = array_at(call.target + tap * size * ITEM, size, REAL)
            for group in range(p.groups):
                for d in range(p.outputs):
                    first, there = group * p.outputs + d, (d * p.groups + group) * p.inputs
                    for k in range(p.inputs):
                        target[there + k] = source[first + k * row]

    return jit.kernel(turn_taps)
