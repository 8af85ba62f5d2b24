"""direct: register-tiled micro-kernels on the arrays as they lie, with no patch matrix.

Forward pass and input gradient are the same kernels. The input gradient of a strided convolution falls apart into one
dense convolution for each phase of the stride (`grids`): the input pixels of a phase meet the same taps, and no
multiplication with an inserted zero is ever made. Each dense sub-problem becomes a pass with output channels in the
vectors' lanes (`gather`), or with pixels (`strips`) where channels cannot fill them; so does the weight gradient
(`correlate`, `dots`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fastconv.algorithms.banded import (
    BandedGradient,
    BandedOperation,
    BandPlanner,
    BatchedGradient,
    GroupBands,
    Stage,
    plan_banded,
    plan_banded_gradient,
)
from fastconv.algorithms.base import PLAIN, UNUSED, Algorithm, Epilogue, Estimate, Operation
from fastconv.algorithms.cuts import bands_of
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.abreast import plan_abreast
from fastconv.algorithms.direct.base import Pass
from fastconv.algorithms.direct.channel_dots import plan_channel_dots
from fastconv.algorithms.direct.correlate import plan_correlate, plan_exchanged
from fastconv.algorithms.direct.depthwise import DepthwisePass, plan_depthwise
from fastconv.algorithms.direct.disjoint import DisjointOperation, plan_disjoint
from fastconv.algorithms.direct.dots import plan_dots
from fastconv.algorithms.direct.gaps import leaves_gaps, plan_zeros, zeros_seconds
from fastconv.algorithms.direct.gather import plan_gather, plan_padded, plan_reduce
from fastconv.algorithms.direct.gathered import GatherPass
from fastconv.algorithms.direct.grids import sub_problems
from fastconv.algorithms.direct.lines import plan_lines
from fastconv.algorithms.direct.phases import plan_phases
from fastconv.algorithms.direct.pixel_dots import plan_patch_dots, plan_pixel_dots
from fastconv.algorithms.direct.plane_dots import plan_plane_dots
from fastconv.algorithms.direct.planes import PlanePass, plan_planes
from fastconv.algorithms.direct.rolling import plan_pairs, plan_rolling
from fastconv.algorithms.direct.rolling_dots import plan_rolling_dots
from fastconv.algorithms.direct.rolling_pixels import plan_pixel_pairs, plan_rolling_pixels
from fastconv.algorithms.direct.spread import plan_spread
from fastconv.algorithms.direct.stencils import plan_stencil
from fastconv.algorithms.direct.strips import plan_strips
from fastconv.algorithms.direct.whole_window import WholeWindowOperation, as_one_pixel
from fastconv.algorithms.direct.window_dots import plan_window_dots
from fastconv.algorithms.transposed import Transposed, transposed
from fastconv.algorithms.turning import transposition
from fastconv.cost import traffic_seconds
from fastconv.kernels.launch import Bound, Launch
from fastconv.kernels.target import vector_bytes
from fastconv.problem import CHANNELS_LAST, IMAGES_LAST, ConvProblem

if TYPE_CHECKING:
    from fastconv.machine import Machine


PIXEL_KINDS = (
    plan_gather, plan_padded, plan_reduce, plan_planes, plan_lines, plan_strips, plan_depthwise, plan_rolling,
    plan_rolling_pixels,
)  # fmt: skip
TOGETHER = (plan_stencil, plan_spread, plan_pairs, plan_pixel_pairs)
WEIGHT_KINDS = (
    plan_correlate, plan_exchanged, plan_abreast, plan_dots, plan_channel_dots, plan_window_dots, plan_plane_dots,
    plan_pixel_dots, plan_patch_dots, plan_rolling_dots,
)  # fmt: skip


def _fastest(plan: Callable[[Any], Pass | None], kinds: tuple[Any, ...]) -> tuple[Any, float]:
    """The kind whose plan takes the least time, and that time."""
    offered = {kind: plan(kind) for kind in kinds}
    seconds = {kind: step.seconds(model.nominal_rate()) for kind, step in offered.items() if step is not None}
    return min(seconds.items(), key=lambda item: item[1])


@functools.lru_cache(maxsize=1024)
def _kinds(problem: ConvProblem, direction: str) -> tuple[Any, ...]:
    """The kind of each pass, as one thread would do it fastest: a result's bits must not depend on the threads.

    Stencils and spreads do all sub-problems in one pass.
    """
    if direction == "grad_weight":
        return (_fastest(lambda kind: kind(problem, 1), WEIGHT_KINDS)[0],)
    parts = sub_problems(problem, direction)
    fastest = [
        _fastest(lambda kind, part=part: kind(problem, direction, *part, 1), PIXEL_KINDS)  # type: ignore[misc]
        for part in parts
    ]
    mixed = tuple(kind for kind, _ in fastest)
    seconds = {mixed: sum(seconds for _, seconds in fastest)}
    if len(parts) > 1:
        ways = {mixed, *((kind,) * len(parts) for kind in mixed)}
        seconds = {way: _seconds_of_phases(problem, direction, way) for way in ways}
    best = min(seconds, key=lambda way: (seconds[way], way != mixed))
    together, kind = _fastest_together(problem, direction)
    return (kind,) if together < seconds[best] else best


def _seconds_of_phases(problem: ConvProblem, direction: str, kinds: tuple[Any, ...]) -> float:
    """The time that one thread takes for all sub-problems, each by its kind: those of some kinds are one launch.

    A launch more is counted as what it takes several threads, which wait for each other.
    """
    parts = sub_problems(problem, direction)
    passes = tuple(kind(problem, direction, *part, 1) for kind, part in zip(kinds, parts, strict=True))
    if None in passes:
        return math.inf
    chained = plan_phases(problem, passes, 1)
    steps = passes if chained is None else (chained,)
    return sum(step.seconds(model.nominal_rate()) for step in steps) + (len(steps) - 1) * model.launch_seconds(2)


def plan_together(kind: Any, problem: ConvProblem, direction: str, threads: int) -> Pass | None:
    """The plan of one of the kinds that do all sub-problems in one pass."""
    if kind is plan_spread:
        return plan_spread(problem, threads, plan_passes) if direction == "grad_input" else None
    if kind in (plan_pairs, plan_pixel_pairs):
        return kind(problem, threads) if direction == "grad_input" else None
    return plan_stencil(problem, direction, sub_problems(problem, direction), threads)


def _fastest_together(problem: ConvProblem, direction: str) -> tuple[float, Any]:
    """The least time of one pass for all sub-problems on one thread, and its kind."""
    offered = [(kind, plan_together(kind, problem, direction, 1)) for kind in TOGETHER]
    times = [(step.seconds(model.nominal_rate()), kind) for kind, step in offered if step is not None]
    return min(times, key=lambda item: item[0], default=(math.inf, None))


def _typical(problem: ConvProblem, direction: str) -> ConvProblem:
    """The problem that decides how one is computed: an image's result must not depend on its neighbours."""
    return problem if direction == "grad_weight" else replace(problem, n=1)


