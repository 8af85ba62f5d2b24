"""Pooling, ReLU and the loss: against plain loops, numeric gradients and PyTorch."""

import doctest

import numpy as np
import pytest

from fastconv import nn
from fastconv.kernels import launch

from .checks import assert_owned, assert_same_bits

CASES = {  # input (n, ih, iw, c), size, stride
    "2x2": ((3, 8, 10, 32), 2, None),
    "2x2, odd channels": ((2, 6, 8, 5), 2, None),
    "2x2, remainder": ((2, 7, 9, 17), 2, None),
    "2x2, one channel": ((2, 28, 28, 1), 2, None),
    "2x2, one channel, remainder": ((1, 41, 43, 1), 2, None),
    "3x2": ((2, 9, 9, 4), (3, 2), None),
    "overlap": ((2, 9, 11, 6), 3, 2),
    "overlap, one channel": ((2, 19, 41, 1), 3, 2),
    "gaps": ((2, 11, 11, 3), 2, (3, 4)),
    "overlap in columns alone": ((2, 8, 9, 3), 2, (2, 1)),
    "global": ((2, 5, 7, 6), (5, 7), None),
    "larger than the panels keep": ((1, 30, 30, 1), 9, None),
    "1x1": ((2, 4, 4, 3), 1, None),
    "long rows": ((1, 6, 700, 1), 2, None),
    "many tasks": ((8, 64, 64, 8), 2, None),
    "no images": ((0, 4, 4, 3), 2, None),
}
BOTH_DTYPES = ("2x2, odd channels", "2x2, one channel", "overlap")
# Every window is a kernel of its own to compile: the others run in one dtype.
each_case = pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, dtype) for case in CASES for dtype in ("float32", "float64") if dtype == "float32" or case in BOTH_DTYPES],
)
each_layout = pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def pair(value):
    return (value, value) if isinstance(value, int) else value


