"""The ladder from dense to convolution: each step equals the one before under its constraint; counts are exact."""

import doctest
import itertools

import numpy as np
import pytest

import fastconv
from fastconv import ladder

from .cases import DTYPES
from .checks import assert_same_bits

# (oh, ow), (ih, iw)
SIZES = [((1, 1), (1, 1)), ((4, 5), (4, 5)), ((3, 2), (5, 7)), ((7, 9), (3, 4)), ((1, 20), (2, 18))]
each_size = pytest.mark.parametrize(("output", "image"), SIZES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
NAMES = [name for name in ladder.__all__ if name != "Step"]


def integers(shape, seed=0, dtype="float64"):
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(dtype)


def by_formula(x, w):
    """H[i,j] = sum_kl W[i,j,k,l] X[k,l]."""
    return np.einsum("ijkl,...kl->...ij", w.astype(np.float64), x.astype(np.float64))


@pytest.mark.parametrize("name", NAMES)
def test_examples_in_the_docstrings_run(name):
    runner = doctest.DocTestRunner()
    examples = doctest.DocTestFinder(recurse=False).find(getattr(ladder, name), name)
    assert sum(len(test.examples) for test in examples) > 0
    for test in examples:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


def test_public_names():
    assert fastconv.ladder is ladder
    assert all(hasattr(ladder, name) for name in ladder.__all__)


@each_size
@each_dtype
@pytest.mark.parametrize("n", [None, 1, 3])
def test_dense2d_and_relative2d_are_one_layer(n, dtype, output, image):
    batch = () if n is None else (n,)
    x, w = integers((*batch, *image), 1, dtype), integers((*output, *image), 2, dtype)
    u, grad_h = integers(output, 3, dtype), integers((*batch, *output), 4, dtype)
    v = ladder.to_relative(w)
    expected = by_formula(x, w)
    grad_x = np.einsum("ijkl,...ij->...kl", w, grad_h)
    grad_w = np.einsum("nij,nkl->ijkl", grad_h.reshape(-1, *output), x.reshape(-1, *image))
    grad_u = grad_h.reshape(-1, *output).sum(axis=0)
    for result, wanted in (
        (ladder.dense2d(x, w), expected),
        (ladder.dense2d(x, w, u), expected + u),
        (ladder.relative2d(x, v), expected),
        (ladder.relative2d(x, v, u), expected + u),
        (ladder.dense2d_grad_input(grad_h, w), grad_x),
        (ladder.relative2d_grad_input(grad_h, v), grad_x),
        (ladder.dense2d_grad_weight(grad_h, x), grad_w),
        (ladder.to_absolute(ladder.relative2d_grad_weight(grad_h, x)), grad_w),
        (ladder.dense2d_grad_bias(grad_h), grad_u),
        (ladder.relative2d_grad_bias(grad_h), grad_u),
    ):
        assert result.dtype == dtype
        np.testing.assert_array_equal(result, wanted)


@each_size
def test_reindexing_is_an_exact_bijection(output, image):
    w = np.random.default_rng(0).standard_normal((*output, *image))
    v = ladder.to_relative(w)
    assert_same_bits(ladder.to_absolute(v), w)
    assert_same_bits(ladder.to_relative(ladder.to_absolute(w)), w)
    for i, j, k, l in itertools.product(*map(range, w.shape)):
        assert v[i, j, (k - i) % image[0], (l - j) % image[1]] == w[i, j, k, l]


def test_negative_indices_read_the_formula_as_written():
    w = np.random.default_rng(0).standard_normal((4, 5, 4, 5))
    v = ladder.to_relative(w)
    for i, j in itertools.product(range(4), range(5)):
        for a, b in itertools.product(range(-i, 4 - i), range(-j, 5 - j)):
            assert v[i, j, a, b] == w[i, j, i + a, j + b]


def finite_difference(loss, at, direction):
    return (loss(at + 1e-5 * direction) - loss(at - 1e-5 * direction)) / 2e-5


@pytest.mark.parametrize("name", ["dense2d", "relative2d"])
def test_gradients_are_finite_differences(name):
    layer = getattr(ladder, name)
    draw = np.random.default_rng(0).standard_normal
    x, w, u, g = draw((2, 5, 4)), draw((3, 4, 5, 4)), draw((3, 4)), draw((2, 3, 4))
    grad_h = g * layer(x, w, u)

    def loss(x, w, u):
        return np.vdot(layer(x, w, u) ** 2, g) / 2

    for gradient, at, of in (
        (getattr(ladder, f"{name}_grad_input")(grad_h, w), x, lambda moved: loss(moved, w, u)),
        (getattr(ladder, f"{name}_grad_weight")(grad_h, x), w, lambda moved: loss(x, moved, u)),
        (getattr(ladder, f"{name}_grad_bias")(grad_h), u, lambda moved: loss(x, w, moved)),
    ):
        direction = draw(at.shape)
        assert np.vdot(gradient, direction) == pytest.approx(finite_difference(of, at, direction), rel=1e-7)


GEOMETRIES = [
    {},
    {"padding": "valid"},
    {"padding": "full"},
    {"padding": ((2, 0), (1, 3))},
    {"stride": 2},
    {"stride": (2, 3), "padding": 1},
    {"dilation": 2},
    {"stride": 2, "dilation": (1, 2), "padding": 3},
]
each_geometry = pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)