def plan_passes(problem: ConvProblem, direction: str, threads: int) -> tuple[Pass, ...]:
    """Plan the launches of a direction."""
    kinds = _kinds(_typical(problem, direction), direction)
    if direction == "grad_weight":
        return (kinds[0](problem, threads),)
    parts = sub_problems(problem, direction)
    if kinds[:1] in [(kind,) for kind in TOGETHER]:
        together = plan_together(kinds[0], problem, direction, threads)
        assert together is not None  # one thread had a plan for one image
        return (together,)
    passes = tuple(kind(problem, direction, *part, threads) for kind, part in zip(kinds, parts, strict=True))
    chained = plan_phases(problem, passes, threads)
    return passes if chained is None else (chained,)


def _transposed(problem: ConvProblem, direction: str, threads: int) -> Transposed | None:
    """The operation on transposed images, and on transposed weights where these are read or written in vectors.

    So are those of a strided input gradient, where there is room: its phases pack a few taps each, and weights in
    kernel order scatter them. An image's result must not depend on its neighbours, so one image decides.
    """
    strided = direction == "grad_input" and problem.stride != (1, 1)
    room = strided and bands_of(_typical(problem, direction), direction, CHANNELS_LAST) is not None
    in_vectors = direction == "grad_weight" or problem.groups > 1 or room
    return transposed(problem, direction, CHANNELS_LAST if in_vectors else IMAGES_LAST, Direct(), threads)


