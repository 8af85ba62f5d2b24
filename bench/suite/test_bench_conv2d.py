"""Every case and direction by every algorithm and every installed peer; one group of pytest-benchmark each.

Run with ``pytest --benchmark-only``, or for one network with ``pytest --benchmark-only -k resnet50``. Within a group
the peers come first, so that an algorithm's `extra_info` can tell how it compares with the fastest of them.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from bench import libraries, timing
from bench.cases import CASES
from bench.contenders import Contender, Fastconv, Task, concrete_algorithms, plan, require_equal
from bench.shapes import ConvCase
from fastconv import cost
from fastconv.machine import Machine
from fastconv.problem import DIRECTIONS

MOST_NAIVE_FLOPS = 1e9
NAMES = [peer.name for peer in libraries.PEERS if peer.is_installed()] + concrete_algorithms()
GROUPS = [(case, direction) for case in CASES for direction in DIRECTIONS]


@functools.lru_cache(maxsize=1)
def task_and_result(case: ConvCase, direction: str) -> tuple[Task, np.ndarray]:
    """Make the data of a group once, with fastconv's own result, which a contender must reproduce to be timed."""
    task = Task.make(case, direction)
    prepared = Fastconv("auto").prepare(task)
    return task, prepared.as_numpy(prepared.run())


@pytest.fixture(scope="module")
def peer_medians() -> dict[str, list[float]]:
    """Collect the peers' medians by group."""
    return {}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("case", "direction"), GROUPS, ids=[f"{case.name}-{way}" for case, way in GROUPS])
def test_conv2d(
    benchmark: Any,
    case: ConvCase,
    direction: str,
    name: str,
    contenders: dict[str, Contender],
    limits: Machine,
    peer_medians: dict[str, list[float]],
) -> None:
    planned = plan(case, direction)
    if name == "naive" and planned.flops > MOST_NAIVE_FLOPS:
        pytest.skip(f"naive: {planned.flops / 1e9:.1f} GFLOP, more than {MOST_NAIVE_FLOPS / 1e9:.0f}")
    if (reason := contenders[name].supports(case, direction)) is not None:
        pytest.skip(f"{name}: {reason}")
    task, expected = task_and_result(case, direction)
    prepared = contenders[name].prepare(task)
    require_equal(name, prepared.as_numpy(prepared.run()), expected)

    benchmark.group = f"{case.name} {direction}"
    calls = timing.QUICK.calls_of(timing.after_pause(prepared.run))
    benchmark.pedantic(prepared.run, rounds=calls, iterations=1)
    if benchmark.stats is None:  # --benchmark-disable
        return
    median = benchmark.stats.stats.median
    benchmark.extra_info["GFLOP/s"] = round(planned.flops / median / 1e9, 2)
    limit = cost.roofline_seconds(planned.flops, planned.bytes, limits)
    benchmark.extra_info["% of limit"] = round(100 * limit / median, 2)
    rivals = peer_medians.setdefault(benchmark.group, [])
    if not isinstance(contenders[name], Fastconv):
        rivals.append(median)
        return
    benchmark.extra_info["chosen by auto"] = name == planned.algorithm
    if rivals:
        benchmark.extra_info["ratio to the fastest peer"] = round(min(rivals) / median, 3)
