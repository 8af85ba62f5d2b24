"""Rows of images with zeros around them, so that every window lies inside, and with channels side by side."""

from __future__ import annotations

import functools

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.kernels import jit
from fastconv.kernels.params import record
from fastconv.kernels.simd import copy_run, record_at, turn_line
from fastconv.kernels.target import vector_bytes
from fastconv.kernels.transpose import MOST_INTERLEAVED, interleave_planes

PAD = record("""
    entry source_group source_n source_r source_rows padded_rows top row_step row_bytes left copied right
    source_first source_k channels columns column_step slots
""")
"""`entry` is the address of `rows`. Strides are in bytes. A padded image has `padded_rows` rows of `row_bytes`: `left`
zeros, `copied` values of a row of the source, `right` zeros. The first of them is the source's row `top`, which may lie
before the image, and the next are `row_step` further. A row's values begin `source_first` bytes after its start. Where
its channels are `source_k` bytes apart, every `column_step`-th of `columns` pixels is taken; `slots` is then the
address of a 0 and column_step - 1 negative numbers."""


@functools.cache
def rows(dtype: str) -> CFunc:
    """The part of kernels that writes the padded rows from `first` to `end`, counted through all images."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL = vector_bytes() // ITEM

    def pad_rows(frame, source, target, first, end):
        q = record_at(frame, PAD)
        for padded in range(first, end):
            place = target + (padded - first) * q.row_bytes
            image, row = padded // q.padded_rows, q.top + padded % q.padded_rows * q.row_step
            if row < 0 or row >= q.source_rows:
                copy_run(REAL, VL, 0, place, q.left + q.copied + q.right)
                continue
            copy_run(REAL, VL, 0, place, q.left)
            here, inside = source + image * q.source_n + row * q.source_r + q.source_first, place + q.left * ITEM
            if q.source_k == ITEM:
                copy_run(REAL, VL, here, inside, q.copied)
            elif q.channels <= MOST_INTERLEAVED and q.column_step == 1:
                interleave_planes(REAL, VL, q.channels, here, q.source_k, inside, q.columns)
            else:
                for k in range(0, q.channels, VL):
                    turn_line(
                        REAL, VL, 1, here, k, q.channels, q.source_k, q.columns, inside + k * ITEM, q.slots,
                        q.column_step, q.channels * ITEM,
                    )  # fmt: skip
            copy_run(REAL, VL, 0, inside + q.copied * ITEM, q.right)

    return jit.part(pad_rows)
