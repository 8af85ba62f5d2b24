"""``python -m bench.peers``: fastconv against the fastest of the libraries that are installed, by class of problems."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import cases, environment, libraries, output
from bench.contenders import REFERENCE, Fastconv, concrete_algorithms
from bench.held_out import HELD_OUT
from bench.peers import figure, measure, report, summary
from bench.shapes import ConvCase
from fastconv.problem import DIRECTIONS, LAYOUTS

_ALL = "all"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the chosen cases and print, write and draw what was asked for; 1 if a peer's result was wrong."""
    parser = _parser()
    options = parser.parse_args(arguments)
    directions = DIRECTIONS if options.direction == _ALL else (options.direction,)
    if options.prepared and directions != ("forward",):
        parser.error("--prepared is for --direction forward: only there are weights packed beforehand")
    chosen = _chosen(options)
    if not chosen:
        parser.error(f"--cases and --kind match none of {len(_table(options))} cases")
    if options.list:
        _show(report.cases(chosen), options.markdown)
        return 0

    conditions = environment.prepare(options.threads, options.dtype)
    instrument = _instrument(options, conditions)
    with output.progress(len(chosen) * len(directions)) as on_step:
        measured = []
        for case in chosen:
            for direction in directions:
                on_step(f"{case.name} {direction}")
                measured.append(instrument.measure(case, direction))
    warnings = [*conditions.warnings(), *report.errors(measured)]

    _show(report.comparisons(measured), options.markdown)
    if options.algorithms:
        _show(report.algorithms(measured), options.markdown)
    if summary.rated(measured):
        _show(report.classes(measured), options.markdown)
    for line in (conditions.headline(), _setting(options), *_absent(), *report.notes(measured), *warnings):
        print(line)
    if options.json:
        content = {
            "environment": conditions.facts(),
            "setting": _setting(options),
            "warnings": warnings,
            "summary": summary.facts(measured),
            "comparisons": [comparison.facts() for comparison in measured],
        }
        output.write_json(options.json, content)
        print(f"JSON: {options.json}")
    if options.figure:
        for path in figure.write(measured, conditions.machine, _setting(options), options.figure):
            print(f"Figure: {path}")
    return 1 if any(comparison.wrong for comparison in measured) else 0


def _table(options: argparse.Namespace) -> Sequence[ConvCase]:
    return HELD_OUT if options.held_out else cases.CASES


def _chosen(options: argparse.Namespace) -> list[ConvCase]:
    """Return the cases by class; with ``--quick`` and nothing named, the first of each."""
    named = cases.matching(options.cases, _table(options))
    chosen = report.by_class(case for case in named if re.search(options.kind, case.kind))
    if not options.quick or options.cases or options.kind:
        return chosen
    first: dict[str, ConvCase] = {}
    for case in chosen:
        first.setdefault(case.kind, case)
    return list(first.values())


def _instrument(options: argparse.Namespace, conditions: environment.Environment) -> measure.Instrument:
    def ours(algorithm: str) -> Fastconv:
        return Fastconv(algorithm, options.layout, options.prepared)

    others = [name for name in concrete_algorithms() if name != REFERENCE] if options.algorithms else []
    rivals = libraries.installed(conditions.machine.threads, options.prepared)
    return measure.Instrument(
        ours("auto"),
        [ours(name) for name in others],
        [peer for peer in rivals if re.search(options.peers, peer.name)],
        conditions.machine,
        measure.QUICK if options.quick else measure.FULL,
    )


def _setting(options: argparse.Namespace) -> str:
    weights = ", weights packed beforehand" if options.prepared else ""
    directions = "all directions" if options.direction == _ALL else options.direction
    held_out = ", held-out layers" if options.held_out else ""
    return f"{options.dtype}, {directions}, fastconv in {options.layout}{weights}{held_out}"


def _absent() -> list[str]:
    missing = libraries.missing()
    return [f"Not installed: {', '.join(missing)}"] if missing else []


def _show(table: report.Table, markdown: bool) -> None:
    if markdown:
        print("\n".join(output.markdown(*table)), end="\n\n")
    else:
        output.show(output.grid(*table))


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__.partition(": ")[2])
    add: Callable[..., Any] = parser.add_argument
    add("--cases", default="", type=_pattern, metavar="REGEX", help="only cases whose name matches, e.g. resnet50")
    add("--held-out", action="store_true", help="layers of networks that the table does not name")
    add("--kind", default="", type=_pattern, metavar="REGEX", help="only classes whose name matches, e.g. depthwise")
    add("--peers", default="", type=_pattern, metavar="REGEX", help="only peers whose name matches, e.g. PyTorch")
    add("--direction", default="forward", choices=(*DIRECTIONS, _ALL), help="default: %(default)s")
    add("--layout", default="NHWC", choices=LAYOUTS, help="of fastconv's arrays (default: %(default)s)")
    add("--dtype", default="float32", choices=("float32", "float64"), help="default: %(default)s")
    add("--prepared", action="store_true", help="weights packed beforehand, by fastconv and by peers that can")
    add("--algorithms", action="store_true", help="time all of fastconv's algorithms, and judge what auto chooses")
    add("--threads", type=environment.thread_count, metavar="N", help="of every library (default: all of Numba's)")
    add("--quick", action="store_true", help="few repetitions, and one case of each class where none is named")
    add("--list", action="store_true", help="print the cases and measure nothing")
    add("--markdown", action="store_true", help="print the tables for a README")
    add("--json", type=Path, metavar="FILE", help="write every figure and the environment to FILE")
    add("--figure", type=Path, metavar="FILE", help="draw ratios by class and the roofline into FILE, as PNG and SVG")
    return parser


if __name__ == "__main__":
    sys.exit(main())
