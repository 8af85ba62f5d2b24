"""NaN, infinities, signed zeros, subnormal, huge and tiny numbers, and how far rounding may go."""

import numba
import numpy as np
import pytest

import fastconv

from .cases import DTYPES, LAYOUTS, NAMED, UNIVERSAL, Case, Data, by_name, call, inexact_tolerance
from .cases import data as case_data
from .checks import assert_same_bits

EXACT = [name for name in (*NAMED, "exact") if name in UNIVERSAL]
each_exact = pytest.mark.parametrize("algorithm", EXACT)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
FEW = 2
"""Channels that every algorithm takes."""
SHAPES = (
    "tail-17to31-ow13", "all-together", "depthwise-dilated", "groups-narrow", "threads-one-channel", "threads-winograd",
)  # fmt: skip


def reached(case: Case, direction: str, source: str, index: tuple[int, ...]) -> np.ndarray:
    """Which NHWC results take part in a product with one element, by counting positive products."""
    shapes = dict(zip(("x", "w", "grad_y"), case.shapes("NHWC"), strict=True))
    arrays = {name: np.zeros(shape) if name == source else np.ones(shape) for name, shape in shapes.items()}
    arrays[source][index] = 1
    return call(case, Data(**arrays, expected={}), direction, algorithm="naive") > 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", SHAPES)
@each_layout
@each_exact
def test_operands_reach_just_the_results_that_they_take_part_in(algorithm, layout, name, value):
    """Elements drawn from x and grad_y in every direction; an infinite or NaN weight is another matter at borders."""
    case = by_name(name)
    rng = np.random.default_rng(len(name))
    nhwc = case_data(case, "floats", "NHWC", "float32")
    for direction, source in (
        ("forward", "x"),
        ("grad_input", "grad_y"),
        ("grad_weight", "x"),
        ("grad_weight", "grad_y"),
    ):
        index = tuple(int(rng.integers(size)) for size in getattr(nhwc, source).shape)
        expected = reached(case, direction, source, index)
        given = case_data(case, "floats", layout, "float32")
        dirty = getattr(given, source).copy()
        dirty[index if layout == "NHWC" else (index[0], index[3], *index[1:3])] = value
        arrays = {"x": given.x, "w": given.w, "grad_y": given.grad_y, source: dirty}
        result = call(case, Data(**arrays, expected={}), direction, algorithm=algorithm, layout=layout)
        if layout == "NCHW":
            result = result.transpose(2, 3, 1, 0) if direction == "grad_weight" else result.transpose(0, 2, 3, 1)
        found, message = ~np.isfinite(result), f"{direction}, {source}{index}"
        if source == "grad_y" and direction == "grad_weight":  # it may meet the padding's zeros at the other taps, too
            assert found[expected].all(), message
            expected = found & expected.any(axis=(0, 1))
        np.testing.assert_array_equal(found, expected, err_msg=message)


@each_exact
@each_layout
@each_dtype
def test_scaling_by_powers_of_two_changes_exponents_alone(dtype, layout, algorithm):
    """Huge and tiny magnitudes: nothing between the operands and the result overflows or is lost."""
    case = by_name("all-together")
    given = case_data(case, "floats", layout, dtype)
    most = {"float32": 40, "float64": 400}[dtype]
    for direction in ("forward", "grad_input", "grad_weight"):
        plain = call(case, given, direction, algorithm=algorithm, layout=layout)
        for scale in (most, -most):
            scaled = Data(*(np.ldexp(array, scale) for array in (given.x, given.w, given.grad_y)), {}, {})
            result = call(case, scaled, direction, algorithm=algorithm, layout=layout)
            assert_same_bits(result, np.ldexp(plain, 2 * scale))


@each_exact
@each_dtype
def test_overflow_gives_infinity_of_the_right_sign(dtype, algorithm):
    x = np.full((1, 3, 40, 17), np.finfo(dtype).max, dtype)
    w = np.ones((2, 2, 17, 18), dtype)
    assert (fastconv.conv2d(x, w, algorithm=algorithm) == np.inf).all()
    assert (fastconv.conv2d(x, -w, algorithm=algorithm) == -np.inf).all()


