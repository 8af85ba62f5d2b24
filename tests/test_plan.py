"""Plans and cost models; the latter against what the instrumented reference counted."""

import dataclasses

import numpy as np
import pytest

import fastconv
from fastconv import cost, machine
from fastconv.algorithms.direct import model
from fastconv.problem import ConvProblem

from . import reference
from .cases import DIRECTIONS, DTYPES, INEXACT, LAYOUTS, NAMED, UNIVERSAL, Case, by_name, call, data
from .reference import CountingConv

COUNTED = (
    Case("plain", 3, 4, (5, 6), (3, 2), n=2),
    Case("padded", 2, 3, (4, 5), (3, 3), padding=((2, 1), (0, 3))),
    Case("strided", 2, 5, (7, 8), (2, 3), stride=(3, 2), padding="same"),
    Case("grouped", 6, 4, (5, 4), (2, 2), dilation=(1, 2), groups=2),
    Case("depthwise", 4, 8, (4, 4), (3, 3), padding=1, groups=4),
    Case("empty", 2, 3, (4, 4), (2, 2), n=0),
)
each_counted = pytest.mark.parametrize("case", COUNTED, ids=lambda case: case.name)
each_direction = pytest.mark.parametrize("direction", DIRECTIONS)


def problem_of(case: Case, layout: str = "NHWC", dtype: str = "float32") -> ConvProblem:
    geometry = case.geometry
    return ConvProblem(
        n=case.n,
        ic=case.ic,
        oc=case.oc,
        input_size=case.image,
        kernel_size=case.kernel,
        stride=geometry.stride,
        padding=geometry.padding,
        dilation=geometry.dilation,
        groups=case.groups,
        layout=layout,
        dtype=dtype,
    )


def plan_of(case: Case, layout: str = "NHWC", **keywords) -> fastconv.plan.Plan:
    x_shape, w_shape, _ = case.shapes(layout)
    return fastconv.plan_conv2d(x_shape, w_shape, layout=layout, **case.arguments, **keywords)


@each_counted
@each_direction
def test_flops_are_twice_the_counted_multiplications(case, direction):
    given = data(case, "integers", "NHWC", "float64")
    counting = CountingConv(case.geometry, case.groups)
    run = {
        "forward": lambda: counting.forward(given.x, given.w),
        "grad_input": lambda: counting.grad_input(given.grad_y, given.w, case.ic),
        "grad_weight": lambda: counting.grad_weight(given.grad_y, given.x),
    }[direction]
    run()
    assert cost.conv_flops(problem_of(case)) == 2 * counting.multiplications
    assert plan_of(case, direction=direction).flops == 2 * counting.multiplications


@each_counted
def test_parameters_are_the_numbers_in_the_weights(case):
    w = data(case, "integers", "NHWC", "float64").w
    assert cost.conv_parameters(problem_of(case)) == sum(1 for _ in w.flat)
    assert cost.conv_parameters(problem_of(case), bias=True) == sum(1 for _ in w.flat) + case.oc
    assert plan_of(case).parameters == sum(1 for _ in w.flat)


@each_counted
@each_direction
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bytes_are_those_of_the_arrays_moved(layout, dtype, direction, case):
    given = data(case, "integers", layout, dtype)
    result = call(case, given, direction, layout=layout)
    operands = {
        "forward": (given.x, given.w),
        "grad_input": (given.grad_y, given.w),
        "grad_weight": (given.grad_y, given.x),
    }[direction]
    moved = sum(array.nbytes for array in operands) + result.nbytes
    assert cost.conv_bytes(problem_of(case, layout, dtype), direction) == moved
    assert plan_of(case, layout, dtype=dtype, direction=direction).bytes == moved


@each_counted
@pytest.mark.parametrize("dtype", DTYPES)
def test_im2col_bytes_are_those_of_the_whole_patch_matrix(dtype, case):
    given = data(case, "integers", "NHWC", dtype)
    patches = reference.patch_matrix(given.x, case.geometry).astype(dtype)
    assert cost.im2col_bytes(problem_of(case, dtype=dtype)) == patches.nbytes


