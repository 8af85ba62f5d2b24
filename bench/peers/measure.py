"""One case after another, timed by everyone who takes it between two calibrations of the machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench import environment, timing
from bench.contenders import Contender, Fastconv, Prepared, Task, require_equal
from bench.libraries.base import Peer
from bench.shapes import ConvCase
from fastconv import machine
from fastconv.cost import roofline_seconds
from fastconv.machine import Machine
from fastconv.plan import Plan

FULL = timing.Effort(seconds=0.2, calls=10, most_calls=300, slow_calls=3, turns=5)
QUICK = timing.Effort(seconds=0.08, calls=4, most_calls=50, slow_calls=1, turns=2)
STEADY = 0.10
"""A case counts if the machine's speed before and after it differs by at most this fraction."""
_ATTEMPTS = 3


@dataclass(frozen=True)
class Comparison:
    """One case in one direction, timed by everyone who takes it.

    Attributes
    ----------
    plan
        That of "auto".
    ours, peers
        Timings by algorithm ("auto" is always among them, and stands for the algorithm that it takes) and by library.
    predicted
        Seconds that fastconv's cost model expects, for each of `ours`.
    declined, wrong
        Why a contender was not timed: the problem is not for it, or it fails or its result is not that of "auto".
    limits
        The machine's, the better of the calibrations before and after.
    drift
        By how much these two differ: the larger of the relative changes of peak and bandwidth.
    attempts
        How often the case was measured, as the machine was not steady.
    """

    case: ConvCase
    plan: Plan
    ours: Mapping[str, timing.Timing]
    peers: Mapping[str, timing.Timing]
    predicted: Mapping[str, float]
    declined: Mapping[str, str]
    wrong: Mapping[str, str]
    limits: Machine
    drift: float
    attempts: int

    @property
    def direction(self) -> str:
        return self.plan.direction

    @property
    def seconds(self) -> float:
        return self.ours["auto"].median

    @property
    def fastest_peer(self) -> str | None:
        return min(self.peers, key=lambda name: self.peers[name].median, default=None)

    @property
    def ratio(self) -> float | None:
        """The fastest peer's time over that of "auto": above 1, fastconv is faster. None without a peer."""
        return None if self.fastest_peer is None else self.peers[self.fastest_peer].median / self.seconds

    @property
    def gflops(self) -> float:
        return self.plan.flops / self.seconds / 1e9

    @property
    def fraction_of_limit(self) -> float:
        return roofline_seconds(self.plan.flops, self.plan.bytes, self.limits) / self.seconds

    @property
    def steady(self) -> bool:
        return self.drift <= STEADY

    def facts(self) -> dict[str, Any]:
        """Return the comparison for JSON."""
        return {
            "case": vars(self.case),
            "kind": self.case.kind,
            "direction": self.direction,
            "algorithm": self.plan.algorithm,
            "flops": self.plan.flops,
            "bytes": self.plan.bytes,
            "seconds": self.seconds,
            "gflops": self.gflops,
            "fraction_of_limit": self.fraction_of_limit,
            "fastest_peer": self.fastest_peer,
            "ratio": self.ratio,
            "ours": {name: taken.facts() for name, taken in self.ours.items()},
            "peers": {name: taken.facts() for name, taken in self.peers.items()},
            "predicted_seconds": dict(self.predicted),
            "declined": dict(self.declined),
            "wrong": dict(self.wrong),
            "peak_flops": self.limits.peak_flops,
            "bandwidth": self.limits.bandwidth,
            "drift": self.drift,
            "attempts": self.attempts,
        }


class Instrument:
    """Holds fastconv's "auto" against peers, and if asked against its other algorithms.

    Parameters
    ----------
    auto, algorithms, peers
        Who is timed. `algorithms` is left empty if only "auto" is of interest.
    limits
        Say for how many threads and which dtype to calibrate and measure.
    """

    def __init__(
        self,
        auto: Fastconv,
        algorithms: Sequence[Fastconv],
        peers: Sequence[Peer],
        limits: Machine,
        effort: timing.Effort = FULL,
    ) -> None:
        self.auto = auto
        self.algorithms = algorithms
        self.peers = peers
        self.effort = effort
        self.threads, self.dtype = limits.threads, limits.dtype
        self._latest: Machine | None = None

    def measure(self, case: ConvCase, direction: str) -> Comparison:
        """Time a case; again if the machine changed its speed meanwhile, and keep the steadiest attempt."""
        task = Task.make(case, direction, dtype=self.dtype)
        plan = self.auto.plan(case, direction, self.dtype)
        others = [contender for contender in self.algorithms if contender.name != plan.algorithm]
        calls, declined, wrong = qualified(task, [self.auto, *others, *self.peers])
        runs = {name: prepared.run for name, prepared in calls.items()}
        attempts = []
        while len(attempts) < _ATTEMPTS and (not attempts or min(attempts, key=_drift_of)[0] > STEADY):
            before = self._latest or self._calibrate()
            timings = timing.take_turns(runs, self.effort)
            self._latest = self._calibrate()
            attempts.append((drift(before, self._latest), environment.best([before, self._latest]), timings))
        moved, limits, timings = min(attempts, key=_drift_of)
        ours = [contender for contender in (self.auto, *others) if contender.name in timings]
        return Comparison(
            case=case,
            plan=plan,
            ours={contender.name: timings[contender.name] for contender in ours},
            peers={peer.name: timings[peer.name] for peer in self.peers if peer.name in timings},
            predicted={c.name: c.plan(case, direction, self.dtype).predicted_seconds for c in ours},
            declined=declined,
            wrong=wrong,
            limits=limits,
            drift=moved,
            attempts=len(attempts),
        )

    def _calibrate(self) -> Machine:
        timing.settle()
        return machine.calibrate(self.threads, self.dtype)


def qualified(
    task: Task, contenders: Iterable[Contender]
) -> tuple[dict[str, Prepared], dict[str, str], dict[str, str]]:
    """Return the calls of those who get the first contender's result, and why the others do not take part.

    The reasons come in two dicts: the problem is not for them, or they fail or get another result.
    """
    calls: dict[str, Prepared] = {}
    declined: dict[str, str] = {}
    wrong: dict[str, str] = {}
    expected = None
    for contender in contenders:
        reason = contender.supports(task.case, task.direction, task.dtype)
        if reason is not None:
            declined[contender.name] = reason
            continue
        try:
            prepared = contender.prepare(task)
            result = prepared.as_numpy(prepared.run())
            require_equal(contender.name, result, result if expected is None else expected)
        except Exception as error:  # one library that fails must not cost the others' results
            if expected is None:
                raise
            wrong[contender.name] = f"{type(error).__name__}: {error}"
            continue
        calls[contender.name] = prepared
        if expected is None:
            expected = result.copy()
    return calls, declined, wrong


def drift(one: Machine, other: Machine) -> float:
    """Return the larger of the relative changes of peak and bandwidth."""
    pairs = ((one.peak_flops, other.peak_flops), (one.bandwidth, other.bandwidth))
    return max(max(pair) / min(pair) - 1 for pair in pairs)


def _drift_of(attempt: tuple[float, Machine, dict[str, timing.Timing]]) -> float:
    return attempt[0]