Banded = BandedOperation | BandedGradient | BatchedGradient


def _banded(problem: ConvProblem, direction: str, threads: int) -> Banded | None:
    """The operation in bands, each turned and turned back by the thread that computes it.

    Only for gathered and depthwise tiles: the sums of other kinds might depend on where a band begins.
    """
    if direction == "grad_weight":
        return _banded_gradient(problem, threads)
    if leaves_gaps(problem, direction):
        return None
    if problem.groups > 1:
        return _banded_groups(problem, direction, threads)
    whole = replace(_typical(problem, direction), layout=IMAGES_LAST)
    if set(_kinds(whole, direction)) != {plan_gather}:
        return None

    def stages(band: ConvProblem) -> tuple[Stage, ...]:
        passes = [(part, plan_gather(band, direction, *part, 1)) for part in sub_problems(band, direction)]
        return tuple(step.stage(rows.taps, columns.taps) for (rows, columns), step in passes)

    # The phases of an input gradient are the same in bands that begin at a multiple of the stride.
    rows = problem.stride[0] if direction == "grad_input" else 1
    return plan_banded(problem, direction, BandPlanner(IMAGES_LAST, rows, "register tiles", stages), threads)


def _banded_gradient(problem: ConvProblem, threads: int) -> BandedGradient | BatchedGradient | None:
    """The same for weight gradients: in bands of some groups."""
    if problem.groups == 1:
        return None
    if problem.groups == problem.ic == problem.oc:
        return plan_banded_gradient(problem, lambda band: plan_window_dots(band, 1), "NHWC", False, threads)
    kind, lanes = _kinds(replace(problem, layout="NHWC"), "grad_weight")[0], vector_bytes() // problem.itemsize
    if kind not in (plan_correlate, plan_channel_dots):
        return None

    def plan(band: ConvProblem) -> Pass | None:
        # Pixels of fewer channels than a vector has lanes are turned value by value.
        return kind(band, 1) if kind is plan_correlate or min(band.ic, band.oc) >= lanes else None

    return plan_banded_gradient(problem, plan, "NHWC", True, threads)


def _banded_groups(problem: ConvProblem, direction: str, threads: int) -> BandedOperation | None:
    """The same in bands of some groups of channels, whose weights each thread turns as well."""
    group, others = problem.ic_per_group, problem.oc_per_group
    if direction == "grad_input" and max(group, others) > 1:  # its weights' channels would change places in groups
        return None
    whole = replace(_typical(problem, direction), layout="NHWC")
    if not set(_kinds(whole, direction)) <= {plan_depthwise, plan_rolling_pixels}:
        return None

    def stages(band: ConvProblem) -> tuple[Stage, ...] | None:
        passes = [plan_depthwise(band, direction, *part, 1) for part in sub_problems(band, direction)]
        return None if None in passes else tuple(step.stage() for step in passes if step)

    def turn(band: ConvProblem) -> Launch:
        item, taps, oc = band.itemsize, math.prod(band.kernel_size), band.oc
        source, target = (taps * item, group * taps * item), (oc * item, group * oc * item)
        return transposition(band.dtype, group, oc, taps, source, target, 1)

    groups = GroupBands(turn=turn)
    return plan_banded(problem, direction, BandPlanner("NHWC", 1, "depthwise tiles", stages, groups), threads)


