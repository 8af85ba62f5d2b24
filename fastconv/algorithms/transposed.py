"""NCHW problems as NHWC ones: images are transposed band by band, through a scratch area that stays in the caches.

Kernels with channels in the lanes need the channels of a pixel side by side. Transposing moves every value twice more,
which costs little where each takes part in many products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fastconv.algorithms.base import PLAIN, Algorithm, Epilogue, Estimate, Operation, scratch_limit
from fastconv.kernels import transpose as kernels
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import Buffer, aligned, fill
from fastconv.problem import CHANNELS_LAST, ConvProblem

if TYPE_CHECKING:
    from fastconv.machine import Machine

_VALUE_SECONDS = 0.6e-9
"""Transposing one value, and fetching it from the cache of the thread that did."""
_LAUNCH_SECONDS = 8e-6
_COLUMN_BLOCK = 256
_BAND_ROWS = 2
"""Rows of a band for each row of the kernel: what bands overlap is transposed twice."""


@dataclass(frozen=True)
class Band:
    """Images `first` to `last`, the output rows `top` to `bottom` and the input rows `low` to `high`."""

    first: int
    last: int
    top: int
    bottom: int
    low: int
    high: int
    problem: ConvProblem


def _rows_read(problem: ConvProblem, top: int, bottom: int) -> tuple[int, int]:
    """The input rows that the output rows from `top` to `bottom` read, those in the padding left out."""
    before, step = problem.padding[0][0], problem.stride[0]
    reach = (problem.kernel_size[0] - 1) * problem.dilation[0]
    return max(top * step - before, 0), min((bottom - 1) * step - before + reach + 1, problem.input_size[0])


def _rows_reaching(problem: ConvProblem, low: int, high: int) -> tuple[int, int]:
    """The output rows that read any of the input rows from `low` to `high`, and begin no later than these."""
    before, step = problem.padding[0][0], problem.stride[0]
    reach = (problem.kernel_size[0] - 1) * problem.dilation[0]
    top = min((low + before) // step, -(-(low + before - reach) // step))
    return max(top, 0), min((high - 1 + before) // step + 1, problem.output_size[0])


def _row_band(problem: ConvProblem, direction: str, image: int, first: int, last: int, layout: str) -> Band | None:
    """The part of one image that makes some rows of the result; None where that is no problem of its own."""
    if direction == "forward":
        (top, bottom), (low, high) = (first, last), _rows_read(problem, first, last)
    else:
        (low, high), (top, bottom) = (first, last), _rows_reaching(problem, first, last)
    if low >= high or top >= bottom:
        return None
    before, step = problem.padding[0][0], problem.stride[0]
    begin = top * step - before
    end = (bottom - 1) * step - before + (problem.kernel_size[0] - 1) * problem.dilation[0] + 1
    padding = ((low - begin, max(end - high, 0)), problem.padding[1])
    size = (high - low, problem.input_size[1])
    part = replace(problem, n=1, input_size=size, padding=padding, layout=layout)
    if part.output_size[0] != bottom - top:
        return None
    return Band(image, image + 1, top, bottom, low, high, part)


def bands_of(problem: ConvProblem, direction: str, layout: str) -> list[Band] | None:
    """Cut a problem into bands whose scratch is small enough; None where that cannot be done.

    `layout` is that of the bands' own problems, CHANNELS_LAST or IMAGES_LAST.
    """
    item, n = problem.itemsize, problem.n
    limit = scratch_limit(problem, 2)  # whatever the threads: the choice of bands must not depend on them
    if layout == CHANNELS_LAST:
        limit -= math.prod(problem.w_shape) * item
    each = (math.prod(problem.x_shape) + math.prod(problem.y_shape)) // n * item
    (ih, _), (oh, _) = problem.input_size, problem.output_size
    together = int(min(n, limit // each))
    if direction == "grad_weight" and together < n:
        return None  # partial gradients would have to be added
    if together >= 1:
        return [
            Band(first, min(first + together, n), 0, oh, 0, ih,
                  replace(problem, n=min(together, n - first), layout=layout))
            for first in range(0, n, together)
        ]  # fmt: skip
    if limit <= 0:
        return None
    count = oh if direction == "forward" else ih
    rows = -(-count // -(-each // int(limit)))
    if rows < _BAND_ROWS * problem.kernel_size[0]:
        return None
    starts = [(image, first) for image in range(n) for first in range(0, count, rows)]
    bands = [_row_band(problem, direction, image, first, min(first + rows, count), layout) for image, first in starts]
    return None if None in bands else bands  # type: ignore[return-value]


def transposition(
    dtype: str, matrices: int, rows: int, columns: int, source: tuple[int, ...], target: tuple[int, ...], threads: int
) -> Launch:
    """Plan `matrices` of rows x columns; `source` and `target` are the strides from matrix to matrix and row to row."""
    block = min(columns, _COLUMN_BLOCK)
    if threads > 1:
        block = max(16, min(block, -(-matrices * columns // (4 * threads * 16)) * 16))
    blocks = -(-columns // block)
    plan = fill(
        kernels.TRANSPOSE, rows=rows, columns=columns, source_matrix=source[0], source_row=source[1],
        target_matrix=target[0], target_row=target[1], column_block=block, column_blocks=blocks,
    )  # fmt: skip
    return Launch(lambda: kernels.transpose(dtype), dtype, plan, matrices * blocks, threads)


class _Images:
    """Transposition of a band of images between NCHW and NHWC."""

    def __init__(self, n: int, channels: int, rows: int, full_rows: int, columns: int, dtype: str, threads: int):
        item = np.dtype(dtype).itemsize
        pixels, whole = rows * columns, full_rows * columns
        self.shape = (n, rows, columns, channels)
        planes, flat = (channels * whole * item, whole * item), (pixels * channels * item, channels * item)
        self.gather = transposition(dtype, n, channels, pixels, planes, flat, threads)
        self.scatter = transposition(dtype, n, pixels, channels, flat, planes, threads)
        self.size = math.prod(self.shape)


class TransposedOperation(Operation):
    """An operation of another algorithm on transposed images, and on transposed weights if it asks for them."""

    def __init__(self, problem: ConvProblem, direction: str, bands: list[Band], algorithm: Algorithm, threads: int):
        self.problem = problem
        self.direction = direction
        self._bands = bands
        plans: dict[ConvProblem, tuple[Operation, _Images, _Images]] = {}
        dtype, (ih, iw), (oh, ow) = problem.dtype, problem.input_size, problem.output_size
        for band in bands:
            if band.problem not in plans:
                x = _Images(band.problem.n, problem.ic, band.high - band.low, ih, iw, dtype, threads)
                y = _Images(band.problem.n, problem.oc, band.bottom - band.top, oh, ow, dtype, threads)
                plans[band.problem] = algorithm.plan(band.problem, direction, threads), x, y
        self._plans = plans
        item, oc = problem.itemsize, problem.oc
        self._w_shape = bands[0].problem.w_shape
        self._turns_weights = bands[0].problem.layout == CHANNELS_LAST
        self._w_bytes = math.prod(self._w_shape) * item if self._turns_weights else 0
        depth = math.prod(problem.w_shape) // oc
        self._weights_in = transposition(dtype, 1, oc, depth, (0, depth * item), (0, oc * item), threads)
        self._weights_out = transposition(dtype, 1, depth, oc, (0, oc * item), (0, depth * item), threads)
        self._unused = np.zeros(1, dtype)
        self._threads = threads
        self._scratch = max(x.size + y.size for _, x, y in plans.values()) * item
        inner = max(operation.workspace_bytes for operation, _, _ in plans.values())
        self.workspace_bytes = self._scratch + self._w_bytes + inner
        self.prepared_key = self

    def _moving_seconds(self) -> float:
        values = sum(self._plans[band.problem][1].size + self._plans[band.problem][2].size for band in self._bands)
        values += self._w_bytes // self.problem.itemsize
        return 2 * len(self._bands) * _LAUNCH_SECONDS + values * _VALUE_SECONDS / self._threads

    def seconds(self, rate: float) -> float:
        """Predicted time with `rate` slots a second on each thread."""
        inner = sum(self._plans[band.problem][0].seconds(rate) for band in self._bands)  # type: ignore[attr-defined]
        return inner + self._moving_seconds()

    def estimate(self, machine: Machine) -> Estimate:
        estimates = [self._plans[band.problem][0].estimate(machine) for band in self._bands]
        seconds = sum(estimate.seconds for estimate in estimates) + self._moving_seconds()
        return Estimate(seconds, f"transposed in {len(self._bands)} bands: {estimates[0].reason}")

    def prepare(self, w: np.ndarray) -> Any:
        weights = w
        if self._turns_weights:
            weights = aligned(self._w_shape, self.problem.dtype)
            self._weights_in(w, w, self._unused, weights)
        return weights, {operation: operation.prepare(weights) for operation, _, _ in self._plans.values()}

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: Any = None,
    ) -> None:  # fmt: skip
        item, dtype = self.problem.itemsize, self.problem.dtype
        with Buffer(self._scratch + (0 if prepared else self._w_bytes)) as buffer:

            def view(offset: int, shape: tuple[int, ...]) -> np.ndarray:
                return buffer[offset : offset + math.prod(shape) * item].view(dtype).reshape(shape)

            packed: dict[Operation, Any] = {}
            weights = second
            if prepared:
                weights, packed = prepared
            elif self._turns_weights:
                weights = view(self._scratch, self._w_shape)
                if self.direction != "grad_weight":
                    self._weights_in(second, second, self._unused, weights)
            for band in self._bands:
                operation, x, y = self._plans[band.problem]
                images, rows = slice(band.first, band.last), slice(band.low, band.high)
                x_here, y_here = view(0, x.shape), view(x.size * item, y.shape)
                if self.direction == "forward":
                    self._move(x.gather, first[images, :, rows], x_here)
                    operation.run(x_here, weights, y_here, epilogue, packed.get(operation))
                    self._move(y.scatter, y_here, result[images, :, band.top : band.bottom])
                elif self.direction == "grad_input":
                    self._move(y.gather, first[images, :, band.top : band.bottom], y_here)
                    operation.run(y_here, weights, x_here, PLAIN, packed.get(operation))
                    self._move(x.scatter, x_here, result[images, :, rows])
                else:
                    self._move(y.gather, first[images], y_here)
                    self._move(x.gather, second[images], x_here)
                    operation.run(y_here, x_here, weights)
                    self._move(self._weights_out, weights, result)

    def _move(self, launch: Launch, source: np.ndarray, target: np.ndarray) -> None:
        launch(source, source, self._unused, target)
