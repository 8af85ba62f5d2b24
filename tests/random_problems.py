"""Random problems, each drawn from a number, through every public function that runs kernels, against the reference."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np

import fastconv
from fastconv import nn
from fastconv.algorithms.winograd.forms import FORMS

from . import reference
from .cases import INEXACT, LAYOUTS, NAMED, UNIVERSAL, Case, inexact_tolerance
from .memory_layouts import MEMORY_LAYOUTS
from .test_local2d import Problem as LocalProblem

DTYPES = ("float32", "float32", "float64", "float16")
OUT_LAYOUTS = ("reversed", "every-second", "fortran", "other-layout", "misaligned")
MEMORY = (*["plain"] * 6, *MEMORY_LAYOUTS)


@numba.njit
def leaky(value):
    return value if value > 0 else value / 4


ACTIVATIONS = {"none": None, "relu": "relu", "leaky": leaky}


@dataclass(frozen=True)
class Drawn:
    """A problem with everything that a caller may choose beside it."""

    case: Case
    layout: str
    dtype: str
    activation: str
    bias: bool
    memory: tuple[str, str, str]
    out: str


def _size(rng, spans, low, high):
    """An image size that the window fits."""
    return max(int(rng.integers(low, high)), spans)


@dataclass(frozen=True)
class Layer:
    """What kernels are compiled for, more or less: all of a geometry but its images and paddings."""

    groups: int
    ic: int
    oc: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)


def draw_layer(rng: np.random.Generator) -> Layer:
    """Draw channels around the tiles, below, at and above them, and a window."""

    def channels(sizes, groups):
        return groups * int(rng.choice(sizes))

    def pair(rows, columns):
        return int(rng.choice(rows)), int(rng.choice(columns))

    kind = rng.choice(["any", "any", "depthwise", "winograd", "filter", "large", "disjoint"])
    if kind == "winograd":
        groups = int(rng.choice([1, 1, 2]))
        ic, oc = channels([8, 16, 17, 33, 40, 130], groups), channels([1, 5, 16, 33, 48, 70], groups)
        kernels = [*FORMS, (4, 4), (3, 5), (6, 6), (7, 7), (8, 3), (9, 1)]
        kernel = kernels[int(rng.integers(len(kernels)))]
        if rng.random() < 0.25:
            return Layer(groups, ic, oc, kernel, stride=pair([1, 2], [2, 2, 3]))
        return Layer(groups, ic, oc, kernel, dilation=pair([1, 1, 2, 3, 7], [1, 1, 2, 5]))
    if kind == "large":
        groups = int(rng.choice([1, 1, 2, 5]))
        ic, oc = (channels([1, 1, 2, 3], groups) for _ in range(2))
        return Layer(groups, ic, oc, pair([1, 9, 16, 19], [2, 12, 17, 31]))
    if kind == "disjoint":
        ic, oc = channels([1, 3, 5, 16, 17], 1), channels([1, 5, 16, 33], 1)
        kernel = pair([1, 2, 3, 4, 7], [2, 3, 4, 7, 8])
        return Layer(1, ic, oc, kernel, stride=kernel)
    if kind == "depthwise":
        groups = ic = int(rng.choice([2, 8, 16, 17, 33, 40]))
        oc = channels([1, 1, 1, 2], groups)
    elif kind == "filter":
        groups = ic = oc = 1
    else:
        groups = int(rng.choice([1, 1, 1, 2, 3, 8]))
        ic, oc = (channels([1, 1, 2, 3, 5, 16, 17, 33], groups) for _ in range(2))
    kernel = pair([1, 2, 3, 5], [1, 2, 3, 4, 5, 7, 9])
    return Layer(groups, ic, oc, kernel, pair([1, 1, 2, 3], [1, 1, 2, 3, 4]), pair([1, 1, 2, 3], [1, 1, 2]))


def draw_case(
    rng: np.random.Generator, layer: Layer | None = None, *, rows: int = 24, columns: tuple[int, int] = (40, 150)
) -> Case:
    """Draw images and paddings, and a layer where none is given.

    Images have fewer rows than `rows`, and fewer columns than the first of `columns`, one in five than the second.
    """
    if layer is None:
        layer = draw_layer(rng)
    n = int(rng.integers(1, 4))
    most = 1 if layer.stride == layer.kernel and rng.random() < 0.7 else 4  # windows side by side, unpadded mostly
    padding = tuple((int(rng.integers(0, most)), int(rng.integers(0, most))) for _ in range(2))
    windows = zip(layer.kernel, layer.dilation, padding, strict=True)
    spans = [(size - 1) * spread + 1 - sum(pads) for size, spread, pads in windows]
    image = _size(rng, spans[0], 1, rows), _size(rng, spans[1], 1, columns[rng.random() >= 0.8])
    if rng.random() < 0.1:
        image = max(spans[0], 1), max(spans[1], 1)  # one window, or a few where padding is larger
    padding = rng.choice(["same", "same_lower", "full"]) if most > 1 and rng.random() < 0.2 else padding
    return Case(
        "random", layer.ic, layer.oc, image, layer.kernel, layer.stride, padding, layer.dilation, layer.groups, n
    )


def draw(
    rng: np.random.Generator, *, case: Case | None = None, layout: str | None = None, dtype: str | None = None
) -> Drawn:
    """Draw a problem, or what of it isn't given."""
    return Drawn(
        case or draw_case(rng),
        layout=layout or str(rng.choice(LAYOUTS)),
        dtype=dtype or str(rng.choice(DTYPES)),
        activation=str(rng.choice(list(ACTIVATIONS))),
        bias=bool(rng.random() < 0.5),
        memory=tuple(str(name) for name in rng.choice(MEMORY, 3)),
        out=str(rng.choice(["none", "plain", "plain", *OUT_LAYOUTS])),
    )


