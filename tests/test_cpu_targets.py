"""Every algorithm on CPUs with narrower vectors and fewer registers than the one that runs the tests."""

import json
import platform
from concurrent.futures import ThreadPoolExecutor

import pytest

from fastconv.kernels.target import vector_bytes

from .cases import DIRECTIONS, NAMED, TARGET_CASES, UNIVERSAL
from .extent import combinations, cross_section
from .process import run_python
from .target_check import EVERY

if platform.machine().lower() not in ("x86_64", "amd64"):
    pytest.skip("the targets are x86-64 CPUs", allow_module_level=True)

TARGETS = {"haswell": 32, "x86-64": 16}
"""The vector bytes of each."""


def is_narrower(cpu):
    """Whether its vectors are narrower than those for which all other tests compile."""
    return TARGETS[cpu] < vector_bytes()


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What the checks of all targets print: compiling for each takes a minute of one core, so they run side by side."""

    def check(cpu):
        # A name alone would leave this machine's own features, AVX-512 perhaps, switched on.
        cache = str(tmp_path_factory.mktemp(cpu))
        environment = {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": ""}
        environment |= {"NUMBA_CACHE_DIR": cache, "FASTCONV_CACHE_DIR": cache}
        return run_python("-m", "tests.target_check", **environment)

    possible = [cpu for cpu in TARGETS if is_narrower(cpu)]
    with ThreadPoolExecutor(len(TARGETS)) as pool:
        return {cpu: pool.submit(check, cpu) for cpu in possible}


@pytest.mark.parametrize("cpu", TARGETS)
def test_tails_are_right_on(cpu, reports):
    if not is_narrower(cpu):
        pytest.skip("this CPU is of that kind, or has less")
    report = json.loads(reports[cpu].result())
    assert report["vector_bytes"] == TARGETS[cpu]
    always = sum(name in UNIVERSAL for name in NAMED if name != "naive")
    cases = len(cross_section(TARGET_CASES, EVERY))
    assert report["cases"] == cases
    pairs = sum(len(combinations(number)) for number in range(cases))
    assert report["compared"] >= always * pairs * len(DIRECTIONS)
