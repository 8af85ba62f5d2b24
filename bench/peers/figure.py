"""The comparison as a picture: ratios by class on the left, every case under the machine's roofline on the right."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import canvas
from bench.peers import summary
from bench.peers.measure import Comparison
from bench.shapes import KINDS
from fastconv.machine import Machine

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FASTER, _SLOWER, _ALONE = canvas.BLUE, canvas.VERMILION, canvas.GREY
_RATIO_TICKS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
_LANE = 0.32


def write(measured: Sequence[Comparison], machine: Machine, setting: str, path: Path) -> list[Path]:
    """Draw the figure as PNG and SVG beside each other and return their paths."""
    return canvas.write(canvas.stem(path), (15, 7.5), lambda figure: _draw(figure, measured, machine, setting))


def _draw(figure: Any, measured: Sequence[Comparison], machine: Machine, setting: str) -> None:
    ratios, roofline = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.1, right=0.98, top=0.83, bottom=0.11, wspace=0.16)
    _draw_ratios(ratios, summary.rated(measured))
    _draw_roofline(roofline, measured, machine)
    figure.text(0.015, 0.945, _message(measured), fontsize=17, fontweight="bold", va="center")
    threads = f"{machine.threads} thread{'s' * (machine.threads > 1)}"
    figure.text(
        0.015, 0.895, f"{setting}; {machine.cpu}, {threads}; medians", fontsize=12.5, color=canvas.GREY, va="center"
    )


def _message(measured: Sequence[Comparison]) -> str:
    rated = summary.rated(measured)
    if not rated:
        return f"fastconv on {len(measured)} convolutions"
    mean = statistics.geometric_mean(c.ratio for c in rated)
    wins = sum(c.ratio >= 1 for c in rated)
    return f"fastconv against the fastest of other libraries: {mean:.2f}x on average, faster in {wins} of {len(rated)}"


def _draw_ratios(axes: Axes, rated: Sequence[Comparison]) -> None:
    kinds = [kind for kind in KINDS if any(c.case.kind == kind for c in rated)]
    for height, kind in enumerate(kinds):
        group = sorted(c.ratio for c in rated if c.case.kind == kind)
        if height % 2 == 0:
            axes.axhspan(height - 0.5, height + 0.5, color="#F3F3F3", zorder=0)
        lanes = height + _LANE * np.resize([0, -1, 1, -0.5, 0.5], len(group))
        axes.scatter(group, lanes, s=42, c=list(map(_colour, group)), edgecolors="white", linewidths=0.6, zorder=3)
        mean = statistics.geometric_mean(group)
        axes.plot([mean, mean], [height - 0.42, height + 0.42], color=canvas.BLACK, lw=2.2, zorder=2)
    axes.axvline(1, color=canvas.GREY, lw=1.2, zorder=2)
    axes.set_xscale("log")
    extremes = [c.ratio for c in rated] + [0.8, 1.25]
    axes.set_xlim(min(extremes) / 1.15, max(extremes) * 1.15)
    low, high = axes.get_xlim()
    ticks = [tick for tick in _RATIO_TICKS if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(axis="x", color="#D0D0D0", lw=0.8)
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_ylim(max(len(kinds), 1) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set(title="Time of the fastest peer / time of fastconv", xlabel="above 1, fastconv is faster; bars: means")


def _draw_roofline(axes: Axes, measured: Sequence[Comparison], machine: Machine) -> None:
    intensity = np.array([c.plan.flops / c.plan.bytes for c in measured])
    reached = np.array([c.gflops for c in measured])
    colours = [_ALONE if c.ratio is None else _colour(c.ratio) for c in measured]
    span = np.geomspace(intensity.min() / 1.5, intensity.max() * 1.5, 200)
    # What else runs on a shared machine only ever lowers a calibration: the best of those beside the cases is the roof.
    limits = [machine, *(c.limits for c in measured)]
    peak, bandwidth = max(each.peak_flops for each in limits), max(each.bandwidth for each in limits)
    roof = np.minimum(peak, span * bandwidth) / 1e9
    axes.plot(span, roof, color=canvas.BLACK, lw=1.6)
    axes.scatter(intensity, reached, s=42, c=colours, edgecolors="white", linewidths=0.6, zorder=3)
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte of operands and result")
    axes.set_title(f"GFLOP/s under the roofline: {peak / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.0f} GB/s")
    axes.grid(color="#E0E0E0", lw=0.8)


def _colour(ratio: float) -> str:
    return _FASTER if ratio >= 1 else _SLOWER
