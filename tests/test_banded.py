"""NCHW problems in bands that one thread each turns and computes: cut small, against the whole, for several threads."""

import functools
import math
from collections import Counter

import numpy as np
import pytest

from fastconv.algorithms import banded, direct
from fastconv.algorithms.base import PLAIN
from fastconv.algorithms.transposed import transposed
from fastconv.algorithms.winograd import Winograd
from fastconv.epilogue import epilogue_for
from fastconv.kernels.target import vector_bytes
from fastconv.problem import IMAGES_LAST, problem_from

from .cases import CASES, Case, data


def planned(algorithm, problem, direction, threads):
    """The operation in bands, or None where the algorithm has none."""
    if algorithm == "direct":
        return direct._banded(problem, direction, threads)
    if Winograd._along_rows(problem, direction):
        return None
    if Winograd().declines(problem, direction) or (algorithm == "winograd, groups" and problem.groups == 1):
        return None
    if not Winograd._has_bands(problem, direction):
        return None
    planner = {
        "winograd": functools.partial(Winograd._band_planner, packs=True),
        "winograd, each alone": functools.partial(Winograd._band_planner, packs=False),
        "winograd, groups": Winograd._group_planner,
    }[algorithm]
    return banded.plan_banded(problem, direction, planner(problem, direction), threads)


def problems():
    for case in CASES:
        x_shape, w_shape, _ = case.shapes("NCHW")
        yield case, problem_from(x_shape, w_shape, np.dtype("float32"), **case.arguments, layout="NCHW")


def run(operation, direction, given):
    result = np.full_like(given.expected[direction], np.nan, np.float32)
    first = given.x if direction == "forward" else given.grad_y
    epilogue = PLAIN
    if direction == "forward":
        epilogue = epilogue_for(np.arange(result.shape[1], dtype=np.float32), "relu", "float32")
    operation.run(np.ascontiguousarray(first), np.ascontiguousarray(given.w), result, epilogue)
    return result


@pytest.mark.parametrize("direction", ["forward", "grad_input"])
def test_bands_of_direct_make_the_whole(direction, monkeypatch):
    seen = Counter()
    for case, problem in problems():
        given = data(case, "integers", "NCHW", "float32")
        expected = given.expected[direction]
        if direction == "forward":
            expected = np.maximum(expected + np.arange(expected.shape[1])[:, None, None], 0)
        for band_bytes, threads in ((1 << 10, 1), (1 << 13, 2), (1 << 20, 3)):
            monkeypatch.setattr(banded, "_BAND_BYTES", band_bytes)
            monkeypatch.setattr(banded, "_GROUPS_BYTES", 4 * band_bytes)
            operation = planned("direct", problem, direction, threads)
            if operation is None:
                continue
            seen[len(operation._parts) > problem.n] += 1
            seen["phases"] += len(operation._stages) > 1
            seen["groups"] += len({part.group for part in operation._parts}) > 1
            np.testing.assert_array_equal(run(operation, direction, given), expected, err_msg=f"{case}, {threads}")
    assert seen[True] > 20
    assert seen[False] > 3
    assert seen["groups"] > 10
    assert seen["phases"] > 3 or direction == "forward"


@pytest.mark.parametrize("algorithm", ["direct", "winograd", "winograd, each alone", "winograd, groups"])
@pytest.mark.parametrize("direction", ["forward", "grad_input"])
def test_bits_do_not_depend_on_the_bands(algorithm, direction, monkeypatch):
    compared = 0
    for case, problem in problems():
        given, results, cuts = data(case, "floats", "NCHW", "float32"), [], set()
        for band_bytes, threads in ((1 << 11, 1), (1 << 14, 2), (1 << 17, 5), (1 << 20, 1)):
            monkeypatch.setattr(banded, "_BAND_BYTES", band_bytes)
            monkeypatch.setattr(banded, "_GROUPS_BYTES", 4 * band_bytes)
            operation = planned(algorithm, problem, direction, threads)
            if operation is not None:
                cuts.add(len(operation._parts))
                results.append(run(operation, direction, given))
        for result in results[1:]:
            np.testing.assert_array_equal(result, results[0], err_msg=f"{case}")
        compared += len(cuts) > 1
    assert compared > (3 if algorithm == "winograd, groups" else 10)


