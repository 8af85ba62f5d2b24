"""The long tests: ``python -m tests.soak --seconds 600``, or ``make soak SECONDS=600``.

Problems are numbered, and each draws all of its data from (seed, part, number): a failure is printed as the line that
repeats it. Workers are processes of their own, so that a crash costs one problem; the rest goes on behind it.
"""

from __future__ import annotations

import argparse
import faulthandler
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from typing import Any, NoReturn

import numpy as np

from .process import ROOT

_COUNTERS = 3
"""Of each worker: the number of its problem, problems begun, results compared."""
_FEW = 200
"""Problems after which plans are forgotten: each holds guarded tables, and a process has 65,530 mappings."""
_MOST_FAILURES = 10
_SIBLINGS = 128
"""Problems of `faults` that share kernels, as compiling takes a hundred times longer than computing."""
_FAMILIES = 64
"""Such families are told in turn, so that no two workers compile for the same one, if their number divides this."""
_CASES_APART = 5
"""From one of the table to the next: those beside each other are alike."""
_ENVIRONMENT = {"NUMBA_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive", "OPENBLAS_NUM_THREADS": "1"}
"""Two threads in each worker find what one hides; on as many cores as workers they must not wait spinning."""


class Draws:
    """Random numbers of a part: for each problem its own, and for what problems share."""

    def __init__(self, seed: int, part: str) -> None:
        self._seed = [seed, *part.encode()]

    def __call__(self, number: int, what: str = "") -> np.random.Generator:
        return np.random.default_rng([*self._seed, *what.encode(), number])


def forget_plans() -> None:
    """Free what earlier problems left in caches."""
    from fastconv import plan
    from fastconv.signal import plan as signal_plan

    plan._REQUESTS.clear()
    plan._CALLS.clear()
    plan.plan_problem.cache_clear()
    signal_plan._known.clear()


def _from_table(rng: np.random.Generator, number: int) -> dict[str, Any]:
    """A case of the table, in a layout and dtype in which the other tests take it: they need the same kernels.

    Numbers that follow each other are cases that lie apart, so that a part of the table has some of every kind.
    """
    from .cases import CASES
    from .extent import combinations

    number = number * _CASES_APART % len(CASES)
    assert math.gcd(_CASES_APART, len(CASES)) == 1  # else some cases would never come
    layout, dtype = rng.choice(combinations(number))
    halved = dtype == "float32" and rng.random() < 0.3  # float16 is computed in float32
    return {"case": CASES[number], "layout": str(layout), "dtype": "float16" if halved else str(dtype)}


