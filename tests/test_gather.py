"""Gathered passes that problems as small as the cases never get: weights in chunks, or packed for their place."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from fastconv.algorithms.base import Epilogue
from fastconv.algorithms.direct import gather, phases, planes
from fastconv.algorithms.direct.grids import sub_problems
from fastconv.algorithms.direct.lines import plan_lines
from fastconv.kernels import target
from fastconv.kernels.params import LINE, aligned
from fastconv.kernels.target import panel_tile, vector_bytes
from fastconv.problem import problem_from

from .cases import CASES, data
from .checks import assert_same_bits
from .extent import cross_section


@pytest.mark.parametrize(("layout", "kind"), [("NHWC", gather.plan_gather), ("NCHW", gather.plan_padded)])
@pytest.mark.parametrize("direction", ["forward", "grad_input"])
def test_taps_in_chunks_make_the_whole(direction, layout, kind, monkeypatch):
    monkeypatch.setattr(gather, "_PANEL_BYTES", 1 << 10)
    monkeypatch.setattr(gather, "_CHUNK_BYTES", 1 << 12)
    in_chunks = passes = 0
    for case in CASES:
        x_shape, w_shape, _ = case.shapes(layout)
        problem = problem_from(x_shape, w_shape, np.dtype("float32"), **case.arguments, layout=layout)
        planned = [kind(problem, direction, *part, 2) for part in sub_problems(problem, direction)]
        if None in planned:
            continue
        given = data(case, "integers", layout, "float32")
        result = np.zeros_like(given.expected[direction], np.float32)
        bias = np.arange(problem.oc, dtype=np.float32)
        epilogue = Epilogue(bias if direction == "forward" else None, relu=direction == "forward")
        for step in planned:
            plan = step.launch.plan[0]
            in_chunks += plan["chunk"] < plan["taps_r"] * plan["taps_c"]
            passes += 1
            step.run(
                given.x if direction == "forward" else given.grad_y, np.ascontiguousarray(given.w), result, epilogue
            )
        expected = given.expected[direction]
        if direction == "forward":
            expected = np.maximum(expected + (bias if layout == "NHWC" else bias[:, None, None]), 0)
        np.testing.assert_array_equal(result, expected, err_msg=str(case))
    assert passes > 100
    assert in_chunks > 5 or layout == "NCHW"  # whose weights are packed whole


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_beside_cache_lines_are_packed(dtype, monkeypatch):
    monkeypatch.setattr(gather, "_STRADDLING_STEPS", 1)
    packed = 0
    for case in cross_section(CASES, 2):
        x_shape, w_shape, _ = case.shapes("NHWC")
        problem = problem_from(x_shape, w_shape, np.dtype(dtype), **case.arguments, layout="NHWC")
        for part in sub_problems(problem, "forward"):
            step = gather.plan_gather(problem, "forward", *part, 2)
            if not step.on_lines:
                continue
            given = data(case, "floats", "NHWC", dtype)
            results = [np.zeros_like(given.expected["forward"], dtype) for _ in range(2)]
            for offset, result in enumerate(results):
                w = aligned((given.w.size + 1,), dtype)[offset:][: given.w.size].reshape(w_shape)
                w[...] = given.w
                assert (w.ctypes.data % LINE > 0) == offset
                step.run(given.x, w, result)
            assert_same_bits(*results)
            packed += 1
    assert packed > 10


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("direction", ["forward", "grad_input"])
def test_weights_that_threads_keep_are_those_of_the_call(direction, layout, monkeypatch):
    monkeypatch.setattr(gather, "_PACKING_TILES", 0)
    monkeypatch.setattr(gather, "_MAX_TILES", 2)
    monkeypatch.setattr(phases, "scratch_limit", lambda *_: 1 << 24)
    kept = kept_in_chains = 0
    for case in CASES:
        x_shape, w_shape, _ = case.shapes(layout)
        problem = problem_from(x_shape, w_shape, np.dtype("float32"), **case.arguments, layout=layout)
        steps, others = (
            tuple(gather.plan_gather(problem, direction, *part, 2) for part in sub_problems(problem, direction))
            for _ in range(2)
        )
        if not any(step.packing and step.packing.keeps for step in steps):
            continue
        given = data(case, "integers", layout, "float32")
        source = given.x if direction == "forward" else given.grad_y
        chain = phases.plan_phases(problem, others, 2)
        kept, kept_in_chains = kept + 1, kept_in_chains + (chain is not None)
        for factor in (1, -2):  # a second call must not meet the panels of the first
            for ways in [steps] if chain is None else [steps, (chain,)]:
                result = np.zeros_like(given.expected[direction], np.float32)
                for step in ways:
                    step.run(source, np.ascontiguousarray(factor * given.w), result)
                np.testing.assert_array_equal(result, factor * given.expected[direction], err_msg=str(case))
    assert kept > 20
    assert kept_in_chains > 3 or direction == "forward"


@pytest.mark.parametrize("direction", ["forward", "grad_input"])
def test_results_that_pass_the_caches(direction, monkeypatch):
    """Where the target begins at a multiple of 16 bytes, and where it does not; nothing is written behind it."""
    monkeypatch.setattr(gather, "_passes_caches", lambda result_bytes: True)
    monkeypatch.setattr(gather, "_LEAST_TILES", 1)
    past = 0
    for case, kind in itertools.product(CASES, (gather.plan_gather, gather.plan_padded)):
        x_shape, w_shape, _ = case.shapes("NHWC")
        problem = problem_from(x_shape, w_shape, np.dtype("float32"), **case.arguments, layout="NHWC")
        steps = [kind(problem, direction, *part, 1) for part in sub_problems(problem, direction)]
        if None in steps or not any(step.launch.plan["results"][0] for step in steps):
            continue
        given = data(case, "integers", "NHWC", "float32")
        expected = given.expected[direction]
        for offset in (0, 1):
            room = aligned((offset + expected.size + 8,), "float32")
            room[:] = 0
            result = room[offset : offset + expected.size].reshape(expected.shape)
            for step in steps:
                step.run(given.x if direction == "forward" else given.grad_y, np.ascontiguousarray(given.w), result)
            np.testing.assert_array_equal(result, expected, err_msg=f"{case} {kind.__name__} {offset}")
            assert not room[offset + expected.size :].any()
        past += 1
    assert past > (15 if vector_bytes() == 32 else 4)  # of wider vectors few panels are more than one


@pytest.mark.skipif(vector_bytes() == 16, reason="needs masked loads")
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("direction", ["forward", "grad_input"])
def test_tiles_of_half_vectors(direction, layout, monkeypatch):
    def halved(dtype, rows, channels, halves=False, **limits):
        shape = panel_tile(dtype, rows, channels, **limits)
        return replace(shape, VL=shape.VL // 2, slots=0.5) if halves else shape

    for module in (gather, planes):
        monkeypatch.setattr(module, "panel_tile", halved)
    taken = 0
    for case, kind in itertools.product(
        cross_section(CASES, 31), (gather.plan_gather, gather.plan_padded, planes.plan_planes)
    ):
        x_shape, w_shape, _ = case.shapes(layout)
        problem = problem_from(x_shape, w_shape, np.dtype("float32"), **case.arguments, layout=layout)
        steps = [kind(problem, direction, *part, 2) for part in sub_problems(problem, direction)]
        if None in steps or not any(step.tile.slots < 1 for step in steps):
            continue
        given = data(case, "integers", layout, "float32")
        result = np.zeros_like(given.expected[direction], np.float32)
        for step in steps:
            step.run(given.x if direction == "forward" else given.grad_y, np.ascontiguousarray(given.w), result)
        np.testing.assert_array_equal(result, given.expected[direction], err_msg=f"{case} {kind.__name__}")
        taken += 1
    assert taken > 10


def test_rows_are_padded_only_where_the_highest_tile_fits():
    """Few pixels take tiles of 14 rows, which reached over more padded rows than a strip holds: blocks had no tiles."""
    problem = problem_from(
        (2, 260, 11, 12), (32, 130, 3, 3), np.dtype("float32"), stride=1, padding=((2, 2), (2, 3)), dilation=(7, 2),
        groups=2, layout="NCHW",
    )  # fmt: skip
    for n in (1, 2, 8):
        (part,) = sub_problems(replace(problem, n=n), "forward")
        planned = gather.plan_padded(replace(problem, n=n), "forward", *part, 1)
        assert planned is None or planned.launch.tasks > 0


@pytest.mark.parametrize("halves", [False, True])
def test_rows_that_meet_in_a_set_of_the_cache_take_low_tiles(halves, monkeypatch):
    """Twelve and fourteen rows 4 KB apart took up to three times as long; what lies beside that keeps its tile."""
    monkeypatch.setattr(target, "halves_vectors", lambda: halves)
    monkeypatch.setattr(gather, "halves_vectors", lambda: halves)
    for dtype, channels, outputs in itertools.product(("float32", "float64"), (511, 512, 2048), (8, 24, 40, 64)):
        problem = problem_from(
            (1, 14, 14, channels), (1, 1, channels, outputs), np.dtype(dtype), 1, 0, 1, 1, layout="NHWC"
        )
        (part,) = sub_problems(problem, "forward")
        height = gather.plan_gather(problem, "forward", *part, 1).tile.MR
        alone = panel_tile(dtype, 14 * 14, outputs, halves=True).MR
        meets = channels * np.dtype(dtype).itemsize % (2048 if halves else 4096) == 0
        assert height <= 6 if meets else height == alone


@pytest.mark.skipif(vector_bytes() == 16, reason="needs masked loads")
def test_addresses_of_rows_of_weights_fit_registers():
    """Tiles of 14 rows spilled vectors with the addresses of their rows, and took twice as long."""
    for columns, outputs in itertools.product((7, 17, 28, 33, 64), (3, 9, 28, 56)):
        problem = problem_from(
            (1, 4, columns, columns), (outputs, 4, 3, 3), np.dtype("float32"), 1, 1, 1, 1, layout="NCHW"
        )
        (part,) = sub_problems(problem, "forward")
        assert plan_lines(problem, "forward", *part, 1).tile.MR <= 8
