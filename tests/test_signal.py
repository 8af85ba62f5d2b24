"""convolve, correlate and their 2-D forms against SciPy's own results, and their errors."""

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import fastconv
from fastconv.kernels.signal import WRAP
from fastconv.signal.direct import Direct
from fastconv.signal.fourier import Fourier
from fastconv.signal.problem import Axis, SignalProblem, filter_problem
from fastconv.signal.spectral import Spectral

from .checks import assert_owned, assert_same_bits
from .extent import cross_section

signal = pytest.importorskip("scipy.signal")

MODES = ("full", "same", "valid")
BOUNDARIES = ("fill", "wrap", "symm")
LENGTHS = (1, 2, 5, 8, 31, 100, 301)
IMAGES = ((1, 1), (3, 4), (8, 8), (13, 7), (40, 3), (5, 70), (34, 35))
KERNELS = ((1, 1), (2, 1), (1, 2), (3, 4), (2, 7), (8, 8), (13, 3), (36, 33))
REAL = ("float32", "float64")
COMPLEX = ("complex64", "complex128")
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
SWEPT = ("float64", "complex128", "int32")
"""Every kernel is compiled for these dtypes, and one or two for the others."""
NUMBERS = (*REAL, *COMPLEX, *INTEGERS)


def data(shape, dtype, seed=0):
    rng = np.random.default_rng([seed, *shape])
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.3
    if dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        return rng.integers(bounds.min, bounds.max, shape, dtype, endpoint=True)
    values = rng.standard_normal(shape)
    return (values + 1j * rng.standard_normal(shape) if dtype.kind == "c" else values).astype(dtype)


def scipy_result(name, *arguments):
    """SciPy's result, or None where it raises ValueError."""
    try:
        return getattr(signal, name)(*arguments)
    except ValueError:
        return None


def assert_like(result, expected, terms):
    """The same shape and dtype; the same integers; floating-point numbers within the rounding of that many terms."""
    assert result.shape == expected.shape
    assert result.dtype == expected.dtype
    if expected.dtype.kind in "biu":
        np.testing.assert_array_equal(result, expected)
    else:
        scale = np.abs(expected).max(initial=1)
        np.testing.assert_allclose(result, expected, rtol=0, atol=8 * terms * np.finfo(expected.dtype).eps * scale)


@pytest.mark.parametrize("name", ["convolve", "correlate"])
@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("mode", MODES)
def test_signals_of_all_lengths(name, dtype, mode):
    lengths = cross_section(LENGTHS, 2) if dtype in SWEPT else (5, 100)
    for n, k in itertools.product(lengths, repeat=2):
        in1, in2 = data((n,), dtype), data((k,), dtype, 1)
        expected = getattr(signal, name)(in1, in2, mode, "direct")
        assert_like(getattr(fastconv, name)(in1, in2, mode, "direct"), expected, min(n, k))


@pytest.mark.parametrize("name", ["convolve", "correlate"])
@pytest.mark.parametrize("dtype", ["float64", "complex128", "int32"])
@pytest.mark.parametrize("mode", MODES)
def test_images_of_all_sizes(name, dtype, mode):
    for image, kernel in itertools.product(IMAGES, KERNELS):
        in1, in2 = data(image, dtype), data(kernel, dtype, 1)
        expected = scipy_result(name, in1, in2, mode, "direct")
        if expected is None:
            with pytest.raises(ValueError, match="'valid'"):
                getattr(fastconv, name)(in1, in2, mode, "direct")
        else:
            assert_like(getattr(fastconv, name)(in1, in2, mode, "direct"), expected, min(in1.size, in2.size))