def _laid_out(array: np.ndarray, memory: str) -> np.ndarray:
    return array.copy() if memory == "plain" else MEMORY_LAYOUTS[memory](array)


def _integers(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return rng.integers(-4, 5, shape).astype(dtype)


class Check:
    """One drawn problem: its data, its expected results, and every way of computing them."""

    def __init__(self, drawn: Drawn, rng: np.random.Generator) -> None:
        self.drawn = drawn
        self.case = case = drawn.case
        x, w, grad_y = (_integers(rng, shape, drawn.dtype) for shape in case.shapes(drawn.layout))
        self.x, self.w, self.grad_y = (
            _laid_out(array, memory) for array, memory in zip((x, w, grad_y), drawn.memory, strict=True)
        )
        self.bias = _integers(rng, (case.oc,), drawn.dtype) if drawn.bias else None
        self.keywords = {"layout": drawn.layout, **case.arguments}
        self.rng = rng
        self._product = np.prod(sorted(float(np.abs(array).max(initial=0)) for array in (x, w, grad_y))[1:])
        self.compared = 0

    def run(self, algorithms: tuple[str, ...] = (*NAMED, "auto")) -> int:
        """Compare every direction by every algorithm; return how many results that were."""
        given = self.x, self.w, self.grad_y, self.bias
        before = [None if array is None else array.tobytes() for array in given]
        expected = self._expected(lambda array: array)
        magnitude = self._expected(np.abs)
        for algorithm in algorithms:
            for direction, call in self._calls(algorithm).items():
                try:
                    result = call()
                except ValueError as error:
                    if algorithm in UNIVERSAL or algorithm not in str(error):
                        raise
                    continue
                self._compare(result, expected[direction], magnitude[direction], f"{algorithm} {direction}")
        assert before == [None if array is None else array.tobytes() for array in given], "an input was written"
        return self.compared

    def touch(self, rng: np.random.Generator) -> int:
        """Compute one direction by one algorithm, both drawn from `rng`, and look for values that nobody wrote."""
        algorithms = NAMED if rng.random() < 0.2 else (*INEXACT, "direct", "direct", "auto")
        algorithm = str(rng.choice(algorithms))
        calls = self._calls(algorithm)
        direction = str(rng.choice(list(calls)))
        try:
            result = calls[direction]()
        except ValueError as error:
            if algorithm in UNIVERSAL or algorithm not in str(error):
                raise
            result = self._calls("auto")[direction]()
        assert np.isfinite(result).all(), f"{algorithm} {direction}: not every value was written"
        return 1

    def _expected(self, turn) -> dict[str, np.ndarray]:
        x, w, grad_y = (turn(np.asarray(array, np.float64)) for array in (self.x, self.w, self.grad_y))
        bias = None if self.bias is None else turn(np.float64(self.bias))
        sums = reference.conv2d(x, w, bias, **self.keywords)
        forward = {"none": sums, "relu": np.maximum(sums, 0), "leaky": np.where(sums > 0, sums, sums / 4)}
        forward = forward[self.drawn.activation]
        return {
            "forward": forward,
            "prepared": forward,
            "grad_input": reference.conv2d_grad_input(grad_y, w, x.shape, **self.keywords),
            "grad_weight": reference.conv2d_grad_weight(grad_y, x, self.case.kernel, **self.keywords),
            "grad_bias": reference.conv2d_grad_bias(grad_y, layout=self.drawn.layout),
        }

    def _calls(self, algorithm: str) -> dict:
        keywords = {**self.keywords, "algorithm": algorithm}
        epilogue = {"bias": self.bias, "activation": ACTIVATIONS[self.drawn.activation]}
        x, w, grad_y, out = self.x, self.w, self.grad_y, self._out
        calls = {
            "forward": lambda: fastconv.conv2d(x, w, out=out(grad_y.shape), **epilogue, **keywords),
            "prepared": lambda: fastconv.prepare_conv2d(w, **epilogue, **keywords)(x, out=out(grad_y.shape)),
            "grad_input": lambda: fastconv.conv2d_grad_input(grad_y, w, x.shape, out=out(x.shape), **keywords),
            "grad_weight": lambda: fastconv.conv2d_grad_weight(
                grad_y, x, self.case.kernel, out=out(w.shape), **keywords
            ),
        }
        if algorithm == "auto":
            calls["grad_bias"] = lambda: fastconv.conv2d_grad_bias(grad_y, layout=self.drawn.layout)
        return calls

    def _out(self, shape: tuple[int, ...]) -> np.ndarray | None:
        if self.drawn.out == "none":
            return None
        return _laid_out(np.full(shape, np.nan, self.drawn.dtype), self.drawn.out)

    def _compare(self, result, expected, magnitude, what: str) -> None:
        """Integer data: exact sums are exact, float16 too, as its sums fit float32 and are rounded once."""
        self.compared += 1
        with np.errstate(over="ignore"):
            rounded = expected.astype(self.drawn.dtype)
        if np.array_equal(result, rounded):
            return
        computed = "float64" if self.drawn.dtype == "float64" else "float32"
        # Transforms mix values that a result of few pixels may not meet: the error is at least that of one product.
        magnitude = np.maximum(magnitude, self._product)
        limit = inexact_tolerance(computed, max(magnitude.max(), 1), magnitude)
        if self.drawn.dtype == "float16":
            limit = limit + np.abs(expected) * np.finfo(np.float16).eps
        inexact = what.split()[0] in (*INEXACT, "auto")
        if inexact and np.all(np.abs(result.astype(np.float64) - expected) <= limit):
            return
        raise AssertionError(f"{what}: wrong by up to {np.nanmax(np.abs(result - expected))}")


def check_dense(rng: np.random.Generator) -> int:
    """A fully connected layer and its gradients."""
    n, features, units = (int(rng.choice([1, 2, 3, 15, 16, 17, 33, 70])) for _ in range(3))
    dtype = str(rng.choice(DTYPES))
    x, w, grad_y = (_integers(rng, shape, dtype) for shape in ((n, features), (features, units), (n, units)))
    bias = _integers(rng, (units,), dtype)
    wide = [np.float64(array) for array in (x, w, grad_y, bias)]
    for result, expected in (
        (fastconv.dense(x, w, bias), wide[0] @ wide[1] + wide[3]),
        (fastconv.dense(x[0], w), wide[0][0] @ wide[1]),
        (fastconv.dense_grad_input(grad_y, w), wide[2] @ wide[1].T),
        (fastconv.dense_grad_weight(grad_y, x), wide[0].T @ wide[2]),
    ):
        np.testing.assert_array_equal(result, expected.astype(dtype))
    return 4


def draw_local(rng: np.random.Generator) -> tuple:
    """A small problem as the table of `test_local2d` has them."""
    case = draw_case(rng)
    image = tuple(min(size, 12) for size in case.image)
    spans = [(k - 1) * d + 1 for k, d in zip(case.kernel, case.dilation, strict=True)]
    image = tuple(max(pair) for pair in zip(image, spans, strict=True))
    oc = int(rng.choice([1, case.oc]))
    return case.n, image, case.kernel, min(case.ic, 17), min(oc, 17), case.stride, case.padding, case.dilation


def check_local(rng: np.random.Generator, geometry: tuple) -> int:
    """A locally connected layer and its gradients."""
    dtype = str(rng.choice(["float32", "float64"]))
    problem = LocalProblem(geometry, lambda shape, _: _integers(rng, shape, dtype))
    options = problem.options
    y = fastconv.local2d(problem.x, problem.w, problem.bias, **options)
    np.testing.assert_array_equal(y, problem.forward(problem.x, problem.w) + problem.bias)
    dx = fastconv.local2d_grad_input(problem.grad_y, problem.w, problem.x.shape, **options)
    np.testing.assert_array_equal(dx, problem.grad_input(problem.grad_y, problem.w))
    dw = fastconv.local2d_grad_weight(problem.grad_y, problem.x, problem.kernel, **options)
    np.testing.assert_array_equal(dw, problem.grad_weight(problem.grad_y, problem.x))
    return 3


def check_flat(rng: np.random.Generator) -> int:
    """What goes once through arrays: ReLU's gradient, the loss, one step of both updates, and the bias gradient."""
    dtype = str(rng.choice(["float32", "float64"]))
    count = int(rng.choice([1, 3, 16, 17, 33, 4096, 4097, 9000]))
    y, grad, w, momentum = (_integers(rng, (count,), dtype) for _ in range(4))
    np.testing.assert_array_equal(nn.relu_grad_input(grad, y), np.where(y > 0, grad, 0))
    np.testing.assert_array_equal(nn.relu_grad_input(grad.copy(), y), np.where(y > 0, grad, 0))
    stepped, velocity = w.copy(), momentum.copy()
    nn.sgd_update(stepped, grad, velocity, rate=0.25, momentum=0.5)
    np.testing.assert_array_equal(velocity, 0.5 * momentum + grad)
    np.testing.assert_array_equal(stepped, w - 0.25 * velocity)
    moved, first, second = w.copy(), np.zeros_like(w), np.zeros_like(w)
    nn.adam_update(moved, grad, first, second, step=1, rate=0.5)
    np.testing.assert_allclose(moved, w - 0.5 * np.sign(grad), atol=1e-6)  # the first step is as long for all
    rows, classes = int(rng.integers(1, 40)), int(rng.choice([2, 10, 17, 33]))
    logits, labels = _integers(rng, (rows, classes), dtype), rng.integers(0, classes, rows)
    loss, slope = nn.softmax_cross_entropy(logits, labels)
    shares = np.exp(np.float64(logits))
    shares /= shares.sum(1, keepdims=True)
    chosen = shares[np.arange(rows), labels]
    np.testing.assert_allclose(loss, -np.log(chosen).mean(), rtol=1e-5)
    expected = (shares - (np.arange(classes) == labels[:, None])) / rows
    np.testing.assert_allclose(slope, expected, atol=1e-6)
    layout, pixels, channels = str(rng.choice(LAYOUTS)), int(rng.choice([1, 50, 9000])), int(rng.choice([1, 3, 16, 33]))
    image = _integers(rng, (1, 1, pixels, channels), dtype)  # of the largest, several threads sum blocks
    given = np.ascontiguousarray(reference.images_from_nhwc(image, layout))
    np.testing.assert_array_equal(fastconv.conv2d_grad_bias(given, layout=layout), image.sum((0, 1, 2)))
    return 7


def check_pooling(rng: np.random.Generator, size: int, stride: int) -> int:
    """Both poolings, against windows taken one by one, and their gradients, whose sum is that of what they spread."""
    layout, dtype = str(rng.choice(LAYOUTS)), str(rng.choice(["float32", "float64"]))
    n, h, w, c = int(rng.integers(1, 3)), *(int(k) for k in rng.integers(size, 40, 2)), int(rng.integers(1, 20))
    x = _integers(rng, (n, h, w, c), dtype)
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]
    given = reference.images_from_nhwc(x, layout)
    largest = nn.max_pool2d(given, size, stride=stride, layout=layout)
    np.testing.assert_array_equal(largest, reference.images_from_nhwc(windows.max((4, 5)), layout))
    mean = nn.avg_pool2d(given, size, stride=stride, layout=layout)
    np.testing.assert_allclose(mean, reference.images_from_nhwc(windows.mean((4, 5)), layout), rtol=1e-5, atol=1e-6)
    grad_y = _integers(rng, largest.shape, dtype)
    spread = nn.max_pool2d_grad_input(grad_y, given, size, stride=stride, layout=layout)
    assert spread.sum() == grad_y.sum()
    spread = nn.avg_pool2d_grad_input(grad_y, given.shape, size, stride=stride, layout=layout)
    np.testing.assert_allclose(spread.sum(), grad_y.sum(), atol=1e-3 * grad_y.size)
    return 4


