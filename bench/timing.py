"""How everything here is timed; no other module reads a clock.

Contenders take turns within one process, so that a machine which slows down for a while slows all of them. Before a
contender's turn comes a pause, because the threads of most pools spin after their last piece of work and would take
the cores from the next library, and untimed calls, which wake the contender's own threads, bring its data back into the
caches and give idle cores time to raise their clocks. (A call so slow that this is nothing to it is timed at once.)
Then each call is timed on its own. The median speaks for a contender, the quartiles tell how far to trust it.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_PAUSE_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 1.0
_WATCH_SECONDS = 0.01  # some kernels count CPU time in steps of 4 ms
_IDLE_SHARE = 0.1
_WAKE_SECONDS = 5e-3
"""After a pause, calls of 30 to 500 microseconds took up to four times as long; 3 to 6 ms later their usual time."""

Call = Callable[[], Any]


@dataclass(frozen=True)
class Effort:
    """How long to measure one contender.

    Attributes
    ----------
    seconds
        Timed calls go on until they add up to this.
    calls, most_calls
        Fewest and most timed calls, for contenders of which several calls fit into `seconds`.
    slow_calls
        Fewest timed calls of a contender of which a single call takes longer than `seconds`.
    turns
        Turns that a contender's calls are spread over.
    """

    seconds: float
    calls: int
    most_calls: int
    slow_calls: int
    turns: int

    def is_slow(self, seconds_per_call: float) -> bool:
        """Say whether a single call takes longer than all timed calls should."""
        return seconds_per_call > self.seconds

    def calls_of(self, seconds_per_call: float) -> int:
        """Return how many calls to time when one takes about that long."""
        if self.is_slow(seconds_per_call):
            return self.slow_calls
        return min(max(int(self.seconds / max(seconds_per_call, 1e-9)), self.calls), self.most_calls)


QUICK = Effort(seconds=0.1, calls=3, most_calls=50, slow_calls=1, turns=1)
FULL = Effort(seconds=0.3, calls=9, most_calls=300, slow_calls=3, turns=3)


@dataclass(frozen=True)
class Timing:
    """The seconds that each timed call took, in the order of the calls."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Return the first and third quartile; of a single call, that call."""
        if len(self.seconds) == 1:
            return self.seconds[0], self.seconds[0]
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return first, third

    @property
    def spread(self) -> float:
        """Return the interquartile range as a fraction of the median."""
        first, third = self.quartiles
        return (third - first) / self.median

    def facts(self) -> dict[str, Any]:
        """Return the timing for JSON."""
        return {"median": self.median, "quartiles": self.quartiles, "calls": len(self.seconds)}


def once(call: Call) -> float:
    """Time a single call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def settle() -> None:
    """Wait until no thread of this process runs any more.

    oneDNN's and Numba's spin for some 7 ms after their last piece of work, onnxruntime's for 45, OpenBLAS's for 25 to
    more than 100: no fixed pause is right for all.
    """
    deadline = time.perf_counter() + _LONGEST_PAUSE_SECONDS
    time.sleep(_PAUSE_SECONDS)
    while time.perf_counter() < deadline:
        used = time.process_time()
        time.sleep(_WATCH_SECONDS)
        if time.process_time() - used < _IDLE_SHARE * _WATCH_SECONDS:
            return


def after_pause(call: Call) -> float:
    """Let other libraries' threads fall asleep, call until one's own are awake, and return the last call's time."""
    settle()
    begin = time.perf_counter()
    seconds = once(call)
    while time.perf_counter() - begin < _WAKE_SECONDS:
        seconds = once(call)
    return seconds


def take_turns(calls: Mapping[str, Call], effort: Effort) -> dict[str, Timing]:
    """Time contenders against each other. Call each of them once beforehand, so that nothing compiles here."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    wanted = dict.fromkeys(calls, 1)
    with _no_garbage_collection():
        for turn in range(1, effort.turns + 1):
            for name, call in calls.items():
                taken = samples[name]
                if len(taken) * effort.turns >= wanted[name] * turn:
                    continue
                first = after_pause(call)
                if not taken:
                    wanted[name] = effort.calls_of(first)
                if effort.is_slow(first):
                    taken.append(first)
                while len(taken) * effort.turns < wanted[name] * turn:
                    taken.append(once(call))
    return {name: Timing(tuple(seconds)) for name, seconds in samples.items()}


def alternate(calls: Mapping[str, Call], seconds: float, rounds: int) -> dict[str, Timing]:
    """Time contenders whose calls take microseconds and leave no thread spinning: a sample is the mean of many calls.

    In each round every contender calls for that long in a row. Call each of them once beforehand.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    counts = {name: max(1, int(seconds / max(once(call), 1e-7))) for name, call in calls.items()}
    with _no_garbage_collection():
        for _ in range(rounds):
            for name, call in calls.items():
                many = itertools.repeat(call, counts[name])
                begin = time.perf_counter()
                for one in many:
                    one()
                samples[name].append((time.perf_counter() - begin) / counts[name])
    return {name: Timing(tuple(taken)) for name, taken in samples.items()}


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