@pytest.mark.parametrize("name", ["convolve2d", "correlate2d"])
@pytest.mark.parametrize("dtype", ["float64", "complex128", "int32"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("fillvalue", [0, 3])
def test_boundaries(name, dtype, mode, boundary, fillvalue):
    for image, kernel in itertools.product(IMAGES, KERNELS):
        in1, in2 = data(image, dtype), data(kernel, dtype, 1)
        expected = scipy_result(name, in1, in2, mode, boundary, fillvalue)
        if expected is not None:
            result = getattr(fastconv, name)(in1, in2, mode, boundary, fillvalue)
            assert_like(result, expected, in2.size)


@pytest.mark.parametrize("name", ["convolve", "correlate"])
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_boundary_makes_it_the_function_for_images(name, boundary):
    image, kernel = data((9, 8), "float64"), data((4, 3), "float64", 1)
    function, expected = getattr(fastconv, name), getattr(signal, f"{name}2d")
    for mode in MODES:
        wanted = expected(image, kernel, mode, boundary)
        assert_like(function(image, kernel, mode, boundary=boundary), wanted, kernel.size)
    wanted = expected(image, kernel, "same", "fill", 2)
    assert_like(function(image, kernel, "same", "direct", fillvalue=2), wanted, kernel.size)
    with pytest.raises(ValueError, match=r"method must be 'auto' or 'direct' .* got 'fft'"):
        function(image, kernel, "same", "fft", boundary=boundary)
    with pytest.raises(ValueError, match=r"in1 must have 2 axes, got shape \(9,\)"):
        function(image[:, 0], kernel[:, 0], boundary=boundary)


@pytest.mark.parametrize("method", ["fft", "auto"])
@pytest.mark.parametrize("name", ["convolve", "correlate"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [*REAL, *COMPLEX])
@pytest.mark.parametrize(
    "shapes",
    [((1,), (1,)), ((7,), (300,)), ((2000,), (2000,)), ((30000,), (500,)), ((50, 3), (4, 40)), ((200, 180), (60, 7))],
    ids=str,
)
def test_transforms(method, name, mode, dtype, shapes):
    in1, in2 = (data(shape, dtype, seed) for seed, shape in enumerate(shapes))
    expected = scipy_result(name, in1, in2, mode, "fft")
    if expected is not None:
        assert_like(getattr(fastconv, name)(in1, in2, mode, method), expected, min(in1.size, in2.size))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(("bool", "float16", *NUMBERS), 2)))
def test_mixed_dtypes_are_promoted(mode, first, second):
    small = {name: np.arange(-3, 4).astype(name) if np.dtype(name).kind not in "bu" else np.arange(7).astype(name)
             for name in (first, second)}  # fmt: skip
    for one, other in ((first, second), (second, first)):
        in1, in2 = small[one], small[other][:4]
        for name in ("convolve", "correlate"):
            expected = getattr(signal, name)(in1, in2, mode, "direct")
            assert_like(getattr(fastconv, name)(in1, in2, mode), expected, 4)
        expected = scipy_result("correlate2d", in1[:, None], in2[:, None], mode)
        if expected is not None:
            assert_like(fastconv.correlate2d(in1[:, None], in2[:, None], mode), expected, 4)


@pytest.mark.parametrize("mode", MODES)
def test_booleans_are_true_where_any_product_is(mode):
    in1, in2 = data((50,), "bool"), data((7,), "bool", 1)
    assert_same_bits(fastconv.convolve(in1, in2, mode), signal.convolve(in1, in2, mode))
    assert_same_bits(fastconv.correlate(in1, in2, mode), signal.correlate(in1, in2, mode))
    image = fastconv.convolve2d(in1[:, None], in2[:, None], mode)
    np.testing.assert_array_equal(image[:, 0], signal.convolve(in1, in2, mode))


def test_half_precision_is_rounded_once():
    in1, in2 = data((100,), "float16"), data((9,), "float16", 1)
    expected = np.convolve(in1.astype("float32"), in2.astype("float32")).astype("float16")
    np.testing.assert_allclose(fastconv.convolve(in1, in2), expected, rtol=1e-3, atol=1e-3)
    assert fastconv.convolve(in1, in2, method="fft").dtype == np.float16


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_by_transforms_are_rounded(dtype):
    in1, in2 = np.arange(60).astype(dtype), np.ones(2, dtype)
    np.testing.assert_array_equal(fastconv.convolve(in1, in2, method="fft"), np.convolve(in1, in2))


def test_large_integers_are_exact():
    in1, in2 = np.full(5000, 2**31, np.int64), np.arange(3000)
    np.testing.assert_array_equal(fastconv.convolve(in1, in2), np.convolve(in1, in2))


small_shapes = arrays.array_shapes(min_dims=1, max_dims=2, max_side=24)


@st.composite
def pairs(draw):
    shape = draw(small_shapes)
    other = draw(arrays.array_shapes(min_dims=len(shape), max_dims=len(shape), max_side=24))
    dtype = draw(st.sampled_from(("float64", "complex128", "int32")))
    return data(shape, dtype, draw(st.integers(0, 9))), data(other, dtype, 10 + draw(st.integers(0, 9)))


@settings(derandomize=True, deadline=None, max_examples=300)
@given(pairs(), st.sampled_from(MODES), st.sampled_from(("convolve", "correlate")), st.sampled_from(("direct", "auto")))
def test_random_signals(pair, mode, name, method):
    in1, in2 = pair
    expected = scipy_result(name, in1, in2, mode, "direct")
    if expected is not None:
        assert_like(getattr(fastconv, name)(in1, in2, mode, method), expected, min(in1.size, in2.size))


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    pairs().filter(lambda pair: pair[0].ndim == 2),
    st.sampled_from(MODES),
    st.sampled_from(("convolve2d", "correlate2d")),
    st.sampled_from(BOUNDARIES),
    st.integers(0, 2),
)
def test_random_images(pair, mode, name, boundary, fillvalue):
    in1, in2 = pair
    expected = scipy_result(name, in1, in2, mode, boundary, fillvalue)
    if expected is not None:
        assert_like(getattr(fastconv, name)(in1, in2, mode, boundary, fillvalue), expected, in2.size)


