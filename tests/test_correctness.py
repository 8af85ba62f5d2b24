"""Every algorithm, layout, dtype and direction through the one table of cases."""

import numpy as np
import pytest

import fastconv

from .cases import (
    ALGORITHMS,
    CASES,
    DIRECTIONS,
    DTYPES,
    LAYOUTS,
    UNIVERSAL,
    by_name,
    call,
    data,
    inexact_tolerance,
    sums_plain_products,
    tolerance,
)
from .checks import assert_owned

each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
each_direction = pytest.mark.parametrize("direction", DIRECTIONS)
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def run_or_declined(case, given, direction, algorithm, layout):
    """The result, or None where an algorithm that may decline does so with an error that names it."""
    if algorithm in UNIVERSAL:
        return call(case, given, direction, algorithm=algorithm, layout=layout)
    try:
        return call(case, given, direction, algorithm=algorithm, layout=layout)
    except ValueError as error:
        if algorithm not in str(error):
            raise
        return None


@each_case
@each_direction
@each_dtype
@each_layout
@each_algorithm
def test_integers_are_exact(algorithm, layout, dtype, direction, case):
    given = data(case, "integers", layout, dtype)
    result = run_or_declined(case, given, direction, algorithm, layout)
    if result is not None:
        assert_owned(result, dtype)
        if sums_plain_products(case, algorithm, direction, layout, dtype):
            np.testing.assert_array_equal(result, given.expected[direction])


@each_case
@each_direction
@each_dtype
@each_layout
@each_algorithm
def test_floats_are_within_tolerance(algorithm, layout, dtype, direction, case):
    # The tolerance is 0 where no product contributes, such as the gradient of a cell that no window reads.
    given = data(case, "floats", layout, dtype)
    result = run_or_declined(case, given, direction, algorithm, layout)
    if result is not None:
        assert result.shape == given.expected[direction].shape
        exact = sums_plain_products(case, algorithm, direction, layout, dtype)
        rule = tolerance if exact else inexact_tolerance
        limit = rule(dtype, case.reduction_length(direction), given.magnitude[direction])
        excess = np.abs(result - given.expected[direction]) - limit
        assert np.all(excess <= 0), f"off by {excess.max()} more than the tolerance allows"


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
    for algorithm in ALGORITHMS:
        dx = run_or_declined(case, given, "grad_input", algorithm, "NHWC")
        if dx is not None:
            assert (dx[:, ~read] == 0).all()
            assert (dx[:, read] != 0).all()
