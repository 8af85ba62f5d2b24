"""How many threads there are never shows in a result, and no threading layer takes the process down."""

import json
import multiprocessing

import numba
import pytest

from .cases import CASES, DIRECTIONS, LAYOUTS, NAMED, UNIVERSAL, call, data
from .checks import assert_same_bits
from .process import run_python

PARALLEL = [case for case in CASES if case.name.startswith("threads-")]


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads")
@pytest.mark.parametrize("case", PARALLEL, ids=lambda case: case.name)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("algorithm", [name for name in NAMED if name in UNIVERSAL])
def test_number_of_threads_does_not_show(algorithm, layout, direction, case, set_threads):
    given = data(case, "floats", layout, "float32")
    results = []
    for threads in (1, 2):
        set_threads(threads)
        results.append(call(case, given, direction, algorithm=algorithm, layout=layout))
    assert_same_bits(*results)


CONCURRENT = """
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import fastconv

x, w = np.ones((2, 60, 61, 16), np.float32), np.ones((3, 3, 16, 16), np.float32)

def work(algorithm):
    return all((abs(fastconv.conv2d(x, w, algorithm=algorithm) - 144) < 1e-3).all() for _ in range(20))

with ThreadPoolExecutor(8) as pool:
    print(all(pool.map(work, ["naive", "im2col", "direct", "winograd"] * 4)))
"""

FORKED = """
import os
import numpy as np
import fastconv

x, w = np.ones((2, 60, 61, 16), np.float32), np.ones((3, 3, 16, 16), np.float32)

def right():
    return all((abs(fastconv.conv2d(x, w, algorithm=a) - 144) < 1e-3).all() for a in fastconv.conv2d_algorithms())

before = right()
child = os.fork()
if child == 0:
    os._exit(0 if right() else 1)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(before, status, right())
"""


@pytest.mark.parametrize("layer", ["workqueue", "default"])
def test_python_threads_may_call_at_once(layer):
    output = run_python("-c", CONCURRENT, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="2")
    assert output.strip() == "True"


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_forked_child_computes_after_its_parent_did():
    output = run_python("-W", "ignore::DeprecationWarning", "-c", FORKED, NUMBA_NUM_THREADS="2")
    assert output.split() == ["True", "0", "True"]


def test_kernels_use_no_freed_memory():
    """With glibc, freed memory is overwritten at once here; elsewhere the setting does nothing."""
    freed_is_overwritten = "glibc.malloc.tcache_count=0:glibc.malloc.perturb=165"
    output = run_python("-m", "tests.target_check", timeout=300, GLIBC_TUNABLES=freed_is_overwritten)
    assert json.loads(output)["compared"] > 0