@pytest.mark.parametrize("dtype", ["float64", "complex64", "int32"])
@pytest.mark.parametrize("method", ["direct", "fft"])
def test_arrays_as_they_lie(dtype, method):
    whole = data((40, 60), dtype)
    bytes_ = np.zeros(whole.nbytes + 1, np.uint8)
    unaligned = bytes_[1:].view(dtype).reshape(whole.shape)
    unaligned[...] = whole
    read_only = whole.copy()
    read_only.flags.writeable = False
    kernel = data((5, 7), dtype, 1)
    expected = fastconv.correlate(whole, kernel, "same", method)
    for same in (np.asfortranarray(whole), whole.astype(whole.dtype.newbyteorder(">")), unaligned, read_only):
        assert_same_bits(fastconv.correlate(same, kernel, "same", method), expected)
    views = whole[::-2, 3:50:3], kernel[::-1, ::2]
    copies = tuple(view.copy() for view in views)
    assert_same_bits(fastconv.convolve(*views, method=method), fastconv.convolve(*copies, method=method))
    views, copies = (views[0][:, 1], views[1][1]), (copies[0][:, 1], copies[1][1])
    assert_same_bits(fastconv.convolve(*views, method=method), fastconv.convolve(*copies, method=method))


def test_other_kinds_of_arrays_become_plain():
    expected = signal.convolve([1.0, 2.0], [3.0, 4.0])
    for given_ in ([1.0, 2.0], (1.0, 2.0), np.ma.array([1.0, 2.0])):
        result = fastconv.convolve(given_, [3.0, 4.0])
        assert_owned(result, "float64")
        np.testing.assert_array_equal(result, expected)


def test_numbers_without_axes_are_multiplied():
    assert fastconv.convolve(2.0, 3.0) == 6
    assert fastconv.correlate(2.0, 3j) == -6j


@pytest.mark.parametrize("shapes", [((5000,), (600,)), ((300, 200), (9, 8)), ((90, 80), (80, 90))], ids=str)
@pytest.mark.parametrize("method", ["direct", "fft"])
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_threads_do_not_show(shapes, method, dtype, set_threads):
    in1, in2 = (data(shape, dtype, seed) for seed, shape in enumerate(shapes))
    together = fastconv.convolve(in1, in2, method=method)
    set_threads(1)
    assert_same_bits(fastconv.convolve(in1, in2, method=method), together)


