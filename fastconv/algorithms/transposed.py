"""NCHW problems as NHWC ones: images are transposed band by band, through a scratch area that stays in the caches.

Kernels with channels in the lanes need the channels of a pixel side by side. Transposing moves every value twice more,
which costs little where each takes part in many products.
"""

from __future__ import annotations

import functools
import itertools
import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fastconv.algorithms.base import PLAIN, Algorithm, Epilogue, Estimate, Operation, scratch_limit
from fastconv.arrays import QUIET
from fastconv.cost import far_bytes
from fastconv.kernels import transpose as kernels
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import Buffer, aligned, fill
from fastconv.problem import CHANNELS_LAST, ConvProblem

if TYPE_CHECKING:
    from fastconv.machine import Machine

_VALUE_SECONDS = 0.2e-9
"""Transposing one value, and fetching it from the cache of the thread that did."""
_SHARED_SECONDS = 0.08e-9
"""More of that for a value which several threads fetch."""
_WEIGHT_SECONDS = 0.5e-9
"""The same of a weight, of which each thread fetches more than it turned."""
_LAUNCH_SECONDS = 3e-6
_WAIT_SECONDS = 0.05e-9
"""Moving a byte of images that do not stay in the caches: nothing is multiplied meanwhile."""
_ADD_SECONDS = 0.3e-9
"""Adding a weight's gradient of one band to that of those before."""
_UNUSED = {dtype: np.zeros(1, dtype) for dtype in ("float32", "float64")}
"""Stands for what sums begin with, which moving has none of."""
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
_CHANNEL_BLOCKS = (64, 32, 16)
"""Output channels of a block are a multiple of these: of the widest register tile's, or of narrower ones where those
are too many."""
_WEIGHTS_OF_SCRATCH = 4
"""Least part of the scratch that the weights of a block may take."""
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


def row_band(problem: ConvProblem, direction: str, image: int, first: int, last: int, layout: str) -> Band | None:
    """The part of one image that makes some rows of the result; None where that is no problem of its own."""
    if direction == "forward":
        (top, bottom), (low, high) = (first, last), _rows_read(problem, first, last)
    else:
        (low, high), (top, bottom) = (first, last), _rows_reaching(problem, first, last)
        if last == problem.input_size[0]:
            bottom = problem.output_size[0]  # tiles over the image's edge read further, and bits are to be theirs
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


def bands_of(problem: ConvProblem, direction: str, layout: str, together: int = 1) -> list[Band] | None:
    """Cut a problem into bands whose scratch is small enough; None where that cannot be done.

    `layout` is that of the bands' own problems, CHANNELS_LAST or IMAGES_LAST; bands are multiples of `together` rows.
    """
    limit = scratch_limit(replace(problem, n=1), 2)  # whatever the threads and the batch: bits depend on the bands
    if layout == CHANNELS_LAST:
        limit -= math.prod(problem.w_shape) * problem.itemsize
    each = (math.prod(problem.x_shape) + math.prod(problem.y_shape)) // problem.n * problem.itemsize
    return _bands_within(problem, direction, layout, int(limit), each, together)


