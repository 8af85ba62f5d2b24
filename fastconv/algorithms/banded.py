"""NCHW problems in bands of images, each turned, computed and turned back by one thread (`fastconv.kernels.bands`).

Where all threads together turn whole images (`fastconv.algorithms.transposed`), every core then reads what another has
written, and all wait for each other twice. Bands are whole rows of tiles, or some groups of channels, so that an
image's bits do not depend on how many there are.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fastconv.algorithms.base import PLAIN, Epilogue, Estimate, Operation, scratch_limit
from fastconv.algorithms.cuts import Band, row_band
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.grids import workspace_offsets
from fastconv.algorithms.turning import Images, transposition
from fastconv.arrays import QUIET
from fastconv.cost import far_bytes, traffic_seconds
from fastconv.kernels import bands as kernels
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import CALL, LINE, Buffer, address, aligned, fill
from fastconv.kernels.target import vector_bytes
from fastconv.problem import ConvProblem

if TYPE_CHECKING:
    from fastconv.machine import Machine

_BAND_BYTES = 1 << 20
"""Both images of a band: they stay in the second cache level, or nearly."""
_GROUPS_BYTES = 1 << 19
"""The same of a band of some groups of channels, which has little to compute for each value."""
_VALUE_SECONDS = 0.1e-9
"""Turning one value of a band of groups, near the core that reads it next; `Costs.turn_seconds` of another band."""
_BAND_SECONDS = 1e-6
"""Beginning and end of a band's steps."""
_GROUPS_SECONDS = 0.4e-6
"""The same of a band of groups in a weight gradient."""
_FAR_SECONDS = 0.01e-9
"""Waiting for a byte of images beyond the caches, which batches read once."""
_PLANE_BYTES = 4 << 10
"""Least plane of batches with little to compute for each value: runs of less are not fetched ahead from memory."""
_TURNED_SHARE = 0.15
"""Time of turning a row, over that of computing it."""


@dataclass(frozen=True, eq=False)
class Stage:
    """A launch that does the work of a band, or a part of it, on weights that another launch has packed."""

    launch: Launch
    zeros: np.ndarray
    """What sums begin with where there is no bias."""
    seconds: Callable[[float], float]
    """Its time on one thread, of so many slots a second."""
    pack: Launch | None = None
    """Packs the weights; None where they are taken as they lie."""
    packed_bytes: int = 0
    pack_seconds: float = 0.0
    """The time of packing on one thread."""
    key: Any = None
    """What the packed weights depend on besides the weights."""


@dataclass(frozen=True)
class GroupBands:
    """What bands of some groups of channels are besides, whose one stage reads weights that are not packed."""

    dense: bool = False
    """Whether there is much to compute for each value: bands are larger then, and take as many images as fit."""
    turn: Callable[[ConvProblem], Launch] | None = None
    """What lays the weights of a band as its stage reads them; None where they lie so."""


@dataclass(frozen=True)
class BandPlanner:
    """How an algorithm computes bands of one problem."""

    layout: str
    """That of the bands' problems."""
    rows: int
    """Bands are multiples of so many target rows."""
    describe: str
    stages: Callable[[ConvProblem], tuple[Stage, ...] | None]
    """The stages of a band's problem on one thread; None where it has others."""
    groups: GroupBands | None = None
    """How bands of some groups are made; None where bands have all channels."""


@dataclass(frozen=True)
class Part:
    """A band, and the groups of channels from `group` on that its problem has."""

    band: Band
    group: int = 0

    @property
    def problem(self) -> ConvProblem:
        return self.band.problem