@pytest.mark.parametrize("shapes", [((50,), (8,)), ((9,), (9,)), ((20, 21), (3, 4)), ((200, 210), (5, 4))], ids=str)
def test_nan_reaches_the_results_that_read_it(shapes):
    in1, in2 = (data(shape, "float64", seed) for seed, shape in enumerate(shapes))
    in1[tuple(size // 2 for size in in1.shape)] = np.nan
    in1[(0,) * in1.ndim] = np.inf
    for mode in MODES:
        marks = signal.convolve(~np.isfinite(in1) * 1.0, np.ones_like(in2), mode, "direct")
        result = fastconv.convolve(in1, in2, mode, "direct")
        np.testing.assert_array_equal(~np.isfinite(result), marks > 0.5)


def test_every_division_of_the_work_gives_the_same():
    """Whatever kernel, tile and lines are chosen: only time depends on it."""
    problems = [
        SignalProblem((Axis(150, 11, 0, 160),), np.dtype("float32"), False),
        SignalProblem((Axis(20, 9, 4, 20), Axis(33, 6, 2, 33)), np.dtype("float64"), False, True),
        SignalProblem((Axis(20, 9, 0, 28), Axis(23, 6, 0, 28)), np.dtype("float64"), False, True, 0, WRAP),
        SignalProblem((Axis(20, 9, 4, 20), Axis(23, 6, 2, 23)), np.dtype("int32"), False, False, 0, WRAP),
        SignalProblem((Axis(12, 9, 8, 4), Axis(8, 6, 5, 3)), np.dtype("complex64"), True, True, 2),
    ]
    for problem in problems:
        in1, in2 = (data([getattr(axis, name) for axis in problem.axes], problem.dtype, 2) for name in ("in1", "in2"))
        divided = [Direct(problem, shape) for shape in Direct(problem).shapes]
        assert len({direct.shape for direct in divided}) > 3
        first = divided[0].run(in1, in2)
        for direct in divided:
            assert_like(direct.run(in1, in2), first, in2.size)


@pytest.mark.parametrize("transforms", [Fourier, Spectral])
@pytest.mark.parametrize("shapes", [((900,), (40,)), ((90, 70), (7, 9))], ids=str)
@pytest.mark.parametrize("dtype", REAL)
def test_every_size_of_block_gives_the_same(transforms, shapes, dtype):
    in1, in2 = (data(shape, dtype, seed) for seed, shape in enumerate(shapes))
    problem = filter_problem(in1, in2, "same", True)
    choices = list(transforms(problem).choices)
    assert len(choices) >= 3
    expected = signal.correlate(in1, in2, "same", "direct")
    for blocks in choices[:40]:
        assert_like(transforms(problem, blocks).run(in1, in2), expected, in1.size)


@pytest.mark.parametrize("length", [*range(1, 30), 65, 97, 129, 200, 433, 1000, 2500])
def test_transforms_of_all_lengths(length):
    """Every radix and every fold of the one axis."""
    in1, in2 = data((length,), "float64"), data((length,), "float64", 1)
    assert_like(fastconv.convolve(in1, in2, method="fft"), np.convolve(in1, in2), length)


@pytest.mark.parametrize(("n", "k"), [(200_000, 300), (150_000, 40_000), (40_000, 150_000)])
def test_transforms_of_long_signals(n, k):
    """With blocks, and where even those would be too long for our own transforms."""
    in1, in2 = data((n,), "float64"), data((k,), "float64", 1)
    expected = signal.fftconvolve(in1, in2, "valid")
    assert_like(fastconv.convolve(in1, in2, "valid", "fft"), expected, 100)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize(("first", "second"), [(1e30, 1e-30), (1e-25, 1e3), (0, 1), (1, 0), (1e19, 1e19)])
def test_transforms_of_signals_of_any_size(dtype, first, second):
    """Large and small ones share a transform."""
    in1, in2 = first * data((300,), dtype), second * data((200,), dtype, 1)
    expected = np.convolve(in1.astype(float), in2.astype(float))
    result = fastconv.convolve(in1, in2, method="fft")
    assert result.dtype == dtype
    if np.abs(expected).max() < np.finfo(dtype).max:
        allowed = 200 * np.finfo(dtype).eps * np.abs(expected).max()
        np.testing.assert_allclose(result, expected, rtol=0, atol=allowed)


WRONG = {
    "mode": (lambda f: f([[1.0]], [[1.0]], "most"), ValueError, "mode must be one of 'full', 'same', 'valid'; got"),
    "no text as mode": (lambda f: f([[1.0]], [[1.0]], 2), ValueError, "mode .* got 2"),
    "list as mode": (lambda f: f([[1.0]], [[1.0]], ["full"]), ValueError, "mode"),
    "ranks": (lambda f: f(np.ones((2, 2)), np.ones(2)), ValueError, r"axes"),
    "three axes": (lambda f: f(np.ones((2, 2, 2)), np.ones((2, 2, 2))), ValueError, r"in1 .*axes.*\(2, 2, 2\)"),
    "empty": (lambda f: f(np.ones((0, 2)), np.ones((2, 2))), ValueError, "in1 must not be empty"),
    "empty in2": (lambda f: f(np.ones((2, 2)), np.ones((2, 0))), ValueError, "in2 must not be empty"),
    "valid": (lambda f: f(np.ones((2, 3)), np.ones((3, 2)), "valid"), ValueError, "'valid'"),
    "longdouble": (lambda f: f(np.ones((2, 2), "g"), np.ones((2, 2))), TypeError, "in1 must hold .* got"),
    "object": (lambda f: f(np.ones((2, 2)), np.ones((2, 2), "O")), TypeError, "in2 must hold .* got object"),
    "text": (lambda f: f([["a"]], [[1.0]]), TypeError, "in1"),
}


@pytest.mark.parametrize("name", ["convolve", "correlate", "convolve2d", "correlate2d"])
@pytest.mark.parametrize(("call", "error", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments(name, call, error, message):
    with pytest.raises(error, match=message):
        call(getattr(fastconv, name))


@pytest.mark.parametrize("name", ["convolve", "correlate"])
def test_wrong_method(name):
    with pytest.raises(ValueError, match="method must be one of 'auto', 'direct', 'fft'; got 'fastest'"):
        getattr(fastconv, name)([1.0], [1.0], "full", "fastest")


@pytest.mark.parametrize("name", ["convolve2d", "correlate2d"])
def test_wrong_boundaries(name):
    function, ones = getattr(fastconv, name), np.ones((2, 2))
    with pytest.raises(ValueError, match="in1 must have 2 axes"):
        function(np.ones(2), np.ones(2))
    with pytest.raises(ValueError, match=r"boundary must be one of 'fill', .*; got 'reflect'"):
        function(ones, ones, boundary="reflect")
    for fillvalue, dtype in (([1, 2], float), ("a", float), (None, float), (1j, float), (300, "uint8"), (-1, "uint8")):
        with pytest.raises(ValueError, match="fillvalue must be"):
            function(ones.astype(dtype), ones.astype(dtype), fillvalue=fillvalue)


def test_fill_values_of_other_types():
    image, kernel = np.ones((2, 3)), np.arange(6.0).reshape(3, 2)
    for fillvalue in (2, 2.5, True, [3], np.float32(0.5), np.array([[4]])):
        expected = signal.convolve2d(image, kernel, fillvalue=fillvalue)
        np.testing.assert_allclose(fastconv.convolve2d(image, kernel, fillvalue=fillvalue), expected)
    expected = signal.correlate2d(image * 1j, kernel, fillvalue=1 - 1j)
    np.testing.assert_allclose(fastconv.correlate2d(image * 1j, kernel, fillvalue=1 - 1j), expected)
    expected = signal.convolve2d(image.astype(int), kernel.astype(int), fillvalue=2.7)
    np.testing.assert_array_equal(fastconv.convolve2d(image.astype(int), kernel.astype(int), fillvalue=2.7), expected)


@pytest.mark.parametrize(("ours", "theirs"), [("pad", "fill"), ("circular", "wrap"), ("symmetric", "symm")])
def test_other_names_of_boundaries(ours, theirs):
    image, kernel = data((5, 6), "float32"), data((3, 3), "float32", 1)
    expected = fastconv.convolve2d(image, kernel, "same", theirs)
    assert_same_bits(fastconv.convolve2d(image, kernel, "same", ours), expected)


def test_transforms_of_nan_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(fastconv.convolve(np.full(3, np.nan), np.ones(3), method="fft")).all()