@each_geometry
def test_convolution_is_a_dense_layer_whose_weights_are_a_toeplitz_matrix(geometry):
    x, kernel = integers((2, 7, 8), 1), integers((3, 4, 1, 1), 2)
    w = ladder.expand_kernel(kernel, (7, 8), **geometry)[:, :, 0, :, :, 0]
    y = fastconv.conv2d(x[..., None], kernel, **{"padding": "same", **geometry}, algorithm="exact")[..., 0]
    np.testing.assert_array_equal(ladder.dense2d(x, w), y)
    np.testing.assert_array_equal(ladder.relative2d(x, ladder.to_relative(w)), y)
    grad_x = fastconv.conv2d_grad_input(y[..., None], kernel, (2, 7, 8, 1), **{"padding": "same", **geometry})
    np.testing.assert_array_equal(ladder.dense2d_grad_input(y, w), grad_x[..., 0])


@each_geometry
def test_convolution_with_channels_is_a_dense_layer(geometry):
    x, kernel = integers((2, 6, 7, 3), 1), integers((3, 2, 3, 5), 2)
    w = ladder.expand_kernel(kernel, (6, 7), **geometry)
    y = fastconv.conv2d(x, kernel, **{"padding": "same", **geometry}, algorithm="exact")
    flat = fastconv.dense(x.reshape(2, -1), w.reshape(y[0].size, -1).T)
    np.testing.assert_array_equal(flat.reshape(y.shape), y)


@each_geometry
def test_locally_connected_layer_is_a_dense_layer(geometry):
    x = integers((2, 7, 8, 2), 1)
    size = fastconv.conv2d(x, integers((3, 4, 2, 3)), **{"padding": "same", **geometry}).shape[1:3]
    local = integers((*size, 3, 4, 2, 3), 2)
    w = ladder.expand_local(local, (7, 8), **geometry)
    y = fastconv.local2d(x, local, **{"padding": "same", **geometry})
    flat = fastconv.dense(x.reshape(2, -1), w.reshape(y[0].size, -1).T)
    np.testing.assert_array_equal(flat.reshape(y.shape), y)


def test_unshared_kernel_is_the_convolution():
    x, kernel = integers((2, 6, 7, 3), 1), integers((3, 3, 3, 4), 2)
    y = fastconv.conv2d(x, kernel, padding="same", algorithm="exact")
    np.testing.assert_array_equal(fastconv.local2d(x, ladder.unshare(kernel, (6, 7)), padding="same"), y)


@pytest.mark.parametrize("delta", [0, 1, (2, 1), 9])
def test_locality_keeps_small_offsets_and_drops_the_others(delta):
    x, v = integers((2, 6, 7), 1), ladder.to_relative(integers((6, 7, 6, 7), 2))
    local = ladder.to_local(v, delta)
    rows, columns = np.broadcast_to(delta, 2)
    near = ladder.to_relative(
        np.fromfunction(lambda i, j, k, l: (abs(k - i) <= rows) & (abs(l - j) <= columns), v.shape, dtype=int).astype(
            float
        )
    )
    y = fastconv.local2d(x[..., None], local, padding=(int(rows), int(columns)))[..., 0]
    np.testing.assert_array_equal(y, ladder.relative2d(x, v * near))
    np.testing.assert_array_equal(
        ladder.expand_local(local, (6, 7), padding=(int(rows), int(columns)))[:, :, 0, :, :, 0],
        ladder.to_absolute(v * near),
    )


