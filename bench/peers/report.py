"""The comparison as tables, for a terminal and in Markdown, with the sentences that go below them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from bench import units
from bench.peers import summary
from bench.peers.measure import STEADY, Comparison
from bench.shapes import KINDS, ConvCase

Table = tuple[dict[str, str], list[list[str]]]
"""The columns, each with the side that it aligns to, and the rows."""

_LEFT, _RIGHT = "left", "right"
_COLUMNS = {
    "class": _LEFT,
    "case": _LEFT,
    "direction": _LEFT,
    "fastest peer": _LEFT,
    "peer": _RIGHT,
    "peer ±": _RIGHT,
    "algorithm": _LEFT,
    "fastconv": _RIGHT,
    "±": _RIGHT,
    "ratio": _RIGHT,
    "GFLOP/s": _RIGHT,
    "of limit": _RIGHT,
}


def cases(chosen: Iterable[ConvCase]) -> Table:
    """List the cases by class."""
    columns = {"class": _LEFT, "case": _LEFT, "geometry": _LEFT, "FLOPs": _RIGHT}
    return columns, [[case.kind, case.name, str(case), units.si(case.flops)] for case in by_class(chosen)]


def by_class(chosen: Iterable[ConvCase]) -> list[ConvCase]:
    """Sort cases by class, and leave their order within a class."""
    return sorted(chosen, key=lambda case: KINDS.index(case.kind))


def comparisons(measured: Iterable[Comparison]) -> Table:
    """Lay the comparisons out, naming a class once; "!" marks those on a machine that was not steady."""
    rows: list[list[str]] = []
    above = None
    for c in measured:
        ours, rival = c.ours["auto"], c.fastest_peer
        beaten = ["", "", ""] if rival is None else [rival, *_time(c.peers[rival].median, c.peers[rival].spread)]
        rows.append(
            [
                c.case.kind if c.case.kind != above else "",
                c.case.name,
                c.direction,
                *beaten,
                c.plan.algorithm,
                *_time(ours.median, ours.spread),
                "" if c.ratio is None else f"{c.ratio:.2f}{'' if c.steady else ' !'}",
                units.three_digits(c.gflops),
                units.percent(c.fraction_of_limit),
            ]
        )
        above = c.case.kind
    return _COLUMNS, rows


def classes(measured: Sequence[Comparison]) -> Table:
    """Lay the ratios of each class out."""
    columns = {"class": _LEFT, "cases": _RIGHT, "geometric mean": _RIGHT, "below 1": _RIGHT, "smallest": _RIGHT}
    rows = [
        [r.kind, str(r.cases), f"{r.geometric_mean:.2f}", str(r.below_one), f"{r.smallest:.2f} ({r.worst})"]
        for r in summary.by_kind(measured)
    ]
    return columns, rows


def algorithms(measured: Iterable[Comparison]) -> Table:
    """Lay out the time of every algorithm of ours, and what was predicted."""
    measured = list(measured)
    names = list(dict.fromkeys(name for c in measured for name in _algorithms(c)))
    columns = {"case": _LEFT, "direction": _LEFT, "auto is": _LEFT}
    columns |= {column: _RIGHT for name in names for column in (name, f"{name} predicted")}
    rows = []
    for c in measured:
        cells = [c.case.name, c.direction, c.plan.algorithm]
        entries = _algorithms(c)
        for name in names:
            cells += map(units.seconds, entries[name]) if name in entries else ("", "")
        rows.append(cells)
    return columns, rows


def notes(measured: Sequence[Comparison]) -> Iterator[str]:
    """Explain the tables, and name what is below 1 and what went wrong."""
    yield "ratio     the fastest peer's time over ours; above 1, fastconv is faster"
    yield "±         half the interquartile range; the times are medians"
    yield "of limit  the roofline; what stays in a cache from call to call can beat it"
    if any(not c.steady for c in measured):
        yield f"!         the machine's speed differed by more than {STEADY:.0%} before and after, at every attempt"
    if not summary.rated(measured):
        yield "No peer was timed. The extra `peers` installs them: pip install 'fastconv[peers]'"
    if behind := summary.behind(measured):
        yield f"Below 1: {', '.join(f'{c.case.name} {c.direction} {c.ratio:.2f}' for c in behind)}"
    found = summary.quality(measured)
    if found.chosen:
        yield (
            f"auto took an algorithm within {summary.CLOSE_TO_BEST:.0%} of the best in {found.chosen_well} "
            f"of {found.chosen} cases"
        )
    yield (
        f"Predictions within {summary.CLOSE_TO_MEASURED:.0%} of the measured time: {found.predicted_well} "
        f"of {found.predicted}"
    )


def errors(measured: Iterable[Comparison]) -> Iterator[str]:
    """Yield a line for everyone who was not timed because of an error or another result."""
    for c in measured:
        for name, reason in c.wrong.items():
            yield f"NOT TIMED: {name}, {c.case.name} {c.direction}: {reason}"


def _algorithms(c: Comparison) -> dict[str, tuple[float, float]]:
    """Return measured and predicted seconds by algorithm, "auto" under the name of what it takes."""
    return {
        c.plan.algorithm if name == "auto" else name: (taken.median, c.predicted[name])
        for name, taken in c.ours.items()
    }


def _time(seconds: float, spread: float) -> tuple[str, str]:
    return units.seconds(seconds), f"{spread / 2:.0%}"
