"""Fixtures for all tests."""

import numba
import pytest

from bench import timing


@pytest.fixture(scope="session", autouse=True)
def calibration_of_its_own(tmp_path_factory):
    """Keep the machine's calibration of this run apart from the user's; child processes inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTCONV_CACHE_DIR", str(tmp_path_factory.mktemp("machine")))
        yield


@pytest.fixture(scope="session", autouse=True)
def benches_do_not_wait():
    """Leave out the pauses between contenders, up to a second each: nothing here looks at how long calls take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "settle", lambda: None)
        yield


@pytest.fixture
def set_threads():
    """`numba.set_num_threads`, undone after the test."""
    before = numba.get_num_threads()
    yield numba.set_num_threads
    numba.set_num_threads(before)