def test_kernel_as_large_as_the_image_reaches_from_everywhere_to_everywhere():
    """The third step before locality: V[a, b] for all offsets of a 5 x 6 image."""
    x, kernel = integers((1, 5, 6), 1), integers((9, 11, 1, 1), 2)
    y = fastconv.conv2d(x[..., None], kernel, padding=(4, 5), algorithm="exact")[..., 0]
    i, j, k, l = np.ogrid[:5, :6, :5, :6]
    w = kernel[k - i + 4, l - j + 5, 0, 0]
    np.testing.assert_array_equal(ladder.expand_kernel(kernel, (5, 6), padding=(4, 5))[:, :, 0, :, :, 0], w)
    np.testing.assert_array_equal(ladder.dense2d(x, w), y)


@pytest.mark.parametrize("shift", [(0, 1), (2, 0), (-1, 3)])
def test_shifting_the_input_shifts_the_output(shift):
    """Of a shared layer always, of one with weights for each pixel not."""
    x = np.zeros((20, 20))
    x[8:12, 7:11] = integers((4, 4), 1)
    moved = np.roll(x, shift, (0, 1))  # what moves stays inside
    kernel = integers((5, 5, 1, 1), 2)
    w = ladder.expand_kernel(kernel, 20)[:, :, 0, :, :, 0]
    for layer in (
        lambda image: ladder.dense2d(image, w),
        lambda image: fastconv.conv2d(image[..., None], kernel, padding="same", algorithm="exact")[..., 0],
        lambda image: fastconv.local2d(image[..., None], ladder.unshare(kernel, 20), padding="same")[..., 0],
    ):
        np.testing.assert_array_equal(layer(moved), np.roll(layer(x), shift, (0, 1)))
    free = integers((20, 20, 5, 5, 1, 1), 3)
    own, other = (fastconv.local2d(image[..., None], free, padding="same")[..., 0] for image in (x, moved))
    assert (other != np.roll(own, shift, (0, 1))).any()


def test_counts_are_exact_for_the_argument_itself():
    count = ladder.parameters(1000)
    assert count == {
        "units": 10**9,
        "dense": 10**12,
        "reindexed": 10**12,
        "local": 25 * 10**6,
        "invariant": 1999**2,
        "conv": 25,
        "channels": 400,
    }
    assert all(type(number) is int for number in count.values())
    assert ladder.parameters(10**6)["dense"] == 10**24  # beyond 64 bits


@pytest.mark.parametrize(
    ("size", "delta", "channels", "units"), [((4, 5), 1, 3, 7), ((6, 6), 2, 2, 1), ((1, 9), 0, 1, 2)]
)
def test_counts_are_the_sizes_of_the_arrays(size, delta, channels, units):
    steps = {step.name: step for step in ladder.steps(size, delta=delta, channels=channels, units=units)}
    (rows, columns), side = size, 2 * delta + 1
    x = np.zeros((1, *size, 1))
    dense, local = np.zeros((*size, *size)), np.zeros((*size, side, side, 1, 1))
    shapes = {
        "units": ((rows * columns, units), (units,)),
        "dense": (dense.shape, ladder.dense2d(x[..., 0], dense).shape),
        "reindexed": (ladder.to_relative(dense).shape, size),
        "local": (local.shape, fastconv.local2d(x, local, padding=delta).shape),
        "invariant": ((2 * rows - 1, 2 * columns - 1), size),
        "conv": ((side, side), size),
        "channels": ((side, side, 1, channels), (*size, channels)),
    }
    assert list(steps) == list(shapes)
    for name, (weights, output) in shapes.items():
        step = steps[name]
        assert step.parameters == np.prod(weights)
        assert step.elements == x.size + np.prod(weights) + np.prod(output)
    with_bias = ladder.parameters(size, delta=delta, channels=channels, units=units, bias=True)
    assert with_bias["dense"] == (rows * columns) ** 2 + rows * columns
    assert with_bias["channels"] == side**2 * channels + channels
    for name in ("conv", "channels"):
        w = (side, side, 1, 1 if name == "conv" else channels)
        plan = fastconv.plan_conv2d((1, *size, 1), w, padding="same")
        assert (steps[name].parameters, steps[name].flops) == (plan.parameters, plan.flops)


X, W, H = np.ones((2, 3, 4)), np.ones((5, 6, 3, 4)), np.ones((2, 5, 6))
KERNEL = np.ones((3, 3, 1, 2))


