"""How many threads there are never shows in a result, and no company takes the process down."""

import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numba
import numpy as np
import pytest

from fastconv import plan
from fastconv.algorithms.direct import plan_depthwise, sub_problems
from fastconv.epilogue import epilogue_for
from fastconv.problem import problem_from

from .cases import CASES, DIRECTIONS, LAYOUTS, NAMED, UNIVERSAL, call, data
from .checks import assert_same_bits
from .passes import halve
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


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads")
@pytest.mark.parametrize(("channels", "dtype"), [(33, "float64"), (17, "float32")])
def test_an_activation_is_applied_once(channels, dtype, set_threads):
    """Of vectors that overlap, two threads applied it to what both hold, in one call of fifty."""
    set_threads(2)
    problem = problem_from((2, 5, 3, channels), (5, 3, 1, channels), np.dtype(dtype), 1, 0, 1, channels, "NHWC")
    ((rows, columns),) = sub_problems(problem, "forward")
    step = plan_depthwise(problem, "forward", rows, columns, 2)
    x = np.ones(problem.x_shape, dtype)
    w, y = np.ones(problem.w_shape, dtype), np.empty(problem.y_shape, dtype)
    epilogue = epilogue_for(None, halve, dtype)
    for _ in range(2000):
        step.run(x, w, y, epilogue)
        assert np.all(y == 7.5)


def test_callers_that_plan_at_once_share_one_plan(monkeypatch):
    """Each bound a plan of its own, and one was freed with its tables while its kernel ran."""
    both, planned = threading.Barrier(2, timeout=60), plan.Request._plan_for

    def planned_at_once(self, threads):
        both.wait()
        return planned(self, threads)

    monkeypatch.setattr(plan.Request, "_plan_for", planned_at_once)
    problem = problem_from((37, 5, 6, 16), (3, 3, 16, 17), np.dtype("float32"), 1, "same", 1, 1, "NHWC")
    asked = plan.Request("forward", problem, False, "direct")
    plan.plan_problem.cache_clear()  # else both may find one that was made before
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: asked.plan, range(2))
    assert one is other is asked.plan


LAYERS = ("omp", "workqueue", "tbb")
IN_ANY_LAYER = ("concurrent_calls", "forked_child", "inside_prange", "interrupted")
IN_DEFAULT_LAYER = ("process_pools", "dask_threads", "torch_workers")
NEEDS = {"dask_threads": "dask", "torch_workers": "torch"}


@pytest.mark.parametrize(
    ("layer", "scene"),
    [(layer, scene) for layer in LAYERS for scene in IN_ANY_LAYER] + [("default", scene) for scene in IN_DEFAULT_LAYER],
)
def test_results_and_process_survive(scene, layer):
    """Eight threads at once, children, loops of the caller's own, Ctrl-C: `threads_check` has the scenes."""
    if scene in ("forked_child", "interrupted") and not hasattr(os, "fork"):
        pytest.skip("needs fork and signals")
    if scene in NEEDS and find_spec(NEEDS[scene]) is None:
        pytest.skip(f"{NEEDS[scene]} is not installed")
    # Where pip puts a TBB that Numba can load.
    libraries = os.pathsep.join([f"{sys.prefix}/lib", os.environ.get("LD_LIBRARY_PATH", "")])
    environment = {"NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "2", "LD_LIBRARY_PATH": libraries}
    if scene == "concurrent_calls":  # eight callers of NumPy's BLAS keep its own threads spinning for five seconds
        environment["OPENBLAS_NUM_THREADS"] = "1"
    output = run_python("-W", "ignore", "-m", "tests.threads_check", scene, timeout=120, **environment)
    output = output.splitlines()[-1]  # TBB warns of forks before
    if output == "no such layer":
        pytest.skip(f"Numba cannot load {layer} here")
    assert output in ((layer,) if layer != "default" else LAYERS)


def test_kernels_use_no_freed_memory():
    """With glibc, freed memory is overwritten at once here; elsewhere the setting does nothing."""
    freed_is_overwritten = "glibc.malloc.tcache_count=0:glibc.malloc.perturb=165"
    output = run_python("-m", "tests.target_check", timeout=300, GLIBC_TUNABLES=freed_is_overwritten)
    assert json.loads(output)["compared"] > 0
