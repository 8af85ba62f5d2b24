"""Every algorithm on CPUs with narrower vectors and fewer registers than the one that runs the tests."""

import json
import platform

import llvmlite.binding
import pytest

from .cases import DIRECTIONS, NAMED, TARGET_CASES, UNIVERSAL
from .process import run_python
from .target_check import COMBINATIONS

if platform.machine().lower() not in ("x86_64", "amd64"):
    pytest.skip("the targets are x86-64 CPUs", allow_module_level=True)

HOST = llvmlite.binding.get_host_cpu_features()
needs_avx2 = pytest.mark.skipif(not (HOST.get("avx2") and HOST.get("fma")), reason="needs AVX2 and FMA")


@pytest.mark.parametrize(("cpu", "vector_bytes"), [pytest.param("haswell", 32, marks=needs_avx2), ("x86-64", 16)])
def test_tails_are_right_on(cpu, vector_bytes, tmp_path):
    # A name alone would leave this machine's own features, AVX-512 perhaps, switched on.
    output = run_python(
        "-m",
        "tests.target_check",
        NUMBA_CPU_NAME=cpu,
        NUMBA_CPU_FEATURES="",
        NUMBA_CACHE_DIR=str(tmp_path),
        FASTCONV_CACHE_DIR=str(tmp_path),
    )
    report = json.loads(output)
    assert report["vector_bytes"] == vector_bytes
    always = sum(name in UNIVERSAL for name in NAMED)
    assert report["compared"] >= always * len(TARGET_CASES) * len(DIRECTIONS) * COMBINATIONS
