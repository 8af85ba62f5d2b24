"""The headline: what a dense layer on a megapixel image costs, and what small convolutions cost instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

import fastconv
from bench import memory, timing
from bench.cases import MEGAPIXEL
from bench.contenders import Fastconv, Task, concrete_algorithms, plan
from bench.data import Pictures
from bench.shapes import ConvCase
from fastconv import cost
from fastconv.machine import Machine
from fastconv.problem import DIRECTIONS

IMAGE_SIZE = 1000
DENSE_UNITS = 1000
SMALL_DENSE_UNITS = 256
STEPS = 2 + len(DIRECTIONS) * (2 + len(MEGAPIXEL))
"""How often `measure` reports progress."""

_MEMORY_LEFT_FREE = 2_000_000_000
_WARM_UP_SIZE = 200
_ITEMSIZE = 4


@dataclass(frozen=True)
class Row:
    """One layer in one direction by one algorithm: what it costs, what the model says and what was measured.

    Attributes
    ----------
    part
        What was left out, for a layer that did not fit into memory.
    chosen
        Whether ``algorithm="auto"`` takes this algorithm.
    peak_bytes
        Growth of the resident set from before the operands were made to the highest point of the call.
    limit_seconds
        What the roofline of the machine allows at best.
    """

    layer: str
    kind: str
    direction: str
    algorithm: str
    part: str | None
    chosen: bool
    parameters: int
    flops: int
    bytes: int
    peak_bytes: int
    limit_seconds: float
    modelled_seconds: float
    measured_seconds: float
    first_quartile: float
    third_quartile: float
    calls: int

    @property
    def gflops(self) -> float:
        return self.flops / self.measured_seconds / 1e9

    @property
    def fraction_of_limit(self) -> float:
        return self.limit_seconds / self.measured_seconds

    @property
    def model_error(self) -> float:
        """Return measured over modelled time: 2 means twice as slow as modelled."""
        return self.measured_seconds / self.modelled_seconds

    @property
    def spread(self) -> float:
        """Return the interquartile range as a fraction of the median."""
        return (self.third_quartile - self.first_quartile) / self.measured_seconds

    def facts(self) -> dict[str, Any]:
        """Return the row for JSON, with the derived figures."""
        derived = ("gflops", "fraction_of_limit", "model_error", "spread")
        return {**asdict(self), **{name: getattr(self, name) for name in derived}}


@dataclass(frozen=True)
class Declined:
    """An algorithm that does not take a problem, and why."""

    layer: str
    direction: str
    algorithm: str
    reason: str


@dataclass(frozen=True)
class Headline:
    """Everything that was measured."""

    rows: tuple[Row, ...]
    declined: tuple[Declined, ...]


def measure(pictures: Pictures, machine: Machine, effort: timing.Effort, on_step: Callable[[str], None]) -> Headline:
    """Measure every layer, direction and algorithm; `on_step` hears what comes next."""
    image = pictures.mosaic(IMAGE_SIZE, channels=max(case.ic for case in MEGAPIXEL))
    rows: list[Row] = []
    declined: list[Declined] = []
    for features, units in ((image[..., :1], DENSE_UNITS), (pictures.stack[:1], SMALL_DENSE_UNITS)):
        rows.extend(_dense_rows(features.reshape(1, -1), units, machine, effort, on_step))
    for case in MEGAPIXEL:
        for direction in DIRECTIONS:
            on_step(f"{layer_name(case)} {direction}")
            contenders, refusals = _takers(case, direction)
            declined.extend(refusals)
            rows.extend(_conv_rows(case, direction, contenders, image[..., : case.ic], machine, effort))
    return Headline(tuple(rows), tuple(declined))


def layer_name(case: ConvCase) -> str:
    """Name a convolution as the table and the figure show it."""
    channels = "" if case.ic == case.oc == 1 else f", {case.ic} → {case.oc}"
    return f"conv {case.kh}x{case.kw}{channels}"


def units_that_fit(features: int, units: int, available: int) -> int:
    """Return how many units of a dense layer to allocate, so that 2 GB stay free for everything else."""
    return min(units, max(1, (available - _MEMORY_LEFT_FREE) // (features * _ITEMSIZE)))


def _dense_rows(
    x: np.ndarray, all_units: int, machine: Machine, effort: timing.Effort, on_step: Callable[[str], None]
) -> Iterator[Row]:
    features = x.shape[1]
    units = units_that_fit(features, all_units, memory.available_bytes())
    name = f"dense {_power(features)} → {_power(all_units)}"
    part = None if units == all_units else f"{units} of {all_units} units, as the rest does not fit into memory"
    flops, size = cost.dense_flops(1, features, units), cost.dense_bytes(1, features, units, _ITEMSIZE)
    limit = cost.roofline_seconds(flops, size, machine)

    on_step(f"{name}: allocating the weights")
    for call in dense_calls(x[:, :_WARM_UP_SIZE], units).values():
        call()
    baseline = memory.resident_bytes()
    effort = replace(effort, slow_calls=max(3, effort.slow_calls))  # everything else is held against these rows
    for direction, call in dense_calls(x.copy(), units).items():
        on_step(f"{name} {direction}")
        peak = memory.peak_bytes(call) - baseline
        taken = timing.take_turns({direction: call}, effort)[direction]
        yield Row(
            layer=name,
            kind="dense",
            direction=direction,
            algorithm="dense",
            part=part,
            chosen=True,
            parameters=cost.dense_parameters(features, units),
            flops=flops,
            bytes=size,
            peak_bytes=peak,
            limit_seconds=limit,
            modelled_seconds=limit,
            **_figures(taken),
        )


def dense_calls(x: np.ndarray, units: int) -> dict[str, Callable[[], Any]]:
    """Allocate the layer and return one call a direction.

    The weight gradient does not read the weights and is as large as they are. It comes last and goes into their
    array, so that a layer of 4 GB needs no 8.
    """
    features = x.shape[1]
    rng = np.random.default_rng(0)
    w = np.empty((features, units), np.float32)
    block = rng.standard_normal((1000, units), np.float32)  # 10^9 different numbers would take 10 s to draw
    for start in range(0, features, len(block)):
        w[start : start + len(block)] = block[: features - start]
    grad_y = rng.standard_normal((1, units), np.float32)
    y, grad_x = np.zeros_like(grad_y), np.zeros_like(x)
    return {
        "forward": lambda: fastconv.dense(x, w, out=y),
        "grad_input": lambda: fastconv.dense_grad_input(grad_y, w, out=grad_x),
        "grad_weight": lambda: fastconv.dense_grad_weight(grad_y, x, out=w),
    }


def _takers(case: ConvCase, direction: str) -> tuple[list[Fastconv], list[Declined]]:
    takers: list[Fastconv] = []
    declined: list[Declined] = []
    for contender in map(Fastconv, concrete_algorithms()):
        reason = contender.supports(case, direction)
        if reason is None:
            takers.append(contender)
        else:
            declined.append(Declined(layer_name(case), direction, contender.name, reason))
    return takers, declined


def _conv_rows(
    case: ConvCase,
    direction: str,
    contenders: list[Fastconv],
    image: np.ndarray,
    machine: Machine,
    effort: timing.Effort,
) -> Iterator[Row]:
    _compile(case, direction, contenders)
    baseline = memory.resident_bytes()
    task = Task.make(case, direction, np.array(image, order="C"))
    peaks = {c.name: memory.peak_bytes(c.prepare(task).run) - baseline for c in contenders}
    timings = timing.take_turns({c.name: c.prepare(task).run for c in contenders}, effort)
    choice = plan(case, direction).algorithm
    for name, taken in timings.items():
        planned = plan(case, direction, name)
        yield Row(
            layer=layer_name(case),
            kind="conv",
            direction=direction,
            algorithm=name,
            part=None,
            chosen=name == choice,
            parameters=planned.parameters,
            flops=planned.flops,
            bytes=planned.bytes,
            peak_bytes=peaks[name],
            limit_seconds=cost.roofline_seconds(planned.flops, planned.bytes, machine),
            modelled_seconds=planned.predicted_seconds,
            **_figures(taken),
        )


def _compile(case: ConvCase, direction: str, contenders: list[Fastconv]) -> None:
    """Run the case on a small image first: the compiler's own memory is not the layer's."""
    small = replace(case, ih=_WARM_UP_SIZE, iw=_WARM_UP_SIZE)
    for contender in contenders:
        # fft may decline a small image for keeping more than that is worth.
        taken = small if contender.supports(small, direction) is None else case
        contender.prepare(Task.make(taken, direction)).run()


def _figures(taken: timing.Timing) -> dict[str, Any]:
    first, third = taken.quartiles
    return {
        "measured_seconds": taken.median,
        "first_quartile": first,
        "third_quartile": third,
        "calls": len(taken.seconds),
    }


def _power(count: int) -> str:
    """Write 1000 as 10³ and other counts plainly."""
    zeros = len(str(count)) - 1
    if zeros < 3 or count != 10**zeros:
        return str(count)
    return "10" + str(zeros).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
