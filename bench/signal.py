"""``python -m bench.signal``: convolution of signals against the fastest way in SciPy, on the sizes SciPy measures."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import fastconv
from bench import environment, output, timing, units

GROUPS = ("Convolve, 1-D", "Convolve, 2-D", "FFTConvolve", "OAConvolve", "Convolve2D", "larger")
MODES = ("full", "same", "valid")
BOUNDARIES = ("fill", "wrap", "symm")
GOAL = 3.0
_OURS = "fastconv"
_SECONDS, _ROUNDS = 1.5e-3, 9
_QUICK_SECONDS, _QUICK_ROUNDS = 0.5e-3, 3
_SLOWEST_SECONDS = 0.2
"""A contender that takes longer once is not timed: it wins nowhere."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class SignalCase:
    """Two shapes, the mode and the boundary; `group` is SciPy's benchmark that has them, or "larger"."""

    group: str
    in1: Shape
    in2: Shape
    mode: str
    boundary: str = "fill"

    def __str__(self) -> str:
        return f"{_times(self.in1)} by {_times(self.in2)}"

    @property
    def row(self) -> tuple[str, str, str]:
        """What a row of the table sums up."""
        return self.group, self.mode, self.boundary


@dataclass(frozen=True)
class Result:
    """The timings of one case; `wrong` names those whose result was another."""

    case: SignalCase
    timings: dict[str, timing.Timing]
    wrong: tuple[str, ...]

    @property
    def ours(self) -> float:
        return self.timings[_OURS].median

    @property
    def fastest(self) -> str:
        """The fastest way in SciPy."""
        rivals = [name for name in self.timings if name != _OURS]
        return min(rivals, key=lambda name: self.timings[name].median)

    @property
    def theirs(self) -> float:
        return self.timings[self.fastest].median

    @property
    def ratio(self) -> float:
        return self.theirs / self.ours

    def facts(self) -> dict[str, Any]:
        """Return the result for JSON."""
        return {
            **vars(self.case),
            "ratio": self.ratio,
            "fastest": self.fastest,
            "timings": {name: taken.facts() for name, taken in self.timings.items()},
        }


def _times(shape: Shape) -> str:
    return "x".join(map(str, shape))


def cases(quick: bool) -> Iterator[SignalCase]:
    """Yield the sizes of ``scipy/benchmarks/benchmarks/signal.py``, of Convolve2D the squares, and some larger."""
    for mode in MODES:
        lengths = (1, 8, 36, 75) if quick else (1, 2, 8, 13, 30, 36, 50, 75)
        for n, k in product(lengths, repeat=2):
            yield SignalCase("Convolve, 1-D", (n,), (k,), mode)
        for n, k in product((256,) if quick else (256, 512, 1024), (3, 5, 7)):
            yield SignalCase("Convolve, 2-D", (n, n), (k, k), mode)
        for n, k in product((8, 60, 500) if quick else (1, 2, 8, 36, 60, 150, 200, 500), repeat=2):
            if k <= n:
                yield SignalCase("FFTConvolve", (n,), (k,), mode)
        for n, k in ((200, 40), (3000, 40), (3000, 200)):
            yield SignalCase("OAConvolve", (n,), (k,), mode)
    for mode, boundary in product(MODES, BOUNDARIES):
        for n, k in product((2, 13, 30) if quick else (1, 2, 8, 13, 30), repeat=2):
            if mode != "valid" or k <= n:
                yield SignalCase("Convolve2D", (n, n), (k, k), mode, boundary)
    larger = ((3000,), (3000,)), ((100_000,), (500,)), ((75, 75), (75, 75)), ((256, 256), (30, 30)), ((256,) * 2,) * 2
    for in1, in2 in larger[: 2 if quick else None]:
        for mode in MODES[:2]:
            yield SignalCase("larger", in1, in2, mode)


def contenders(case: SignalCase, dtype: str) -> dict[str, Callable[[], np.ndarray]]:
    """Return ours and all ways in SciPy to compute a case."""
    from scipy import signal

    rng = np.random.default_rng(1234)
    in1, in2 = (rng.standard_normal(shape).astype(dtype) for shape in (case.in1, case.in2))
    mode, boundary = case.mode, case.boundary
    if case.group == "Convolve2D":
        calls = {
            _OURS: lambda: fastconv.convolve2d(in1, in2, mode, boundary),
            "convolve2d": lambda: signal.convolve2d(in1, in2, mode, boundary),
        }
        if boundary != "fill":
            return calls
    else:
        calls = {
            _OURS: lambda: fastconv.convolve(in1, in2, mode),
            "convolve": lambda: signal.convolve(in1, in2, mode),
            "convolve direct": lambda: signal.convolve(in1, in2, mode, "direct"),
        }
        if len(case.in1) == 2:
            calls["convolve2d"] = lambda: signal.convolve2d(in1, in2, mode)
    return calls | {
        "fftconvolve": lambda: signal.fftconvolve(in1, in2, mode),
        "oaconvolve": lambda: signal.oaconvolve(in1, in2, mode),
    }


