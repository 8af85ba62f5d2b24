"""The conditions of the pytest-benchmark suite, set up once for all its benchmarks."""

from __future__ import annotations

import pytest

from bench import environment, libraries
from bench.contenders import Contender, Fastconv, concrete_algorithms
from fastconv.machine import Machine


def pytest_report_header() -> str:
    missing = libraries.missing()
    return f"bench: peers not installed: {', '.join(missing)}" if missing else "bench: all peers are installed"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the benchmarks out of a plain run: skipping three thousand one by one takes it a quarter of a minute."""
    if config.getoption("benchmark_skip") and not config.getoption("benchmark_only"):
        timed = {item for item in items if "benchmark" in getattr(item, "fixturenames", ())}
        config.hook.pytest_deselected(items=timed)
        items[:] = [item for item in items if item not in timed]


@pytest.fixture(scope="session")
def limits() -> Machine:
    """Give every library the same threads, and return the machine's limits as calibrated in this run."""
    return environment.prepare().machine


@pytest.fixture(scope="session")
def contenders(limits: Machine) -> dict[str, Contender]:
    """Return everyone who can be timed, by name."""
    return {c.name: c for c in (*libraries.installed(limits.threads), *map(Fastconv, concrete_algorithms()))}