def _even(count: int, parts: int) -> list[tuple[int, int]]:
    """`count` things in parts as equal as they can be: where each begins and ends."""
    return list(itertools.pairwise(count * part // parts for part in range(parts + 1)))


def _most_loaded(work: list[float], threads: int) -> float:
    """The work of the thread that has most of it: each begins with a run of neighbouring tasks."""
    return max(sum(work[first:end]) for first, end in _even(len(work), threads))


def _cut_groups(problem: ConvProblem, layout: str, threads: int, dense: bool) -> list[Part] | None:
    """Cut a problem into groups of channels of each image, or of several; None where a vector of them is too large."""
    n, groups, lanes = problem.n, problem.groups, vector_bytes() // problem.itemsize
    most_bytes = _BAND_BYTES if dense else _GROUPS_BYTES
    each = (math.prod(problem.x_shape) + math.prod(problem.y_shape)) // (n * groups) * problem.itemsize
    together = max(1, lanes // max(problem.ic_per_group, problem.oc_per_group))  # the groups of a vector
    vectors = -(-groups // together)
    if each * together > most_bytes:
        return None
    images = min(n, most_bytes // (each * together)) if dense else 1
    spans = _even(n, -(-n // images))
    count = -(-len(spans) * vectors // max(1, most_bytes // (each * together * images)))
    parts = min(vectors, -(-(-(-count // threads) * threads) // len(spans)))
    (ih, _), (oh, _) = problem.input_size, problem.output_size
    found = []
    for (first, last), (begin, end) in itertools.product(spans, _even(vectors, parts)):
        start, count = begin * together, min(end * together, groups) - begin * together
        ic, oc = count * problem.ic_per_group, count * problem.oc_per_group
        part = replace(problem, n=last - first, ic=ic, oc=oc, groups=count, layout=layout)
        found.append(Part(Band(first, last, 0, oh, 0, ih, part), start))
    return found


def cut(problem: ConvProblem, direction: str, planner: BandPlanner, threads: int) -> list[Part] | None:
    """Cut a problem into bands for so many threads; None where that cannot be done."""
    if planner.groups is not None:
        return _cut_groups(problem, planner.layout, threads, planner.groups.dense)
    n, (ih, iw), (oh, ow) = problem.n, problem.input_size, problem.output_size
    each = (math.prod(problem.x_shape) + math.prod(problem.y_shape)) // n * problem.itemsize
    if n >= threads and each <= _BAND_BYTES:
        count = -(-n // (_BAND_BYTES // each))
        count = min(n, -(-count // threads) * threads)
        return [
            Part(Band(first, last, 0, oh, 0, ih, replace(problem, n=last - first, layout=planner.layout)))
            for first, last in _even(n, count)
        ]
    source_row, target_row, count = iw * problem.ic, ow * problem.oc, oh
    step, reach = float(problem.stride[0]), float((problem.kernel_size[0] - 1) * problem.dilation[0])
    if direction == "grad_input":
        source_row, target_row, count, step, reach = target_row, source_row, ih, 1 / step, reach / step
    tiles = -(-count // planner.rows)

    def band_bytes(parts: int) -> float:
        rows = -(-tiles // parts) * planner.rows
        return (rows * target_row + (rows * step + reach) * source_row) * problem.itemsize

    if band_bytes(tiles) > max(_BAND_BYTES, scratch_limit(replace(problem, n=1), 2) / 2):
        return None
    least = next((parts for parts in range(1, tiles) if band_bytes(parts) <= _BAND_BYTES), tiles)

    def load(parts: int) -> float:
        work = [(end - first) * planner.rows + _TURNED_SHARE * reach / step for first, end in _even(tiles, parts)]
        return _most_loaded(work * n, threads)

    parts = min(range(least, min(tiles, least + 4 * threads) + 1), key=load)
    bands = [
        row_band(problem, direction, image, first * planner.rows, min(end * planner.rows, count), planner.layout)
        for image in range(n)
        for first, end in _even(tiles, parts)
    ]
    return None if None in bands else [Part(band) for band in bands if band]


_Step = tuple[Launch, int, int, int, int]
"""A launch of one thread, and a `STEP`'s fields source, other, start and target."""


class Bands:
    """The launch of bands, each of which goes through the steps of its kind."""

    def __init__(
        self, dtype: str, kinds: dict[ConvProblem, list[_Step]], places: Sequence[tuple[ConvProblem, tuple[int, ...]]],
        inner: int, threads: int,
    ) -> None:  # fmt: skip
        """`places` are the bands' kinds and a `BAND`'s fields; steps have their workspace at `inner` in a thread's."""
        runs: dict[ConvProblem, tuple[int, int]] = {}
        steps: list[_Step] = []
        for kind, own in kinds.items():
            runs[kind] = len(steps), len(own)
            steps += own
        self._steps = np.array(
            [(0, launch.plan.ctypes.data, launch.tasks, *rest) for launch, *rest in steps], kernels.STEP
        )
        self._launches = [step[0] for step in steps]
        self._places = np.array([(*runs[kind], *place) for kind, place in places], kernels.BAND)
        total = inner + max(launch.workspace_bytes for launch in self._launches)
        plan = fill(
            kernels.BANDS, steps=self._steps.ctypes.data, bands=self._places.ctypes.data, inner=inner,
            workspace_bytes=-(-total // LINE) * LINE,
        )  # fmt: skip
        self.launch = Launch(self._compile, dtype, plan, len(places), threads, int(plan["workspace_bytes"][0]))

    def _compile(self) -> Any:
        self._steps["entry"] = [launch.entry for launch in self._launches]
        return kernels.bands()


def _places(problem: ConvProblem, part: Part) -> tuple[int, int, int]:
    """The bytes before a band in x, in y and in the weights."""
    p, band, item = problem, part.band, problem.itemsize
    ic, oc = part.group * p.ic_per_group, part.group * p.oc_per_group
    x = ((band.first * p.ic + ic) * math.prod(p.input_size) + band.low * p.input_size[1]) * item
    y = ((band.first * p.oc + oc) * math.prod(p.output_size) + band.top * p.output_size[1]) * item
    return x, y, oc * math.prod(p.w_shape[1:]) * item


def _images(problem: ConvProblem, band: Band) -> tuple[Images, Images]:
    """How the band's x and y are turned."""
    p, own, dtype = problem, band.problem, problem.dtype
    (ih, iw), (oh, ow) = p.input_size, p.output_size
    return (
        Images(own.n, own.ic, p.ic, band.high - band.low, ih, iw, dtype, 1),
        Images(own.n, own.oc, p.oc, band.bottom - band.top, oh, ow, dtype, 1),
    )


class BandedOperation(Operation):
    """Forward pass or input gradient in bands, on weights that are packed before."""

    def __init__(
        self, problem: ConvProblem, parts: list[Part], kinds: dict[ConvProblem, tuple[Stage, ...]], direction: str,
        planner: BandPlanner, threads: int,
    ) -> None:  # fmt: skip
        self.problem = problem
        self.direction = direction
        self._parts = parts
        self._kinds = kinds
        self._planner = planner
        self._stages = next(iter(kinds.values()))
        packed = workspace_offsets(*(stage.packed_bytes for stage in self._stages))
        self._packed_bytes, self._packed = packed[-1], packed[:-1]
        forward, item, groups = direction == "forward", problem.itemsize, planner.groups
        turn = groups.turn if groups else None
        starts = self._stages[0].zeros.size // next(iter(kinds)).groups  # values that the sums of a group begin with
        images = {part.problem: _images(problem, part.band)[:: 1 if forward else -1] for part in parts}
        self._values = {kind: source.in_squares + target.in_squares for kind, (source, target) in images.items()}
        _, at_source, at_target, at_weights, inner = workspace_offsets(
            CALL.itemsize + LINE,
            *(max(pair[side].size for pair in images.values()) * item for side in (0, 1)),
            max(math.prod(kind.w_shape) for kind in kinds) * item if turn else 0,
        )
        steps: dict[ConvProblem, list[_Step]] = {}
        for kind, stages in kinds.items():
            source, target = images[kind]
            own = [(turn(kind), kernels.SECOND, 0, 0, at_weights)] if turn else []
            own.append((source.gather, kernels.FIRST, 0, 0, at_source))
            for stage, offset in zip(stages, self._packed, strict=True):
                other, start = -at_weights if turn else kernels.SECOND if groups else offset, 0
                if len(stages) > 1:
                    start = address(stage.zeros)
                own.append((stage.launch, at_source, other, start, at_target))
            steps[kind] = [*own, (target.scatter, at_target, 0, 0, kernels.TARGET)]
        places = []
        for part in parts:
            x, y, w = _places(problem, part)
            start = part.group * starts * item if forward else 0
            places.append((part.problem, (x, w, start, y) if forward else (y, w, start, x)))
        self._bands = Bands(problem.dtype, steps, places, inner, threads)
        self._launch = self._bands.launch
        self._zeros = np.zeros(problem.groups * starts, problem.dtype) if groups else self._stages[0].zeros
        self._packs = [None if stage.pack is None else stage.pack.on(threads) for stage in self._stages]
        packing = max((pack.workspace_bytes for pack in self._packs if pack), default=0)
        self.workspace_bytes = self._packed_bytes + max(self._launch.workspace_bytes, packing)
        self.prepared_key = self if self._packed_bytes else None

    def seconds(self, rate: float) -> float:
        """Predicted time with `rate` slots a second on each thread."""
        threads = self._launch.threads
        value_seconds = _VALUE_SECONDS if self._planner.groups else model.costs().turn_seconds
        each = {
            kind: sum(stage.seconds(rate) for stage in stages) + self._values[kind] * value_seconds + _BAND_SECONDS
            for kind, stages in self._kinds.items()
        }
        work = _most_loaded([each[part.problem] for part in self._parts], threads)
        packs = [(pack, stage) for pack, stage in zip(self._packs, self._stages, strict=True) if pack]
        packing = sum(model.launch_seconds(pack.threads) + stage.pack_seconds / pack.threads for pack, stage in packs)
        fetching = self._packed_bytes / self.problem.itemsize * model.FETCH_SECONDS if threads > 1 else 0.0
        far = far_bytes(self.problem) * model.PLANES_FAR_SECONDS / threads
        return model.launch_seconds(threads) + work + packing + fetching + far

    def estimate(self, machine: Machine) -> Estimate:
        lanes = vector_bytes() // self.problem.itemsize
        traffic = traffic_seconds(self.problem, self.direction, machine)
        seconds = max(self.seconds(model.slot_rate(machine, lanes)), traffic)
        return Estimate(seconds, f"turned in {len(self._parts)} bands: {self._planner.describe}")

    def prepare(self, w: np.ndarray) -> np.ndarray:
        if not self._packed_bytes:
            return w
        packed = aligned((self._packed_bytes,), "uint8")
        self._pack(w, packed)
        return packed

    def _pack(self, w: np.ndarray, packed: np.ndarray) -> None:
        for pack, stage, offset in zip(self._packs, self._stages, self._packed, strict=True):
            if pack is not None:
                here = packed[offset : offset + stage.packed_bytes].view(self.problem.dtype)
                pack(w, w, stage.zeros, here.reshape(1, 1, 1, -1))

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: Any = None,
    ) -> None:  # fmt: skip
        if prepared is None and self._packed_bytes:
            with Buffer(self._packed_bytes) as packed:
                self._pack(second, packed)
                self._run(first, packed[: self._packed_bytes], result, epilogue)
            return
        self._run(first, second if prepared is None else prepared, result, epilogue)

    def _run(self, source: np.ndarray, weights: np.ndarray, target: np.ndarray, epilogue: Epilogue) -> None:
        start = epilogue.start(self._zeros, self.problem.groups)
        if weights.ndim == 1:
            weights = weights.view(self.problem.dtype).reshape(1, 1, 1, -1)
        self._launch(source, weights, start, target, epilogue.end)


class PackedIfPrepared(Operation):
    """Bands that each bring the weights into order themselves; of a prepared layer those that find them so."""

    def __init__(self, alone: BandedOperation, packed: BandedOperation) -> None:
        self._alone, self._packed = alone, packed
        self.workspace_bytes = max(alone.workspace_bytes, packed.workspace_bytes)
        self.prepared_key = packed.prepared_key

    def estimate(self, machine: Machine) -> Estimate:
        return self._alone.estimate(machine)

    def prepare(self, w: np.ndarray) -> np.ndarray:
        return self._packed.prepare(w)

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: Any = None,
    ) -> None:  # fmt: skip
        operation = self._alone if prepared is None else self._packed
        operation.run(first, second, result, epilogue, prepared)


def plan_banded(
    problem: ConvProblem, direction: str, planner: BandPlanner, threads: int
) -> BandedOperation | None:  # fmt: skip
    """The operation in bands; None where these would be too large, or differ in how they are computed."""
    parts = cut(problem, direction, planner, threads)
    if parts is None:
        return None
    kinds: dict[ConvProblem, tuple[Stage, ...]] = {}
    for part in parts:
        if part.problem not in kinds:
            stages = planner.stages(part.problem)
            if stages is None:
                return None
            kinds[part.problem] = stages
    if len({tuple(stage.key for stage in stages) for stages in kinds.values()}) > 1:
        return None
    return BandedOperation(problem, parts, kinds, direction, planner, threads)


_PARTS_OF_GRADIENT = 8
"""Bands of groups that a gradient is cut into at least, whatever the threads: bits depend on them."""


class _GradientOfGroups(Operation):
    """What weight gradients in bands have in common."""

    problem: ConvProblem

    @abstractmethod
    def seconds(self, rate: float) -> float:
        """Predicted time with `rate` slots a second on each thread."""

    @abstractmethod
    def describe(self) -> str:
        """The bands in words."""

    def estimate(self, machine: Machine) -> Estimate:
        lanes = vector_bytes() // self.problem.itemsize
        traffic = traffic_seconds(self.problem, "grad_weight", machine)
        return Estimate(max(self.seconds(model.slot_rate(machine, lanes)), traffic), self.describe())


class BandedGradient(_GradientOfGroups):
    """Weight gradient of groups of channels in bands, of all images each."""

    def __init__(self, problem: ConvProblem, parts: list[Part], kinds: dict[ConvProblem, Any], threads: int) -> None:
        """`kinds` are the passes of the bands' problems, on one thread."""
        self.problem = problem
        self._parts = parts
        self._kinds = kinds
        item = problem.itemsize
        images = {part.problem: _images(problem, part.band) for part in parts}
        self._values = {kind: x.in_squares + y.in_squares + math.prod(kind.w_shape) for kind, (x, y) in images.items()}
        _, at_x, at_y, at_slabs, at_w, inner = workspace_offsets(
            CALL.itemsize + LINE,
            *(max(pair[side].size for pair in images.values()) * item for side in (0, 1)),
            max(step.slabs.workspace_bytes for step in kinds.values()),
            max(math.prod(kind.w_shape) for kind in kinds) * item,
        )
        self._unused = np.zeros(1, problem.dtype)
        steps: dict[ConvProblem, list[_Step]] = {}
        for kind, step in kinds.items():
            (x, y), apart = images[kind], step.slabs.workspace_bytes > 0
            taps, depth = math.prod(kind.kernel_size), kind.ic_per_group
            turn = transposition(
                problem.dtype, depth, taps, kind.oc, (kind.oc * item, depth * kind.oc * item),
                (taps * item, depth * taps * item), 1, by_rows=True,
            )  # fmt: skip
            own = [(x.gather, kernels.FIRST, 0, 0, at_x), (y.gather, kernels.SECOND, 0, 0, at_y)]
            own.append((step.launch, at_x, -at_y, 0, at_slabs if apart else at_w))
            if apart:
                own.append((step.slabs.add, at_slabs, 0, 0, at_w))
            steps[kind] = [*own, (turn, at_w, 0, 0, kernels.TARGET)]
        places = []
        for part in parts:
            place_x, place_y, place_w = _places(problem, part)
            places.append((part.problem, (place_x, place_y, 0, place_w)))
        self._bands = Bands(problem.dtype, steps, places, inner, threads)
        self._launch = self._bands.launch
        self.workspace_bytes = self._launch.workspace_bytes

    def seconds(self, rate: float) -> float:
        """Predicted time with `rate` slots a second on each thread."""
        each = {
            kind: step.seconds(rate) - model.launch_seconds(1) + self._values[kind] * _VALUE_SECONDS + _GROUPS_SECONDS
            for kind, step in self._kinds.items()
        }
        work = _most_loaded([each[part.problem] for part in self._parts], self._launch.threads)
        return model.launch_seconds(self._launch.threads) + work

    def describe(self) -> str:
        return f"turned in {len(self._parts)} bands: {next(iter(self._kinds.values())).describe()}"

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: Any = None,
    ) -> None:  # fmt: skip
        self._launch(second, first, self._unused, result)


class BatchedGradient(_GradientOfGroups):
    """Weight gradient of some images after others, whose gradients are added: bands of all would be too large."""

    def __init__(self, problem: ConvProblem, batches: list[tuple[slice, BandedGradient]]) -> None:
        self.problem = problem
        self._batches = batches
        self._weights = math.prod(problem.w_shape)
        inner = max(operation.workspace_bytes for _, operation in batches)
        self.workspace_bytes = inner + self._weights * problem.itemsize

    def seconds(self, rate: float) -> float:
        """Predicted time with `rate` slots a second on each thread."""
        added = (len(self._batches) - 1) * self._weights * model.ADD_SECONDS
        far = far_bytes(self.problem) * _FAR_SECONDS
        return sum(operation.seconds(rate) for _, operation in self._batches) + added + far

    def describe(self) -> str:
        return f"{len(self._batches)} batches {self._batches[0][1].describe()}"

    @QUIET
    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: Any = None,
    ) -> None:  # fmt: skip
        (images, operation), *others = self._batches
        operation.run(first[images], second[images], result)
        with Buffer(result.nbytes) as buffer:
            part = buffer[: result.nbytes].view(result.dtype).reshape(result.shape)
            for images, operation in others:
                operation.run(first[images], second[images], part)
                np.add(result, part, out=result)


def plan_banded_gradient(
    problem: ConvProblem, plan: Callable[[ConvProblem], Any], layout: str, dense: bool, threads: int
) -> BandedGradient | BatchedGradient | None:
    """The weight gradient in bands of groups, whose passes `plan` plans for one thread; None where it has none.

    Of as many images at a time as bands have room for.
    """
    n = count = problem.n
    gradient = _gradient_of_groups(problem, plan, layout, dense, threads)
    batched = dense or math.prod(problem.input_size) * problem.itemsize >= _PLANE_BYTES
    while gradient is None and batched and count > 1:
        count = -(-count // 2)
        gradient = _gradient_of_groups(replace(problem, n=count), plan, layout, dense, threads)
    if gradient is None or count == n:
        return gradient
    batches = [(slice(begin, begin + count), gradient) for begin in range(0, n - count + 1, count)]
    if n % count:
        rest = _gradient_of_groups(replace(problem, n=n % count), plan, layout, dense, threads)
        if rest is None:
            return None
        batches.append((slice(n - n % count, n), rest))
    return BatchedGradient(problem, batches)


def _gradient_of_groups(
    problem: ConvProblem, plan: Callable[[ConvProblem], Any], layout: str, dense: bool, threads: int
) -> BandedGradient | None:
    """The gradient of all images at once; None where a band of a vector of channels would be too large."""
    values = math.prod(problem.x_shape) + math.prod(problem.y_shape)
    fitting = max(1, _BAND_BYTES * problem.groups // (values * problem.itemsize))  # groups of all images
    least = max(_PARTS_OF_GRADIENT, -(-problem.groups // fitting))
    one_image = _cut_groups(replace(problem, n=1), layout, least, dense)
    if one_image is None or max(part.problem.groups for part in one_image) > fitting:
        return None
    n = problem.n
    parts = [Part(replace(part.band, last=n, problem=replace(part.problem, n=n)), part.group) for part in one_image]
    kinds: dict[ConvProblem, Any] = {}
    for part in parts:
        if part.problem not in kinds:
            kinds[part.problem] = plan(part.problem)
    return None if None in kinds.values() else BandedGradient(problem, parts, kinds, threads)