def measure(case: SignalCase, dtype: str, seconds: float, rounds: int) -> Result:
    """Compare the results, then time all contenders in turns."""
    calls, wrong = contenders(case, dtype), []
    expected = calls[_OURS]()
    allowed = np.sqrt(np.finfo(dtype).eps) * np.abs(expected).max()
    for name, call in list(calls.items()):
        if _work(case) > 2e8 and name in ("convolve2d", "convolve direct"):
            del calls[name]
            continue
        result = call()
        if result.shape != expected.shape or np.abs(result - expected).max() > allowed:
            wrong.append(name)
        if timing.once(call) > _SLOWEST_SECONDS:
            del calls[name]
    return Result(case, timing.alternate(calls, seconds, rounds), tuple(wrong))


def _work(case: SignalCase) -> float:
    return float(np.prod(case.in1)) * float(np.prod(case.in2))


def table(results: Sequence[Result]) -> tuple[dict[str, str], list[list[str]]]:
    """Lay out a row for each of SciPy's benchmarks, mode and boundary; and each larger case."""
    left, right = "left", "right"
    columns = {
        "SciPy's benchmark": left, "mode": left, "boundary": left, "pairs": right, "SciPy": right, "fastconv": right,
        "ratio of sums": right, "geometric mean": right, "smallest": right, "of": left, "below 3": right,
    }  # fmt: skip
    rows = []
    for key in dict.fromkeys(result.case.row for result in results):
        group = [result for result in results if result.case.row == key]
        for part in [[result] for result in group] if key[0] == "larger" else [group]:
            theirs, ours = sum(result.theirs for result in part), sum(result.ours for result in part)
            worst = min(part, key=lambda result: result.ratio)
            below = sum(result.ratio < GOAL for result in part)
            mean = statistics.geometric_mean(result.ratio for result in part)
            rows.append(
                [*key, str(len(part)), units.seconds(theirs), units.seconds(ours), f"{theirs / ours:.1f}",
                 f"{mean:.1f}", f"{worst.ratio:.1f}", str(worst.case), str(below)]
            )  # fmt: skip
    return columns, rows


def notes(results: Sequence[Result]) -> Iterator[str]:
    """Explain the table, and name what is below the goal and what was wrong."""
    yield "SciPy, fastconv  medians of a single call with all of Python's part, summed over the pairs of sizes"
    yield "ratio            the fastest way in SciPy for each pair over ours; above 1, fastconv is faster"
    for result in sorted(results, key=lambda result: result.ratio):
        if result.ratio < GOAL:
            case = result.case
            yield (
                f"Below {GOAL:.0f}: {result.ratio:.2f}  {case.group}, {case}, {case.mode}, {case.boundary}: "
                f"{units.seconds(result.ours)} against {units.seconds(result.theirs)} ({result.fastest})"
            )
    for result in results:
        if result.wrong:
            yield f"WRONG: {result.case}, {result.case.mode}: {', '.join(result.wrong)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print and write what was asked for; 1 if a result was wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.signal", description=__doc__.partition(": ")[2])
    parser.add_argument("--quick", action="store_true", help="fewer sizes and repetitions")
    parser.add_argument("--group", action="append", choices=GROUPS, metavar="NAME", help=f"only {', '.join(GROUPS)}")
    parser.add_argument("--dtype", default="float64", choices=("float32", "float64"), help="default: %(default)s")
    parser.add_argument("--threads", type=environment.thread_count, metavar="N", help="default: all of Numba's")
    parser.add_argument("--markdown", action="store_true", help="print the table for a document")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure and the environment to FILE")
    options = parser.parse_args(arguments)

    conditions = environment.prepare(options.threads, options.dtype)
    seconds, rounds = (_QUICK_SECONDS, _QUICK_ROUNDS) if options.quick else (_SECONDS, _ROUNDS)
    chosen = [case for case in cases(options.quick) if case.group in (options.group or GROUPS)]
    rows = list(dict.fromkeys(case.row for case in chosen))
    results = []
    with output.progress(len(rows)) as on_step:
        for row in rows:
            on_step(", ".join(row))
            of_row = (case for case in chosen if case.row == row)
            results += [measure(case, options.dtype, seconds, rounds) for case in of_row]
    warnings = list(conditions.warnings())

    if options.markdown:
        print("\n".join(output.markdown(*table(results))), end="\n\n")
    else:
        output.show(output.grid(*table(results)))
    for line in (conditions.headline(), f"{options.dtype}", *notes(results), *warnings):
        print(line)
    if options.json:
        content = {
            "environment": conditions.facts(),
            "dtype": options.dtype,
            "warnings": warnings,
            "results": [result.facts() for result in results],
        }
        output.write_json(options.json, content)
        print(f"JSON: {options.json}")
    return 1 if any(result.wrong for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