def turned(x, layout):
    return x if layout == "NHWC" else np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def windows(x, size, stride):
    """Yield (i, j, view of the window (n, kh, kw, c)) of an image in NHWC."""
    (kh, kw), (sh, sw) = pair(size), pair(stride or size)
    for i in range((x.shape[1] - kh) // sh + 1):
        for j in range((x.shape[2] - kw) // sw + 1):
            yield i, j, x[:, i * sh : i * sh + kh, j * sw : j * sw + kw]


def pooled(x, size, stride, reduce):
    (kh, kw), (sh, sw) = pair(size), pair(stride or size)
    y = np.empty((len(x), (x.shape[1] - kh) // sh + 1, (x.shape[2] - kw) // sw + 1, x.shape[3]), x.dtype)
    for i, j, window in windows(x, size, stride):
        y[:, i, j] = reduce(window, axis=(1, 2))
    return y


def max_gradient(grad_y, x, size, stride):
    grad_x = np.zeros_like(x)
    for (i, j, window), (_, _, target) in zip(windows(x, size, stride), windows(grad_x, size, stride), strict=True):
        n, kh, kw, c = window.shape
        first = window.reshape(n, kh * kw, c).argmax(axis=1)
        for image in range(n):
            for channel in range(c):
                a, b = divmod(first[image, channel], kw)
                target[image, a, b, channel] += grad_y[image, i, j, channel]
    return grad_x


def avg_gradient(grad_y, x, size, stride):
    grad_x = np.zeros_like(x)
    for i, j, target in windows(grad_x, size, stride):
        target += grad_y[:, i, j][:, None, None] / (target.shape[1] * target.shape[2])
    return grad_x


def integers(shape, dtype, seed=0):
    """Small whole numbers: ties in many windows, and sums that are exact."""
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(dtype)


@each_case
@each_layout
def test_max_pool(layout, case, dtype):
    shape, size, stride = CASES[case]
    x = integers(shape, dtype)
    expected = turned(pooled(x, size, stride, np.max), layout)
    given = turned(x, layout)
    result = nn.max_pool2d(given, size, stride=stride, layout=layout)
    assert_owned(result, dtype)
    np.testing.assert_array_equal(result, expected)
    out = np.full(expected.shape, np.nan, dtype)
    assert nn.max_pool2d(given, size, stride=stride, layout=layout, out=out) is out
    np.testing.assert_array_equal(out, expected)


@each_case
@each_layout
def test_avg_pool(layout, case, dtype):
    shape, size, stride = CASES[case]
    x = integers(shape, dtype)
    result = nn.avg_pool2d(turned(x, layout), size, stride=stride, layout=layout)
    assert_owned(result, dtype)
    np.testing.assert_allclose(result, turned(pooled(x, size, stride, np.mean), layout), rtol=1e-5, atol=1e-6)


@each_case
@each_layout
def test_max_pool_gradient_goes_to_the_first_largest(layout, case, dtype):
    shape, size, stride = CASES[case]
    x = integers(shape, dtype)
    grad_y = integers(pooled(x, size, stride, np.max).shape, dtype, seed=1)
    result = nn.max_pool2d_grad_input(
        turned(grad_y, layout),
        turned(x, layout),
        size,
        stride=stride,
        layout=layout,
        out=np.full_like(turned(x, layout), 7),
    )
    np.testing.assert_array_equal(result, turned(max_gradient(grad_y, x, size, stride), layout))


@each_case
@each_layout
def test_avg_pool_gradient(layout, case, dtype):
    shape, size, stride = CASES[case]
    x = integers(shape, dtype)
    grad_y = integers(pooled(x, size, stride, np.max).shape, dtype, seed=1)
    given = turned(x, layout)
    result = nn.avg_pool2d_grad_input(turned(grad_y, layout), given.shape, size, stride=stride, layout=layout)
    assert_owned(result, dtype)
    np.testing.assert_allclose(result, turned(avg_gradient(grad_y, x, size, stride), layout), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "case", ["2x2", "2x2, remainder", "2x2, one channel", "overlap", "overlap, one channel", "gaps"]
)
@each_layout
def test_fused_relu_is_relu_behind_the_pooling(layout, case):
    shape, size, stride = CASES[case]
    x, how = turned(integers(shape, "float32") - 2, layout), {"stride": stride, "layout": layout}
    y = nn.relu(nn.max_pool2d(x, size, **how))
    assert (y == 0).any()
    assert_same_bits(nn.max_pool2d(x, size, activation="relu", **how), y)
    grad_y = integers(y.shape, "float32", 1)
    expected = nn.max_pool2d_grad_input(nn.relu_grad_input(grad_y, y), x, size, **how)
    np.testing.assert_array_equal(nn.max_pool2d_grad_input(grad_y, x, size, activation="relu", **how), expected)


def numeric_gradient(function, x, step=1e-6):
    grad = np.empty_like(x)
    for index in np.ndindex(x.shape):
        ends = []
        for sign in (1, -1):
            moved = x.copy()
            moved[index] += sign * step
            ends.append(function(moved))
        grad[index] = (ends[0] - ends[1]) / (2 * step)
    return grad


@pytest.mark.parametrize(("size", "stride"), [(2, None), (3, 2), ((2, 3), (1, 2))])
@each_layout
def test_pool_gradients_are_numeric_ones(layout, size, stride):
    rng = np.random.default_rng(3)
    x = turned(rng.permutation(2 * 7 * 8 * 3).reshape(2, 7, 8, 3) / 10, layout)  # no ties
    how = {"stride": stride, "layout": layout}
    weight = rng.standard_normal(nn.max_pool2d(x, size, **how).shape)
    for pool, grad in (
        (nn.max_pool2d, nn.max_pool2d_grad_input(weight, x, size, **how)),
        (nn.avg_pool2d, nn.avg_pool2d_grad_input(weight, x.shape, size, **how)),
    ):
        expected = numeric_gradient(lambda moved, pool=pool: (pool(moved, size, **how) * weight).sum(), x)
        np.testing.assert_allclose(grad, expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 4, 4, 16), (1, 4, 4, 1)])
def test_nan_is_the_largest_and_gets_the_gradient(shape):
    x = np.ones(shape, np.float32)
    x[0, 1, 2] = np.nan
    x[0, 0, 0] = np.inf
    y = nn.max_pool2d(x)
    assert np.isnan(y[0, 0, 1]).all()
    assert np.isnan(y).sum() == shape[-1]
    assert_same_bits(nn.max_pool2d(x, activation="relu"), y)
    grad = nn.max_pool2d_grad_input(np.full(y.shape, np.inf, np.float32), x)
    assert_same_bits(nn.max_pool2d_grad_input(np.full(y.shape, np.inf, np.float32), x, activation="relu"), grad)
    assert (grad[0, 1, 2] == np.inf).all()
    assert np.isinf(grad).sum() == 4 * shape[-1]
    assert not np.isnan(grad).any()


def test_float16_is_pooled_in_float32():
    x = integers((2, 4, 4, 3), "float16")
    for result in (nn.max_pool2d(x), nn.avg_pool2d(x), nn.max_pool2d_grad_input(nn.max_pool2d(x), x)):
        assert result.dtype == np.float16
    np.testing.assert_array_equal(nn.max_pool2d(x), pooled(x, 2, None, np.max))


def test_image_without_batch_axis():
    x = integers((6, 4, 5), "float32")
    np.testing.assert_array_equal(nn.max_pool2d(x), nn.max_pool2d(x[None])[0])
    y = nn.avg_pool2d(x)
    assert y.shape == (3, 2, 5)
    assert nn.avg_pool2d_grad_input(y, x.shape).shape == x.shape
    assert nn.max_pool2d_grad_input(y, x).shape == x.shape


def test_other_memory_orders_are_read():
    x = integers((4, 8, 8, 6), "float32")
    expected = nn.max_pool2d(x)
    np.testing.assert_array_equal(nn.max_pool2d(np.asfortranarray(x)), expected)
    np.testing.assert_array_equal(nn.max_pool2d(x.astype(">f4")), expected)


@each_layout
def test_threads_do_not_change_a_bit(layout, set_threads):
    x = np.random.default_rng(0).standard_normal((4, 64, 64, 32)).astype(np.float32)
    x = turned(x, layout)
    results = []
    for threads in sorted({1, launch.max_threads()}):
        set_threads(threads)
        y = nn.max_pool2d(x, 3, stride=2, layout=layout)
        z = nn.avg_pool2d_grad_input(y, x.shape, 3, stride=2, layout=layout)
        results.append((y, z, nn.max_pool2d_grad_input(y, x, 3, stride=2, layout=layout)))
    for first, last in zip(results[0], results[-1], strict=True):
        assert_same_bits(first, last)


@each_dtype
@pytest.mark.parametrize("smoothing", [0.1, 1.0])
def test_smoothed_loss_and_its_gradient(dtype, smoothing):
    rng = np.random.default_rng(4)
    logits, labels = rng.standard_normal((6, 5)), rng.integers(0, 5, 6)
    targets = np.full((6, 5), smoothing / 5)
    targets[np.arange(6), labels] += 1 - smoothing
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    loss, grad = nn.softmax_cross_entropy(logits.astype(dtype), labels, smoothing=smoothing)
    assert loss == pytest.approx(-(targets * logs).sum(axis=1).mean(), rel=1e-6)
    np.testing.assert_allclose(grad, (np.exp(logs) - targets) / 6, rtol=1e-5, atol=1e-7)
    assert grad.dtype == dtype


@each_dtype
def test_impossible_classes_add_nothing_to_the_loss(dtype):
    logits = np.array([[0, -np.inf, 1], [2, 1, -np.inf]], dtype)
    loss, grad = nn.softmax_cross_entropy(logits, np.array([0, 1]))
    assert loss == pytest.approx(np.log(1 + np.e), rel=1e-6)
    assert (grad[[0, 1], [1, 2]] == 0).all()


@each_dtype
@pytest.mark.parametrize("size", [1, 37, 3 << 14])
def test_sgd_equals_its_formula(dtype, size):
    rng = np.random.default_rng(5)
    w, velocity = rng.standard_normal(size).astype(dtype), np.zeros(size, dtype)
    expected, v = w.astype(float), np.zeros(size)
    for grad in rng.standard_normal((3, size)).astype(dtype):
        v = 0.8 * v + grad
        expected -= 0.1 * v
        nn.sgd_update(w, grad, velocity, rate=0.1, momentum=0.8)
    np.testing.assert_allclose(w, expected, rtol=1e-4, atol=1e-5)


@each_dtype
@pytest.mark.parametrize("size", [1, 37, 3 << 14])
def test_adam_equals_its_formula(dtype, size):
    rng = np.random.default_rng(5)
    w, first, second = rng.standard_normal(size).astype(dtype), np.zeros(size, dtype), np.zeros(size, dtype)
    expected, m, v = w.astype(float), np.zeros(size), np.zeros(size)
    for step, grad in enumerate(rng.standard_normal((3, size)).astype(dtype), 1):
        m, v = 0.9 * m + 0.1 * grad, 0.99 * v + 0.01 * grad.astype(float) ** 2
        expected -= 0.1 * (0.5 * expected + m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.99**step)) + 1e-3))
        nn.adam_update(w, grad, first, second, step=step, rate=0.1, decays=(0.9, 0.99), epsilon=1e-3, weight_decay=0.5)
    np.testing.assert_allclose(w, expected, rtol=1e-4, atol=1e-5)


