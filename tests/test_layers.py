"""Bias, activation, prepared weights and the joint backward pass, for every algorithm."""

import itertools

import numba
import numpy as np
import pytest

import fastconv

from . import reference
from .cases import ALGORITHMS, DTYPES, LAYOUTS, UNIVERSAL, by_name, call, data
from .checks import assert_owned, assert_same_bits

each_algorithm = pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name in UNIVERSAL])
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
some_cases = pytest.mark.parametrize(
    "case",
    [by_name(name) for name in ("all-together", "tail-17to31-ow13", "depthwise", "depthwise-6-side-by-side")],
    ids=lambda case: case.name,
)


@numba.njit
def leaky_relu(value):
    return value if value > 0 else value * 0.25


@numba.njit
def clipped(value):
    return min(max(value, -3), 7)


ACTIVATIONS = {
    None: lambda y: y,
    "relu": lambda y: np.maximum(y, 0),
    leaky_relu: lambda y: np.where(y > 0, y, y * 0.25),
    clipped: lambda y: np.clip(y, -3, 7),
}


def name_of(activation):
    return getattr(activation, "__name__", str(activation))


def integer_bias(case, dtype):
    return (np.arange(case.oc) % 9 - 4).astype(dtype)


def with_bias(y, bias, layout):
    return y + bias.reshape((-1, 1, 1) if layout == "NCHW" else -1)


@some_cases
@each_dtype
@each_layout
@each_algorithm
def test_bias_is_added(algorithm, layout, dtype, case):
    given, bias = data(case, "integers", layout, dtype), integer_bias(case, dtype)
    result = call(case, given, "forward", bias=bias, algorithm=algorithm, layout=layout)
    np.testing.assert_array_equal(result, with_bias(given.expected["forward"], bias, layout))


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=name_of)
@some_cases
@each_algorithm
def test_activation_follows_bias(algorithm, case, activation):
    given, bias = data(case, "integers", "NHWC", "float32"), integer_bias(case, "float32")
    result = call(case, given, "forward", bias=bias, algorithm=algorithm, activation=activation)
    expected = ACTIVATIONS[activation](with_bias(given.expected["forward"], bias, "NHWC"))
    assert_owned(result, "float32")
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("activation", ["relu", leaky_relu], ids=name_of)
@each_layout
@each_dtype
@each_algorithm
def test_activation_without_bias(algorithm, dtype, layout, activation):
    case = by_name("tail-33to65-ow15")
    given = data(case, "integers", layout, dtype)
    result = call(case, given, "forward", algorithm=algorithm, layout=layout, activation=activation)
    np.testing.assert_array_equal(result, ACTIVATIONS[activation](given.expected["forward"]))


@pytest.mark.parametrize("activation", ["relu", leaky_relu], ids=name_of)
@each_algorithm
def test_activation_applies_where_a_window_lies_in_the_padding(algorithm, activation):
    case = by_name("padding-beyond-kernel")
    given, bias = data(case, "integers", "NHWC", "float32"), integer_bias(case, "float32")
    result = call(case, given, "forward", bias=bias, algorithm=algorithm, activation=activation)
    np.testing.assert_array_equal(result[0, 0, 0], ACTIVATIONS[activation](bias))


@each_dtype
@each_algorithm
def test_relu_keeps_nan(algorithm, dtype):
    case = by_name("tail-17to31-ow13")
    given = data(case, "floats", "NHWC", dtype)
    x = given.x.copy()
    x[0, 1, 3, 2] = np.nan
    result = fastconv.conv2d(x, given.w, activation="relu", algorithm=algorithm)
    assert np.isnan(result[0, 1, 3]).all()
    assert np.isnan(result).sum() == case.oc


@pytest.mark.parametrize("needs", list(itertools.product((True, False), repeat=3)))
@each_layout
@each_algorithm
def test_backward_gives_what_is_needed(algorithm, layout, needs):
    case = by_name("all-together")
    given = data(case, "integers", layout, "float32")
    results = fastconv.conv2d_backward(
        given.grad_y, given.x, given.w, needs=needs, layout=layout, algorithm=algorithm, **case.arguments
    )
    expected = (
        given.expected["grad_input"],
        given.expected["grad_weight"],
        reference.conv2d_grad_bias(given.grad_y, layout=layout),
    )
    assert len(results) == 3
    for needed, result, wanted in zip(needs, results, expected, strict=True):
        if needed:
            assert_owned(result, "float32")
            np.testing.assert_array_equal(result, wanted)
        else:
            assert result is None