@pytest.mark.parametrize(("n", "features", "units"), [(1, 1, 1), (3, 4, 5), (0, 3, 2), (2, 7, 1)])
def test_dense_costs_are_counted(n, features, units):
    w = np.arange(features * units, dtype=np.float32).reshape(features, units)
    x, y = np.ones((n, features), np.float32), np.zeros((n, units), np.float32)
    multiplications = 0
    for i in range(n):
        for j in range(units):
            for k in range(features):
                y[i, j] += x[i, k] * w[k, j]
                multiplications += 1
    np.testing.assert_array_equal(y, fastconv.dense(x, w))
    assert cost.dense_flops(n, features, units) == 2 * multiplications
    assert cost.dense_parameters(features, units) == w.size
    assert cost.dense_parameters(features, units, bias=True) == w.size + units
    assert cost.dense_bytes(n, features, units, 4) == x.nbytes + w.nbytes + y.nbytes


def test_roofline_is_the_longer_of_computing_and_moving():
    limits = dataclasses.replace(machine.current(), peak_flops=2e9, bandwidth=1e9)
    assert cost.roofline_seconds(4e9, 1e9, limits) == 2
    assert cost.roofline_seconds(4e9, 5e9, limits) == 5


def test_predictions_are_of_usual_calls():
    """On a machine that usually reaches half of its peak, calls take twice as long."""
    limits = machine.current()
    once, twice = (
        cost.usual_seconds(1e-3, problem_of(Case("stem", 3, 16, (9, 9), (3, 3))), "forward", changed)
        for changed in (limits, dataclasses.replace(limits, usual_share=limits.usual_share / 2))
    )
    assert once >= 1e-3
    assert twice == 2 * once


def test_one_convolution_replaces_a_billion_weights():
    """A dense layer from 10^6 pixels to 10^3 units, against 16 kernels of 3x3 on 3 channels."""
    assert cost.dense_parameters(1000 * 1000, 1000) == 10**9
    assert cost.conv_parameters(problem_of(Case("stem", 3, 16, (1000, 1000), (3, 3)))) == 432


@pytest.mark.parametrize("dtype", DTYPES)
def test_machine_is_measured_and_remembered(dtype):
    limits = machine.current(dtype=dtype)
    assert limits == machine.current(dtype=dtype)
    assert limits.dtype == dtype
    assert limits.cpu
    assert limits.threads >= 1
    assert limits.vector_bytes in (16, 32, 64)
    assert 1e8 < limits.peak_flops < 1e14
    assert 1e8 < limits.bandwidth <= limits.cache_bandwidth < 1e13
    assert 0 < limits.usual_share <= 1


@each_direction
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("algorithm", UNIVERSAL)
def test_plan_describes_the_problem(algorithm, layout, direction):
    case = by_name("all-together")
    plan = plan_of(case, layout, algorithm=algorithm, direction=direction)
    assert plan.problem == problem_of(case, layout)
    assert plan.problem.output_size == case.geometry.output_size
    assert (plan.problem.x_shape, plan.problem.w_shape, plan.problem.y_shape) == case.shapes(layout)
    assert plan.direction == direction
    assert plan.algorithm in NAMED
    assert plan.algorithm == algorithm or algorithm not in NAMED
    assert plan.predicted_seconds > 0
    assert plan.workspace_bytes >= 0
    assert plan.why


@each_direction
def test_plan_prints_a_readable_table(direction):
    plan = plan_of(by_name("all-together"), direction=direction)
    text = str(plan)
    lines = text.splitlines()
    assert len(lines) >= 8
    assert max(map(len, lines)) <= 200
    for shown in (
        plan.algorithm,
        direction,
        plan.why,
        f"{plan.flops:,}",
        f"{plan.bytes:,}",
        "(2, 10, 13, 12)",
    ):
        assert shown in text
    for name, _, reason in plan.candidates:
        assert name in text
        assert reason in text


@each_direction
@pytest.mark.parametrize("name", ["all-together", "channels-130to70", "depthwise", "image-40x60", "scalar"])
def test_auto_takes_the_shortest_predicted_time(name, direction):
    plan = plan_of(by_name(name), direction=direction)
    offered = {candidate: seconds for candidate, seconds, _ in plan.candidates if seconds is not None}
    assert set(NAMED) == {candidate for candidate, _, _ in plan.candidates}
    assert {candidate for candidate in UNIVERSAL if candidate in NAMED} <= set(offered)
    plain = {candidate: seconds for candidate, seconds in offered.items() if candidate not in INEXACT}
    assert plan.predicted_seconds == offered[plan.algorithm]
    assert plan.predicted_seconds in (min(offered.values()), min(plain.values()))


