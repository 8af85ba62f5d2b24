"""Rows of images with zeros around them, so that every window lies inside."""

from __future__ import annotations

from fastconv.kernels import jit
from fastconv.kernels.params import record
from fastconv.kernels.simd import copy_run

PAD = record("source_n source_r source_rows padded_rows top row_bytes left copied right")
"""Strides are in bytes. A padded image has `padded_rows` rows of `row_bytes`: `left` zeros, `copied` values of a row of
the source, `right` zeros. The first of them is the source's row `top`, which may lie before the image."""


@jit.inline
def pad_rows(q, REAL, ITEM, VL, source, target, first, end):
    """Write the padded rows from `first` to `end`, counted through all images."""
    for padded in range(first, end):
        place = target + (padded - first) * q.row_bytes
        image, row = padded // q.padded_rows, padded % q.padded_rows + q.top
        if row < 0 or row >= q.source_rows:
            copy_run(REAL, VL, 0, place, q.left + q.copied + q.right)
            continue
        copy_run(REAL, VL, 0, place, q.left)
        copy_run(REAL, VL, source + image * q.source_n + row * q.source_r, place + q.left * ITEM, q.copied)
        copy_run(REAL, VL, 0, place + (q.left + q.copied) * ITEM, q.right)