@pytest.mark.parametrize(
    ("function", "arguments", "options", "error", "words"),
    [
        (ladder.dense2d, (X[:, 1:], W), {}, ValueError, ("x", "(2, 3, 4)", "(2, 2, 4)", "w")),
        (ladder.dense2d, (X[..., None], W), {}, ValueError, ("x", "gray", "(2, 3, 4, 1)")),
        (ladder.dense2d, (X, W[0]), {}, ValueError, ("w", "4 axes", "(6, 3, 4)")),
        (ladder.dense2d, (X, W.astype("float32")), {}, TypeError, ("w", "x", "float32", "float64")),
        (ladder.dense2d, (X, W, np.ones(6)), {}, ValueError, ("bias", "(5, 6)", "(6,)")),
        (ladder.dense2d, (X, W), {"out": np.ones((2, 5, 5))}, ValueError, ("out", "(2, 5, 6)")),
        (ladder.dense2d_grad_input, (X, W), {}, ValueError, ("grad_h", "(2, 5, 6)")),
        (ladder.dense2d_grad_weight, (H[:1], X), {}, ValueError, ("grad_h", "x", "(1, 5, 6)", "(2, 3, 4)")),
        (ladder.dense2d_grad_bias, (H.astype(int),), {}, TypeError, ("grad_h", "int")),
        (ladder.relative2d, (X[:, 1:], W), {}, ValueError, ("x", "(2, 3, 4)", "v")),
        (ladder.relative2d, (X, W, np.ones(6)), {}, ValueError, ("bias", "(5, 6)", "(6,)")),
        (ladder.relative2d_grad_input, (X, W), {}, ValueError, ("grad_h", "(2, 5, 6)")),
        (ladder.relative2d_grad_weight, (H, X.astype("float32")), {}, TypeError, ("x", "grad_h", "float32")),
        (ladder.to_relative, (X,), {}, ValueError, ("w", "4 axes", "(2, 3, 4)")),
        (ladder.to_absolute, ("v",), {}, TypeError, ("v",)),
        (ladder.to_local, (W, -1), {}, ValueError, ("delta", "-1")),
        (ladder.to_local, (W, (1, 2, 3)), {}, ValueError, ("delta", "(1, 2, 3)")),
        (ladder.unshare, (W[0], 3), {}, ValueError, ("w", "4 axes", "(6, 3, 4)")),
        (ladder.unshare, (KERNEL, 0), {}, ValueError, ("output_size", "0")),
        (ladder.expand_kernel, (KERNEL, 2), {"padding": 0}, ValueError, ("w", "3 rows", "image")),
        (ladder.expand_kernel, (KERNEL, (4, 4, 4)), {}, ValueError, ("input_size", "(4, 4, 4)")),
        (ladder.expand_local, (KERNEL, 4), {}, ValueError, ("w", "6 axes", "(3, 3, 1, 2)")),
        (ladder.expand_local, (KERNEL[None, None], 4), {}, ValueError, ("w", "(4, 4)", "(1, 1, 3, 3, 1, 2)")),
        (ladder.steps, (0,), {}, ValueError, ("input_size", "0")),
        (ladder.steps, (4,), {"delta": -1}, ValueError, ("delta", "-1")),
        (ladder.steps, (4,), {"channels": 1.5}, TypeError, ("channels", "1.5")),
        (ladder.parameters, (4,), {"units": 0}, ValueError, ("units", "0")),
    ],
)
def test_errors_name_the_argument_what_came_and_what_fits(function, arguments, options, error, words):
    with pytest.raises(error) as caught:
        function(*arguments, **options)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("layer", [ladder.dense2d, ladder.relative2d])
def test_out_is_filled(layer):
    expected = layer(X, W)
    out = np.full((2, 5, 12), np.nan)[..., ::2]
    assert layer(X, W, out=out) is out
    np.testing.assert_array_equal(out, expected)
    with pytest.raises(ValueError, match=r"out.*overlap"):
        layer(W[0, 0], np.ones((3, 4, 3, 4)), out=W[0, 0])


@pytest.mark.parametrize("layer", [ladder.dense2d, ladder.relative2d])
def test_float16_is_float32_rounded_once(layer):
    draw = np.random.default_rng(0).uniform
    x, w, u = (draw(-1, 1, shape).astype("float16") for shape in ((2, 9, 8), (3, 4, 9, 8), (3, 4)))
    assert_same_bits(layer(x, w, u), layer(*(array.astype("float32") for array in (x, w, u))).astype("float16"))