@pytest.mark.parametrize(
    ("size", "padding", "dilation"),
    [((3, 3), 1, 1), ((5, 5), 2, 1), ((3, 3), 2, 2), ((3, 3), 4, 4), ((5, 5), (2, 4), (1, 2))],
)
def test_auto_transforms_data_only_where_that_saves_something(size, padding, dilation):
    options = {"padding": padding, "dilation": dilation}
    small = fastconv.plan_conv2d((1, 8, 8, 16), (*size, 16, 16), **options)
    assert small.algorithm not in INEXACT
    for direction in DIRECTIONS:
        large = {"x_shape": (8, 56, 56, 64), "w_shape": (*size, 64, 64), "direction": direction, **options}
        assert fastconv.plan_conv2d(**large).algorithm == "winograd"
        assert fastconv.plan_conv2d(**large, algorithm="exact").algorithm not in INEXACT


@pytest.mark.parametrize("direction", ["forward", "grad_input"])
def test_auto_leaves_alone_what_would_fill_few_pixels_of_its_tiles(direction):
    plan = fastconv.plan_conv2d((1, 33, 33, 256), (3, 3, 256, 256), padding=18, dilation=18, direction=direction)
    assert plan.algorithm not in INEXACT


@each_direction
@pytest.mark.parametrize("name", ["all-together", "channels-130to70", "depthwise", "same", "dilated"])
def test_exact_runs_an_algorithm_that_is_exact_on_integers(name, direction):
    case = by_name(name)
    plan = plan_of(case, algorithm="exact", direction=direction)
    offered = {candidate: seconds for candidate, seconds, _ in plan.candidates if seconds is not None}
    assert plan.predicted_seconds == offered[plan.algorithm] == min(offered.values())
    given = data(case, "integers", "NHWC", "float32")
    for algorithm in ("exact", plan.algorithm):
        result = call(case, given, direction, algorithm=algorithm)
        np.testing.assert_array_equal(result, given.expected[direction])


def test_exact_offers_nothing_that_is_not_exact():
    case = by_name("same")
    given = data(case, "integers", "NHWC", "float32")
    for algorithm, seconds, _ in plan_of(case, algorithm="exact").candidates:
        if seconds is not None:
            result = call(case, given, "forward", algorithm=algorithm)
            np.testing.assert_array_equal(result, given.expected["forward"])


def test_predicted_time_grows_with_the_work():
    small = fastconv.plan_conv2d((1, 16, 16, 64), (3, 3, 64, 64), padding=1)
    large = fastconv.plan_conv2d((64, 128, 128, 64), (3, 3, 64, 64), padding=1)
    for name in NAMED:
        before, after = (
            {candidate: seconds for candidate, seconds, _ in plan.candidates}[name] for plan in (small, large)
        )
        if before is not None and after is not None:
            assert after > 50 * before


def test_predicted_time_is_not_below_what_the_peak_allows():
    plan = fastconv.plan_conv2d((4, 56, 56, 64), (3, 3, 64, 64), padding=1, algorithm="exact")
    assert plan.predicted_seconds >= 0.9 * plan.flops / machine.current().peak_flops


@each_direction
@pytest.mark.parametrize("algorithm", [name for name in NAMED if name != "fft"])  # which declines 100 channels
def test_workspace_is_bounded(algorithm, direction):
    """No algorithm holds anything like the patch matrix of a large problem, 3.8 GB here."""
    shapes = (4, 512, 512, 100), (3, 3, 100, 100)
    plan = fastconv.plan_conv2d(*shapes, padding=1, algorithm=algorithm, direction=direction)
    assert cost.im2col_bytes(plan.problem) > 3.5e9
    assert plan.workspace_bytes < 256e6


def test_plan_takes_a_missing_batch_axis_and_float16():
    with_batch = fastconv.plan_conv2d((1, 9, 8, 3), (3, 3, 3, 4), dtype="float16")
    without = fastconv.plan_conv2d((9, 8, 3), (3, 3, 3, 4), dtype=np.float16)
    assert with_batch.problem == without.problem
    assert without.problem.dtype == "float32"


def test_the_last_task_is_done_when_threads_have_taken_them_in_turn():
    assert model.last_done([], 2) == 0
    assert model.last_done([3, 2, 1], 1) == 6
    assert model.last_done([72, 72, 72, 72, 52, 52], 2) == 216  # the second thread has nothing left to take
    assert model.last_done([4, 4, 4, 4, 1, 1, 1, 1], 2) == 12  # it takes what the first has left
    assert model.last_done([5, 1, 1], 8) == 5