def _order_of_sums(operation: Operation | None) -> type[Pass] | None:
    """The kind of pass in whose order all sums of an operation are added up: those of one order have the same bits.

    None for other kinds than gathered and depthwise tiles.
    """
    if isinstance(operation, BandedOperation):
        return DepthwisePass if operation.problem.groups > 1 else GatherPass
    if isinstance(operation, Transposed):
        orders = {_order_of_sums(inner) for inner in operation.inner}
    elif isinstance(operation, DirectOperation):
        alone = operation.problem.kernel_size == (1, 1)
        steps = [part for step in operation.passes for part in getattr(step, "parts", (step,))]
        orders = {GatherPass if alone and type(step) is PlanePass else type(step) for step in steps}
    else:
        return None
    return orders.pop() if len(orders) == 1 and orders <= {GatherPass, DepthwisePass} else None


def _fastest_of(ways: tuple[Callable[..., Any], ...], problem: ConvProblem, direction: str, threads: int) -> Any:
    """The operation of the fastest way that is possible: for so many threads where all ways have the same bits.

    Else as one thread would do it for one image, as the bits must depend on neither. None where no way is possible.
    """
    offered = {way: way(problem, direction, threads) for way in ways}
    possible = {way: operation for way, operation in offered.items() if operation is not None}
    timed, orders = possible, {_order_of_sums(operation) for operation in possible.values()}
    if len(possible) > 1 and (None in orders or len(orders) > 1):
        timed = {way: way(_typical(problem, direction), direction, 1) for way in possible}
    seconds = {
        way: operation.seconds(model.nominal_rate()) for way, operation in timed.items() if operation is not None
    }
    return possible[min(seconds, key=lambda way: seconds[way])] if seconds else None


def _turned(problem: ConvProblem, direction: str, threads: int) -> Transposed | Banded | None:
    """The operation on turned images that is faster."""
    return _fastest_of((_banded, _transposed), problem, direction, threads)


def _disjoint(problem: ConvProblem, direction: str, threads: int) -> DisjointOperation | None:
    """The operation on patches, where windows lie side by side."""
    return plan_disjoint(problem, direction, threads, DirectOperation)


class Direct(Algorithm):
    """Register tiles over pixels and output channels, or over input and output channels for the weight gradient."""

    name = "direct"

    def plan(self, problem: ConvProblem, direction: str, threads: int) -> Operation:
        pixel = as_one_pixel(problem)
        if pixel is not None:
            return WholeWindowOperation(self.plan(pixel, direction, threads), pixel, direction)
        if problem.layout == "NCHW":
            return _fastest_of((DirectOperation, _turned, _disjoint), problem, direction, threads)
        return DirectOperation(problem, direction, threads)


class DirectOperation(Operation):
    """One launch for each dense sub-problem."""

    def __init__(self, problem: ConvProblem, direction: str, threads: int) -> None:
        self.problem = problem
        self.direction = direction
        self.passes = plan_passes(problem, direction, threads)
        self.workspace_bytes = max((step.workspace_bytes for step in self.passes), default=0)
        self._zeros = plan_zeros(problem, threads) if leaves_gaps(problem, direction) else None
        if direction == "forward":
            self.prepared_key = self.passes[0].prepared_key

    def seconds(self, rate: float) -> float:
        """Predicted time with `rate` slots a second on each thread."""
        seconds = sum(step.seconds(rate) for step in self.passes)
        return seconds + (zeros_seconds(self.problem, self._zeros) if self._zeros else 0.0)

    def estimate(self, machine: Machine) -> Estimate:
        traffic = traffic_seconds(self.problem, self.direction, machine)
        seconds = self.seconds(model.slot_rate(machine, vector_bytes() // self.problem.itemsize))
        reason = self.passes[0].describe() if self.passes else "no output has a tap"
        return Estimate(max(seconds, traffic), reason)

    def prepare(self, w: np.ndarray) -> np.ndarray:
        return self.passes[0].prepare(w)

    def bound(self, epilogue: Epilogue = PLAIN, prepared: Any = None) -> Bound:
        if len(self.passes) == 1 and self._zeros is None:
            return self.passes[0].bound(epilogue, prepared)
        return super().bound(epilogue, prepared)

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: Any = None,
    ) -> None:  # fmt: skip
        if self._zeros:
            self._zeros(first, second, UNUSED[self.problem.dtype], result)
        for step in self.passes:
            step.run(first, second, result, epilogue, prepared)
