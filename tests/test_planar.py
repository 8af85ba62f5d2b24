"""Depthwise layers in NHWC by way of planes: the bits of planes, some channels after others."""

import numpy as np
import pytest

import fastconv
from fastconv.algorithms import planar
from fastconv.algorithms.fft import Fft
from fastconv.algorithms.planar import PlanarOperation
from fastconv.problem import problem_from

from .cases import DIRECTIONS, DTYPES
from .checks import assert_same_bits

each_direction = pytest.mark.parametrize("direction", DIRECTIONS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
PADDING = ((3, 8), (5, 2))


def operands(channels, dtype):
    rng = np.random.default_rng(channels)
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in ((2, 19, 17, channels), (13, 11, 1, channels)))


def planes_of(images):
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def planes_of_weights(w):
    return np.ascontiguousarray(w.transpose(3, 2, 0, 1))


@each_direction
@each_dtype
@pytest.mark.parametrize("channels", [16, 37, 80])
@pytest.mark.parametrize("scratch", [1 << 30, 1 << 19])
def test_planes_have_the_same_bits(scratch, channels, dtype, direction, monkeypatch):
    """All channels at once, or some after others where the scratch is small."""
    monkeypatch.setattr(planar, "scratch_limit", lambda *_: scratch * np.dtype(dtype).itemsize // 4)
    x, w = operands(channels, dtype)
    how = x.dtype, 1, PADDING, 1, channels
    problem = problem_from(x.shape, w.shape, *how, layout="NHWC")
    in_planes = problem_from(planes_of(x).shape, planes_of_weights(w).shape, *how, layout="NCHW")
    y = np.random.default_rng(1).standard_normal(problem.y_shape).astype(dtype)
    operation, other = Fft().plan(problem, direction, 1), Fft().plan(in_planes, direction, 1)
    assert isinstance(operation, PlanarOperation)
    assert not isinstance(other, PlanarOperation)
    assert len(operation._spans) > 1 or scratch == 1 << 30 or channels < 80 or direction == "grad_weight"
    first, second = {"forward": (x, w), "grad_input": (y, w), "grad_weight": (y, x)}[direction]
    result = np.full({"forward": y.shape, "grad_input": x.shape, "grad_weight": w.shape}[direction], np.nan, x.dtype)
    operation.run(first, second, result)
    turn_second, turn_result = planes_of_weights, planes_of
    if direction == "grad_weight":
        turn_second, turn_result = planes_of, planes_of_weights
    expected = np.full_like(turn_result(result), np.nan)
    other.run(planes_of(first), turn_second(second), expected)
    assert_same_bits(turn_result(result), expected)


@each_dtype
def test_bias_activation_and_prepared_weights(dtype):
    x, w = operands(40, dtype)
    keywords = {"padding": PADDING, "groups": 40, "algorithm": "fft"}
    bias = np.linspace(-1, 1, 40).astype(dtype)
    plain = fastconv.conv2d(x, w, **keywords)
    for activation, expected in ((None, plain + bias), ("relu", np.maximum(plain + bias, 0))):
        result = fastconv.conv2d(x, w, bias, activation=activation, **keywords)
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-4)
        layer = fastconv.prepare_conv2d(w, bias, activation=activation, **keywords)
        assert_same_bits(layer(x), result)
        assert_same_bits(layer(x[:1]), result[:1])


@each_direction
def test_few_channels_and_other_groups_stay_as_they_lie(direction):
    for channels, outputs in ((15, 15), (16, 32)):
        plan = fastconv.plan_conv2d(
            (1, 20, 20, channels), (11, 11, 1, outputs), groups=channels, direction=direction, algorithm="fft"
        )
        assert not isinstance(plan.operation, PlanarOperation)
