"""Every kind of pass on the problems that it can do, whether or not the cost model would choose it for them."""

from dataclasses import replace

import numpy as np
import pytest

import fastconv
from fastconv import cost
from fastconv.algorithms import direct
from fastconv.algorithms.direct import (
    copies,
    correlate,
    depthwise,
    gather,
    planes,
    rolling,
    rolling_dots,
    rolling_pixels,
    window_dots,
)
from fastconv.algorithms.direct.grids import sub_problems
from fastconv.kernels.target import vector_bytes
from fastconv.problem import CHANNELS_LAST, problem_from

from .cases import CASES, Case, data
from .extent import cross_section
from .passes import KINDS, compare_all, compare_pass, directions_of, halve

_EVERY = 15
"""Of the cases, whose other kinds and tails the other tests and the mutation check meet."""
_EVERY_OF = {"plan_gather": 45, "plan_planes": 45, "plan_rolling_pixels": 7}
"""The same of kinds that most of the cases get from the cost model anyway, and of one that is for few."""
_RARE = (
    "plan_spread",
    "plan_abreast",
    "plan_exchanged",
    "plan_pairs",
    "plan_pixel_pairs",
    "plan_rolling_dots",
    "plan_pixel_dots",
    "plan_channel_dots",
)
"""Kinds that few of the cases are for."""


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_of_pass_is_exact(name):
    every = 1 if name in _RARE else _EVERY_OF.get(name, _EVERY)
    done = compare_all(name, cross_section(list(enumerate(CASES)), every, list(KINDS).index(name) % every))
    assert done >= 4 or vector_bytes() == 16  # where some need masked loads


@pytest.mark.parametrize("layout", ["NCHW", CHANNELS_LAST])
def test_gradients_too_large_to_be_turned(layout, monkeypatch):
    monkeypatch.setattr(correlate, "scratch_limit", lambda problem, threads: 0)
    monkeypatch.setattr(correlate, "_PANEL_BYTES", 1 << 11)
    blocks = 0
    for number, case in enumerate(CASES):
        images = "NCHW" if layout == "NCHW" else "NHWC"
        dtype = ("float32", "float64")[number % 2]
        given = data(case, "integers", images, dtype)
        shapes = case.shapes("NCHW")
        problem = problem_from(*shapes[:2], np.dtype(dtype), **case.arguments, layout="NCHW")
        step = correlate.plan_correlate(replace(problem, layout=layout), 2)
        assert step.turn is None
        result = np.full(step.problem.w_shape, np.nan, dtype)
        step.run(np.ascontiguousarray(given.grad_y), np.ascontiguousarray(given.x), result)
        expected = given.expected["grad_weight"]
        if layout == CHANNELS_LAST:
            expected = expected.transpose(2, 0, 1, 3)
        np.testing.assert_array_equal(result, expected, err_msg=case.name)
        blocks += int(step.launch.plan["row_blocks"][0]) > 1
    assert blocks > 20


@pytest.mark.parametrize("strip", [1 << 9, 1 << 14])
def test_depthwise_tiles_of_copied_channels(strip, monkeypatch):
    """Tasks copy some channels of some rows, and their weights, whether or not their lines meet in a cache."""
    monkeypatch.setattr(depthwise, "_MOST_SHARING", 0)
    monkeypatch.setattr(copies, "STRIP_BYTES", strip)
    monkeypatch.setattr(copies, "PART_BYTES", 100)
    planned = []

    def plan(*arguments):
        step = depthwise.plan_depthwise(*arguments)
        planned.append(step is not None and step.launch.plan["copies"][0] * step.launch.plan["parts"][0])
        return step

    monkeypatch.setitem(KINDS, "plan_depthwise", plan)
    assert compare_all("plan_depthwise", cross_section(list(enumerate(CASES)), 2)) >= 4 or vector_bytes() == 16
    assert max(planned) > 1 or vector_bytes() == 16


ROLLING = (
    Case("rolling", 19, 19, (13, 10), (3, 3), padding=((1, 0), (2, 1)), groups=19, n=2),
    Case("rolling-dilated", 16, 16, (17, 12), (2, 3), padding=((2, 3), (3, 4)), dilation=(3, 4), groups=16),
    Case("rolling-pairs", 18, 18, (11, 13), (3, 3), stride=2, padding=((1, 0), (0, 1)), groups=18, n=2),
)


DILATED_BEYOND = Case("rolling-dilated-beyond", 16, 16, (4, 5), (3, 3), padding=(1, 7), dilation=(1, 7), groups=16)


@pytest.mark.parametrize("name", ["plan_rolling_pixels", "plan_rolling_dots"])
def test_sums_of_columns_that_some_phases_have_not(name):
    assert compare_all(name, [(0, DILATED_BEYOND)]) > 0


