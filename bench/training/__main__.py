"""``python -m bench.training``: a training step of LeNet-5 and of ResNet-18's 3x3 convolutions, against PyTorch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import environment, output
from bench.contenders import WrongResultError
from bench.peers.report import Table
from bench.training import measure, report
from bench.training.networks import NETWORKS


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write what was asked for; 1 if PyTorch's step is not ours."""
    parser = _parser()
    options = parser.parse_args(arguments)
    networks = [NETWORKS[name]() for name in options.network or NETWORKS]
    conditions = environment.prepare(options.threads)
    entries = [len({layer.name for layer in network.layers}) + 2 for network in networks] if options.parts else []
    try:
        with output.progress(len(networks) + sum(entries)) as on_step:
            trainings = [
                measure.measure(
                    network, conditions.machine.threads, on_step, quick=options.quick, parts=options.parts
                )
                for network in networks
            ]  # fmt: skip
    except WrongResultError as error:
        print(f"NOT TIMED: {error}", file=sys.stderr)
        return 1
    warnings = list(conditions.warnings(plans=False))

    _show(report.steps(trainings), options.markdown)
    for training in trainings:
        if training.parts:
            print(training.network.title)
            _show(report.parts(training), options.markdown)
    for line in (conditions.headline(), *report.notes(trainings), *warnings):
        print(line)
    if options.json:
        content = {
            "environment": conditions.facts(),
            "warnings": warnings,
            "trainings": [training.facts() for training in trainings],
        }
        output.write_json(options.json, content)
        print(f"JSON: {options.json}")
    return 0


def _show(table: Table, markdown: bool) -> None:
    if markdown:
        print("", *output.markdown(*table), "", sep="\n")
    else:
        output.show(output.grid(*table))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.training", description=__doc__.partition(": ")[2])
    add: Callable[..., Any] = parser.add_argument
    add("--network", action="append", choices=NETWORKS, help="also several times (default: all)")
    add("--parts", action="store_true", help="time every direction of every layer as well")
    add("--threads", type=environment.thread_count, metavar="N", help="of both libraries (default: all of Numba's)")
    add("--quick", action="store_true", help="few repetitions")
    add("--markdown", action="store_true", help="print the tables for a README")
    add("--json", type=Path, metavar="FILE", help="write every figure and the environment to FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