@pytest.mark.parametrize("algorithm", NAMED)
@each_dtype
def test_subnormal_numbers_are_within_the_smallest_normal_one(dtype, algorithm):
    """They may count as zeros, in operands and in results."""
    smallest = np.finfo(dtype).smallest_normal
    rng = np.random.default_rng(4)
    channels = FEW if algorithm == "fft" else 17
    x = (rng.uniform(-1, 1, (1, 6, 40, channels)) * smallest).astype(dtype)
    w = rng.uniform(-1, 1, (3, 3, channels, channels + 1)).astype(dtype)
    result = fastconv.conv2d(x, w, algorithm=algorithm)
    scaled = fastconv.conv2d(np.ldexp(x, 60), w, algorithm="naive")
    terms = 9 * channels * (1 if algorithm in UNIVERSAL else 36)
    assert (np.abs(np.float64(result) - np.ldexp(np.float64(scaled), -60)) <= terms * smallest).all()


@numba.njit(parallel=True)
def callers_products(value, factor):
    products = np.empty(8, np.float32)
    for k in numba.prange(8):
        products[k] = value * factor
    return products


def test_callers_floating_point_state_stays(set_threads):
    """Subnormal numbers outside the kernels are computed with, on the calling thread and on Numba's."""
    case = by_name("threads-plain")
    given = case_data(case, "floats", "NHWC", "float32")
    smallest = np.finfo(np.float32).smallest_normal
    for threads in (1, numba.config.NUMBA_NUM_THREADS):
        set_threads(threads)
        for algorithm in NAMED:
            if algorithm in UNIVERSAL:
                call(case, given, "forward", algorithm=algorithm)
        assert np.float32(smallest) * np.float32(0.25) > 0
        assert (callers_products(smallest, np.float32(0.25)) > 0).all()


@each_exact
@each_dtype
def test_zeros_of_either_sign_are_zeros(dtype, algorithm):
    x, w = np.full((1, 4, 40, 17), -0.0, dtype), np.ones((3, 3, 17, 18), dtype)
    for result in (
        fastconv.conv2d(x, w, padding=1, algorithm=algorithm),
        fastconv.conv2d_grad_weight(np.ones((1, 2, 38, 18), dtype), x, 3, algorithm=algorithm),
    ):
        assert (result == 0).all()
    activated = fastconv.conv2d(x, w, activation="relu", algorithm=algorithm)
    assert (activated == 0).all()


@pytest.mark.parametrize("algorithm", NAMED)
@each_layout
@each_dtype
def test_cancellation_is_within_the_bound(dtype, layout, algorithm):
    """Large terms that cancel: the error follows the terms, not the result; docs/reliability.md has the bounds.

    Exact algorithms: 2 eps sqrt(terms) sum|products| for each output. The others: 8 eps sqrt(terms) times the largest.
    """
    rng = np.random.default_rng(3)
    channels = FEW if algorithm == "fft" else 32
    half = rng.uniform(1, 1000, (1, 9, 11, channels))
    x = np.concatenate([half, half + rng.uniform(-1e-3, 1e-3, half.shape)], axis=3).astype(dtype)
    weights = rng.uniform(1, 2, (3, 3, channels, channels + 1))
    w = np.concatenate([weights, -weights], axis=2).astype(dtype)
    given_x, given_w = (x, w) if layout == "NHWC" else (x.transpose(0, 3, 1, 2), w.transpose(3, 2, 0, 1))
    result = fastconv.conv2d(given_x, given_w, layout=layout, algorithm=algorithm)
    expected = fastconv.conv2d(x.astype(np.float64), w.astype(np.float64), algorithm="naive")
    magnitude = fastconv.conv2d(np.abs(x.astype(np.float64)), np.abs(w.astype(np.float64)), algorithm="naive")
    if layout == "NCHW":
        result = result.transpose(0, 2, 3, 1)
    terms = 9 * 2 * channels
    limit = 2 * np.finfo(dtype).eps * np.sqrt(terms) * magnitude
    if algorithm not in UNIVERSAL:
        limit = inexact_tolerance(dtype, terms, magnitude)
    assert (np.abs(result - expected) <= limit).all()
