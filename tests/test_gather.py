"""Gathered passes that problems as small as the cases never get: weights in chunks, rows that tasks copy."""

import numpy as np
import pytest

from fastconv.algorithms.base import Epilogue
from fastconv.algorithms.direct import gather
from fastconv.algorithms.direct.grids import sub_problems
from fastconv.problem import problem_from

from .cases import CASES, data


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
