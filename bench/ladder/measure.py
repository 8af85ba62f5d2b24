"""Times the steps of the ladder; those that are too large or too slow are modelled and say so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

import fastconv
from bench import headline, memory, timing, units
from fastconv import cost, ladder
from fastconv.machine import Machine
from fastconv.problem import DIRECTIONS

_ITEMSIZE = 4
_MEMORY_LEFT_FREE = 2_000_000_000
_LONGEST_CALL = 2.0
"""Seconds that a call may take by the model, to be measured."""
_BLOCK = 1 << 20

Size = tuple[int, int]
Calls = dict[str, Callable[[], Any]]
"""A call for each direction. The weight gradient comes last, and where the weights are large it takes their place."""


@dataclass(frozen=True)
class Options:
    """What the steps are counted for, besides the image."""

    units: int = 1000
    delta: int = 2
    channels: int = 16


@dataclass(frozen=True)
class Time:
    """The time of one direction: the median and quartiles of so many calls; of none where it is modelled."""

    seconds: float
    first_quartile: float
    third_quartile: float
    calls: int

    @property
    def modelled(self) -> bool:
        return self.calls == 0

    @classmethod
    def of(cls, timing_: timing.Timing) -> Time:
        """Sum up what was measured."""
        return cls(timing_.median, *timing_.quartiles, len(timing_.seconds))


@dataclass(frozen=True)
class Row:
    """One step on one image: what it costs and how long its three directions take.

    Attributes
    ----------
    limit_seconds
        What the roofline of the machine allows at best; it is the time where `why_modelled` gives a reason.
    """

    size: Size
    step: ladder.Step
    limit_seconds: float
    times: dict[str, Time]
    why_modelled: str | None

    @property
    def bytes(self) -> int:
        return self.step.elements * _ITEMSIZE

    def facts(self) -> dict[str, Any]:
        """Return the row for JSON."""
        times = {direction: asdict(time) for direction, time in self.times.items()}
        return {**asdict(self), "bytes": self.bytes, "times": times}


def measure(
    sizes: list[Size], options: Options, machine: Machine, effort: timing.Effort, on_step: Callable[[str], None]
) -> list[Row]:
    """Measure or model every step on every size; `on_step` hears what comes next."""
    rows = []
    for size in sizes:
        for step in ladder.steps(size, **asdict(options)):
            on_step(f"{size[0]} x {size[1]}: {step.layer}")
            rows.append(_row(size, step, options, machine, effort))
    return rows


def _row(size: Size, step: ladder.Step, options: Options, machine: Machine, effort: timing.Effort) -> Row:
    needed = step.elements * _ITEMSIZE
    limit = cost.roofline_seconds(step.flops, needed, machine)
    reason = _too_much(needed, limit)
    if reason is not None:
        return Row(size, step, limit, dict.fromkeys(DIRECTIONS, Time(limit, limit, limit, 0)), reason)
    times = {}
    for direction, call in _CALLS[step.name](size, options).items():
        call()  # compiles
        if effort.is_slow(limit):
            effort = replace(effort, slow_calls=max(3, effort.slow_calls))
        times[direction] = Time.of(timing.take_turns({direction: call}, effort)[direction])
    return Row(size, step, limit, times, None)


def _too_much(needed: int, seconds: float) -> str | None:
    """Say why a step is not measured, or None."""
    if needed > memory.available_bytes() - _MEMORY_LEFT_FREE:
        return f"it takes {units.si(needed, 'B')} of memory"
    if seconds > _LONGEST_CALL:
        return f"a call takes {units.seconds(seconds)} at best"
    return None


def _numbers(*shape: int) -> np.ndarray:
    """Random numbers; of large arrays the same block again and again, as 10^9 different ones take 10 s to draw."""
    count = int(np.prod(shape))
    return np.resize(np.random.default_rng(0).standard_normal(min(count, _BLOCK), np.float32), shape)


def _units(size: Size, options: Options) -> Calls:
    return headline.dense_calls(_numbers(1, size[0] * size[1]), options.units)


def _dense(size: Size, options: Options) -> Calls:
    x, w, out = _numbers(*size), _numbers(*size, *size), np.zeros(size, np.float32)
    return {
        "forward": lambda: ladder.dense2d(x, w, out=out),
        "grad_input": lambda: ladder.dense2d_grad_input(x, w, out=out),
        "grad_weight": lambda: ladder.dense2d_grad_weight(x, x, out=w),
    }


def _reindexed(size: Size, options: Options) -> Calls:
    x, v, out = _numbers(*size), _numbers(*size, *size), np.zeros(size, np.float32)
    return {
        "forward": lambda: ladder.relative2d(x, v, out=out),
        "grad_input": lambda: ladder.relative2d_grad_input(x, v),
        "grad_weight": lambda: ladder.relative2d_grad_weight(x, x),
    }


def _local(size: Size, options: Options) -> Calls:
    side = 2 * options.delta + 1
    x, w, out = _numbers(1, *size, 1), _numbers(*size, side, side, 1, 1), np.zeros((1, *size, 1), np.float32)
    padding = options.delta
    return {
        "forward": lambda: fastconv.local2d(x, w, padding=padding, out=out),
        "grad_input": lambda: fastconv.local2d_grad_input(x, w, x.shape, padding=padding, out=out),
        "grad_weight": lambda: fastconv.local2d_grad_weight(x, x, side, padding=padding, out=w),
    }


def _conv(size: Size, kernel: Size, padding: Size, channels: int) -> Calls:
    x, grad_y, w = _numbers(1, *size, 1), _numbers(1, *size, channels), _numbers(*kernel, 1, channels)
    y, grad_x, grad_w = np.zeros_like(grad_y), np.zeros_like(x), np.zeros_like(w)
    return {
        "forward": lambda: fastconv.conv2d(x, w, padding=padding, out=y),
        "grad_input": lambda: fastconv.conv2d_grad_input(grad_y, w, x.shape, padding=padding, out=grad_x),
        "grad_weight": lambda: fastconv.conv2d_grad_weight(grad_y, x, kernel, padding=padding, out=grad_w),
    }


def _invariant(size: Size, options: Options) -> Calls:
    rows, columns = size
    return _conv(size, (2 * rows - 1, 2 * columns - 1), (rows - 1, columns - 1), 1)


def _near(size: Size, options: Options, channels: int) -> Calls:
    side = 2 * options.delta + 1
    return _conv(size, (side, side), (options.delta, options.delta), channels)


_CALLS: dict[str, Callable[[Size, Options], Calls]] = {
    "units": _units,
    "dense": _dense,
    "reindexed": _reindexed,
    "local": _local,
    "invariant": _invariant,
    "conv": lambda size, options: _near(size, options, 1),
    "channels": lambda size, options: _near(size, options, options.channels),
}


def of_size(rows: list[Row]) -> Iterator[tuple[Size, list[Row]]]:
    """Yield the rows of each size."""
    for size in dict.fromkeys(row.size for row in rows):
        yield size, [row for row in rows if row.size == size]
