"""The oracle itself: its tap-wise sums against single products, and against PyTorch where installed."""

import numpy as np
import pytest

from . import reference
from .cases import CASES, LAYOUTS, Case, data
from .reference import CountingConv, Geometry

SMALL = (
    Case("plain", 2, 3, (4, 5), (2, 3), n=2),
    Case("mixed", 4, 6, (5, 4), (2, 2), (2, 1), ((1, 0), (2, 1)), (1, 2), groups=2),
    Case("same", 1, 2, (3, 4), (2, 2), (2, 3), "same_lower"),
    Case("depthwise", 3, 6, (3, 3), (2, 2), padding="full", groups=3),
    Case("sparse", 1, 1, (7, 8), (2, 1), stride=(4, 3)),
)


def by_name(case):
    return case.name


@pytest.mark.parametrize("case", SMALL, ids=by_name)
def test_tap_wise_sums_equal_sums_of_single_products(case):
    given = data(case, "integers", "NHWC", "float64")
    counting = CountingConv(case.geometry, case.groups)
    np.testing.assert_array_equal(given.expected["forward"], counting.forward(given.x, given.w))
    np.testing.assert_array_equal(given.expected["grad_input"], counting.grad_input(given.grad_y, given.w, case.ic))
    np.testing.assert_array_equal(given.expected["grad_weight"], counting.grad_weight(given.grad_y, given.x))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_oracle_agrees_with_torch(case, layout):
    torch = pytest.importorskip("torch")
    given = data(case, "integers", layout, "float64")
    geometry, turn = case.geometry, reference.images_to_nhwc
    x = torch.tensor(turn(given.x, layout)).permute(0, 3, 1, 2).requires_grad_()
    w = torch.tensor(reference.weights_to_hwio(given.w, layout)).permute(3, 2, 0, 1).contiguous().requires_grad_()
    (top, bottom), (left, right) = geometry.padding
    y = torch.nn.functional.conv2d(
        torch.nn.functional.pad(x, (left, right, top, bottom)),
        w,
        stride=geometry.stride,
        dilation=geometry.dilation,
        groups=case.groups,
    )
    y.backward(torch.tensor(turn(given.grad_y, layout)).permute(0, 3, 1, 2))
    found = {
        "forward": reference.images_from_nhwc(y.detach().permute(0, 2, 3, 1).numpy(), layout),
        "grad_input": reference.images_from_nhwc(x.grad.permute(0, 2, 3, 1).numpy(), layout),
        "grad_weight": reference.weights_from_hwio(w.grad.permute(2, 3, 1, 0).numpy(), layout),
    }
    for direction, result in found.items():
        np.testing.assert_array_equal(given.expected[direction], result, err_msg=direction)


@pytest.mark.parametrize(
    ("padding", "expected"),
    [
        (2, ((2, 2), (2, 2))),
        ((1, 3), ((1, 1), (3, 3))),
        (((0, 1), (2, 3)), ((0, 1), (2, 3))),
        ("valid", ((0, 0), (0, 0))),
        ("same", ((1, 2), (0, 1))),
        ("same_lower", ((2, 1), (1, 0))),
        ("full", ((4, 4), (1, 1))),
    ],
)
def test_padding_forms(padding, expected):
    geometry = Geometry.of((6, 7), (3, 2), (2, 2), padding, (2, 1))
    assert geometry.padding == expected


def test_same_gives_one_output_per_stride():
    for size in range(1, 12):
        for stride in range(1, 5):
            for kernel in range(1, 6):
                for padding in ("same", "same_lower"):
                    geometry = Geometry.of((size, 9), (kernel, 1), (stride, 1), padding, (2, 1))
                    assert geometry.output_size == (-(-size // stride), 9), (size, stride, kernel, padding)
