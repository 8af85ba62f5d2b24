"""What the machine can do at its best, measured with the same vectors that the kernels use."""

from __future__ import annotations

import functools

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.kernels import jit
from fastconv.kernels.params import record
from fastconv.kernels.simd import record_at, tensor
from fastconv.kernels.target import Tile
from fastconv.kernels.tiles import CHANNEL_START, multiply_tile

PEAK = record("table weights starts targets")
STREAM = record("values sums block item")


@functools.cache
def peak(dtype: str, tile: Tile) -> CFunc:
    """Multiply-adds of a register tile whose operands never leave the first cache level; a task is one tile."""
    REAL = np.dtype(dtype).type
    VL, MR, NV = tile.VL, tile.MR, tile.NV

    def multiply_at_peak(address, begin, end, thread):
        p = record_at(address, PEAK)
        for _ in range(begin, end):
            multiply_tile(
                REAL, VL, MR, NV, CHANNEL_START, 0, 0, 1, p.table, p.weights, 0, 0,
                p.starts, 0, REAL(-np.inf), p.targets + thread * MR * 8, 0, NV * VL,
            )  # fmt: skip

    return jit.kernel(multiply_at_peak)


@functools.cache
def stream(dtype: str) -> CFunc:
    """Read a long array once; a task is one block of it. Reading sets the pace of a layer with many weights."""
    REAL = np.dtype(dtype).type

    def read_blocks(address, begin, end, thread):
        p = record_at(address, STREAM)
        sums = tensor(REAL, 1, p.sums + thread * 64 * p.item, (64,), (p.item,))
        for task in range(begin, end):
            rows = p.block // 64
            values = tensor(REAL, 1, p.values + task * p.block * p.item, (rows, 64), (64 * p.item, p.item))
            for i in range(rows):
                for j in range(64):
                    sums[j] += values[i, j]

    return jit.kernel(read_blocks)
