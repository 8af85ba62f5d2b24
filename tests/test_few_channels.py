"""Few channels: input gradients that add up runs of a kernel row, weight gradients of several pixels abreast."""

import dataclasses

import numpy as np
import pytest

from fastconv.algorithms import direct
from fastconv.algorithms.direct import spread
from fastconv.algorithms.direct.abreast import plan_abreast
from fastconv.kernels.target import vector_bytes
from fastconv.plan import request

from .cases import DTYPES, Case, data
from .checks import assert_same_bits

masked = pytest.mark.skipif(vector_bytes() == 16, reason="vectors of 16 bytes have no masked loads")
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
SPREADS = (
    Case("valid", 6, 16, (14, 14), (5, 5), n=3),
    Case("one-channel", 1, 5, (9, 21), (3, 3), padding=1, n=2),
    Case("strided", 3, 17, (19, 23), (5, 4), (3, 2), ((2, 1), (0, 3))),
    Case("columns-left-out", 2, 4, (7, 20), (3, 2), (2, 5)),
    Case("rows-left-over", 3, 8, (11, 13), (2, 3), (2, 1)),
    Case("padding-wide", 2, 4, (3, 4), (3, 3), padding=((4, 5), (6, 3)), n=2),
    Case("dilated-rows", 2, 9, (12, 10), (3, 3), padding=(2, 1), dilation=(2, 1)),
    Case("one-row-of-taps", 4, 6, (5, 17), (1, 7), padding=(0, 3), n=9),
    Case("one-value-left-over", 1, 5, (6, 33), (3, 3), padding=1),
)
ABREAST = (
    Case("two", 1, 6, (12, 12), (5, 5), n=3),
    Case("two-of-odd-rows", 3, 5, (7, 10), (3, 3), padding=1),
    Case("several", 2, 2, (9, 12), (3, 3), padding=1, n=2),
    Case("strided", 3, 4, (11, 25), (3, 3), 2, ((0, 1), (1, 0))),
    Case("left-over", 2, 3, (8, 14), (3, 4), (1, 3), ((1, 1), (0, 1))),
    Case("pointwise", 8, 3, (6, 8), (1, 1)),
    Case("dilated-rows", 1, 4, (13, 12), (3, 3), padding=(3, 1), dilation=(3, 1)),
    Case("one-column", 5, 4, (6, 1), (3, 2), padding=((1, 1), (1, 0))),
)


def problem_of(case, dtype, direction):
    x_shape, w_shape, _ = case.shapes("NHWC")
    how = (case.stride, case.padding, case.dilation, case.groups, "NHWC", "direct")
    return request(direction, x_shape, w_shape, np.dtype(dtype), *how).problem


def spread_gradient(case, given, dtype, threads=1):
    problem = problem_of(case, dtype, "grad_input")
    step = spread.plan_spread(problem, threads, direct.plan_passes)
    assert step is not None
    result = np.full(problem.x_shape, np.nan, dtype)
    step.run(given.grad_y, given.w, result)
    return result


@masked
@pytest.mark.parametrize("case", SPREADS, ids=lambda case: case.name)
@each_dtype
def test_spread_is_exact(dtype, case):
    lanes = vector_bytes() // np.dtype(dtype).itemsize
    if case.ic >= lanes:
        pytest.skip(f"{case.ic} channels are not few where a vector has {lanes} lanes")
    given = data(case, "integers", "NHWC", dtype)
    for threads in (1, 2):
        np.testing.assert_array_equal(spread_gradient(case, given, dtype, threads), given.expected["grad_input"])


@masked
def test_images_at_a_time_do_not_show(monkeypatch):
    case = Case("many", 6, 16, (14, 14), (5, 5), n=7)
    given = data(case, "floats", "NHWC", "float32")
    together = spread_gradient(case, given, "float32")
    for bytes_ in (14 * 10 * 30 * 4, 14 * 10 * 30 * 4 * 3):  # one image, and three with one left over
        monkeypatch.setattr(spread, "_THREAD_BYTES", bytes_)
        assert_same_bits(spread_gradient(case, given, "float32"), together)


@masked
def test_nan_reaches_the_windows_that_hold_it():
    case = Case("nan", 2, 4, (6, 9), (3, 3), n=1)
    given = data(case, "integers", "NHWC", "float32")
    grad_y = given.grad_y.copy()
    grad_y[0, 1, 2, 3] = np.nan
    nan = np.isnan(spread_gradient(case, dataclasses.replace(given, grad_y=grad_y), "float32")[0])
    assert nan[1:4, 2:5].all()
    assert nan.sum() == 3 * 3 * 2


@masked
@pytest.mark.parametrize(
    "case",
    [
        Case("many-channels", 9, 16, (8, 8), (3, 3)),
        Case("one-column", 2, 4, (8, 8), (3, 1)),
        Case("dilated", 2, 4, (8, 8), (3, 3), dilation=(1, 2)),
        Case("groups", 4, 4, (8, 8), (3, 3), groups=2),
        Case("rows-never-met", 2, 4, (8, 8), (2, 3), (3, 1)),
    ],
    ids=lambda case: case.name,
)
def test_spread_declines(case):
    assert spread.plan_spread(problem_of(case, "float32", "grad_input"), 1, direct.plan_passes) is None


@pytest.mark.parametrize("case", ABREAST, ids=lambda case: case.name)
@each_dtype
def test_abreast_is_exact(dtype, case):
    lanes = vector_bytes() // np.dtype(dtype).itemsize
    given = data(case, "integers", "NHWC", dtype)
    problem = problem_of(case, dtype, "grad_weight")
    results = []
    for threads in (1, 2):
        step = plan_abreast(problem, threads)
        if case.name == "one-column" or 2 * case.oc > lanes:
            assert step is None
            continue
        if step is None:
            assert problem.output_size[1] % 2
            continue
        results.append(np.full(problem.w_shape, np.nan, dtype))
        step.run(given.grad_y, given.x, results[-1])
        np.testing.assert_array_equal(results[-1], given.expected["grad_weight"])
    if results:
        assert_same_bits(*results)


def test_windows_apart_are_not_taken_abreast():
    """The wider kernels would reach over the pixels between them: millions of taps, which took minutes to list."""
    for stride in (2, 1 << 24):
        case = Case("apart", 1, 1, (1, 4 * stride), (1, 1), stride=(1, stride))
        assert plan_abreast(problem_of(case, "float32", "grad_weight"), 1) is None
