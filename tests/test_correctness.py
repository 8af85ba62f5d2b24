"""Every algorithm, layout, dtype and direction through the one table of cases."""

import numpy as np
import pytest

import fastconv

from .cases import (
    ALGORITHMS,
    DIRECTIONS,
    UNIVERSAL,
    by_name,
    call,
    data,
    inexact_tolerance,
    sums_plain_products,
    tolerance,
)
from .checks import assert_owned
from .extent import COMBINATIONS

each_direction = pytest.mark.parametrize("direction", DIRECTIONS)
each_combination = pytest.mark.parametrize(
    ("case", "layout", "dtype"), COMBINATIONS, ids=lambda value: getattr(value, "name", value)
)


def results(case, given, direction, layout):
    """Pairs of an algorithm and its result; one may decline with an error that names it, unless the contract forbids.

    A loop in each test, as a test for each algorithm, seven times as many, took pytest longer than the kernels.
    """
    for algorithm in ALGORITHMS:
        try:
            yield algorithm, call(case, given, direction, algorithm=algorithm, layout=layout)
        except ValueError as error:
            if algorithm in UNIVERSAL or algorithm not in str(error):
                raise AssertionError(algorithm) from error


@each_combination
@each_direction
def test_integers_are_exact_and_floats_within_tolerance(case, layout, dtype, direction):
    """Both in one test: planning each problem again would take half as long as computing it."""
    integers, floats = (data(case, kind, layout, dtype) for kind in ("integers", "floats"))
    for algorithm, result in results(case, integers, direction, layout):
        assert_owned(result, dtype)
        if sums_plain_products(case, algorithm, direction, layout, dtype):
            np.testing.assert_array_equal(result, integers.expected[direction], err_msg=algorithm)
    # The tolerance is 0 where no product contributes, such as the gradient of a cell that no window reads.
    for algorithm, result in results(case, floats, direction, layout):
        assert result.shape == floats.expected[direction].shape
        exact = sums_plain_products(case, algorithm, direction, layout, dtype)
        rule = tolerance if exact else inexact_tolerance
        limit = rule(dtype, case.reduction_length(direction), floats.magnitude[direction])
        excess = np.abs(result - floats.expected[direction]) - limit
        assert np.all(excess <= 0), f"{algorithm} is off by {excess.max()} more than the tolerance allows"


def test_parameters_may_be_numpy_integers_lists_and_arrays():
    case = by_name("all-together")
    given = data(case, "integers", "NHWC", "float32")
    same = {
        "stride": np.array(case.stride),
        "padding": [list(pads) for pads in case.padding],
        "dilation": [np.int64(step) for step in case.dilation],
        "groups": np.int32(case.groups),
    }
    np.testing.assert_array_equal(fastconv.conv2d(given.x, given.w, **same), given.expected["forward"])
    dx = fastconv.conv2d_grad_input(given.grad_y, given.w, np.array(given.x.shape), **same)
    np.testing.assert_array_equal(dx, given.expected["grad_input"])
    dw = fastconv.conv2d_grad_weight(given.grad_y, given.x, np.array(case.kernel), **same)
    np.testing.assert_array_equal(dw, given.expected["grad_weight"])


def test_kernel_size_may_be_one_integer():
    case = by_name("stem-7x7")
    given = data(case, "integers", "NHWC", "float32")
    result = fastconv.conv2d_grad_weight(given.grad_y, given.x, 7, **case.arguments)
    np.testing.assert_array_equal(result, given.expected["grad_weight"])


def test_gradient_is_zero_where_no_window_reads():
    case = by_name("stride-beyond-kernel")
    given = data(case, "floats", "NHWC", "float32")
    read = np.zeros(case.image, bool)
    for row in range(0, case.image[0] - 1, 5):
        for column in range(0, case.image[1] - 2, 4):
            read[row : row + 2, column : column + 3] = True
    for algorithm, dx in results(case, given, "grad_input", "NHWC"):
        assert (dx[:, ~read] == 0).all(), algorithm
        assert (dx[:, read] != 0).all(), algorithm