def _full(in1: np.ndarray, in2: np.ndarray) -> np.ndarray:
    """The full convolution, tap by tap."""
    result = np.zeros([a + b - 1 for a, b in zip(in1.shape, in2.shape, strict=True)], np.result_type(in1, in2))
    for tap in np.ndindex(in2.shape):
        result[tuple(slice(k, k + size) for k, size in zip(tap, in1.shape, strict=True))] += in1 * in2[tap]
    return result


def _part(full: np.ndarray, in1: np.ndarray, in2: np.ndarray, mode: str) -> np.ndarray:
    """What a mode keeps of it."""
    kept = []
    for a, b in zip(in1.shape, in2.shape, strict=True):
        first, size = {"full": (0, a + b - 1), "same": ((b - 1) // 2, a), "valid": (b - 1, a - b + 1)}[mode]
        kept.append(slice(first, first + size))
    return full[tuple(kept)]


def check_signal(rng: np.random.Generator) -> int:
    """A convolution of two signals, by sums and by transforms, and one of images with each boundary."""
    dtype = str(rng.choice(["float32", "float64", "int16", "int64", "complex64", "complex128"]))
    rank = int(rng.integers(1, 3))
    sizes = [1, 2, 7, 16, 17, 33, 70, 200] if rank == 1 else [1, 2, 5, 8, 17, 24]
    large, small = np.sort(rng.choice(sizes, (2, rank)), 0)[::-1]
    in1, in2 = _integers(rng, tuple(large), dtype), _integers(rng, tuple(small), dtype)
    if in1.dtype.kind == "c":
        in1, in2 = in1 + 1j * _integers(rng, in1.shape, dtype), (2 - 1j) * in2
        in1, in2 = in1.astype(dtype), in2.astype(dtype)
    mode = str(rng.choice(["full", "same", "valid"]))
    expected = _part(_full(in1, in2), in1, in2, mode)
    np.testing.assert_array_equal(fastconv.convolve(in1, in2, mode, "direct"), expected)
    np.testing.assert_allclose(fastconv.convolve(in1, in2, mode, "fft"), expected, atol=2e-6 * 16 * in1.size * in2.size)
    if rank == 1:
        return 2
    reach = [(k - 1, k - 1) for k in in2.shape]
    for boundary, padding in (("wrap", "wrap"), ("symm", "symmetric")):
        around = _part(_full(np.pad(in1, reach, padding), in2), np.pad(in1, reach), in2, "valid")
        expected = _part(around, in1, in2, mode)
        np.testing.assert_array_equal(fastconv.convolve2d(in1, in2, mode, boundary), expected)
    return 4


def _any_pooling(rng: np.random.Generator) -> int:
    size, stride = (int(k) for k in rng.integers(1, 4, 2))
    return check_pooling(rng, size, stride)


LAYERS = {"dense": check_dense, "flat": check_flat, "pooling": _any_pooling, "signals": check_signal}
"""Checks of layers that need no table of cases, each of a random problem."""
