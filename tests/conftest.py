"""Fixtures for all tests."""

import gc

import numba
import pytest
from threadpoolctl import threadpool_limits

from bench import timing

LONGEST = ("test_correctness", "test_cpu_targets", "test_signal", "test_winograd", "test_threads", "test_arrays")
"""Modules that take minutes, the longest first: begun last, one would keep one of several processes alone."""


def pytest_collection_modifyitems(items):
    """Begin with the longest modules; where pytest-xdist deals modules out, it is told to keep this order."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


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
    """Leave out the pauses between contenders, up to a second each: nothing here looks at how long calls take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "settle", lambda: None)
        yield


@pytest.fixture(scope="module", autouse=True)
def old_objects_stay_uncollected():
    """Let collections pass over what earlier modules left, compiled kernels above all: each walks for seconds there.

    What is timed begins with a collection, and so the tests of three benches took three minutes.
    """
    gc.freeze()


@pytest.fixture
def set_threads():
    """`numba.set_num_threads`, undone after the test."""
    before = numba.get_num_threads()
    yield numba.set_num_threads
    numba.set_num_threads(before)