def _bounds(draws: Draws, number: int, table: bool) -> int:
    """One problem between guard pages: a convolution mostly, else one of the other layers.

    Compiling takes longer than computing. With `table` the geometry comes from the tables of cases, whose kernels the
    other tests need as well.
    """
    from . import random_problems as problems
    from .guarded import guarded
    from .test_local2d import CASES as LOCAL_CASES

    rng, kind = draws(number), number % 12
    with guarded(number) as guard:
        if kind == 0:
            compared = problems.check_dense(rng)
        elif kind == 1:
            drawn = list(LOCAL_CASES.values())[number // 12 % len(LOCAL_CASES)] if table else problems.draw_local(rng)
            compared = problems.check_local(rng, drawn)
        elif kind == 2:
            size, stride = (2, 2) if table else (int(k) for k in rng.integers(1, 4, 2))
            compared = problems.check_pooling(rng, size, stride) + problems.check_flat(rng)
            compared += problems.check_signal(rng)
        else:
            drawn = problems.draw(rng, **(_from_table(rng, number // 12 * 9 + kind - 3) if table else {}))
            try:
                compared = problems.Check(drawn, rng).run()
            except Exception:
                print(drawn, file=sys.stderr)
                raise
        guard.check()
    return compared


def _faults(draws: Draws, number: int, table: bool) -> int:
    """One direction of a problem by one algorithm between guard pages, a tenth of the work of `_bounds`.

    Problems of a family have a layer, layout, dtype, direction and algorithm in common, and with them most kernels:
    images, paddings, memory layouts and epilogues are their own.
    """
    import numba

    from . import random_problems as problems
    from .cases import LAYOUTS
    from .guarded import guarded

    rng, family = draws(number), draws(number // (_SIBLINGS * _FAMILIES) * _FAMILIES + number % _FAMILIES, "family")
    layer, layout, dtype = problems.draw_layer(family), family.choice(LAYOUTS), family.choice(problems.DTYPES)
    if table:
        chosen = _from_table(family, number)
    else:
        case = problems.draw_case(rng, layer, rows=12, columns=(24, 70))
        chosen = {"case": case, "layout": str(layout), "dtype": str(dtype)}
    numba.set_num_threads(1 + (number % 4 == 0))  # two workers on two cores wait for each other's second threads
    with guarded(number) as guard:
        drawn = problems.draw(rng, **chosen)
        try:
            computed = problems.Check(drawn, rng).touch(family)
        except Exception:
            print(drawn, file=sys.stderr)
            raise
        guard.check()
    return computed


def _oracles(draws: Draws, number: int, table: bool) -> int:
    """One problem against PyTorch, SciPy or ONNX, as far as they are installed."""
    from . import oracles
    from .cases import CASES
    from .extent import combinations

    if not table:
        return oracles.check(draws(number), number)
    place = number * _CASES_APART % len(CASES)
    return oracles.check(draws(number), number, CASES[place], dict(combinations(place)).get("NCHW", "float32"))


PARTS = {"bounds": _bounds, "faults": _faults, "oracles": _oracles}


_MOST_MAPPED = 20_000
"""Mappings of a process from which on plans are forgotten after every problem: one of hundreds of phases has 25,000."""


def _mapped() -> int:
    """Mappings of this process; 0 where the system does not tell."""
    try:
        with open("/proc/self/maps") as maps:
            return sum(1 for _ in maps)
    except OSError:
        return 0


def _work(options: argparse.Namespace) -> None:
    """One worker: its problems in order, counted in the file that the parent reads."""
    faulthandler.enable()
    counters = np.memmap(options.counters, np.int64, "r+")[_COUNTERS * options.worker :][:_COUNTERS]
    ends = time.monotonic() + options.seconds
    check, draws = PARTS[options.part], Draws(options.seed, options.part)
    number, done = options.first, 0
    while time.monotonic() < ends and done < options.problems:
        counters[0] = number
        counters[1] += 1
        counters[2] += check(draws, number, options.table)
        number += options.workers
        done += 1
        if done % _FEW == 0 or _mapped() > _MOST_MAPPED:
            forget_plans()


def _work_and_exit(options: argparse.Namespace) -> NoReturn:
    """Leave without the interpreter's end, which guarded arrays outlive."""
    status = 1
    try:
        _work(options)
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class _Worker:
    """A worker process, and its successors after failures."""

    def __init__(self, options: argparse.Namespace, number: int, counters: np.ndarray, path: str) -> None:
        self._options, self._number, self._path = options, number, path
        self._counters = counters[_COUNTERS * number :][:_COUNTERS]
        self.failures: list[str] = []
        self._over = False
        self._next = number if options.problem is None else options.problem
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 it lives as long as the worker
        self._start()

    def _start(self) -> None:
        options = self._options
        command = [
            sys.executable, "-m", "tests.soak", options.part, "--seed", str(options.seed),
            "--seconds", str(max(options.ends - time.monotonic(), 0)), "--workers", str(options.workers),
            "--problems", str(-(-(options.problems - self._number) // options.workers) - int(self._counters[1])),
            "--worker", str(self._number), "--counters", self._path, "--first", str(self._next),
            *(["--table"] if options.table else []),
        ]  # fmt: skip
        self._errors.seek(0)
        self._errors.truncate()
        self._process = subprocess.Popen(command, cwd=ROOT, stderr=self._errors, env={**_ENVIRONMENT, **os.environ})

    def running(self) -> bool:
        """Whether work goes on; a process that died is noted, and replaced by one behind its problem."""
        status = self._process.poll()
        if status is None or self._over:
            return not self._over
        self._over = True
        if status == 0:
            return False
        problem = int(self._counters[0])
        self._errors.seek(0)
        reason = self._errors.read().decode(errors="replace").strip()
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        table = " --table" if self._options.table else ""
        line = f"python -m tests.soak {self._options.part} --seed {self._options.seed} --problem {problem}{table}"
        print(f"FAILED with {how}: {line}\n{reason[-3000:]}\n", flush=True)
        self.failures.append(line)
        self._next = problem + self._options.workers
        if len(self.failures) >= _MOST_FAILURES or self._options.problem is not None:
            return False
        if time.monotonic() >= self._options.ends:
            return False
        self._over = False
        self._start()
        return True

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def soak(options: argparse.Namespace) -> int:
    """Run one part on all workers; return the number of failures."""
    options.ends = time.monotonic() + options.seconds
    started = time.monotonic()
    if options.problem is not None:
        options.workers = options.problems = 1
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(8 * _COUNTERS * options.workers)
        counters = np.memmap(file.name, np.int64, "r+")
        workers = [_Worker(options, number, counters, file.name) for number in range(options.workers)]
        try:
            while sum(worker.running() for worker in workers):
                time.sleep(0.05)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        finally:
            for worker in workers:
                worker.stop()
        begun, compared = (int(counters[k::_COUNTERS].sum()) for k in (1, 2))
    failures = [line for worker in workers for line in worker.failures]
    print(
        f"{options.part}: seed {options.seed}, {begun:,} problems, {compared:,} results compared in "
        f"{time.monotonic() - started:.0f} s, {len(failures)} failures",
        flush=True,
    )
    return len(failures)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("part", nargs="?", choices=PARTS, help="which tests; all of them one after another if missing")
    parser.add_argument("--seconds", type=float, default=60, help="for each part")
    parser.add_argument("--seed", type=int, help="of all random data; printed if not given")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--problems", type=int, default=1 << 60, help="at most so many")
    parser.add_argument("--problem", type=int, help="this one alone, as a failure's line says")
    parser.add_argument(
        "--table", action="store_true", help="geometry from the tables of cases, which needs few kernels"
    )
    for name in ("--worker", "--counters", "--first"):
        parser.add_argument(name, type=str if name == "--counters" else int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.problem is not None and (options.part is None or options.seed is None):
        parser.error("--problem needs a part and --seed")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    if options.worker is not None:
        _work_and_exit(options)
    if options.seed is None:
        options.seed = int.from_bytes(os.urandom(4), "little")
    failures = 0
    for part in [options.part] if options.part else PARTS:
        failures += soak(argparse.Namespace(**{**vars(options), "part": part}))
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