def test_sums_that_roll_down_blocks_of_rows(monkeypatch):
    """Blocks begin and end inside the image, and the last strip of a row overlaps the one before."""
    monkeypatch.setattr(rolling_pixels, "_LEAST_ROWS", 3)
    monkeypatch.setattr(rolling_pixels, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(rolling_pixels, "STRIP_SLOTS", 1000)  # wide strips
    monkeypatch.setattr(rolling_dots, "_SLAB_PIXELS", 20)
    for case in ROLLING:
        problem = problem_from(*case.shapes("NHWC")[:2], np.dtype("float32"), **case.arguments, layout="NHWC")
        if case.stride == 1:
            step = rolling_pixels.plan_rolling_pixels(problem, "forward", *sub_problems(problem, "forward")[0], 2)
        else:
            step = rolling_pixels.plan_pixel_pairs(problem, 2)
        plan = step.launch.plan[0]
        assert plan["row_blocks"] > 2
        assert plan["columns"] % (plan["phases"] * plan["width"])
        weights = rolling_dots.plan_rolling_dots(problem, 2)
        if case.stride == 1:
            assert weights.launch.plan["row_blocks"][0] > 2
            assert weights.slabs.count > 2
    assert compare_all("plan_rolling_pixels", enumerate(ROLLING)) == 5
    assert compare_all("plan_pixel_pairs", enumerate(ROLLING)) == 1
    assert compare_all("plan_rolling_dots", enumerate(ROLLING)) == 2


def test_passes_that_ask_for_what_comes_from_memory(monkeypatch):
    """Depthwise ones for what the next tile or strip reads, pointwise ones for what the next tile writes."""
    monkeypatch.setattr(cost, "LEAVING_BYTES", 0)
    monkeypatch.setattr(rolling_pixels, "_LEAST_ROWS", 3)
    monkeypatch.setattr(rolling_pixels, "_ASKED_BLOCK_BYTES", 1)
    expanding = Case("expanding", 5, 70, (13, 9), (1, 1), n=2)
    pointwise = problem_from(*expanding.shapes("NHWC")[:2], np.dtype("float32"), **expanding.arguments, layout="NHWC")
    asks = gather.plan_gather(pointwise, "forward", *sub_problems(pointwise, "forward")[0], 2).launch.plan
    assert asks["asks_targets"][0]
    rolling = problem_from(*ROLLING[0].shapes("NHWC")[:2], np.dtype("float32"), **ROLLING[0].arguments, layout="NHWC")
    step = rolling_pixels.plan_rolling_pixels(rolling, "forward", *sub_problems(rolling, "forward")[0], 2)
    assert step.tile.asks
    assert step.launch.plan["row_blocks"][0] > 2
    for name, done in (
        ("rolling_pixels", 5),
        ("pixel_pairs", 1),
        ("rolling_dots", 2),
        ("window_dots", 3),
        ("depthwise", 6),
    ):
        assert compare_all(f"plan_{name}", enumerate(ROLLING)) == done
    assert compare_all("plan_gather", [(0, expanding)]) > 2


@pytest.mark.parametrize("channels", range(2, 9))
def test_strips_of_few_target_channels(channels):
    """Pixels that adjoin are stored as whole vectors, those of a block's last pixel lane by lane."""
    for image in [(5, 3), (7, 17), (9, 28), (3, 600)]:
        for dtype, activation in (("float32", None), ("float32", "relu"), ("float64", halve)):
            case = Case(f"{channels} channels", 2, channels, image, (3, 3), padding=1, n=3)
            assert compare_pass("plan_strips", case, "forward", "NHWC", dtype, activation)


masked_loads = pytest.mark.skipif(vector_bytes() == 16, reason="vectors of 16 bytes have no masked loads")


@masked_loads
def test_rolling_sums_reach_over_the_ends_of_rows(monkeypatch):
    """Planes of one strip and of several, narrower than a vector or a little wider, in one block of rows and in two."""
    for least in (64, 2):
        monkeypatch.setattr(rolling, "_LEAST_ROWS", least)
        for columns in (1, 2, 3, 5, 7, 9, 14, 17, 33, 41):
            case = Case(f"{columns} columns", 3, 3, (11, columns), (3, 3), padding=1, groups=3, n=2)
            for activation in (None, halve):
                assert compare_pass("plan_rolling", case, "forward", "NCHW", "float32", activation)


@masked_loads
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_last_pixels_behind_whole_vectors(dtype, monkeypatch):
    """Planes of one pixel more than vectors hold, under few and many rows of weights that fill vectors or do not."""
    planned = []

    def plan(*arguments):
        step = planes.plan_planes(*arguments)
        planned.append(step is not None and step.alone_last)
        return step

    monkeypatch.setitem(KINDS, "plan_planes", plan)
    lanes = vector_bytes() // np.dtype(dtype).itemsize
    for columns, ic, oc, groups in ((1, 5, 3, 1), (2, 32, 37, 1), (3, 67, 130, 1), (7, 14, 18, 2), (3, 1, 1, 1)):
        for activation in (None, "relu", halve):
            case = Case("last pixels", ic, oc, (1, columns * lanes + 1), (1, 1), groups=groups, n=2)
            for direction in ("forward", "grad_input") if activation is None else ("forward",):
                assert compare_pass("plan_planes", case, direction, "NCHW", dtype, activation)
    assert sum(planned) >= 15


@pytest.mark.parametrize("strip", [1 << 9, 1 << 14])
def test_windows_of_copied_channels(strip, monkeypatch):
    """Weight gradients of depthwise layers, whose tasks copy some channels of blocks of rows."""
    monkeypatch.setattr(window_dots, "_meets", lambda *_: True)
    monkeypatch.setattr(copies, "STRIP_BYTES", strip)
    monkeypatch.setattr(copies, "PART_BYTES", 100)
    planned = []

    def plan(*arguments):
        step = window_dots.plan_window_dots(*arguments)
        planned.append(0 if step is None else int(step.launch.plan["copies"][0]))
        return step

    monkeypatch.setitem(KINDS, "plan_window_dots", plan)
    monkeypatch.setattr(direct, "WEIGHT_KINDS", (*direct.WEIGHT_KINDS, plan))
    assert compare_all("plan_window_dots", enumerate(CASES)) >= 4 or vector_bytes() == 16
    assert max(planned) > 1 or vector_bytes() == 16


def test_weight_gradients_in_blocks_of_few_pixels(monkeypatch):
    """Blocks end inside the image, and where few pixels would fit, some channels are packed at a time."""
    monkeypatch.setattr(correlate, "_PACKED_BYTES", 4 << 10)
    parts, clipped = 0, 0
    for number, case in enumerate(CASES):
        dtype = ("float32", "float64")[number % 2]
        given = data(case, "integers", "NHWC", dtype)
        problem = problem_from(*case.shapes("NHWC")[:2], np.dtype(dtype), **case.arguments, layout="NHWC")
        step = correlate.plan_correlate(problem, 1)
        result = np.full(problem.w_shape, np.nan, dtype)
        step.run(np.ascontiguousarray(given.grad_y), np.ascontiguousarray(given.x), result)
        np.testing.assert_array_equal(result, given.expected["grad_weight"], err_msg=case.name)
        plan = step.launch.plan[0]
        parts += int(plan["channel_parts"]) > 1
        clipped += int(plan["row_blocks"]) > 1 and int(plan["packed_rows"]) == problem.input_size[0]
    assert parts > 5
    assert clipped > 0


WIDE = [
    Case("wide", 3, 3, (9, 113), (3, 3), padding=1, groups=3),
    Case("wide-uneven", 2, 4, (12, 98), (5, 3), padding=((2, 1), (0, 2)), groups=2),
    Case("wide-strided", 3, 3, (13, 150), (3, 3), stride=2, padding=1, groups=3),
    Case("wide-dilated", 2, 2, (14, 90), (3, 2), padding=(2, 3), dilation=(2, 3), groups=2, n=2),
]


@masked_loads
@pytest.mark.parametrize("name", ["plan_rolling", "plan_plane_dots"])
@pytest.mark.parametrize("case", cross_section(WIDE, 2), ids=lambda case: case.name)
def test_strips_between_the_edges_of_wide_planes(case, name):
    for direction in directions_of(name):
        taken = compare_pass(name, case, direction, "NCHW", "float32")
        assert taken or direction == "grad_input", direction


@masked_loads
def test_infinite_weights_meet_no_row_outside_wide_planes():
    """Strips between the edges have no masks, but rows that are not there."""
    rng = np.random.default_rng(5)
    x = rng.integers(-4, 5, (1, 2, 24, 100)).astype(np.float32)
    w = rng.integers(1, 5, (2, 1, 3, 3)).astype(np.float32)
    w[1, 0, 0, 0] = w[0, 0, -1, -1] = np.inf
    arguments = {"stride": (2, 1), "padding": 1, "dilation": 1, "groups": 2}
    problem = problem_from(x.shape, w.shape, np.dtype("float32"), **arguments, layout="NCHW")
    (part,) = sub_problems(problem, "forward")
    result = np.empty(problem.y_shape, np.float32)
    direct.plan_rolling(problem, "forward", *part, 1).run(x, w, result)
    expected = fastconv.conv2d(x, w, **arguments, layout="NCHW", algorithm="naive")
    np.testing.assert_array_equal(result, expected)
