"""The headline as a table, with the notes that go with it and two sentences that sum it up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from bench import output, units
from bench.headline import Headline, Row

if TYPE_CHECKING:
    from rich.table import Table

_LEFT, _RIGHT = "left", "right"
_COLUMNS = {
    "layer": _LEFT,
    "weights": _RIGHT,
    "direction": _LEFT,
    "FLOPs": _RIGHT,
    "bytes": _RIGHT,
    "algorithm": _LEFT,
    "peak mem": _RIGHT,
    "modelled": _RIGHT,
    "measured": _RIGHT,
    "±": _RIGHT,
    "GFLOP/s": _RIGHT,
    "of limit": _RIGHT,
    "meas/mod": _RIGHT,
}


def table(headline: Headline) -> Table:
    """Lay the rows out, naming a layer and a direction once."""
    grid = output.grid(_COLUMNS)
    above: Row | None = None
    for row in headline.rows:
        new_layer = above is None or above.layer != row.layer
        new_direction = new_layer or above is None or above.direction != row.direction
        if new_layer:
            grid.add_section()
        grid.add_row(*_cells(row, new_layer, new_direction), style="bold" if row.chosen else None)
        above = row
    return grid


def _cells(row: Row, new_layer: bool, new_direction: bool) -> Iterator[str]:
    yield f"{row.layer}{' (slice)' if row.part else ''}" if new_layer else ""
    yield units.si(row.parameters) if new_layer else ""
    yield from (row.direction, units.si(row.flops), units.si(row.bytes, "B")) if new_direction else ("", "", "")
    yield f"{row.algorithm} *" if row.chosen and row.kind == "conv" else row.algorithm
    yield units.si(row.peak_bytes, "B")
    yield units.seconds(row.modelled_seconds)
    yield units.seconds(row.measured_seconds)
    yield f"{row.spread / 2:.0%}" if row.calls > 1 else "1 call"
    yield units.three_digits(row.gflops)
    yield units.percent(row.fraction_of_limit)
    yield f"{units.three_digits(row.model_error)}x"


def notes(headline: Headline) -> Iterator[str]:
    """Explain the table's columns and name everything that is not as it seems."""
    yield "*         what algorithm='auto' picks"
    yield "peak mem  growth of the resident set from before the operands were made to the highest point of the call"
    yield "modelled  the plan's prediction; for a dense layer the limit"
    yield "measured  the median; ± half the interquartile range"
    yield "of limit  the roofline: the longer of computing at the calibrated peak and moving each array once at the"
    yield "          bandwidth of main memory. What stays in a cache from call to call can beat it."
    for name, part in {row.layer: row.part for row in headline.rows if row.part}.items():
        yield f"{name} is a slice, {part}. All its figures are those of the slice, nothing is scaled up."
    for declined in headline.declined:
        yield f"{declined.layer} {declined.direction}: {declined.algorithm} declined ({declined.reason})"


def story(headline: Headline) -> str:
    """Say in two sentences what the table shows."""
    dense, conv = contrast(headline)
    part = f" (a slice, {dense.part})" if dense.part else ""
    return (
        f"Forward, the {dense.layer} layer{part} reads {dense.parameters:,} weights in "
        f"{units.seconds(dense.measured_seconds)} and takes {units.si(dense.peak_bytes, 'B')}.\n"
        f"A {conv.layer.removeprefix('conv ')} convolution of the same image needs {conv.parameters} weights, "
        f"{units.seconds(conv.measured_seconds)} and {units.si(conv.peak_bytes, 'B')}: "
        f"{units.si(dense.parameters / conv.parameters)} times fewer weights, "
        f"{units.three_digits(dense.measured_seconds / conv.measured_seconds)} times faster."
    )


def contrast(headline: Headline) -> tuple[Row, Row]:
    """Return the two rows that the story is about: the largest dense layer and the smallest convolution, forward."""
    forward = [row for row in headline.rows if row.direction == "forward" and row.chosen]
    dense = max((row for row in forward if row.kind == "dense"), key=lambda row: row.parameters)
    conv = min((row for row in forward if row.kind == "conv"), key=lambda row: row.parameters)
    return dense, conv
