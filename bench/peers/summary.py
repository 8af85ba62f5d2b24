"""What many comparisons come to: ratios by class, and how good the choices of "auto" and its predictions are."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.peers.measure import Comparison
from bench.shapes import KINDS

ALL = "all"
CLOSE_TO_BEST = 0.05
CLOSE_TO_MEASURED = 0.25


@dataclass(frozen=True)
class Ratios:
    """The ratios of one class of problems, or of all."""

    kind: str
    cases: int
    smallest: float
    worst: str
    geometric_mean: float
    below_one: int


@dataclass(frozen=True)
class Quality:
    """How good the cost model is.

    Attributes
    ----------
    chosen, chosen_well
        Cases in which "auto" had a choice, and those in which it took an algorithm within 5 % of the best.
    predicted, predicted_well
        Timings of algorithms, and those within 25 % of which the prediction was.
    """

    chosen: int
    chosen_well: int
    predicted: int
    predicted_well: int


def rated(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Return the comparisons in which a peer took part."""
    return [c for c in comparisons if c.ratio is not None]


def by_kind(comparisons: Sequence[Comparison]) -> Iterator[Ratios]:
    """Yield the ratios of each class that occurs, and in the end those of all."""
    for kind in (*KINDS, ALL):
        group = [c for c in rated(comparisons) if kind in (c.case.kind, ALL)]
        if not group:
            continue
        ratios = [c.ratio for c in group]
        smallest = min(ratios)
        yield Ratios(
            kind=kind,
            cases=len(group),
            smallest=smallest,
            worst=group[ratios.index(smallest)].case.name,
            geometric_mean=statistics.geometric_mean(ratios),
            below_one=sum(ratio < 1 for ratio in ratios),
        )


def behind(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Return the comparisons that a peer wins, the worst first."""
    return sorted((c for c in rated(comparisons) if c.ratio < 1), key=lambda c: c.ratio)


def quality(comparisons: Iterable[Comparison]) -> Quality:
    """Count how often "auto" chose well and how often a prediction was right."""
    comparisons = list(comparisons)
    choices = [c for c in comparisons if len(c.ours) > 1]
    well = [c for c in choices if c.seconds <= (1 + CLOSE_TO_BEST) * min(t.median for t in c.ours.values())]
    errors = [c.predicted[name] / taken.median - 1 for c in comparisons for name, taken in c.ours.items()]
    right = [error for error in errors if abs(error) <= CLOSE_TO_MEASURED]
    return Quality(len(choices), len(well), len(errors), len(right))


def facts(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Return all of it for JSON."""
    return {
        "ratios": [asdict(ratios) for ratios in by_kind(comparisons)],
        "behind": [f"{c.case.name} {c.direction}" for c in behind(comparisons)],
        "quality": asdict(quality(comparisons)),
    }
