"""The ladder as a picture: for each size a line of bars, weights on the left and the three times beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import canvas, units
from bench.ladder.measure import Row, Size, of_size
from fastconv.machine import Machine
from fastconv.problem import DIRECTIONS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {
    "units": canvas.VERMILION,
    "dense": canvas.VERMILION,
    "reindexed": canvas.VERMILION,
    "local": canvas.ORANGE,
    "invariant": canvas.PURPLE,
    "conv": canvas.BLUE,
    "channels": canvas.BLUE,
}
_KEY = {
    canvas.VERMILION: "every pixel to every pixel",
    canvas.ORANGE: "only near pixels",
    canvas.PURPLE: "the same everywhere",
    canvas.BLUE: "both: a convolution",
}
_TITLES = {"forward": "Time, forward", "grad_input": "Time, input gradient", "grad_weight": "Time, weight gradient"}
_WEIGHT_TICKS = {10.0**power: label for power, label in ((0, "1"), (3, "10³"), (6, "10⁶"), (9, "10⁹"), (12, "10¹²"))}
_TIME_TICKS = dict(
    zip(
        (10.0**power for power in range(-7, 5)),
        ("0.1 µs", "1 µs", "10 µs", "0.1 ms", "1 ms", "10 ms", "0.1 s", "1 s", "10 s", "100 s", "10³ s", "10⁴ s"),
        strict=True,
    )
)
_MOST_TICKS = 5
_FAINT = 0.35
_LONGEST_OUTSIDE = 12
"""Characters of a number that fit beside its bar; a longer one stands inside."""


def write(rows: Sequence[Row], machine: Machine, path: Path) -> list[Path]:
    """Draw the figure as PNG and SVG beside each other and return their paths."""
    sizes = dict(of_size(list(rows)))
    height = 1.9 + 3.4 * len(sizes)
    return canvas.write(canvas.stem(path), (16, height), lambda figure: _draw(figure, sizes, machine, height))


def _draw(figure: Any, sizes: dict[Size, list[Row]], machine: Machine, height: float) -> None:
    grid = figure.subplots(len(sizes), 1 + len(DIRECTIONS), squeeze=False)
    figure.subplots_adjust(
        left=0.155, right=0.985, top=1 - 1.45 / height, bottom=0.75 / height, wspace=0.08, hspace=0.3
    )
    for line, (size, rows) in zip(grid, sizes.items(), strict=True):
        weights = [float(row.step.parameters) for row in rows]
        _draw_bars(line[0], rows, weights, lambda value: f"{value:,.0f}", _WEIGHT_TICKS, solid=True)
        line[0].set(title=f"{size[0]} x {size[1]}: weights")
        line[0].set_yticks(range(len(rows)), [row.step.layer for row in rows])
        limits = _limits([time.seconds for row in rows for time in row.times.values()])
        for axes, direction in zip(line[1:], DIRECTIONS, strict=True):
            times = [row.times[direction].seconds for row in rows]
            _draw_bars(axes, rows, times, units.seconds, _TIME_TICKS, limits)
            axes.set(title=_TITLES[direction])
            axes.set_yticks([])
    largest = max(sizes, key=lambda size: size[0] * size[1])
    count = {row.step.name: row.step.parameters for row in sizes[largest]}
    message = f"From {count['dense']:,} weights to {count['conv']:,}: near pixels only, and the same weights everywhere"
    figure.text(0.015, 1 - 0.4 / height, message, fontsize=min(20, 1700 / len(message)), fontweight="bold", va="center")
    threads = f"{machine.threads} thread{'s' * (machine.threads > 1)}"
    subtitle = (
        f"One gray image, float32, logarithmic scales. Times are medians on {machine.cpu} with {threads}; hatched: "
        f"modelled from {machine.peak_flops / 1e9:.0f} GFLOP/s and {machine.bandwidth / 1e9:.0f} GB/s."
    )
    figure.text(0.015, 1 - 0.8 / height, subtitle, fontsize=12.5, color=canvas.GREY, va="center")
    _draw_key(figure, height)
    figure.text(0.015, 0.2 / height, "Reproduce: python -m bench.ladder", fontsize=10.5, color=canvas.GREY)


def _draw_bars(
    axes: Axes, rows: Sequence[Row], values: Sequence[float], label: Callable[[float], str], ticks: dict[float, str],
    limits: tuple[float, float] | None = None, solid: bool = False,
) -> None:  # fmt: skip
    """Draw a bar for each row; modelled ones are hatched, unless all are `solid`."""
    low, high = limits or _limits(values, 1.0)
    for position, (row, value) in enumerate(zip(rows, values, strict=True)):
        colour, modelled = _COLOURS[row.step.name], row.why_modelled is not None and not solid
        axes.barh(
            position, value - low, left=low, height=0.66, edgecolor=colour, linewidth=1,
            facecolor=(colour, _FAINT) if modelled else colour, hatch="////" if modelled else None,
        )  # fmt: skip
        text = label(value)
        inside = len(text) > _LONGEST_OUTSIDE
        axes.annotate(
            text,
            (value, position),
            xytext=(-6 if inside else 6, 0),
            textcoords="offset points",
            ha="right" if inside else "left",
            va="center",
            fontsize=11,
            fontweight="bold",
            color="white" if inside else colour,
        )
    axes.set(xscale="log", xlim=(low, high), ylim=(len(rows) - 0.45, -0.55))
    shown = {tick: text for tick, text in ticks.items() if low <= tick < high / 2}
    every = -(-len(shown) // _MOST_TICKS)
    axes.set_xticks(list(shown)[::every], list(shown.values())[::every])
    axes.grid(axis="x", color="#D8D8D8", lw=0.8)
    axes.tick_params(axis="y", length=0, labelsize=12)
    axes.minorticks_off()


def _limits(values: Sequence[float], low: float | None = None) -> tuple[float, float]:
    """Return where bars begin and, with room for the numbers behind them, where the axis ends."""
    low = min(values) / 4 if low is None else low
    return low, max(values) * (max(values) / low) ** 0.55


def _draw_key(figure: Any, height: float) -> None:
    from matplotlib.patches import Patch

    figure.legend(
        handles=[Patch(color=colour, label=label) for colour, label in _KEY.items()],
        loc="lower right",
        bbox_to_anchor=(0.985, 0.05 / height),
        ncols=len(_KEY),
        frameon=False,
        columnspacing=1.6,
    )
