"""The headline as a picture: weights on the left, time in each direction to the right of them, one line a layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import canvas, report, units
from bench.headline import IMAGE_SIZE, Headline, Row
from fastconv.machine import Machine
from fastconv.problem import DIRECTIONS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The markers' shapes say the same again as the colours.
_DENSE_COLOUR, _CONV_COLOUR = canvas.VERMILION, canvas.BLUE
_ALGORITHM_STYLES = (
    (canvas.BLUE, "o"),
    (canvas.GREEN, "s"),
    (canvas.PURPLE, "^"),
    (canvas.SKY, "D"),
    (canvas.ORANGE, "v"),
    (canvas.BLACK, "P"),
)
_TITLES = {
    "forward": "Time, forward",
    "grad_input": "Time, input gradient",
    "grad_weight": "Time, weight gradient",
}
_TIME_TICKS = {1e-7: "0.1 µs", 1e-5: "10 µs", 1e-3: "1 ms", 1e-1: "0.1 s", 1e1: "10 s"}


def write(headline: Headline, machine: Machine, source: str, stem: Path) -> list[Path]:
    """Draw the figure into ``stem.png`` and ``stem.svg`` and return their paths."""
    return canvas.write(stem, (15, 8.2), lambda figure: _draw(figure, headline, machine, source))


def _draw(figure: Any, headline: Headline, machine: Machine, source: str) -> None:
    layers = list(dict.fromkeys(row.layer for row in headline.rows))
    styles = _styles(headline)
    parameters, *times = figure.subplots(1, 1 + len(DIRECTIONS), sharey=True)
    figure.subplots_adjust(left=0.128, right=0.985, top=0.82, bottom=0.165, wspace=0.09)

    _draw_parameters(parameters, headline, layers)
    limits = _time_limits(headline)
    for axes, direction in zip(times, DIRECTIONS, strict=True):
        _draw_times(axes, [row for row in headline.rows if row.direction == direction], layers, styles)
        ticks = {tick: label for tick, label in _TIME_TICKS.items() if 3 * limits[0] < tick < limits[1] / 3}
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.set(title=_TITLES[direction], xlim=limits)
    parameters.set_ylim(len(layers) - 0.45, -0.55)

    message = _message(headline)
    size = min(19, 1740 / len(message))  # what fits the figure's width
    figure.text(0.015, 0.945, message, fontsize=size, fontweight="bold", va="center")
    subtitle = (
        f"One {IMAGE_SIZE} x {IMAGE_SIZE} image, float32. Times are medians with quartiles, on {machine.cpu} with "
        f"{_threads(machine)}; numbers stand at the algorithm that 'auto' picks."
    )
    figure.text(0.015, 0.895, subtitle, fontsize=12.5, color=canvas.GREY, va="center")
    _draw_key(figure, styles)
    calibration = (
        f"Modelled: each plan's prediction. Calibrated in this run: {machine.peak_flops / 1e9:.0f} GFLOP/s, "
        f"{machine.bandwidth / 1e9:.0f} GB/s. Image: {source}. Reproduce: python -m bench"
    )
    figure.text(0.015, 0.022, calibration, fontsize=10.5, color=canvas.GREY)


def _draw_parameters(axes: Axes, headline: Headline, layers: list[str]) -> None:
    rows = {row.layer: row for row in headline.rows}
    for position, layer in enumerate(layers):
        count, is_dense = rows[layer].parameters, rows[layer].kind == "dense"
        colour = _DENSE_COLOUR if is_dense else _CONV_COLOUR
        axes.barh(position, count - 1, left=1, height=0.62, color=colour)
        axes.annotate(
            f"{count:,}",
            (count, position),
            xytext=(-8 if is_dense else 8, 0),
            textcoords="offset points",
            ha="right" if is_dense else "left",
            va="center",
            fontsize=13,
            fontweight="bold",
            color="white" if is_dense else colour,
        )
    axes.set(xscale="log", xlim=(1, 1.5e9), title="Weights")
    axes.set_yticks(range(len(layers)), [f"{layer}\n(slice)" if rows[layer].part else layer for layer in layers])
    axes.tick_params(axis="y", length=0, labelsize=13)
    axes.set_xticks([1, 1e3, 1e6, 1e9], ["1", "10³", "10⁶", "10⁹"])
    axes.minorticks_off()


def _draw_times(axes: Axes, rows: list[Row], layers: list[str], styles: dict[str, tuple[str, str]]) -> None:
    lanes = _lanes(rows)
    for position in range(0, len(layers), 2):
        axes.axhspan(position - 0.5, position + 0.5, color="#F3F3F3", zorder=0)
    for row in rows:
        height = layers.index(row.layer) + lanes[row.layer, row.algorithm]
        colour, marker = styles[row.algorithm]
        axes.plot([row.modelled_seconds, row.measured_seconds], [height] * 2, color=colour, lw=1.2, alpha=0.6)
        axes.plot([row.first_quartile, row.third_quartile], [height] * 2, color=colour, lw=5, alpha=0.35)
        axes.plot(row.modelled_seconds, height, marker="|", ms=12, mew=2.2, color=colour)
        axes.plot(row.measured_seconds, height, marker=marker, ms=8, color=colour, mec="white", mew=0.6)
        if row.chosen:
            axes.annotate(
                units.seconds(row.measured_seconds),
                (max(row.third_quartile, row.modelled_seconds), height),
                xytext=(9, 0),
                textcoords="offset points",
                va="center",
                fontsize=11,
                color=colour,
                fontweight="bold",
            )
    axes.set_xscale("log")
    axes.grid(axis="x", color="#D0D0D0", lw=0.8)
    axes.tick_params(axis="y", length=0)
    axes.minorticks_off()


def _draw_key(figure: Any, styles: dict[str, tuple[str, str]]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, marker=marker, ms=9, ls="", label=name)
        for name, (colour, marker) in styles.items()
    ]
    handles.append(Line2D([], [], color=canvas.GREY, marker="o", ms=8, lw=5, alpha=0.8, label="measured"))
    handles.append(Line2D([], [], color=canvas.GREY, marker="|", ms=12, mew=2.2, ls="", label="modelled"))
    figure.legend(
        handles=handles,
        loc="lower right",
        bbox_to_anchor=(0.985, 0.05),
        ncols=len(handles),
        frameon=False,
        handletextpad=0.5,
        columnspacing=1.6,
    )


def _styles(headline: Headline) -> dict[str, tuple[str, str]]:
    algorithms = dict.fromkeys(row.algorithm for row in headline.rows if row.kind == "conv")
    styles = {"dense": (_DENSE_COLOUR, "h")}
    for number, name in enumerate(algorithms):
        styles[name] = _ALGORITHM_STYLES[number % len(_ALGORITHM_STYLES)]
    return styles


def _lanes(rows: list[Row]) -> dict[tuple[str, str], float]:
    """Give every algorithm of a layer its own height within the layer's line."""
    lanes: dict[tuple[str, str], float] = {}
    for layer in {row.layer for row in rows}:
        names = [row.algorithm for row in rows if row.layer == layer]
        apart = min(0.27, 0.76 / max(1, len(names) - 1))
        for number, name in enumerate(names):
            lanes[layer, name] = apart * (number - (len(names) - 1) / 2)
    return lanes


def _time_limits(headline: Headline) -> tuple[float, float]:
    """Return the same limits for all panels, with room for the numbers at the right."""
    times = [time for row in headline.rows for time in (row.modelled_seconds, row.measured_seconds)]
    return min(times) / 2, max(times) * (max(times) / min(times)) ** 0.38


def _message(headline: Headline) -> str:
    dense, conv = report.contrast(headline)
    speedup = dense.measured_seconds / conv.measured_seconds
    part = "a slice of " if dense.part else ""
    return (
        f"{conv.parameters} weights instead of {dense.parameters:,}, and {speedup:.0f}x faster: "
        f"a {conv.layer.removeprefix('conv ')} convolution against {part}a dense layer"
    )


def _threads(machine: Machine) -> str:
    return f"{machine.threads} thread{'s' * (machine.threads > 1)}"
