"""``python -m bench.layers``: layers of known networks, fastconv against the peers that are installed."""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import cases, environment, output, peers, timing, units
from bench.cases import ConvCase
from bench.contenders import Contender, Fastconv, Task, WrongResultError, plan, require_equal
from fastconv.machine import Machine
from fastconv.problem import DIRECTIONS

OURS = ("auto", "direct", "im2col")
_REFERENCE = OURS[0]


@dataclass(frozen=True)
class Comparison:
    """One layer in one direction, timed by everyone who takes it.

    Attributes
    ----------
    chosen
        The algorithm that "auto" stands for.
    timings
        By the name of the contender; "auto" is always among them.
    declined, wrong
        Why the other contenders were not timed: the problem is not for them, or their result differs from "auto"'s.
    """

    case: ConvCase
    direction: str
    chosen: str
    flops: int
    timings: dict[str, timing.Timing]
    declined: dict[str, str]
    wrong: dict[str, str]

    @property
    def gflops(self) -> float:
        return self.flops / self.timings[_REFERENCE].median / 1e9

    @property
    def ratio(self) -> float | None:
        """Return the fastest peer's time over that of "auto": above 1, fastconv is faster. None without a peer."""
        rivals = [taken.median for name, taken in self.timings.items() if name not in OURS]
        return min(rivals) / self.timings[_REFERENCE].median if rivals else None

    def facts(self) -> dict[str, Any]:
        """Return the comparison for JSON."""
        return {
            "case": vars(self.case),
            "direction": self.direction,
            "auto": self.chosen,
            "flops": self.flops,
            "gflops": self.gflops,
            "ratio": self.ratio,
            "seconds": {
                name: {"median": taken.median, "quartiles": taken.quartiles, "calls": len(taken.seconds)}
                for name, taken in self.timings.items()
            },
            "declined": self.declined,
            "wrong": self.wrong,
        }


def compare(case: ConvCase, direction: str, contenders: Iterable[Contender], effort: timing.Effort) -> Comparison:
    """Time a case by everyone who takes it and gets the result of `contenders`' first, fastconv's "auto"."""
    task = Task.make(case, direction)
    expected = None
    calls: dict[str, timing.Call] = {}
    declined: dict[str, str] = {}
    wrong: dict[str, str] = {}
    for contender in contenders:
        reason = contender.supports(case, direction)
        if reason is not None:
            declined[contender.name] = reason
            continue
        prepared = contender.prepare(task)
        result = prepared.as_numpy(prepared.run())
        if expected is None:
            expected = result.copy()
        try:
            require_equal(contender.name, result, expected)
        except WrongResultError as error:
            wrong[contender.name] = str(error)
        else:
            calls[contender.name] = prepared.run
    planned = plan(case, direction)
    timings = timing.take_turns(calls, effort)
    return Comparison(case, direction, planned.algorithm, planned.flops, timings, declined, wrong)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare fastconv with the installed peers on layers of known networks."""
    options = _parser().parse_args(arguments)
    chosen = cases.matching(options.cases)
    if not chosen:
        print(f"--cases {options.cases!r} matches none of {len(cases.CASES)} cases", file=sys.stderr)
        return 2
    conditions = environment.prepare(options.threads)
    rivals = [p for p in peers.installed(conditions.machine.threads) if re.search(options.peers, p.name)]
    contenders = [*map(Fastconv, OURS), *rivals]
    effort = timing.QUICK if options.quick else timing.FULL
    with output.progress(len(chosen) * len(DIRECTIONS)) as on_step:
        comparisons = []
        for case in chosen:
            for direction in DIRECTIONS:
                on_step(f"{case.name} {direction}")
                comparisons.append(compare(case, direction, contenders, effort))
    warnings = list(conditions.warnings())

    lines = [conditions.headline(), *summary(comparisons)]
    absent = [name for name in peers.missing() if re.search(options.peers, name)]
    if absent:
        lines.append(f"Not installed: {', '.join(absent)}.")
    lines.extend([*warnings, *wrong_results(comparisons)])
    columns, rows = table(comparisons, [c.name for c in contenders], conditions.machine)
    if options.markdown:
        print("\n".join(output.markdown(columns, rows)), end="\n\n")
    else:
        output.show(output.grid(columns, rows))
    print("\n".join(lines))
    if options.json:
        content = {
            "environment": conditions.facts(),
            "warnings": warnings,
            "comparisons": [comparison.facts() for comparison in comparisons],
        }
        output.write_json(options.json, content)
    return 0


def table(
    comparisons: Iterable[Comparison], names: Sequence[str], machine: Machine
) -> tuple[dict[str, str], list[list[str]]]:
    """Return the table's columns (with the side they align to) and its rows."""
    columns = {"layer": "left", "direction": "left", "auto is": "left"}
    columns |= dict.fromkeys((*names, "GFLOP/s", "of peak", "ratio"), "right")
    rows = []
    for c in comparisons:
        times = [units.seconds(c.timings[name].median) if name in c.timings else "" for name in names]
        ratio = "" if c.ratio is None else f"{c.ratio:.2f}"
        share = units.percent(c.gflops * 1e9 / machine.peak_flops)
        rows.append([c.case.name, c.direction, c.chosen, *times, units.three_digits(c.gflops), share, ratio])
    return columns, rows


def summary(comparisons: Iterable[Comparison]) -> Iterator[str]:
    """Yield one line a direction and one for all: the smallest ratio and the geometric mean."""
    rated = [c for c in comparisons if c.ratio is not None]
    if not rated:
        yield "No peer was timed. The extra `peers` installs them: pip install 'fastconv[peers]'"
        return
    yield "Ratio: the fastest peer's time over that of 'auto'; above 1, fastconv is faster."
    for direction in (*DIRECTIONS, "all"):
        group = [c for c in rated if direction in (c.direction, "all")]
        worst = min(group, key=lambda c: c.ratio)
        mean = statistics.geometric_mean(c.ratio for c in group)
        yield (
            f"{direction:<11}  geometric mean {mean:.2f}, smallest {worst.ratio:.2f} "
            f"({worst.case.name} {worst.direction}) of {len(group)}"
        )


def wrong_results(comparisons: Iterable[Comparison]) -> Iterator[str]:
    """Yield a line for every contender that was not timed because its result differs."""
    for comparison in comparisons:
        for reason in comparison.wrong.values():
            yield f"NOT TIMED, {comparison.case.name} {comparison.direction}: {reason}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.layers", description=main.__doc__)
    parser.add_argument("--cases", default="", metavar="REGEX", help="only cases whose name matches, e.g. resnet50")
    parser.add_argument(
        "--peers", default="PyTorch", metavar="REGEX", help="peers whose name matches (default: PyTorch; . for all)"
    )
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure and the environment to FILE")
    parser.add_argument("--threads", type=environment.thread_count, metavar="N", help="default: all of Numba's")
    parser.add_argument("--markdown", action="store_true", help="print the table for a README")
    return parser


if __name__ == "__main__":
    sys.exit(main())
