"""The fully connected layer and its gradients, and the convolutions that it equals."""

import numba
import numpy as np
import pytest

import fastconv

from .cases import ALGORITHMS, DTYPES, UNIVERSAL, tolerance
from .checks import assert_owned, assert_same_bits

SIZES = ((1, 1), (5, 3), (17, 33), (64, 48), (100, 1), (1, 65), (784, 10), (333, 130))
each_size = pytest.mark.parametrize(("features", "units"), SIZES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
each_batch = pytest.mark.parametrize("n", [0, *range(1, 18), 40])


def integers(shape, dtype, seed=0):
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(dtype)


def floats(shape, dtype, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(dtype)


def wide(array):
    return array.astype(np.float64)


@each_size
@each_batch
@each_dtype
def test_integers_are_exact(dtype, n, features, units):
    x, w = integers((n, features), dtype, 1), integers((features, units), dtype, 2)
    grad_y, bias = integers((n, units), dtype, 3), integers(units, dtype, 4)
    for result, expected in (
        (fastconv.dense(x, w), wide(x) @ wide(w)),
        (fastconv.dense(x, w, bias), wide(x) @ wide(w) + bias),
        (fastconv.dense_grad_input(grad_y, w), wide(grad_y) @ wide(w).T),
        (fastconv.dense_grad_weight(grad_y, x), wide(x).T @ wide(grad_y)),
    ):
        assert_owned(result, dtype)
        np.testing.assert_array_equal(result, expected)


@each_size
@pytest.mark.parametrize("n", [1, 3, 16, 40])
@each_dtype
def test_floats_are_within_tolerance(dtype, n, features, units):
    x, w, grad_y = (
        floats((n, features), dtype, 1),
        floats((features, units), dtype, 2),
        floats((n, units), dtype, 3),
    )
    for result, left, right in (
        (fastconv.dense(x, w), x, w),
        (fastconv.dense_grad_input(grad_y, w), grad_y, w.T),
        (fastconv.dense_grad_weight(grad_y, x), x.T, grad_y),
    ):
        limit = tolerance(dtype, left.shape[1], abs(wide(left)) @ abs(wide(right)))
        assert np.all(abs(result - wide(left) @ wide(right)) <= limit)


@each_dtype
@pytest.mark.parametrize(("features", "units"), SIZES)
def test_missing_batch_axis(dtype, features, units):
    x, w, grad_y = (
        integers(features, dtype, 1),
        integers((features, units), dtype, 2),
        integers(units, dtype, 3),
    )
    for result, expected in (
        (fastconv.dense(x, w), wide(x) @ wide(w)),
        (fastconv.dense_grad_input(grad_y, w), wide(w) @ wide(grad_y)),
        (fastconv.dense_grad_weight(grad_y, x), np.outer(wide(x), wide(grad_y))),
    ):
        assert_owned(result, dtype)
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("n", [1, 2, 17])
def test_float16_is_float32_rounded_once(n):
    x, w, grad_y = (
        floats((n, 200), "float16", 1),
        floats((200, 37), "float16", 2),
        floats((n, 37), "float16", 3),
    )
    bias = floats(37, "float16", 4)
    x32, w32, grad_y32, bias32 = (array.astype(np.float32) for array in (x, w, grad_y, bias))
    assert_same_bits(fastconv.dense(x, w, bias), fastconv.dense(x32, w32, bias32).astype(np.float16))
    assert_same_bits(fastconv.dense_grad_input(grad_y, w), fastconv.dense_grad_input(grad_y32, w32).astype(np.float16))
    assert_same_bits(
        fastconv.dense_grad_weight(grad_y, x), fastconv.dense_grad_weight(grad_y32, x32).astype(np.float16)
    )


@each_size
@pytest.mark.parametrize("n", [1, 7])
@pytest.mark.parametrize("dtype", ["float16", *DTYPES])
def test_out_is_filled_and_nothing_beside_it(dtype, n, features, units):
    x, w, grad_y = (
        integers((n, features), dtype, 1),
        integers((features, units), dtype, 2),
        integers((n, units), dtype, 3),
    )
    for function, operands, expected in (
        (fastconv.dense, (x, w), wide(x) @ wide(w)),
        (fastconv.dense_grad_input, (grad_y, w), wide(grad_y) @ wide(w).T),
        (fastconv.dense_grad_weight, (grad_y, x), wide(x).T @ wide(grad_y)),
    ):
        memory = np.full(expected.size + 128, np.nan, dtype)
        out = memory[64:-64].reshape(expected.shape)
        assert function(*operands, out=out) is out
        np.testing.assert_array_equal(out, expected.astype(dtype))
        assert np.isnan(memory[:64]).all()
        assert np.isnan(memory[-64:]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("n", [1, 5, 16])
@each_dtype
def test_nan_and_inf_stay_in_their_row(dtype, n, value):
    x, w = floats((n, 37), dtype, 1), floats((37, 29), dtype, 2)
    x[n // 2, 11] = value
    result = fastconv.dense(x, w)
    assert np.isfinite(np.delete(result, n // 2, axis=0)).all()
    np.testing.assert_array_equal(result[n // 2], value * np.sign(w[11]))


def test_odd_memory_layouts_do_not_show():
    x, w, bias = integers((6, 30), "float32", 1), integers((30, 21), "float32", 2), integers(21, "float32", 3)
    expected = fastconv.dense(x, w, bias)
    w_read_only = w.copy()
    w_read_only.setflags(write=False)
    for odd_x, odd_w in (
        (np.asfortranarray(x), np.asfortranarray(w)),
        (x[::-1].copy()[::-1], w[:, ::-1].copy()[:, ::-1]),
        (x.astype(">f4"), w.astype(">f4")),
        (np.repeat(x, 2, axis=1)[:, ::2], w_read_only),
    ):
        result = fastconv.dense(odd_x, odd_w, bias)
        assert_owned(result, "float32")
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name in UNIVERSAL])
@each_dtype
def test_dense_is_a_1x1_convolution_of_one_pixel(dtype, algorithm):
    x, w, bias = integers((9, 70), dtype, 1), integers((70, 35), dtype, 2), integers(35, dtype, 3)
    expected = fastconv.dense(x, w, bias)
    nhwc = fastconv.conv2d(x[:, None, None, :], w[None, None], bias, algorithm=algorithm)
    np.testing.assert_array_equal(nhwc[:, 0, 0, :], expected)
    nchw = fastconv.conv2d(x[:, :, None, None], w.T[:, :, None, None], bias, layout="NCHW", algorithm=algorithm)
    np.testing.assert_array_equal(nchw[:, :, 0, 0], expected)


@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name in UNIVERSAL])
@each_dtype
def test_dense_is_a_convolution_whose_kernel_is_as_large_as_the_image(dtype, algorithm):
    x, w = integers((4, 7, 5, 3), dtype, 1), integers((7, 5, 3, 18), dtype, 2)
    y = fastconv.conv2d(x, w, padding="valid", algorithm=algorithm)
    flat_x, flat_w = x.reshape(4, -1), w.reshape(-1, 18)
    np.testing.assert_array_equal(y[:, 0, 0, :], fastconv.dense(flat_x, flat_w))
    dx = fastconv.conv2d_grad_input(y, w, x.shape, algorithm=algorithm)
    dw = fastconv.conv2d_grad_weight(y, x, (7, 5), algorithm=algorithm)
    flat_y = y[:, 0, 0, :]
    np.testing.assert_array_equal(dx.reshape(4, -1), fastconv.dense_grad_input(flat_y, flat_w))
    np.testing.assert_array_equal(dw.reshape(-1, 18), fastconv.dense_grad_weight(flat_y, flat_x))


X, W, GRAD_Y = np.ones((2, 5), np.float32), np.ones((5, 3), np.float32), np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("function", "arguments", "error", "words"),
    [
        (fastconv.dense, (X.astype(int), W), TypeError, ("x", "int")),
        (fastconv.dense, (X, W.astype(complex)), TypeError, ("w", "complex")),
        (fastconv.dense, (X, W.astype("float64")), TypeError, ("x", "w", "float32", "float64")),
        (fastconv.dense, (None, W), TypeError, ("x",)),
        (fastconv.dense, (X, "weights"), TypeError, ("w",)),
        (fastconv.dense, (X[None], W), ValueError, ("x", "(1, 2, 5)")),
        (fastconv.dense, (X, W[0]), ValueError, ("w", "(3,)")),
        (fastconv.dense, (X[:, :4], W), ValueError, ("x", "4", "5")),
        (fastconv.dense, (X, W, np.ones(4, np.float32)), ValueError, ("bias", "(4,)", "(3,)")),
        (fastconv.dense, (X, W, np.ones(3)), TypeError, ("bias", "float64", "float32")),
        (fastconv.dense_grad_input, (GRAD_Y[:, :2], W), ValueError, ("grad_y", "2", "3")),
        (fastconv.dense_grad_input, (GRAD_Y.astype(int), W), TypeError, ("grad_y", "int")),
        (fastconv.dense_grad_input, (GRAD_Y, W.astype("float64")), TypeError, ("w", "float64")),
        (fastconv.dense_grad_weight, (GRAD_Y[:1], X), ValueError, ("grad_y", "x", "1", "2")),
        (fastconv.dense_grad_weight, (GRAD_Y, X[0]), ValueError, ("x", "(5,)")),
        (fastconv.dense_grad_weight, (GRAD_Y, X.astype("float64")), TypeError, ("x", "float64")),
    ],
)
def test_errors_name_the_argument_and_what_was_given(function, arguments, error, words):
    with pytest.raises(error) as caught:
        function(*arguments)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("out", "error"),
    [
        (np.full((2, 4), 7, np.float32), ValueError),
        (np.full((2, 3), 7, np.float64), TypeError),
        (np.broadcast_to(np.float32(7), (2, 3)), ValueError),
        ([[7] * 3] * 2, TypeError),
    ],
)
def test_unfit_out_is_refused_and_left_alone(out, error):
    with pytest.raises(error, match="out"):
        fastconv.dense(X, W, out=out)
    assert (np.asarray(out) == 7).all()


def test_out_that_overlaps_an_operand_is_refused():
    memory = np.ones(40, np.float32)
    x, w, out = memory[:10].reshape(2, 5), memory[10:25].reshape(5, 3), memory[22:28].reshape(2, 3)
    with pytest.raises(ValueError, match=r"out.*w"):
        fastconv.dense(x, w, out=out)
    assert (memory == 1).all()


@numba.njit
def leaky(value):
    return value if value > 0 else value / 4


@numba.njit
def reject_negative(value):
    if value < 0:
        raise ValueError("negative")
    return value


@pytest.mark.parametrize("n", [0, 1, 3, 17])
@pytest.mark.parametrize("bias", [False, True])
@each_dtype
def test_activation_follows_bias(dtype, bias, n):
    x, w = integers((n, 33), dtype, 1), integers((33, 18), dtype, 2)
    b = integers(18, dtype, 3) if bias else None
    plain = fastconv.dense(x, w, b)
    for activation, expected in (("relu", np.maximum(plain, 0)), (leaky, np.where(plain > 0, plain, plain / 4))):
        result = fastconv.dense(x, w, b, activation=activation)
        assert_owned(result, dtype)
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("n", [1, 5])
def test_activation_that_raises(n):
    x, w = -np.ones((n, 3)), np.ones((3, 4))
    with pytest.raises(RuntimeError, match="activation raised"):
        fastconv.dense(x, w, activation=reject_negative)


def test_activation_must_be_one():
    x, w = np.ones((2, 3)), np.ones((3, 4))
    with pytest.raises(ValueError, match="activation"):
        fastconv.dense(x, w, activation="tanh")
    with pytest.raises(TypeError, match=r"numba\.njit"):
        fastconv.dense(x, w, activation=np.tanh)