def _bands_within(
    problem: ConvProblem, direction: str, layout: str, limit: int, each: int, multiple: int = 1
) -> list[Band] | None:  # fmt: skip
    """Bands that take no more than `limit` bytes of scratch, where a whole image takes `each`."""
    n, (ih, _), (oh, _) = problem.n, problem.input_size, problem.output_size
    together = min(n, limit // each)
    if together >= 1:
        return [
            Band(first, min(first + together, n), 0, oh, 0, ih,
                  replace(problem, n=min(together, n - first), layout=layout))
            for first in range(0, n, together)
        ]  # fmt: skip
    if limit <= 0:
        return None
    count = oh if direction == "forward" else ih
    rows = -(-count // -(-each // limit) // multiple) * multiple
    if rows < _BAND_ROWS * problem.kernel_size[0]:
        return None
    starts = [(image, first) for image in range(n) for first in range(0, count, rows)]
    bands = [row_band(problem, direction, image, first, min(first + rows, count), layout) for image, first in starts]
    return None if None in bands else bands  # type: ignore[return-value]


@dataclass(frozen=True)
class Cut:
    """How a weight gradient is cut: the gradients of all bands are added, for some output channels after others."""

    bands: tuple[Band, ...]
    starts: tuple[int, ...]
    """The first channel of each block of them, and the end of the last."""


def cut_of(problem: ConvProblem) -> Cut | None:
    """Cut a weight gradient so that its scratch is small enough; None where that cannot be done."""
    cuts = (_cut(problem, block, whole) for block in _CHANNEL_BLOCKS for whole in (True, False))
    return next((cut for cut in cuts if cut is not None), None)


def _cut(problem: ConvProblem, block: int, whole: bool) -> Cut | None:
    """The same in blocks of a multiple of `block` channels, whose images are `whole` or cut into bands."""
    limit = int(scratch_limit(problem, 2))
    w_bytes = math.prod(problem.w_shape) * problem.itemsize
    parts = -(-w_bytes * _WEIGHTS_OF_SCRATCH // limit) if problem.groups == 1 else 1
    width = -(-problem.oc // parts // block) * block
    starts = list(range(0, problem.oc, width))
    if problem.oc - starts[-1] < block and len(starts) > 1:
        starts.pop()
    width = max(end - start for start, end in itertools.pairwise((*starts, problem.oc)))
    # One block's gradient, and that of a band which is added to it.
    limit -= (1 if whole else 2) * (w_bytes * width // problem.oc)
    each = math.prod(problem.x_shape) + math.prod(problem.y_shape) * width // problem.oc
    bands = _bands_within(problem, "forward", CHANNELS_LAST, limit, each // problem.n * problem.itemsize)
    if bands is None or (whole and len(bands) > 1):
        return None
    return Cut(tuple(bands), (*starts, problem.oc))


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


def turning_seconds(values: int, threads: int) -> float:
    """Predicted time of a launch that turns so many values."""
    return _LAUNCH_SECONDS + values * _VALUE_SECONDS / threads


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


class MovingOperation(Operation):
    """Operations on what is moved before them, and whose results are moved after."""

    problem: ConvProblem
    _threads: int

    @property
    @abstractmethod
    def inner(self) -> list[Operation]:
        """The operations, one after another."""

    @abstractmethod
    def _moving_seconds(self) -> float:
        """Predicted time of what is moved."""

    @abstractmethod
    def _how(self) -> str:
        """What is moved, in words."""

    def seconds(self, rate: float) -> float:
        """Predicted time with `rate` slots a second on each thread."""
        return sum(step.seconds(rate) for step in self.inner) + self._moving_seconds()  # type: ignore[attr-defined]

    def estimate(self, machine: Machine) -> Estimate:
        estimates = [step.estimate(machine) for step in self.inner]
        seconds = sum(estimate.seconds for estimate in estimates) + self._moving_seconds()
        return Estimate(seconds, f"{self._how()}: {estimates[0].reason}")

    def _view(self, buffer: np.ndarray, offset: int, shape: tuple[int, ...]) -> np.ndarray:
        """An array in lent memory, from the value at `offset` on."""
        item, dtype = self.problem.itemsize, self.problem.dtype
        return buffer[offset * item : (offset + math.prod(shape)) * item].view(dtype).reshape(shape)

    def _move(self, launch: Launch, source: np.ndarray, target: np.ndarray) -> None:
        launch(source, source, _UNUSED[self.problem.dtype], target)


class TransposedOperation(MovingOperation):
    """An operation of another algorithm on transposed images, and on transposed weights if it asks for them."""

    def __init__(self, problem: ConvProblem, direction: str, bands: list[Band], algorithm: Algorithm, threads: int):
        self.problem = problem
        self.direction = direction
        self._bands = bands
        plans: dict[ConvProblem, tuple[Operation, Images, Images]] = {}
        dtype, (ih, iw), (oh, ow) = problem.dtype, problem.input_size, problem.output_size
        for band in bands:
            if band.problem not in plans:
                n, ic, oc = band.problem.n, problem.ic, problem.oc
                x = Images(n, ic, ic, band.high - band.low, ih, iw, dtype, threads)
                y = Images(n, oc, oc, band.bottom - band.top, oh, ow, dtype, threads)
                plans[band.problem] = algorithm.plan(band.problem, direction, threads), x, y
        self._plans = plans
        item, oc = problem.itemsize, problem.oc
        self._w_shape = bands[0].problem.w_shape
        self._turns_weights = bands[0].problem.layout == CHANNELS_LAST
        self._w_bytes = math.prod(self._w_shape) * item if self._turns_weights else 0
        depth = math.prod(problem.w_shape) // oc
        self._weights_in = transposition(dtype, 1, oc, depth, (0, depth * item), (0, oc * item), threads)
        self._threads = threads
        self._scratch = max(x.size + y.size for _, x, y in plans.values()) * item
        inner = max(operation.workspace_bytes for operation, _, _ in plans.values())
        self.workspace_bytes = self._scratch + self._w_bytes + inner
        self.prepared_key = self

    def _moving_seconds(self) -> float:
        images = [images for band in self._bands for images in self._plans[band.problem][1:]]
        weights = self._w_bytes // self.problem.itemsize * _WEIGHT_SECONDS / self._threads
        return (
            sum(each.seconds(self._threads) for each in images) + weights + waiting_seconds(self.problem, self._threads)
        )

    @property
    def inner(self) -> list[Operation]:
        return [self._plans[band.problem][0] for band in self._bands]

    def _how(self) -> str:
        return f"transposed in {len(self._bands)} bands"

    def prepare(self, w: np.ndarray) -> Any:
        weights = w
        if self._turns_weights:
            weights = aligned(self._w_shape, self.problem.dtype)
            self._move(self._weights_in, w, weights)
        return weights, {operation: operation.prepare(weights) for operation, _, _ in self._plans.values()}

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: Any = None,
    ) -> None:  # fmt: skip
        with Buffer(self._scratch + (0 if prepared else self._w_bytes)) as buffer:
            packed: dict[Operation, Any] = {}
            weights = second
            if prepared:
                weights, packed = prepared
            elif self._turns_weights:
                weights = self._view(buffer, self._scratch // self.problem.itemsize, self._w_shape)
                self._move(self._weights_in, second, weights)
            for band in self._bands:
                operation, x, y = self._plans[band.problem]
                images, rows = slice(band.first, band.last), slice(band.low, band.high)
                x_here, y_here = self._view(buffer, 0, x.shape), self._view(buffer, x.size, y.shape)
                if self.direction == "forward":
                    self._move(x.gather, first[images, :, rows], x_here)
                    operation.run(x_here, weights, y_here, epilogue, packed.get(operation))
                    self._move(y.scatter, y_here, result[images, :, band.top : band.bottom])
                else:
                    self._move(y.gather, first[images, :, band.top : band.bottom], y_here)
                    operation.run(y_here, weights, x_here, PLAIN, packed.get(operation))
                    self._move(x.scatter, x_here, result[images, :, rows])


@dataclass(frozen=True)
class _Block:
    """The output channels from `start` to `end` of one band."""

    band: Band
    start: int
    end: int
    operation: Operation
    x: Images
    y: Images
    turn: Launch
    """Lays the gradient's transposed weights as the caller's lie."""


class TransposedGradient(MovingOperation):
    """A weight gradient of another algorithm on transposed images, band by band and channel block by channel block."""

    def __init__(self, problem: ConvProblem, cut: Cut, algorithm: Algorithm, threads: int) -> None:
        self.problem = problem
        self._cut = cut
        self._threads = threads
        self._depth = math.prod(problem.w_shape) // problem.oc
        parts = functools.cache(functools.partial(self._parts, algorithm))
        self._blocks = [
            _Block(band, start, end, *parts(replace(band.problem, oc=end - start)))
            for start, end in itertools.pairwise(cut.starts)
            for band in cut.bands
        ]
        self._x_size = max(block.x.size for block in self._blocks)
        self._y_size = max(block.y.size for block in self._blocks)
        self._w_size = self._depth * max(block.end - block.start for block in self._blocks)
        values = self._x_size + self._y_size + self._w_size * min(2, len(cut.bands))
        self._scratch = values * problem.itemsize
        self.workspace_bytes = self._scratch + max(block.operation.workspace_bytes for block in self._blocks)

    def _parts(self, algorithm: Algorithm, part: ConvProblem) -> tuple[Operation, Images, Images, Launch]:
        """What a block does, which is the same for all of one shape."""
        problem, threads, dtype, item = self.problem, self._threads, self.problem.dtype, self.problem.itemsize
        (ih, iw), (oh, ow), depth = problem.input_size, problem.output_size, self._depth
        return (
            algorithm.plan(part, "grad_weight", threads),
            Images(part.n, problem.ic, problem.ic, part.input_size[0], ih, iw, dtype, threads),
            Images(part.n, part.oc, problem.oc, part.output_size[0], oh, ow, dtype, threads),
            transposition(dtype, 1, depth, part.oc, (0, part.oc * item), (0, depth * item), threads, by_rows=True),
        )

    def _keeps_image(self) -> bool:
        """Whether all blocks of channels read the same transposed image."""
        return len(self._cut.bands) == 1

    def _moving_seconds(self) -> float:
        images = [block.x for block in self._blocks[: 1 if self._keeps_image() else None]]
        images += [block.y for block in self._blocks]
        weights = math.prod(self.problem.w_shape)
        turned = (len(self._cut.starts) - 1) * _LAUNCH_SECONDS + weights * _VALUE_SECONDS / self._threads
        added = weights * (len(self._cut.bands) - 1) * _ADD_SECONDS
        return (
            sum(each.seconds(self._threads) for each in images)
            + turned
            + added
            + waiting_seconds(self.problem, self._threads)
        )

    @property
    def inner(self) -> list[Operation]:
        return [block.operation for block in self._blocks]

    def _how(self) -> str:
        bands, blocks = len(self._cut.bands), len(self._cut.starts) - 1
        return f"transposed in {bands} bands" + (f" and {blocks} blocks of channels" if blocks > 1 else "")

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: Any = None,
    ) -> None:  # fmt: skip
        with Buffer(self._scratch) as buffer:
            view = functools.partial(self._view, buffer)
            for number, block in enumerate(self._blocks):
                band, images = block.band, slice(block.band.first, block.band.last)
                x_here, y_here = view(0, block.x.shape), view(self._x_size, block.y.shape)
                w_shape = (*self.problem.w_shape[1:], block.end - block.start)
                total = view(self._x_size + self._y_size, w_shape)
                more = band is not self._cut.bands[0]
                own = view(self._x_size + self._y_size + self._w_size, w_shape) if more else total
                if number == 0 or not self._keeps_image():
                    self._move(block.x.gather, second[images, :, band.low : band.high], x_here)
                channels = slice(block.start, block.end)
                self._move(block.y.gather, first[images, channels, band.top : band.bottom], y_here)
                block.operation.run(y_here, x_here, own)
                if more:
                    _add(total, own)
                if band is self._cut.bands[-1]:
                    self._move(block.turn, total, result[channels])


class PointwiseGradient(MovingOperation):
    """A pointwise weight gradient of another algorithm on transposed images, which are not cut.

    Input and output change places: the gradient of the layer from `oc` to `ic` channels, whose weights lie
    (ic, kh, kw, oc), lies as the caller's. Images of one pixel lie alike in both orders, and are not moved.
    """

    def __init__(self, problem: ConvProblem, algorithm: Algorithm, threads: int) -> None:
        self.problem = problem
        self._threads = threads
        exchanged = replace(problem, ic=problem.oc, oc=problem.ic, layout=CHANNELS_LAST)
        self._w_shape = exchanged.w_shape
        self._operation = algorithm.plan(exchanged, "grad_weight", threads)
        (rows, columns), n, dtype = problem.input_size, problem.n, problem.dtype
        self._x, self._y = (
            Images(n, channels, channels, rows, rows, columns, dtype, threads) for channels in (problem.ic, problem.oc)
        )
        self._moves = rows * columns > 1
        self._scratch = (self._x.size + self._y.size) * problem.itemsize if self._moves else 0
        self.workspace_bytes = self._scratch + self._operation.workspace_bytes

    def _moving_seconds(self) -> float:
        if not self._moves:
            return 0.0
        return self._x.seconds(self._threads) + self._y.seconds(self._threads)

    @property
    def inner(self) -> list[Operation]:
        return [self._operation]

    def _how(self) -> str:
        return "transposed" if self._moves else "input and output exchanged"

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: Any = None,
    ) -> None:  # fmt: skip
        if not self._moves:
            x, y = second.reshape(self._x.shape), first.reshape(self._y.shape)
            self._operation.run(x, y, result.reshape(self._w_shape))
            return
        with Buffer(self._scratch) as buffer:
            x, y = self._view(buffer, 0, self._x.shape), self._view(buffer, self._x.size, self._y.shape)
            self._move(self._x.gather, second, x)
            self._move(self._y.gather, first, y)
            self._operation.run(x, y, result.reshape(self._w_shape))


def _pointwise_in_one(problem: ConvProblem) -> bool:
    """Whether a problem is pointwise, and the scratch holds its transposed images."""
    plain = replace(problem, kernel_size=(1, 1), stride=(1, 1), padding=((0, 0), (0, 0)), groups=1)
    values = math.prod(problem.x_shape) + math.prod(problem.y_shape)
    return problem == plain and values * problem.itemsize <= scratch_limit(problem, 2)


@QUIET
def _add(total: np.ndarray, part: np.ndarray) -> None:
    np.add(total, part, out=total)


Transposed = TransposedOperation | TransposedGradient | PointwiseGradient


def transposed(
    problem: ConvProblem, direction: str, layout: str, algorithm: Algorithm, threads: int, together: int = 1
) -> Transposed | None:
    """An algorithm's operation on transposed images; None where these are too large for a scratch area.

    `layout` is that of the problems which the algorithm gets; the weight gradient has CHANNELS_LAST. Bands of the
    others are multiples of `together` rows.
    """
    if direction == "grad_weight":
        if _pointwise_in_one(problem):
            return PointwiseGradient(problem, algorithm, threads)
        cut = cut_of(problem)
        return None if cut is None else TransposedGradient(problem, cut, algorithm, threads)
    bands = bands_of(problem, direction, layout, together)
    return None if bands is None else TransposedOperation(problem, direction, bands, algorithm, threads)
