"""Images and matrices turned between NCHW and NHWC: the launches, and what they take."""

from __future__ import annotations

import math

import numpy as np

from fastconv.cost import far_bytes
from fastconv.kernels import transpose as kernels
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import fill
from fastconv.kernels.target import of_this_cpu
from fastconv.problem import ConvProblem

LAUNCH_SECONDS = 3e-6
_VALUE_SECONDS, _NARROW_VALUE_SECONDS = 0.2e-9, 0.36e-9
_SHARED_SECONDS = 0.08e-9
"""More of that for a value which several threads fetch."""
_WAIT_SECONDS = 0.05e-9
"""Moving a byte of images that do not stay in the caches: nothing is multiplied meanwhile."""
_SQUARE = 16
"""Rows and columns of the widest squares that are turned in registers."""
_WRITTEN_BYTES = 1 << 15
"""What a task writes to rows that lie in many pages: it stays in the first cache level."""
_READ_BYTES = 1 << 18
"""What it reads of such rows: it stays in the second one."""
_SHARED_BYTES = 8 << 10
"""Planes that are written by one thread each: larger ones take several as long."""
_GRAINS = 8
"""Runs of tasks that a thread takes one after another."""


def transposition(
    dtype: str, matrices: int, rows: int, columns: int, source: tuple[int, ...], target: tuple[int, ...], threads: int,
    by_rows: bool = False,
) -> Launch:  # fmt: skip
    """Plan `matrices` of rows x columns; `source` and `target` are the strides from matrix to matrix and row to row.

    Tasks are blocks of columns, whose source rows are read along, or `by_rows`, whose target rows are written along.
    """
    long, across, most = (rows, columns, _READ_BYTES) if by_rows else (columns, rows, _WRITTEN_BYTES)
    block = max(1, most // (across * np.dtype(dtype).itemsize) // _SQUARE) * _SQUARE
    if threads > 1:
        block = max(_SQUARE, min(block, -(-matrices * long // (4 * threads * _SQUARE)) * _SQUARE))
    blocks = max(1, (long - _SQUARE) // block)  # the last one takes the rest: none is narrower than a square
    plan = fill(
        kernels.TRANSPOSE, rows=rows, columns=columns, source_matrix=source[0], source_row=source[1],
        target_matrix=target[0], target_row=target[1], by_rows=by_rows, block=block, blocks=blocks,
    )  # fmt: skip
    tasks = matrices * blocks
    return Launch(
        lambda: kernels.transpose(dtype), dtype, plan, tasks, threads, grain=max(1, tasks // (_GRAINS * threads))
    )


def value_seconds() -> float:
    """Predicted time of transposing one value, and fetching it from the cache of the thread that did."""
    return of_this_cpu(_VALUE_SECONDS, _VALUE_SECONDS, _NARROW_VALUE_SECONDS)


def turning_seconds(values: int, threads: int) -> float:
    """Predicted time of a launch that turns so many values."""
    return LAUNCH_SECONDS + values * value_seconds() / threads


def waiting_seconds(problem: ConvProblem, threads: int) -> float:
    """Predicted time of waiting for images that are turned, by all threads together."""
    values = math.prod(problem.x_shape) + math.prod(problem.y_shape)
    return values * _SHARED_SECONDS / threads + far_bytes(problem) * _WAIT_SECONDS


class Images:
    """Transposition of a band of images between NCHW and NHWC."""

    def __init__(
        self, n: int, channels: int, all_channels: int, rows: int, all_rows: int, columns: int, dtype: str, threads: int
    ) -> None:
        item = np.dtype(dtype).itemsize
        pixels, whole = rows * columns, all_rows * columns
        self.shape = (n, rows, columns, channels)
        planes, flat = (all_channels * whole * item, whole * item), (pixels * channels * item, channels * item)
        self.gather = transposition(dtype, n, channels, pixels, planes, flat, threads)
        # Planes that each thread writes a part of would share lines, and each would fetch beyond its own part.
        shared = pixels * item <= _SHARED_BYTES and channels >= 2 * threads * _SQUARE
        self.scatter = transposition(dtype, n, pixels, channels, flat, planes, threads, by_rows=not shared)
        self.size = math.prod(self.shape)
        self.in_squares = self.size // max(1, pixels) * -(-pixels // _SQUARE) * _SQUARE
        """Values of whole squares, in which planes are turned."""

    def seconds(self, threads: int) -> float:
        """Predicted time of one transposition."""
        return turning_seconds(self.size, threads)
