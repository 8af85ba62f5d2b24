"""What the tests of the algorithms that transform data have in common."""

import numba
import numpy as np
import pytest

import fastconv

from .cases import data, inexact_tolerance
from .checks import assert_same_bits


@numba.njit
def leaky(value):
    return value if value > 0 else value / 4


each_activation = pytest.mark.parametrize("activation", [None, "relu", leaky], ids=["none", "relu", "leaky"])


def assert_prepared_as_called(algorithm, activation, dtype, layout, case):
    """A prepared layer gives the bits of the call, and both what the oracle expects of the epilogue."""
    given = data(case, "floats", layout, dtype)
    bias = np.linspace(-1, 1, case.oc).astype(dtype)
    keywords = {"layout": layout, "algorithm": algorithm, "activation": activation, **case.arguments}
    result = fastconv.conv2d(given.x, given.w, bias, **keywords)
    assert_same_bits(fastconv.prepare_conv2d(given.w, bias, **keywords)(given.x), result)

    by_channel = bias if layout == "NHWC" else bias[:, None, None]
    expected = given.expected["forward"] + by_channel
    if activation is not None:
        expected = np.where(expected > 0, expected, 0 if activation == "relu" else expected / 4)
    limit = inexact_tolerance(dtype, case.reduction_length("forward") + 1, given.magnitude["forward"] + 1)
    assert np.all(np.abs(result - expected) <= limit)


def assert_error_near_plain_sums(algorithm, compute, exact, dtype, times=4):
    """The rms error of `compute(algorithm=...)` is below so many times that of `direct`."""

    def error(name):
        return float(np.sqrt(np.mean((compute(algorithm=name) - exact) ** 2)))

    assert error(algorithm) < times * max(error("direct"), np.finfo(dtype).eps)
