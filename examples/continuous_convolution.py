"""The integral that a convolution stands for, from samples: ``python examples/continuous_convolution.py``.

(f * g)(x) is the integral of f(z) g(x - z) over z. From samples h apart it is h times the discrete convolution of the
samples, whose error depends on how smooth f(z) g(x - z) is. Three cases with closed forms show it: for Gaussians the
error falls faster than any power of h; for decays that begin with a jump it falls as h where samples lie on the jump,
and as h squared where the jump lies halfway between samples.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import fastconv

Function = Callable[[np.ndarray], np.ndarray]


def convolve_sampled(f: np.ndarray, g: np.ndarray, step: float) -> np.ndarray:
    """Return f * g on the grid that begins at the sum of the two grids' beginnings."""
    return step * fastconv.convolve(f, g)


def gaussian(deviation: float) -> Function:
    """Return the density of the normal distribution around zero."""
    scale = 1 / (deviation * math.sqrt(2 * math.pi))
    return lambda x: scale * np.exp(-((x / deviation) ** 2) / 2)


def decay(rate: float) -> Function:
    """Return rate exp(-rate x) from x = 0 on, and zero before."""
    return lambda x: rate * np.exp(-rate * np.maximum(x, 0)) * (x >= 0)


@dataclass(frozen=True)
class Pair:
    """Two functions, their convolution in closed form, and what its error should be at a step.

    Samples are taken from `begin` to `end`, the first of them `offset` steps after `begin`. Results are looked at up to
    `last`: beyond, samples are missing.
    """

    name: str
    f: Function
    g: Function
    exact: Function
    predicted: Callable[[float], float]
    begin: float
    end: float
    last: float
    offset: float = 0.0

    def step(self, count: int) -> float:
        return (self.end - self.begin) / count

    def sampled(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a grid and f * g on it, from `count` steps."""
        step = self.step(count)
        z = self.begin + step * (np.arange(count + (self.offset == 0)) + self.offset)
        result = convolve_sampled(self.f(z), self.g(z), step)
        x = 2 * z[0] + step * np.arange(result.size)
        kept = x <= self.last + step / 2
        return x[kept], result[kept]

    def error(self, count: int) -> float:
        """Return the largest error, as a share of the largest value."""
        x, result = self.sampled(count)
        exact = self.exact(x)
        return float(np.abs(result - exact).max() / np.abs(exact).max())


def gaussians(first: float = 1.0, second: float = 0.5) -> Pair:
    """Gaussians: the convolution is one whose variance is the sum of the two.

    f(z) g(x - z) is a Gaussian in z, of variance s^2 = first^2 second^2 / (first^2 + second^2). Poisson's summation
    formula gives the error of the trapezoidal rule for it: twice its Fourier transform at frequency 1 / step, and less
    of the multiples of that.
    """
    together = math.hypot(first, second)
    narrow = first * second / together
    return Pair(
        "Gaussians", gaussian(first), gaussian(second), gaussian(together),
        lambda step: 2 * math.exp(-2 * (math.pi * narrow / step) ** 2), -9.0, 9.0, 18.0,
    )  # fmt: skip


def decays(offset: float) -> Pair:
    """exp(-x) and 2 exp(-2x) from zero on: their convolution is 2 exp(-x) - 2 exp(-2x), at most 1/2.

    Samples on the jumps (offset 0) count both ends of the integral in full, the trapezoidal rule would count half: that
    is 2 h too much at x = 0. Samples beside them (offset 1/2) make it the midpoint rule, off by h^2 / 24 of the value.
    """
    name, predicted = ("on", lambda step: 4 * step) if offset == 0 else ("beside", lambda step: step**2 / 24)
    return Pair(
        f"decays, samples {name} the jump", decay(1), decay(2), lambda x: 2 * np.exp(-x) - 2 * np.exp(-2 * x),
        predicted, 0.0, 8.0, 8.0, offset,
    )  # fmt: skip


PAIRS = (gaussians(), decays(0.5), decays(0.0))
COUNTS = (16, 20, 24, 32, 40, 48, *(2**e for e in range(6, 13)))
_STYLES = (("#0072B2", "o"), ("#009E73", "s"), ("#D55E00", "^"))  # Okabe and Ito's, told apart with any colour vision


def draw(path: Path) -> None:
    """Write the figure: what the integral is at one x, and how the errors fall."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _draw_integral(left, x=1.2)
    _draw_errors(right)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, facecolor="white")


def _draw_integral(axes: Any, x: float) -> None:
    f, g, result = gaussian(1.0), gaussian(0.5), gaussians()
    z = np.linspace(-3.5, 3.5, 701)
    overlap = f(z) * g(x - z)
    grid, values = result.sampled(64)
    shown = np.abs(grid) < 3.5
    axes.plot(z, f(z), color="#555555", label="f(z)")
    axes.plot(z, g(x - z), color="#D55E00", ls="--", label=f"g({x} − z): flipped, moved to x = {x}")
    axes.fill_between(z, overlap, color="#E69F00", alpha=0.4, lw=0, label="their product")
    axes.plot(z, result.exact(z), color="#0072B2", label="f ∗ g in closed form")
    axes.plot(grid[shown], values[shown], "o", ms=4, color="#0072B2", label=f"from samples {result.step(64):.2f} apart")
    axes.plot(x, result.exact(np.array(x)), "o", ms=11, mfc="none", mec="black", mew=1.6)
    axes.annotate(
        "the shaded area is\nthis value of f ∗ g", (x, float(result.exact(np.array(x)))), xytext=(2.1, 0.42),
        arrowprops={"arrowstyle": "->"}, fontsize=10,
    )  # fmt: skip
    axes.set(title="One value of the convolution is one integral", xlabel="z, x", ylim=(0, None))
    axes.legend(frameon=False, fontsize=9, loc="upper left")


def _draw_errors(axes: Any) -> None:
    for pair, (colour, marker) in zip(PAIRS, _STYLES, strict=True):
        steps = [pair.step(count) for count in COUNTS]
        axes.loglog(steps, [pair.error(count) for count in COUNTS], marker, ms=6, color=colour, label=pair.name)
        fine = np.geomspace(steps[-1], steps[0], 200)
        axes.loglog(fine, [pair.predicted(step) for step in fine], color=colour, lw=1)
    axes.set(
        title="The error falls as the step does: measured (marks), predicted (lines)", xlabel="step between samples",
        ylabel="largest error, of the largest value", ylim=(1e-17, 10),
    )  # fmt: skip
    axes.axhline(2**-52, color="#555555", lw=1, ls=":")
    axes.annotate("rounding of one number", (axes.get_xlim()[0], 2**-52), ha="left", va="top", fontsize=9)
    axes.grid(color="#DDDDDD")
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(0, 0.33))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the errors, and draw them if asked to."""
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__.partition(": ")[0])
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the errors into a PNG")
    options = parser.parse_args(arguments)
    table = Table(title="Largest error of f * g from samples, as a share of its largest value (and as predicted)")
    table.add_column("samples", justify="right")
    for pair in PAIRS:
        table.add_column(pair.name, justify="right")
    for count in COUNTS:
        cells = (f"{pair.error(count):.1e} ({pair.predicted(pair.step(count)):.1e})" for pair in PAIRS)
        table.add_row(str(count), *cells)
    Console().print(table)
    if options.figure:
        draw(options.figure)
        print(f"Figure: {options.figure}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
