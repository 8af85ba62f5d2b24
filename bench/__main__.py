"""``python -m bench``: a billion weights of a dense layer against a handful of a convolution, modelled and measured."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import canvas, data, environment, figure, headline, output, report, timing
from fastconv import datasets

DEFAULT_FIGURE = Path("bench-results", "headline")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, and write the figure and the JSON file."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        pictures = data.load(options.data)
    except FileNotFoundError as error:
        parser.error(f"--data: {error}")

    out = output.console()
    conditions = environment.prepare(options.threads)
    out.print(conditions.headline())
    out.print(f"Image: {headline.IMAGE_SIZE} x {headline.IMAGE_SIZE}, a mosaic of {pictures.source}")
    with output.progress(headline.STEPS) as on_step:
        effort = timing.QUICK if options.quick else timing.FULL
        measured = headline.measure(pictures, conditions.machine, effort, on_step)
    warnings = list(conditions.warnings())

    output.show(report.table(measured))
    for line in report.notes(measured):
        out.print(line, style="dim", markup=False, soft_wrap=True)
    out.print()
    out.print(report.story(measured), style="bold", markup=False, soft_wrap=True)
    for warning in warnings:
        out.print(warning, style="red", soft_wrap=True)
    for path in figure.write(measured, conditions.machine, pictures.source, _stem(options.figure)):
        out.print(f"Figure: {path}", soft_wrap=True)
    if options.json:
        content = {
            "environment": conditions.facts(),
            "image": pictures.source,
            "warnings": warnings,
            "rows": [row.facts() for row in measured.rows],
            "declined": [vars(declined) for declined in measured.declined],
        }
        output.write_json(options.json, content)
        out.print(f"JSON: {options.json}", soft_wrap=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.partition(": ")[2].capitalize())
    parser.add_argument("--quick", action="store_true", help="few repetitions: under a minute instead of under five")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure and the environment to FILE")
    parser.add_argument(
        "--figure",
        type=Path,
        default=DEFAULT_FIGURE,
        metavar="PATH",
        help=f"folder, or file name without suffix, for the PNG and SVG figure (default: {DEFAULT_FIGURE})",
    )
    parser.add_argument("--threads", type=environment.thread_count, metavar="N", help="default: all of Numba's")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help=f"where the Fashion-MNIST files lie (default: ${datasets.DATA_VARIABLE}, then the usual places)",
    )
    return parser


def _stem(path: Path) -> Path:
    """Turn ``--figure`` into a path without suffix; a folder gets the default name inside."""
    return path / DEFAULT_FIGURE.name if path.is_dir() else canvas.stem(path)


if __name__ == "__main__":
    sys.exit(main())
