"""NCHW problems in bands: cases cut into pieces as small as scratch areas allow, against the whole."""

import numpy as np
import pytest

from fastconv.algorithms import cuts, transposed
from fastconv.algorithms.direct import Direct
from fastconv.problem import CHANNELS_LAST, IMAGES_LAST, problem_from

from .cases import CASES, data


@pytest.mark.parametrize("layout", [CHANNELS_LAST, IMAGES_LAST])
@pytest.mark.parametrize("direction", ["forward", "grad_input"])
def test_bands_make_the_whole(direction, layout, monkeypatch):
    monkeypatch.setattr(cuts, "_BAND_ROWS", 0)
    in_rows = 0
    for case in CASES:
        x_shape, w_shape, _ = case.shapes("NCHW")
        problem = problem_from(x_shape, w_shape, np.dtype("float32"), **case.arguments, layout="NCHW")
        given = data(case, "integers", "NCHW", "float32")
        for scratch in (1 << 10, 1 << 13):
            for module in (cuts, transposed):
                monkeypatch.setattr(module, "scratch_limit", lambda *_, scratch=scratch: scratch)
            bands = cuts.bands_of(problem, direction, layout)
            if bands is None:
                continue
            in_rows += len(bands) > problem.n
            result = np.full_like(given.expected[direction], np.nan, np.float32)
            operation = transposed.transposed(problem, direction, layout, Direct(), 1)
            operation.run(given.x if direction == "forward" else given.grad_y, np.ascontiguousarray(given.w), result)
            np.testing.assert_array_equal(result, given.expected[direction], err_msg=f"{case}, {scratch} bytes")
    assert in_rows > 30


def test_bands_and_blocks_of_channels_make_the_whole_weight_gradient(monkeypatch):
    monkeypatch.setattr(cuts, "_BAND_ROWS", 0)
    monkeypatch.setattr(cuts, "_CHANNEL_BLOCKS", (16,))
    bands, blocks, both, of_both = 0, 0, 0, 0
    for case in CASES:
        x_shape, w_shape, _ = case.shapes("NCHW")
        problem = problem_from(x_shape, w_shape, np.dtype("float32"), **case.arguments, layout="NCHW")
        given = data(case, "integers", "NCHW", "float32")
        for scratch in (1 << 11, 1 << 14):
            for module in (cuts, transposed):
                monkeypatch.setattr(module, "scratch_limit", lambda *_, scratch=scratch: scratch)
            cut = cuts.cut_of(problem)
            if cut is None:
                continue
            bands += len(cut.bands) > problem.n
            blocks += len(cut.outputs) > 1
            both += len(cut.bands) > problem.n and len(cut.outputs) > 1
            of_both += len(cut.inputs) > 1
            result = np.full_like(given.expected["grad_weight"], np.nan, np.float32)
            operation = transposed.transposed(problem, "grad_weight", CHANNELS_LAST, Direct(), 1)
            operation.run(given.grad_y, given.x, result)
            np.testing.assert_array_equal(
                result, given.expected["grad_weight"], err_msg=f"{case}, {scratch} bytes: {cut}"
            )
    assert bands > 30
    assert blocks > 5
    assert both > 1
    assert of_both > 5
