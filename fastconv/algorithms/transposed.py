"""NCHW problems as NHWC ones: images are transposed band by band, through a scratch area that stays in the caches.

Kernels with channels in the lanes need the channels of a pixel side by side. Transposing moves every value twice more,
which costs little where each takes part in many products.
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fastconv.algorithms import turning
from fastconv.algorithms.base import PLAIN, UNUSED, Algorithm, Epilogue, Estimate, Operation, scratch_limit
from fastconv.algorithms.cuts import Band, Block, Cut, bands_of, cut_of
from fastconv.algorithms.turning import Images, transposition, waiting_seconds
from fastconv.arrays import QUIET
from fastconv.cost import images_bytes
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import Buffer, aligned
from fastconv.problem import CHANNELS_LAST, ConvProblem

if TYPE_CHECKING:
    from fastconv.machine import Machine

_WEIGHT_SECONDS = 0.5e-9
"""Turning one weight, of which each thread fetches more than it turned."""
_APART_BYTES, _APART_SHARE = 1 << 20, 0.93
"""Both images that are larger than a core's own caches, and the speed on them, as others have turned much of them.
Bands that one thread turns and computes took 0.7 to 1.0 of the time (docs/experiments.md)."""
_ADD_SECONDS = 0.3e-9
"""Adding a weight's gradient of one band to that of those before."""


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

    def _speed(self) -> float:
        """That of the operations, over what they have on images which nobody has moved."""
        return 1.0

    def seconds(self, rate: float) -> float:
        """Predicted time with `rate` slots a second on each thread."""
        steps = sum(step.seconds(rate) for step in self.inner)  # type: ignore[attr-defined]
        return steps / self._speed() + self._moving_seconds()

    def estimate(self, machine: Machine) -> Estimate:
        estimates = [step.estimate(machine) for step in self.inner]
        seconds = sum(estimate.seconds for estimate in estimates) / self._speed() + self._moving_seconds()
        return Estimate(seconds, f"{self._how()}: {estimates[0].reason}")

    def _view(self, buffer: np.ndarray, offset: int, shape: tuple[int, ...]) -> np.ndarray:
        """An array in lent memory, from the value at `offset` on."""
        item, dtype = self.problem.itemsize, self.problem.dtype
        return buffer[offset * item : (offset + math.prod(shape)) * item].view(dtype).reshape(shape)

    def _move(self, launch: Launch, source: np.ndarray, target: np.ndarray) -> None:
        launch(source, source, UNUSED[self.problem.dtype], target)


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

    def _speed(self) -> float:
        return _APART_SHARE if self._threads > 1 and images_bytes(self.problem) > _APART_BYTES else 1.0

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
class _Part:
    """What blocks of one shape do."""

    operation: Operation
    x: Images
    y: Images
    w_shape: tuple[int, ...]
    turn: Launch
    """Lays the gradient's transposed weights as the caller's lie."""


class TransposedGradient(MovingOperation):
    """A weight gradient of another algorithm on transposed images, band by band and channel block by channel block."""

    def __init__(self, problem: ConvProblem, cut: Cut, algorithm: Algorithm, threads: int) -> None:
        self.problem = problem
        self._cut = cut
        self._threads = threads
        planned = functools.cache(functools.partial(self._part, algorithm))
        self._blocks = [(block, planned(self._problem_of(block))) for block in cut.blocks]
        parts = [part for _, part in self._blocks]
        self._x_size, self._y_size = max(part.x.size for part in parts), max(part.y.size for part in parts)
        self._w_size = max(math.prod(part.w_shape) for part in parts)
        values = self._x_size + self._y_size + self._w_size * min(2, len(cut.bands))
        self._scratch = values * problem.itemsize
        self.workspace_bytes = self._scratch + max(part.operation.workspace_bytes for part in parts)

    def _problem_of(self, block: Block) -> ConvProblem:
        (first, last), (start, end) = block.inputs, block.outputs
        return replace(block.band.problem, ic=last - first, oc=end - start)

    def _part(self, algorithm: Algorithm, part: ConvProblem) -> _Part:
        problem, threads, dtype, item = self.problem, self._threads, self.problem.dtype, self.problem.itemsize
        (ih, iw), (oh, ow) = problem.input_size, problem.output_size
        depth, row = math.prod(part.w_shape) // part.oc, math.prod(problem.w_shape) // problem.oc
        return _Part(
            algorithm.plan(part, "grad_weight", threads),
            Images(part.n, part.ic, problem.ic, part.input_size[0], ih, iw, dtype, threads),
            Images(part.n, part.oc, problem.oc, part.output_size[0], oh, ow, dtype, threads),
            part.w_shape,
            transposition(dtype, 1, depth, part.oc, (0, part.oc * item), (0, row * item), threads, by_rows=True),
        )

    def _moving_seconds(self) -> float:
        images = [part.x for block, part in self._blocks if block.other_x]
        images += [part.y for block, part in self._blocks if block.other_y]
        weights, cut = math.prod(self.problem.w_shape), self._cut
        turns = len(cut.inputs) * len(cut.outputs)
        turned = turns * turning.LAUNCH_SECONDS + weights * turning.value_seconds() / self._threads
        added = weights * (len(cut.bands) - 1) * _ADD_SECONDS
        return (
            sum(each.seconds(self._threads) for each in images)
            + turned
            + added
            + waiting_seconds(self.problem, self._threads)
        )

    @property
    def inner(self) -> list[Operation]:
        return [part.operation for _, part in self._blocks]

    def _how(self) -> str:
        bands, blocks = len(self._cut.bands), len(self._cut.inputs) * len(self._cut.outputs)
        return f"transposed in {bands} bands" + (f" and {blocks} blocks of channels" if blocks > 1 else "")

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: Any = None,
    ) -> None:  # fmt: skip
        with Buffer(self._scratch) as buffer:
            view = functools.partial(self._view, buffer)
            for block, part in self._blocks:
                band, inputs, outputs = block.band, slice(*block.inputs), slice(*block.outputs)
                images = slice(band.first, band.last)
                x_here, y_here = view(0, part.x.shape), view(self._x_size, part.y.shape)
                total = view(self._x_size + self._y_size, part.w_shape)
                more = band is not self._cut.bands[0]
                own = view(self._x_size + self._y_size + self._w_size, part.w_shape) if more else total
                if block.other_x:
                    self._move(part.x.gather, second[images, inputs, band.low : band.high], x_here)
                if block.other_y:
                    self._move(part.y.gather, first[images, outputs, band.top : band.bottom], y_here)
                part.operation.run(y_here, x_here, own)
                if more:
                    _add(total, own)
                if band is self._cut.bands[-1]:
                    self._move(part.turn, total, result[outputs, inputs])


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
