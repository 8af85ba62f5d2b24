"""``python -m bench.ladder``: weights, operations, bytes and times on the way from a dense layer to a convolution."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import environment, output, timing
from bench.ladder import figure, measure, report
from fastconv import ladder

SIZES = ((28, 28), (1000, 1000))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table for each size, and write and draw what was asked for."""
    options = _parser().parse_args(arguments)
    settings = measure.Options(options.units, options.delta, options.channels)
    sizes = list(dict.fromkeys(options.size or SIZES))
    conditions = environment.prepare(options.threads)
    with output.progress(len(sizes) * len(ladder.steps(1))) as on_step:
        effort = timing.QUICK if options.quick else timing.FULL
        rows = measure.measure(sizes, settings, conditions.machine, effort, on_step)
    warnings = list(conditions.warnings(plans=False))

    for (height, width), of_size in measure.of_size(rows):
        print(f"{height} x {width} pixels")
        if options.markdown:
            print("", *output.markdown(*report.table(of_size, formulas=False)), "", sep="\n")
        else:
            output.show(output.grid(*report.table(of_size)))
    for line in (conditions.headline(), *report.notes(rows), *warnings):
        print(line)
    for _, of_size in measure.of_size(rows):
        print(report.story(of_size))
    if options.json:
        content = {
            "environment": conditions.facts(),
            "options": asdict(settings),
            "warnings": warnings,
            "rows": [row.facts() for row in rows],
        }
        output.write_json(options.json, content)
        print(f"JSON: {options.json}")
    if options.figure:
        for path in figure.write(rows, conditions.machine, options.figure):
            print(f"Figure: {path}")
    return 0


def _size(text: str) -> measure.Size:
    """Parse ``--size``: rows and columns of an image."""
    parts = text.lower().split("x")
    if len(parts) == 2 and all(part.isdecimal() and int(part) > 0 for part in parts):
        return int(parts[0]), int(parts[1])
    raise argparse.ArgumentTypeError(f"takes ROWSxCOLUMNS such as 28x28, got {text!r}")


def _number(low: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if text.isdecimal() and int(text) >= low:
            return int(text)
        raise argparse.ArgumentTypeError(f"takes an integer from {low} on, got {text!r}")

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.ladder", description=__doc__.partition(": ")[2])
    add: Callable[..., Any] = parser.add_argument
    add("--size", type=_size, action="append", metavar="HxW", help="of the image, also several times "
        "(default: 28x28 and 1000x1000)")  # fmt: skip
    add("--units", type=_number(1), default=1000, metavar="N", help="of the dense layer (default: %(default)s)")
    add("--delta", type=_number(0), default=2, metavar="N", help="reach of the local layers (default: %(default)s)")
    add("--channels", type=_number(1), default=16, metavar="N", help="of the last step (default: %(default)s)")
    add("--threads", type=environment.thread_count, metavar="N", help="default: all of Numba's")
    add("--quick", action="store_true", help="few repetitions")
    add("--markdown", action="store_true", help="print the tables for a README")
    add("--json", type=Path, metavar="FILE", help="write every figure and the environment to FILE")
    add("--figure", type=Path, metavar="FILE", help="draw weights and times into FILE, as PNG and SVG")
    return parser


if __name__ == "__main__":
    sys.exit(main())