@each_layout
@each_dtype
def test_backward_needs_all_three_by_default(dtype, layout):
    case = by_name("depthwise")
    given = data(case, "integers", layout, dtype)
    dx, dw, db = fastconv.conv2d_backward(given.grad_y, given.x, given.w, layout=layout, **case.arguments)
    np.testing.assert_array_equal(dx, given.expected["grad_input"])
    np.testing.assert_array_equal(dw, given.expected["grad_weight"])
    np.testing.assert_array_equal(db, reference.conv2d_grad_bias(given.grad_y, layout=layout))


@each_layout
@pytest.mark.parametrize("dtype", ["float16", *DTYPES])
def test_grad_bias_sums_over_all_but_channels(dtype, layout):
    given = data(by_name("batch"), "integers", layout, dtype)
    result = fastconv.conv2d_grad_bias(given.grad_y, layout=layout)
    assert_owned(result, dtype)
    np.testing.assert_array_equal(result, reference.conv2d_grad_bias(given.grad_y, layout=layout))


@each_layout
def test_grad_bias_is_accurate_over_many_cells(layout):
    """Adding a million float32 values one by one would lose about three digits."""
    grad_y = np.full((1, 1000, 1000, 3) if layout == "NHWC" else (1, 3, 1000, 1000), 0.1, np.float32)
    result = fastconv.conv2d_grad_bias(grad_y, layout=layout)
    np.testing.assert_allclose(result, 1e6 * np.float64(np.float32(0.1)), rtol=1e-5)


@pytest.mark.parametrize("shape_known", [True, False])
@some_cases
@each_dtype
@each_layout
@each_algorithm
def test_prepared_layer_equals_conv2d(algorithm, layout, dtype, case, shape_known):
    given, bias = data(case, "integers", layout, dtype), integer_bias(case, dtype)
    layer = fastconv.prepare_conv2d(
        given.w,
        bias,
        input_shape=given.x.shape if shape_known else None,
        layout=layout,
        algorithm=algorithm,
        activation="relu",
        **case.arguments,
    )
    expected = np.maximum(with_bias(given.expected["forward"], bias, layout), 0)
    out = np.full(expected.shape, np.nan, dtype)
    for _ in range(2):
        result = layer(given.x)
        assert_owned(result, dtype)
        np.testing.assert_array_equal(result, expected)
    assert layer(given.x, out=out) is out
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("input_shape", [None, (2, 9, 8, 5)])
@each_algorithm
def test_prepared_layer_takes_several_shapes(algorithm, input_shape):
    rng = np.random.default_rng(5)
    w = rng.integers(-4, 5, (3, 2, 5, 18)).astype(np.float32)
    layer = fastconv.prepare_conv2d(w, input_shape=input_shape, padding="same", algorithm=algorithm)
    for shape in ((2, 9, 8, 5), (1, 4, 17, 5), (3, 1, 1, 5), (6, 30, 5), (0, 9, 8, 5), (2, 9, 8, 5)):
        x = rng.integers(-4, 5, shape).astype(np.float32)
        expected = reference.conv2d(x.reshape(-1, *shape[-3:]), w, padding="same")
        result = layer(x)
        np.testing.assert_array_equal(result, expected.reshape(*shape[:-1], 18))


@each_algorithm
def test_prepared_layer_gives_the_same_bits_as_conv2d(algorithm):
    case = by_name("channels-130to70")
    given = data(case, "floats", "NHWC", "float32")
    layer = fastconv.prepare_conv2d(
        given.w, input_shape=given.x.shape, algorithm=algorithm, activation=leaky_relu, **case.arguments
    )
    expected = call(case, given, "forward", algorithm=algorithm, activation=leaky_relu)
    assert_same_bits(layer(given.x), expected)
