"""The ladder as tables, for a terminal and in Markdown, with the sentences that go below them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench import units
from bench.ladder.measure import Row, Time
from fastconv.problem import DIRECTIONS

Table = tuple[dict[str, str], list[list[str]]]
"""The columns, each with the side that it aligns to, and the rows."""

_LEFT, _RIGHT = "left", "right"
_COLUMNS = {
    "layer": _LEFT,
    "formula": _LEFT,
    "weights": _RIGHT,
    "FLOPs": _RIGHT,
    "bytes": _RIGHT,
    **dict.fromkeys(DIRECTIONS, _RIGHT),
    "of limit": _RIGHT,
}


def table(rows: Sequence[Row], formulas: bool = True) -> Table:
    """Lay the steps of one size out, with their formulas where there is room."""
    columns = {name: side for name, side in _COLUMNS.items() if formulas or name != "formula"}
    return columns, [
        [
            row.step.layer,
            *([row.step.formula] if formulas else []),
            f"{row.step.parameters:,}",
            units.si(row.step.flops),
            units.si(row.bytes, "B"),
            *(_time(row.times[direction]) for direction in DIRECTIONS),
            "" if row.why_modelled else units.percent(row.limit_seconds / row.times["forward"].seconds),
        ]
        for row in rows
    ]


def _time(time: Time) -> str:
    return f"{units.seconds(time.seconds)} modelled" if time.modelled else units.seconds(time.seconds)


def notes(rows: Sequence[Row]) -> Iterator[str]:
    """Explain the columns and what was not measured."""
    yield "One gray image, float32; times are medians. FLOPs and bytes (each array once) are those of one direction."
    yield "modelled: the longer of FLOPs / peak and bytes / bandwidth. of limit: that time by the measured forward one;"
    yield "          what stays in a cache from call to call can beat it."
    for row in rows:
        if row.why_modelled:
            yield f"{row.size[0]} x {row.size[1]}, {row.step.layer}: modelled, because {row.why_modelled}"


def story(rows: Sequence[Row]) -> str:
    """Say in one sentence what the constraints do to the weights of one size."""
    count = {row.step.name: row.step.parameters for row in rows}
    rows_, columns = rows[0].size
    return (
        f"{rows_} x {columns} pixels: dense {units.si(count['dense'])} weights, local {units.si(count['local'])}, "
        f"translation-invariant {units.si(count['invariant'])}, both {count['conv']:,}, "
        f"with channels {count['channels']:,}."
    )
