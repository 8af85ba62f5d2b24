"""The locally connected layer against an independent reference: forward, gradients, errors."""

import numba
import numpy as np
import pytest

import fastconv

from .cases import DTYPES, LAYOUTS, tolerance
from .checks import assert_owned, assert_same_bits
from .reference import Geometry, images_from_nhwc, images_to_nhwc

# n, (ih, iw), (kh, kw), ic, oc, stride, padding, dilation: runs below, at and above a vector's lanes, and their tails.
CASES = {
    "one pixel": (1, (1, 1), (1, 1), 1, 1, 1, 0, 1),
    "gray 3x3": (1, (9, 11), (3, 3), 1, 1, 1, "same", 1),
    "gray 5x5, batch": (3, (12, 10), (5, 5), 1, 1, 1, "same", 1),
    "gray 1x17": (2, (3, 40), (1, 17), 1, 1, 1, "valid", 1),
    "gray 4x16": (2, (6, 33), (4, 16), 1, 1, 1, "full", 1),
    "gray 21x21": (1, (24, 30), (21, 21), 1, 1, 1, "same", 1),
    "even kernel, odd padding": (2, (8, 9), (2, 4), 1, 1, 1, ((1, 0), (2, 3)), 1),
    "many in, one out": (2, (7, 6), (3, 3), 21, 1, 1, 1, 1),
    "one in, many out": (2, (7, 6), (3, 3), 1, 37, 1, 1, 1),
    "3 to 3": (1, (9, 8), (5, 5), 3, 3, 1, "same", 1),
    "3 to 8, batch": (4, (6, 7), (3, 3), 3, 8, 1, 0, 1),
    "16 to 64": (2, (4, 5), (3, 3), 16, 64, 1, 1, 1),
    "5 to 90": (1, (5, 4), (2, 3), 5, 90, 1, 1, 1),
    "stride": (2, (11, 12), (3, 3), 2, 5, (2, 3), 1, 1),
    "stride beyond the kernel": (2, (11, 12), (2, 2), 1, 1, 3, "valid", 1),
    "stride 2, dilation 3, one out": (2, (17, 16), (3, 3), 2, 1, 2, "same", 3),
    "stride 3, dilation 2": (1, (17, 15), (4, 3), 2, 3, 3, 2, 2),
    "dilated columns": (2, (8, 13), (3, 4), 3, 1, 1, 2, (1, 3)),
    "dilated rows": (2, (13, 8), (4, 3), 1, 1, 1, "full", (3, 1)),
    "padding beyond the image": (1, (3, 4), (3, 3), 1, 1, 1, 5, 1),
    "padding beyond, many out": (2, (2, 3), (2, 3), 2, 6, 2, 4, 1),
    "as large as the image": (2, (6, 7), (6, 7), 2, 9, 1, 0, 1),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


class Problem:
    """A case with its data in NHWC and what plain NumPy makes of them in float64."""

    def __init__(self, case, draw):
        self.n, self.image, self.kernel, self.ic, self.oc, stride, padding, dilation = case
        self.options = {"stride": stride, "padding": padding, "dilation": dilation}
        self.geometry = Geometry.of(self.image, self.kernel, stride, padding, dilation)
        self.x = draw((self.n, *self.image, self.ic), 1)
        self.w = draw((*self.geometry.output_size, *self.kernel, self.ic, self.oc), 2)
        self.bias = draw((*self.geometry.output_size, self.oc), 3)
        self.grad_y = draw((self.n, *self.geometry.output_size, self.oc), 4)

    def forward(self, x, w):
        padded, y = self.geometry.padded(np.float64(x)), 0
        for a, b, rows, columns in self.geometry.taps():
            y = y + np.einsum("nijc,ijcd->nijd", padded[:, rows, columns], np.float64(w[:, :, a, b]))
        return y

    def grad_input(self, grad_y, w):
        padded = np.zeros((self.n, *self.geometry.padded_size, self.ic))
        for a, b, rows, columns in self.geometry.taps():
            padded[:, rows, columns] += np.einsum("nijd,ijcd->nijc", np.float64(grad_y), np.float64(w[:, :, a, b]))
        rows, columns = self.geometry.image
        return padded[:, rows, columns]

    def grad_weight(self, grad_y, x):
        padded, grad_w = self.geometry.padded(np.float64(x)), np.zeros(self.w.shape)
        for a, b, rows, columns in self.geometry.taps():
            grad_w[:, :, a, b] = np.einsum("nijc,nijd->ijcd", padded[:, rows, columns], np.float64(grad_y))
        return grad_w


def integers(dtype):
    return lambda shape, seed: np.random.default_rng(seed).integers(-4, 5, shape).astype(dtype)


def floats(dtype):
    return lambda shape, seed: np.random.default_rng(seed).uniform(-1, 1, shape).astype(dtype)


@each_case
@each_layout
@each_dtype
def test_integers_are_exact(dtype, layout, case):
    problem = Problem(case, integers(dtype))
    x, grad_y = (images_from_nhwc(array, layout) for array in (problem.x, problem.grad_y))
    bias = images_from_nhwc(problem.bias[None], layout)[0]
    options = {**problem.options, "layout": layout}

    y = fastconv.local2d(x, problem.w, **options)
    assert_owned(y, dtype)
    expected = problem.forward(problem.x, problem.w)
    np.testing.assert_array_equal(images_to_nhwc(y, layout), expected)
    np.testing.assert_array_equal(
        images_to_nhwc(fastconv.local2d(x, problem.w, bias, **options), layout), expected + problem.bias
    )

    grad_x = fastconv.local2d_grad_input(grad_y, problem.w, x.shape, **options)
    assert_owned(grad_x, dtype)
    np.testing.assert_array_equal(images_to_nhwc(grad_x, layout), problem.grad_input(problem.grad_y, problem.w))

    grad_w = fastconv.local2d_grad_weight(grad_y, x, problem.kernel, **options)
    assert_owned(grad_w, dtype)
    np.testing.assert_array_equal(grad_w, problem.grad_weight(problem.grad_y, problem.x))

    grad_bias = fastconv.local2d_grad_bias(grad_y, layout=layout)
    assert_owned(grad_bias, dtype)
    np.testing.assert_array_equal(grad_bias, grad_y.sum(axis=0))


@each_case
@each_dtype
def test_floats_are_within_tolerance(dtype, case):
    problem = Problem(case, floats(dtype))
    x, w, grad_y = problem.x, problem.w, problem.grad_y
    taps, windows = np.prod(problem.kernel), np.prod(problem.geometry.output_size)
    for result, expected, magnitude, length in (
        (
            fastconv.local2d(x, w, **problem.options),
            problem.forward(x, w),
            problem.forward(abs(x), abs(w)),
            taps * problem.ic,
        ),
        (
            fastconv.local2d_grad_input(grad_y, w, x.shape, **problem.options),
            problem.grad_input(grad_y, w),
            problem.grad_input(abs(grad_y), abs(w)),
            min(taps, windows) * problem.oc,
        ),
        (
            fastconv.local2d_grad_weight(grad_y, x, problem.kernel, **problem.options),
            problem.grad_weight(grad_y, x),
            problem.grad_weight(abs(grad_y), abs(x)),
            problem.n,
        ),
    ):
        assert np.all(abs(result - expected) <= tolerance(dtype, length, magnitude))


@each_case
def test_gradients_are_adjoint(case):
    """<y(x, w), g> is bilinear in x and w, so both gradients must give it back; on integers, to the last digit."""
    problem = Problem(case, integers("float64"))
    x, w, g = problem.x, problem.w, problem.grad_y
    value = np.vdot(fastconv.local2d(x, w, **problem.options), g)
    assert np.vdot(x, fastconv.local2d_grad_input(g, w, x.shape, **problem.options)) == value
    assert np.vdot(w, fastconv.local2d_grad_weight(g, x, problem.kernel, **problem.options)) == value


@pytest.mark.parametrize("argument", ["x", "w", "bias"])
def test_gradients_are_finite_differences(argument):
    problem = Problem(CASES["3 to 8, batch"], floats("float64"))
    operands = {"x": problem.x, "w": problem.w, "bias": problem.bias}
    g = problem.grad_y

    def loss(step, direction):
        moved = operands | {argument: operands[argument] + step * direction}
        return np.vdot(fastconv.local2d(**moved, **problem.options) ** 2, g) / 2

    y = fastconv.local2d(**operands, **problem.options)
    gradient = {
        "x": lambda: fastconv.local2d_grad_input(g * y, problem.w, problem.x.shape, **problem.options),
        "w": lambda: fastconv.local2d_grad_weight(g * y, problem.x, problem.kernel, **problem.options),
        "bias": lambda: fastconv.local2d_grad_bias(g * y),
    }[argument]()
    direction = np.random.default_rng(5).standard_normal(operands[argument].shape)
    difference = (loss(1e-5, direction) - loss(-1e-5, direction)) / 2e-5
    assert np.vdot(gradient, direction) == pytest.approx(difference, rel=1e-7)


@each_layout
def test_shared_weights_make_it_a_convolution(layout):
    problem = Problem(CASES["stride 3, dilation 2"], integers("float32"))
    kernel = problem.w[0, 0]
    w = np.broadcast_to(kernel, problem.w.shape)
    x = images_from_nhwc(problem.x, layout)
    conv_w = kernel if layout == "NHWC" else kernel.transpose(3, 2, 0, 1)
    options = {**problem.options, "layout": layout}
    np.testing.assert_array_equal(
        fastconv.local2d(x, w, **options), fastconv.conv2d(x, conv_w, **options, algorithm="naive")
    )


@each_layout
def test_batch_axis_may_be_missing(layout):
    problem = Problem(CASES["3 to 3"], integers("float32"))
    x, grad_y = images_from_nhwc(problem.x, layout), images_from_nhwc(problem.grad_y, layout)
    options = {**problem.options, "layout": layout}
    y = fastconv.local2d(x[0], problem.w, **options)
    assert_same_bits(y, fastconv.local2d(x, problem.w, **options)[0])
    grad_x = fastconv.local2d_grad_input(grad_y[0], problem.w, x.shape[1:], **options)
    assert_same_bits(grad_x, fastconv.local2d_grad_input(grad_y, problem.w, x.shape, **options)[0])
    grad_w = fastconv.local2d_grad_weight(grad_y[0], x[0], problem.kernel, **options)
    assert_same_bits(grad_w, fastconv.local2d_grad_weight(grad_y, x, problem.kernel, **options))
    assert_same_bits(fastconv.local2d_grad_bias(grad_y[0], layout=layout), grad_y[0])


@pytest.mark.parametrize("oc", [1, 4])
def test_no_images(oc):
    x, w, grad_y = np.ones((0, 4, 5, 2)), np.ones((3, 3, 2, 3, 2, oc)), np.ones((0, 3, 3, oc))
    assert fastconv.local2d(x, w).shape == grad_y.shape
    assert fastconv.local2d_grad_input(grad_y, w, x.shape).shape == x.shape
    assert_same_bits(fastconv.local2d_grad_weight(grad_y, x, (2, 3)), np.zeros(w.shape))
    assert_same_bits(fastconv.local2d_grad_bias(grad_y), np.zeros((3, 3, oc)))


@each_case
@pytest.mark.parametrize("dtype", ["float16", *DTYPES])
def test_out_is_filled_and_nothing_beside_it(dtype, case):
    problem = Problem(case, integers(dtype))
    x, w, grad_y, options = problem.x, problem.w, problem.grad_y, problem.options
    for function, operands, expected in (
        (fastconv.local2d, (x, w), problem.forward(x, w)),
        (fastconv.local2d_grad_input, (grad_y, w, x.shape), problem.grad_input(grad_y, w)),
        (fastconv.local2d_grad_weight, (grad_y, x, problem.kernel), problem.grad_weight(grad_y, x)),
    ):
        memory = np.full(expected.size + 128, np.nan, dtype)
        out = memory[64:-64].reshape(expected.shape)
        assert function(*operands, **options, out=out) is out
        np.testing.assert_array_equal(out, expected.astype(dtype))
        assert np.isnan(memory[:64]).all()
        assert np.isnan(memory[-64:]).all()


@each_layout
@pytest.mark.parametrize("step", [1, 2])
def test_out_with_strides(layout, step):
    problem = Problem(CASES["3 to 8, batch"], integers("float32"))
    x = images_from_nhwc(problem.x, layout)
    expected = fastconv.local2d(x, problem.w, layout=layout)
    out = np.empty((*expected.shape[:-1], expected.shape[-1] * step), np.float32)[..., ::step]
    assert fastconv.local2d(x, problem.w, layout=layout, out=out) is out
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(
    "case", [(4, (64, 67), (9, 9), 1, 1, 1, "same", 1), (2, (40, 41), (3, 3), 5, 16, 1, "same", (1, 2))]
)
def test_same_bits_for_any_number_of_threads(case, set_threads):
    problem = Problem(case, floats("float32"))
    x, w, g = problem.x, problem.w, problem.grad_y
    results = []
    for threads in (1, numba.config.NUMBA_NUM_THREADS):
        set_threads(threads)
        results.append(
            (
                fastconv.local2d(x, w, **problem.options),
                fastconv.local2d_grad_input(g, w, x.shape, **problem.options),
                fastconv.local2d_grad_weight(g, x, problem.kernel, **problem.options),
            )
        )
    for one, two in zip(*results, strict=True):
        assert_same_bits(one, two)


@pytest.mark.parametrize(("ic", "oc"), [(1, 1), (4, 6)])
def test_nan_reaches_the_outputs_whose_window_holds_it(ic, oc):
    x = np.ones((1, 9, 9, ic), np.float32)
    w = np.ones((7, 7, 3, 3, ic, oc), np.float32)
    x[0, 4, 5] = np.nan
    expected = np.zeros((7, 7), bool)
    expected[2:5, 3:6] = True
    np.testing.assert_array_equal(np.isnan(fastconv.local2d(x, w)[0]).all(axis=2), expected)
    np.testing.assert_array_equal(np.isnan(fastconv.local2d(x, w)[0]).any(axis=2), expected)


def test_odd_memory_layouts_do_not_show():
    problem = Problem(CASES["3 to 3"], integers("float32"))
    x, w, options = problem.x, problem.w, problem.options
    expected = fastconv.local2d(x, w, **options)
    for odd_x, odd_w in (
        (np.asfortranarray(x), np.asfortranarray(w)),
        (x[:, ::-1].copy()[:, ::-1], w[..., ::-1].copy()[..., ::-1]),
        (x.astype(">f4"), w.astype(">f4")),
    ):
        assert_same_bits(fastconv.local2d(odd_x, odd_w, **options), expected)


X, W, GRAD_Y = (np.ones(shape, np.float32) for shape in ((2, 5, 6, 2), (3, 4, 3, 3, 2, 7), (2, 3, 4, 7)))


@pytest.mark.parametrize(
    ("function", "arguments", "options", "error", "words"),
    [
        (fastconv.local2d, (X.astype(int), W), {}, TypeError, ("x", "int")),
        (fastconv.local2d, (X, W.astype("float64")), {}, TypeError, ("w", "x", "float64", "float32")),
        (fastconv.local2d, (X, W[0]), {}, ValueError, ("w", "6 axes", "(4, 3, 3, 2, 7)")),
        (fastconv.local2d, (X[0, 0], W), {}, ValueError, ("x", "(6, 2)")),
        (fastconv.local2d, (X[..., :1], W), {}, ValueError, ("x", "2 channels", "got 1")),
        (fastconv.local2d, (X, W[:2]), {}, ValueError, ("w", "(3, 4, 3, 3, 2, 7)", "(2, 4, 3, 3, 2, 7)")),
        (fastconv.local2d, (X, W), {"padding": 1}, ValueError, ("w", "(5, 6, 3, 3, 2, 7)")),
        (fastconv.local2d, (X, W), {"padding": "some"}, ValueError, ("padding", "some", "same")),
        (fastconv.local2d, (X, W), {"stride": 0}, ValueError, ("stride", "0")),
        (fastconv.local2d, (X, W), {"dilation": 1.5}, TypeError, ("dilation", "1.5")),
        (fastconv.local2d, (X, W), {"layout": "NWHC"}, ValueError, ("layout", "NWHC", "NHWC")),
        (fastconv.local2d, (X, W, np.ones(7, np.float32)), {}, ValueError, ("bias", "(3, 4, 7)", "(7,)")),
        (fastconv.local2d, (X, W, np.ones((3, 4, 7))), {}, TypeError, ("bias", "float64")),
        (fastconv.local2d, (X, W), {"out": np.ones(3, np.float32)}, ValueError, ("out", "(2, 3, 4, 7)")),
        (fastconv.local2d, (X, W), {"out": X}, ValueError, ("out", "(2, 3, 4, 7)")),
        (fastconv.local2d_grad_input, (GRAD_Y[:, 1:], W, X.shape), {}, ValueError, ("grad_y", "(2, 3, 4, 7)")),
        (fastconv.local2d_grad_input, (GRAD_Y, W, (2, 6, 6, 2)), {}, ValueError, ("w", "(4, 4, 3, 3, 2, 7)")),
        (fastconv.local2d_grad_input, (GRAD_Y, W, 7), {}, TypeError, ("input_shape", "7")),
        (fastconv.local2d_grad_weight, (GRAD_Y, X, (3, 2)), {}, ValueError, ("grad_y", "(2, 3, 5, 7)")),
        (fastconv.local2d_grad_weight, (GRAD_Y, X, 0), {}, ValueError, ("kernel_size", "0")),
        (fastconv.local2d_grad_weight, (GRAD_Y, X, 9), {}, ValueError, ("kernel_size", "9")),
        (fastconv.local2d_grad_bias, (GRAD_Y[0, 0],), {}, ValueError, ("grad_y", "(4, 7)")),
        (fastconv.local2d_grad_bias, (GRAD_Y.astype(int),), {}, TypeError, ("grad_y", "int")),
    ],
)
def test_errors_name_the_argument_what_came_and_what_fits(function, arguments, options, error, words):
    with pytest.raises(error) as caught:
        function(*arguments, **options)
    for word in words:
        assert word in str(caught.value)


def test_out_that_overlaps_an_operand_is_refused():
    memory = np.ones(1000, np.float32)
    x, out = memory[:100].reshape(1, 10, 10, 1), memory[50:150].reshape(1, 10, 10, 1)
    with pytest.raises(ValueError, match=r"out.*x"):
        fastconv.local2d(x, np.ones((10, 10, 1, 1, 1, 1), np.float32), out=out)