@pytest.mark.parametrize("algorithm", ["winograd", "winograd, each alone", "winograd, groups"])
@pytest.mark.parametrize("direction", ["forward", "grad_input"])
def test_bits_of_winograd_are_those_of_whole_images(algorithm, direction, monkeypatch):
    monkeypatch.setattr(banded, "_BAND_BYTES", 1 << 13)
    compared = 0
    for case, problem in problems():
        operation = planned(algorithm, problem, direction, 2)
        if operation is None or len(operation._parts) == 1:
            continue
        given = data(case, "floats", "NCHW", "float32")
        rows = Winograd._band_planner(problem, direction, packs=True).rows
        whole = transposed(problem, direction, IMAGES_LAST, Winograd(), 1, rows)
        np.testing.assert_array_equal(run(operation, direction, given), run(whole, direction, given), err_msg=str(case))
        compared += 1
    assert compared > (2 if algorithm == "winograd, groups" else 5)


@pytest.mark.parametrize("kind", ["integers", "floats"])
def test_weight_gradients_of_groups_in_bands(kind):
    compared = in_parts = dense = 0
    for case, problem in problems():
        given = data(case, kind, "NCHW", "float32")
        results = []
        for threads in (1, 2, 5):
            operation = direct._banded(problem, "grad_weight", threads)
            if operation is None:
                continue
            result = np.full_like(given.expected["grad_weight"], np.nan, np.float32)
            operation.run(np.ascontiguousarray(given.grad_y), np.ascontiguousarray(given.x), result)
            if kind == "integers":
                np.testing.assert_array_equal(result, given.expected["grad_weight"], err_msg=str(case))
            results.append(result)
            in_parts += len(operation._parts) > 1
        for result in results[1:]:
            np.testing.assert_array_equal(result, results[0], err_msg=str(case))
        compared += len(results) > 1
        dense += len(results) > 1 and problem.ic > problem.groups
    assert compared > 5
    assert in_parts > 3
    assert dense > 3


BATCHES = (
    Case("batches-dense", 32, 64, (9, 8), (3, 3), padding=1, groups=16, n=3),
    Case("batches-strided", 48, 48, (11, 7), (3, 2), stride=2, padding=(1, 0), groups=12, n=5),
    Case("batches-depthwise", 35, 35, (8, 9), (3, 3), padding=1, groups=35, n=5),
)


@pytest.mark.parametrize("case", BATCHES, ids=str)
@pytest.mark.parametrize("images", [1, 2])
def test_weight_gradients_of_groups_in_batches(case, images, monkeypatch):
    """Where a vector of channels of all images is too large for a band, some images come after others."""
    problem = problem_from(*case.shapes("NCHW")[:2], np.dtype("float32"), **case.arguments, layout="NCHW")
    each = (math.prod(problem.x_shape) + math.prod(problem.y_shape)) // problem.n * problem.itemsize
    together = max(1, vector_bytes() // problem.itemsize // max(problem.ic_per_group, problem.oc_per_group))
    monkeypatch.setattr(banded, "_PLANE_BYTES", 0)
    monkeypatch.setattr(banded, "_BAND_BYTES", images * together * each // problem.groups + 1)
    for kind in ("integers", "floats"):
        given, results = data(case, kind, "NCHW", "float32"), []
        for threads in (1, 2, 5):
            operation = direct._banded(problem, "grad_weight", threads)
            assert isinstance(operation, banded.BatchedGradient)
            assert len(operation._batches) == -(-problem.n // images)
            result = np.full_like(given.expected["grad_weight"], np.nan, np.float32)
            operation.run(np.ascontiguousarray(given.grad_y), np.ascontiguousarray(given.x), result)
            results.append(result)
        for result in results[1:]:
            np.testing.assert_array_equal(result, results[0])
        if kind == "integers":
            np.testing.assert_array_equal(results[0], given.expected["grad_weight"])
