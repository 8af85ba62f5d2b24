"""The figures as tables, for a terminal and in Markdown, with the sentences that go below them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from bench import units
from bench.peers.report import Table
from bench.training import ours
from bench.training.measure import Training

GOAL = 2.0
_LEFT, _RIGHT = "left", "right"


def steps(trainings: Sequence[Training]) -> Table:
    """Lay out whole steps."""
    columns = {"one training step": _LEFT, "library": _LEFT, "median": _RIGHT, "quartiles": _RIGHT, "ratio": _RIGHT}
    rows = []
    for training in trainings:
        own = training.steps[ours.Step.name].median
        for name, taken in training.steps.items():
            first = name == ours.Step.name
            low, high = map(units.seconds, taken.quartiles)
            rows.append([
                training.network.title if first else "", name, units.seconds(taken.median), f"{low} to {high}",
                "" if first else f"{taken.median / own:.2f}",
            ])  # fmt: skip
    return columns, rows


def parts(training: Training) -> Table:
    """Lay out where the time of a network's step goes; times are of one layer, their sums of all."""
    rivals = [name for name in training.steps if name != ours.Step.name]
    columns = {"layer": _LEFT, "part": _LEFT, "count": _RIGHT, ours.Step.name: _RIGHT, "of step": _RIGHT}
    columns |= dict.fromkeys([*rivals, "ratio"], _RIGHT)
    whole, above, rows = training.steps[ours.Step.name].median, None, []
    for part in training.parts:
        own = part.timings[ours.Step.name].median
        others = [part.timings[name].median for name in rivals]
        rows.append([
            part.layer if part.layer != above else "", part.part, str(part.count), units.seconds(own),
            units.percent(part.count * own / whole), *map(units.seconds, others), _ratio(others, own),
        ])  # fmt: skip
        above = part.layer
    sums = {name: sum(part.count * part.timings[name].median for part in training.parts) for name in training.steps}
    own, others = sums[ours.Step.name], [sums[name] for name in rivals]
    rows.append([
        "sum", "", "", units.seconds(own), units.percent(own / whole), *map(units.seconds, others),
        _ratio(others, own),
    ])  # fmt: skip
    return columns, rows


def notes(trainings: Sequence[Training]) -> Iterator[str]:
    """Explain the tables, and say what was reached."""
    yield "A step is forward pass, loss, all gradients and the update (SGD with momentum); times are medians, float32."
    yield "ratio: the library's time over fastconv's, above 1 fastconv is faster."
    if any(training.parts for training in trainings):
        yield "Parts are timed alone. ReLU is part of forward, the bias of grad_weight; ratio: to the faster layout."
    rated = [training for training in trainings if training.ratio is not None]
    if not rated:
        yield "PyTorch is not installed: pip install 'fastconv[peers]'"
        return
    for training in rated:
        yield f"{training.network.title}: {training.ratio:.2f} times as fast as {training.rival} (goal {GOAL:.1f})"
    if len(rated) > 1:
        yield f"Geometric mean: {statistics.geometric_mean(training.ratio or 1 for training in rated):.2f}"


def _ratio(others: Sequence[float], own: float) -> str:
    return f"{min(others) / own:.2f}" if others else ""
