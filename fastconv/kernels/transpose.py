"""Transposition of matrices: between layouts of images, and of weights, at the speed of the caches.

Squares of VL x VL values are loaded, transposed in registers and stored; what is left at the edges is copied value by
value.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import carray, types
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

from fastconv.kernels import jit
from fastconv.kernels.emit import Emitter, literal, scalar_ir
from fastconv.kernels.params import CALL, record
from fastconv.kernels.simd import pointer, record_at
from fastconv.kernels.target import vector_bytes

TRANSPOSE = record("""
    rows columns source_matrix source_row target_matrix target_row
    column_block column_blocks
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


@functools.cache
def transpose(dtype: str) -> CFunc:
    """Transpose matrices; a task is a block of columns of one."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL = vector_bytes() // ITEM

    def transpose_blocks(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, TRANSPOSE)
        for task in range(begin, end):
            matrix, first = task // p.column_blocks, task % p.column_blocks * p.column_block
            last = min(first + p.column_block, p.columns)
            source = call.source + matrix * p.source_matrix
            target = call.target + matrix * p.target_matrix
            whole_rows = p.rows // VL * VL
            whole_columns = first + (last - first) // VL * VL
            for r in range(0, whole_rows, VL):
                for c in range(first, whole_columns, VL):
                    transpose_square(
                        REAL, VL, source + r * p.source_row + c * ITEM, p.source_row, VL,
                        target + c * p.target_row + r * ITEM, p.target_row,
                    )  # fmt: skip
            for r in range(p.rows):
                row = carray(pointer(source + r * p.source_row), p.columns, REAL)
                for c in range(first if r >= whole_rows else whole_columns, last):
                    carray(pointer(target + c * p.target_row + r * ITEM), 1, REAL)[0] = row[c]

    return jit.kernel(transpose_blocks)