X, Y = np.ones((2, 6, 8, 3), np.float32), np.ones((2, 3, 4, 3), np.float32)
ERRORS = [
    (lambda: nn.max_pool2d(X, 7), ValueError, "size=(7, 7)"),
    (lambda: nn.max_pool2d(X, 0), ValueError, "size"),
    (lambda: nn.max_pool2d(X, 1.5), TypeError, "size"),
    (lambda: nn.max_pool2d(X, stride=0), ValueError, "stride"),
    (lambda: nn.max_pool2d(X, layout="HWC"), ValueError, "layout"),
    (lambda: nn.max_pool2d(X, 2.0), TypeError, "size"),
    (lambda: nn.max_pool2d(X, activation="tanh"), ValueError, "activation must be None or 'relu'"),
    (lambda: nn.max_pool2d_grad_input(Y, X, activation=max), ValueError, "activation"),
    (lambda: nn.max_pool2d(X[0, 0]), ValueError, "x must have 4 axes"),
    (lambda: nn.max_pool2d(X.astype(int)), TypeError, "x must be float"),
    (lambda: nn.max_pool2d(X[..., :0]), ValueError, "channels"),
    (lambda: nn.max_pool2d(X, out=np.empty((2, 3, 4, 2), np.float32)), ValueError, "out must have shape"),
    (lambda: nn.max_pool2d(X, 1, out=X), ValueError, "overlap"),
    (lambda: nn.max_pool2d_grad_input(X, X), ValueError, "grad_y must have shape (2, 3, 4, 3)"),
    (lambda: nn.max_pool2d_grad_input(Y.astype(float), X), TypeError, "grad_y and x"),
    (lambda: nn.avg_pool2d_grad_input(Y, (2, 5, 8, 3)), ValueError, "grad_y must have shape (2, 2, 4, 3)"),
    (lambda: nn.avg_pool2d_grad_input(Y, (2, 1, 8, 3)), ValueError, "input_shape"),
    (lambda: nn.avg_pool2d_grad_input(Y, 6), TypeError, "input_shape"),
    (lambda: nn.relu([1, 2]), TypeError, "x must be float"),
    (lambda: nn.relu(X, out=Y), ValueError, "out must have shape"),
    (lambda: nn.relu_grad_input(X, Y), ValueError, "y must have shape"),
    (lambda: nn.relu_grad_input(X, X.astype(float)), TypeError, "y and grad_y"),
    (lambda: nn.relu_grad_input(X[1:], X[1:], out=X.reshape(-1)[5:149].reshape(1, 6, 8, 3)), ValueError, "overlap"),
    (lambda: nn.softmax_cross_entropy(X, [1]), ValueError, "logits must have shape"),
    (lambda: nn.softmax_cross_entropy(X[0, 0, :0], np.zeros(0, int)), ValueError, "at least one"),
    (lambda: nn.softmax_cross_entropy(X[0, 0], [0, 1]), ValueError, "labels must have shape (8,)"),
    (lambda: nn.softmax_cross_entropy(X[0, 0], np.ones(8)), TypeError, "labels must be integers"),
    (lambda: nn.softmax_cross_entropy(X[0, 0], np.full(8, 3)), ValueError, "from 0 to 2"),
    (lambda: nn.softmax_cross_entropy(X[0, 0], np.full(8, -1)), ValueError, "from 0 to 2"),
    (lambda: nn.softmax_cross_entropy(X[0, 0], np.ones(8, int), smoothing=1.5), ValueError, "smoothing"),
    (lambda: nn.sgd_update(X[:, ::2], X[:, ::2], X[:, ::2], rate=1), ValueError, "w must be C-contiguous"),
    (lambda: nn.sgd_update([1.0], [1.0], [0.0], rate=1), TypeError, "w must be a numpy array"),
    (lambda: nn.sgd_update(X.astype(np.float16), X, X, rate=1), TypeError, "float16"),
    (lambda: nn.sgd_update(X, Y, X.copy(), rate=1), ValueError, "grad_w must have shape"),
    (lambda: nn.sgd_update(X, X, X[:1], rate=1), ValueError, "velocity must have shape"),
    (lambda: nn.adam_update(X, X, X.copy(), X.astype(float), step=1, rate=1), TypeError, "second and w"),
    (lambda: nn.adam_update(X, X, X.copy(), X.copy(), step=0, rate=1), ValueError, "step must be at least 1"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "words"), ERRORS)
