"""What all figures share: their style, and how they are written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

# Okabe and Ito's colours, which people with any colour vision tell apart.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, ORANGE, BLACK, GREY = "#56B4E9", "#E69F00", "#000000", "#555555"

_STYLE = {
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "svg.hashsalt": "fastconv",
}


def write(stem: Path, size: tuple[float, float], draw: Callable[[Any], None]) -> list[Path]:
    """Let `draw` fill a figure, write it to ``stem.png`` and ``stem.svg`` and return their paths."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in ("png", "svg")]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size)
        FigureCanvasAgg(figure)
        draw(figure)
        for path in paths:
            undated = {"Date": None} if path.suffix == ".svg" else None  # the same figures make the same file
            figure.savefig(path, dpi=150, facecolor="white", metadata=undated)
    return paths


def stem(path: Path) -> Path:
    """Return a path without the suffix of a picture."""
    return path.with_suffix("") if path.suffix in (".png", ".svg") else path
