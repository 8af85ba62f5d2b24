"""Fixtures for all tests, and the order in which processes take them."""

import contextlib
import gc
import os

import numba
import pytest
from threadpoolctl import threadpool_limits

from bench import timing

# Before a library of threads is loaded: those of several processes on as many cores must not wait spinning.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

LONGEST = ("test_correctness", "test_cpu_targets", "test_passes", "test_gather", "test_winograd", "test_threads")
"""Modules that take minutes: begun last, one would keep one of several processes alone.

The first compiles most of what the others need, and so all processes take it together.
"""


def pytest_collection_modifyitems(items):
    """Begin with the longest modules, and say what pytest-xdist gives to one process: a module, or a part of the first.

    Such a part has the cases of one size of kernel, which need the same compiled code.
    """
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))
    for item in items:
        case = item.callspec.params.get("case") if item.path.stem == LONGEST[0] and hasattr(item, "callspec") else None
        part = "" if case is None else "-{}x{}".format(*case.kernel)
        item.add_marker(pytest.mark.xdist_group(item.path.stem + part))


@pytest.fixture(scope="session", autouse=True)
def calibration_of_its_own(tmp_path_factory):
    """Keep the machine's calibration of this run apart from the user's; child processes inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTCONV_CACHE_DIR", str(tmp_path_factory.mktemp("machine")))
        yield


@pytest.fixture(scope="session", autouse=True)
def matrix_products_on_one_thread():
    """Keep the threads of NumPy's BLAS from spinning after the small products of `im2col`, ten times their work.

    The processes that tests start, `test_threads` above all, have them.
    """
    with threadpool_limits(1, "blas"):
        yield


@pytest.fixture(scope="session", autouse=True)
def benches_do_not_wait():
    """Leave out pauses and collections before what is timed: nothing here looks at how long calls take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "settle", lambda: None)
        patch.setattr(timing, "_no_garbage_collection", contextlib.nullcontext)
        yield


@pytest.fixture(scope="session", autouse=True)
def fewer_collections():
    """Let Python collect cycles less often: what compiling makes and drops set off a tenth of the suite's time."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, *before[1:])
    yield
    gc.set_threshold(*before)


@pytest.fixture(scope="module", autouse=True)
def old_objects_stay_uncollected():
    """Let collections pass over what earlier modules left, compiled kernels above all: each walks for seconds there."""
    gc.freeze()


@pytest.fixture
def set_threads():
    """`numba.set_num_threads`, undone after the test."""
    before = numba.get_num_threads()
    yield numba.set_num_threads
    numba.set_num_threads(before)
