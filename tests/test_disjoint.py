"""NCHW layers whose windows lie side by side, and pointwise weight gradients: the ways that only these can take."""

import math
from dataclasses import replace

import numpy as np
import pytest

from fastconv.algorithms import transposed
from fastconv.algorithms.base import Epilogue
from fastconv.algorithms.direct import Direct, DirectOperation, disjoint
from fastconv.problem import problem_from

from .cases import CASES, DIRECTIONS, Case, data

SIDE_BY_SIDE = [
    replace(case, name=f"{case.name}-disjoint", stride=case.kernel, padding=0, dilation=1, groups=1, n=3)
    for case in CASES[::5]
    if case.groups == 1 and all(k <= size for k, size in zip(case.kernel, case.image, strict=True))
]


def problem_of(case: Case, dtype: str = "float32"):
    x_shape, w_shape, _ = case.shapes("NCHW")
    return problem_from(x_shape, w_shape, np.dtype(dtype), **case.arguments, layout="NCHW")


def operands(given, direction):
    first = given.x if direction == "forward" else given.grad_y
    second = given.x if direction == "grad_weight" else given.w
    return np.ascontiguousarray(first), np.ascontiguousarray(second)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_windows_side_by_side(direction, monkeypatch):
    """All at once, and an image or two at a time, where the scratch is small."""
    done, rounds = 0, 0
    for number, case in enumerate(SIDE_BY_SIDE):
        dtype = ("float32", "float64")[number % 2]
        problem, given = problem_of(case, dtype), data(case, "integers", "NCHW", dtype)
        one = problem.itemsize * (np.prod(problem.x_shape) + np.prod(problem.y_shape)) // problem.n
        for scratch in (1 << 30, 2 * one):
            monkeypatch.setattr(disjoint, "scratch_limit", lambda *_, scratch=scratch: scratch)
            operation = disjoint.plan_disjoint(problem, direction, 2, DirectOperation)
            if operation is None:
                continue
            expected = given.expected[direction]
            bias = (np.arange(case.oc) % 5 - 2).astype(dtype)
            epilogue = Epilogue(bias) if direction == "forward" else Epilogue()
            if direction == "forward":
                expected = expected + bias[:, None, None]
            first, second = operands(given, direction)
            for prepared in (None, operation.prepare(second)) if direction == "forward" else (None,):
                result = np.full_like(expected, np.nan, dtype)
                operation.run(first, second, result, epilogue, prepared)
                np.testing.assert_array_equal(result, expected, err_msg=f"{case} {dtype} {scratch} bytes")
            done += 1
            rounds += len(operation._rounds) > 1
    assert done > 8
    assert rounds > 3 or direction == "grad_weight"


def test_patches_that_overlap_or_lie_apart_are_added_up(monkeypatch):
    """All at once, and an image or two at a time; pixels that no window reads are zeros."""
    done = rounds = 0
    for number, case in enumerate(CASES):
        dtype = ("float32", "float64")[number % 2]
        problem = problem_of(replace(case, n=3), dtype)
        if problem.groups > 1 or disjoint._side_by_side(problem):
            continue
        given = data(replace(case, n=3), "integers", "NCHW", dtype)
        one = math.prod(problem.output_size) * (problem.ic * math.prod(problem.kernel_size) + problem.oc)
        for scratch in (1 << 30, 2 * one * problem.itemsize):
            monkeypatch.setattr(disjoint, "scratch_limit", lambda *_, scratch=scratch: scratch)
            operation = disjoint.plan_disjoint(problem, "grad_input", 2, DirectOperation)
            if operation is None:
                assert not disjoint._folds(problem)
                continue
            result = np.full_like(given.expected["grad_input"], np.nan, dtype)
            operation.run(*operands(given, "grad_input"), result)
            np.testing.assert_array_equal(result, given.expected["grad_input"], err_msg=f"{case} {dtype}")
            done += 1
            rounds += len(operation._rounds) > 1
    assert done > 60
    assert rounds > 30


def test_images_of_many_pixels_are_not_folded():
    case = Case("", 1, 4, (257, 64), (3, 3), stride=2)
    assert disjoint.plan_disjoint(problem_of(case), "grad_input", 1, DirectOperation) is None
    smaller = replace(problem_of(case), input_size=(15, 64))
    assert disjoint.plan_disjoint(smaller, "grad_input", 1, DirectOperation) is not None
    assert disjoint.plan_disjoint(smaller, "grad_weight", 1, DirectOperation) is None


@pytest.mark.parametrize(
    "change",
    [{"stride": (2, 3)}, {"padding": ((0, 1), (0, 0))}, {"dilation": (1, 2)}, {"groups": 3}, {"layout": "NHWC"}],
    ids=lambda change: next(iter(change)),
)
def test_other_layers_are_declined(change):
    case = Case("", 3, 6, (12, 12), (3, 3), stride=3)
    assert disjoint.plan_disjoint(problem_of(case), "forward", 1, DirectOperation) is not None
    assert disjoint.plan_disjoint(replace(problem_of(case), **change), "forward", 1, DirectOperation) is None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pointwise_weight_gradient(dtype):
    done = 0
    for case in CASES:
        problem = problem_of(case, dtype)
        if not transposed._pointwise_in_one(problem):
            continue
        given = data(case, "integers", "NCHW", dtype)
        result = np.full_like(given.expected["grad_weight"], np.nan, dtype)
        transposed.PointwiseGradient(problem, Direct(), 2).run(*operands(given, "grad_weight"), result)
        np.testing.assert_array_equal(result, given.expected["grad_weight"], err_msg=str(case))
        done += 1
    assert done > 3
