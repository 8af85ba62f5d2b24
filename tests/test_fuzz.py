"""Arguments of every wrong kind: the result is right, or a ValueError or TypeError that names what does not fit.

Never another exception, a crash, a hang or much memory; and `out` is as it was.
"""

import decimal
import fractions
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastconv

from . import reference
from .cases import LAYOUTS, NAMED, UNIVERSAL
from .checks import assert_owned

fuzz = settings(derandomize=True, deadline=None, max_examples=400)
RNG = np.random.default_rng(0)
X, W, BIAS, GRAD_Y = (
    RNG.integers(-4, 5, shape).astype(np.float32) for shape in ((2, 6, 7, 4), (3, 3, 4, 6), (6,), (2, 4, 5, 6))
)


class Raises:
    """An array that cannot be had."""

    def __array__(self, *_, **__):
        raise RuntimeError("no array today")


class Wrapped:
    """Another library's array."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.array, dtype)


class Subclass(np.ndarray):
    """An array that would answer with itself."""

    def __array_finalize__(self, other):
        self.note = "mine"


class Whole(int):
    """An integer by another name."""


ENDLESS = []
ENDLESS.append(ENDLESS)
VALUES = [
    None, True, False, 0, 1, 2, -1, 3, 5, 2**31, 2**40, 2**44, 2**62, 2**64, 2**70, -(2**70), 1.0, 1.5, float("nan"),
    float("inf"), 1j, "", "1", "same", "valid", "full", "SAME", b"same", "NHWC", "NCHW", "exact", "naive", "relu", [],
    (), {}, set(), {1, 2}, (1,), (1, 1), (2, 3), (0, 1), (-1, 1), (1, 2, 3), ((1, 1), (2, 2)), ((1, 1), (2,)),
    ((1, 1), 2), ((0, 2**40), (0, 0)), (2**40, 2**40), [[1, 2], [0, 1]], ("1", 1), (1.0, 1), (None, None), range(2),
    range(10**9), iter([1, 1]), np.int8(1), np.uint64(2**63), np.float32(1), np.bool_(True), np.array(1),
    np.array([1, 2]), np.array([[1, 1], [0, 0]]), np.array([1.0, 2.0]), np.array(["a", "b"]), np.array([]),
    decimal.Decimal(1), fractions.Fraction(1, 2), Whole(1), Raises(), object(), object, len, ENDLESS, ...,
    memoryview(b"ab"),
]  # fmt: skip


def array_values(right):
    """What may come where an array like `right` is wanted."""
    return [
        right.tolist(), Wrapped(right), right.view(Subclass), np.ma.masked_array(right, right > 0), Wrapped("text"),
        right.astype(object), right.astype(np.float16), right.astype(np.float64), right.astype(np.int32),
        right.astype(np.complex64), right.astype(">f4"), right.astype("M8[s]"), right.astype("U4"), right.astype("S4"),
        right.astype([("a", "f4")]), right[:0], right[..., :0], right[0], right[None], right[..., None], right.T,
        right[..., ::-1], right[..., :-1], np.broadcast_to(right[:1], right.shape), np.float32(1), np.array(None),
        np.empty((0,) * right.ndim, np.float32), np.ones((1,) * right.ndim, np.float32), [[1.0], [1.0, 2.0]],
        memoryview(np.ascontiguousarray(right)), np.broadcast_to(np.float32(1), (2**40,) + (1,) * (right.ndim - 1)),
        np.broadcast_to(np.float32(1), (2**30,) * min(right.ndim, 2)), np.longdouble(right), right.astype(bool),
    ]  # fmt: skip


GEOMETRY = ("stride", "padding", "dilation", "groups", "layout", "algorithm")
FUNCTIONS = {
    "conv2d": (fastconv.conv2d, {"x": X, "w": W, "bias": BIAS}, ("activation", "out")),
    "conv2d_grad_input": (
        fastconv.conv2d_grad_input, {"grad_y": GRAD_Y, "w": W, "input_shape": X.shape}, ("out",),
    ),
    "conv2d_grad_weight": (
        fastconv.conv2d_grad_weight, {"grad_y": GRAD_Y, "x": X, "kernel_size": (3, 3)}, ("out",),
    ),
    "conv2d_backward": (fastconv.conv2d_backward, {"grad_y": GRAD_Y, "x": X, "w": W}, ("needs",)),
    "prepare_conv2d": (fastconv.prepare_conv2d, {"w": W, "bias": BIAS, "input_shape": X.shape}, ("activation",)),
    "plan_conv2d": (
        fastconv.plan_conv2d, {"x_shape": X.shape, "w_shape": W.shape}, ("direction", "dtype"),
    ),
}  # fmt: skip
RESULTS = {"conv2d": GRAD_Y.shape, "conv2d_grad_input": X.shape, "conv2d_grad_weight": W.shape}


@pytest.fixture(autouse=True)
def little_memory():
    """A result of terabytes is refused by the system at once, whatever it would promise otherwise."""
    if sys.platform != "linux":
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (3 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@st.composite
def changes(draw, name):
    """One to three arguments of the function and what they are changed to."""
    _, arguments, others = FUNCTIONS[name]
    names = draw(st.lists(st.sampled_from([*arguments, *GEOMETRY, *others]), min_size=1, max_size=3, unique=True))
    changed = {}
    for argument in names:
        right = arguments.get(argument)
        if argument == "out":
            right = np.full(RESULTS[name], 7, np.float32)
        values = VALUES + array_values(right) if isinstance(right, np.ndarray) else VALUES
        changed[argument] = values[draw(st.integers(0, len(values) - 1))]
    return changed


@pytest.mark.parametrize("name", FUNCTIONS)
def test_wrong_arguments(name):
    function, arguments, _ = FUNCTIONS[name]

    @fuzz
    @given(changes(name))
    def run(changed):
        out = np.full(RESULTS[name], 7, np.float32) if name in RESULTS else None
        given_arguments = {**arguments, **({"out": out} if out is not None else {}), **changed}
        before = {key: a.tobytes() for key, a in arguments.items() if isinstance(a, np.ndarray)}
        try:
            function(**given_arguments)
        except (ValueError, TypeError) as error:
            message = str(error)
            assert any(argument in message for argument in ("out", *changed, *arguments)), message
            assert len(message) < 2000
            assert out is None or (out == 7).all()
        except MemoryError:
            assert out is None or (out == 7).all()
        assert all(arguments[key].tobytes() == content for key, content in before.items())

    run()


@fuzz
@given(st.data())
def test_out_that_may_share_memory_with_inputs(data):
    """Views of one buffer in all ways: refused where they share an element, else right, with inputs as they were."""
    memory = RNG.integers(-4, 5, 400).astype(np.float32)

    def view(shape):
        step = data.draw(st.sampled_from([1, 1, 2, 3, -1]))
        order = data.draw(st.permutations(range(3)))
        size = int(np.prod(shape))
        first = data.draw(st.integers(0, 400 - abs(step) * size))
        line = memory[first : first + abs(step) * size][::step][:size]
        return line.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))

    x, out = view((4, 5, 2)), view((3, 4, 1))
    w = np.ones((2, 2, 2, 1), np.float32)
    expected = reference.conv2d(x[None], w)[0]
    before, kept = memory.copy(), x.copy()
    algorithm = data.draw(st.sampled_from([name for name in NAMED if name in UNIVERSAL]))
    if np.shares_memory(x, out):
        with pytest.raises(ValueError, match="out must not overlap with x"):
            fastconv.conv2d(x, w, out=out, algorithm=algorithm)
        np.testing.assert_array_equal(memory, before)
        return
    fastconv.conv2d(x, w, out=out, algorithm=algorithm)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(x, kept)


def test_out_without_an_address_for_each_element():
    out = np.lib.stride_tricks.as_strided(np.zeros(30, np.float32), GRAD_Y.shape, (0, 0, 24, 4))
    with pytest.raises(ValueError, match="out must have an address for each element"):
        fastconv.conv2d(X, W, out=out)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_of_other_libraries_come_by_array(layout):
    x, w = (reference.images_from_nhwc(X, layout), reference.weights_from_hwio(W, layout))
    expected = fastconv.conv2d(x, w, layout=layout)
    for turn in (Wrapped, lambda array: array.view(Subclass), memoryview):
        result = fastconv.conv2d(turn(x), turn(w), layout=layout)
        assert_owned(result, "float32")
        np.testing.assert_array_equal(result, expected)


def test_lists_are_float64():
    with pytest.raises(TypeError, match="w and x must have one dtype, got float32 and float64"):
        fastconv.conv2d(X.tolist(), W)
    assert_owned(fastconv.conv2d(X.tolist(), (1.0 * W).tolist()), "float64")


def test_masked_arrays_are_refused():
    masked = np.ma.masked_array(X, X > 0)
    with pytest.raises(TypeError, match=r"x must not be a masked array.*filled"):
        fastconv.conv2d(masked, W)
    with pytest.raises(TypeError, match=r"out must be a numpy array without a mask"):
        fastconv.conv2d(X, W, out=np.ma.zeros(GRAD_Y.shape, np.float32))
    np.testing.assert_array_equal(fastconv.conv2d(masked.filled(0), W), fastconv.conv2d(np.minimum(X, 0), W))


def test_torch_tensors():
    torch = pytest.importorskip("torch")
    x, w = torch.tensor(X), torch.tensor(W)
    np.testing.assert_array_equal(fastconv.conv2d(x, w), fastconv.conv2d(X, W))
    with pytest.raises(TypeError, match=r"w must be an array.*grad"):
        fastconv.conv2d(x, w.requires_grad_())
    with pytest.raises(TypeError, match="x must be an array"):
        fastconv.conv2d(x.to(torch.bfloat16), W)
    with pytest.raises(TypeError, match="x must be float16, float32 or float64, got int64"):
        fastconv.conv2d(x.to(torch.int64), W)


def test_pandas_frames():
    pandas = pytest.importorskip("pandas")
    x, w = RNG.uniform(size=(3, 4)).astype(np.float32), RNG.uniform(size=(4, 2)).astype(np.float32)
    frame = pandas.DataFrame(x)
    np.testing.assert_array_equal(fastconv.dense(frame, w), fastconv.dense(x, w))
    with pytest.raises(TypeError, match="x must be"):
        fastconv.dense(frame.assign(name="text"), w)
    bias = pandas.Series(BIAS)
    np.testing.assert_array_equal(fastconv.conv2d(X, W, bias), fastconv.conv2d(X, W, BIAS))
    with pytest.raises(ValueError, match="x must have 4 axes"):
        fastconv.conv2d(frame, W)