def test_errors_name_the_argument(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert words in str(caught.value)


@each_dtype
def test_relu_and_its_gradient(dtype):
    x = np.array([-2, -0.0, 0.5, np.nan, np.inf, -np.inf], dtype)
    np.testing.assert_array_equal(nn.relu(x), np.array([0, 0, 0.5, np.nan, np.inf, 0], dtype))
    grad = np.arange(1, 7).astype(dtype)
    np.testing.assert_array_equal(nn.relu_grad_input(grad, nn.relu(x)), [0, 0, 3, 4, 5, 0])
    np.testing.assert_array_equal(nn.relu_grad_input(grad, x), [0, 0, 3, 4, 5, 0])
    assert nn.relu_grad_input(grad, x, out=grad) is grad
    np.testing.assert_array_equal(grad, [0, 0, 3, 4, 5, 0])
    assert nn.relu(x, out=x) is x
    assert x[0] == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradient_of_relu_passes_where_the_output_is_open_whatever_the_length(dtype):
    rng = np.random.default_rng(3)
    for count in (*range(1, 40), 20_001):
        y, grad = (
            rng.choice([-1.0, -0.0, 0.0, 2.0, np.nan], count).astype(dtype),
            rng.standard_normal(count).astype(dtype),
        )
        expected = np.where(y <= 0, 0, grad)
        assert_same_bits(nn.relu_grad_input(grad, y), expected.astype(dtype))
        nn.relu_grad_input(grad, y, out=grad)
        assert_same_bits(grad, expected.astype(dtype))


@each_dtype
def test_loss_and_its_gradient(dtype):
    rng = np.random.default_rng(4)
    logits, labels = rng.standard_normal((5, 7)).astype(dtype), rng.integers(0, 7, 5)
    loss, grad = nn.softmax_cross_entropy(logits, labels)
    exact = logits.astype(float)
    expected = np.mean(np.log(np.exp(exact).sum(axis=1)) - exact[np.arange(5), labels])
    assert isinstance(loss, float)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert grad.dtype == dtype
    numeric = numeric_gradient(lambda moved: nn.softmax_cross_entropy(moved, labels)[0], exact)
    np.testing.assert_allclose(grad, numeric, atol=1e-7 if dtype == "float32" else 1e-9)


def test_loss_of_large_logits_is_finite():
    loss, grad = nn.softmax_cross_entropy(np.array([[1e4, -1e4], [0, 3e38]], np.float32), [0, 1])
    assert loss == 0
    assert (grad == 0).all()
    assert nn.softmax_cross_entropy(np.array([[0, 1e4]], np.float32), np.array([0], np.uint8))[0] == 1e4


@each_layout
@pytest.mark.parametrize(("size", "stride"), [(2, None), (3, 2)])
def test_pooling_equals_torch(size, stride, layout):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(5).standard_normal((3, 15, 17, 6)).astype(np.float32)
    theirs = torch.tensor(x.transpose(0, 3, 1, 2).copy(), requires_grad=True)
    for kind, pool in (("max", nn.max_pool2d), ("avg", nn.avg_pool2d)):
        expected = getattr(torch.nn.functional, f"{kind}_pool2d")(theirs, size, stride)
        y = pool(turned(x, layout), size, stride=stride, layout=layout)
        shown = expected.detach().numpy()
        np.testing.assert_allclose(y, shown if layout == "NCHW" else shown.transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-6)
        (grad,) = torch.autograd.grad(expected, theirs, 2 * expected.detach())
        how = {"stride": stride, "layout": layout}
        ours = (
            nn.max_pool2d_grad_input(2 * y, turned(x, layout), size, **how)
            if kind == "max"
            else nn.avg_pool2d_grad_input(2 * y, turned(x, layout).shape, size, **how)
        )
        shown = grad.numpy()
        np.testing.assert_allclose(
            ours, shown if layout == "NCHW" else shown.transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-6
        )


def test_loss_equals_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(6)
    logits, labels = 5 * rng.standard_normal((33, 10)).astype(np.float32), rng.integers(0, 10, 33)
    theirs = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(theirs, torch.tensor(labels))
    expected.backward()
    loss, grad = nn.softmax_cross_entropy(logits, labels)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(grad, theirs.grad.numpy(), atol=1e-7)


@pytest.mark.parametrize("name", nn.__all__)
def test_examples_in_the_docstrings_run(name):
    function = getattr(nn, name)
    (found,) = doctest.DocTestFinder(recurse=False).find(function, name)
    assert found.examples
    assert doctest.DocTestRunner().run(found).failed == 0
