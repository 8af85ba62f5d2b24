"""What mathematics says of convolution holds for ours, on random signals."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import fastconv

from .extent import ALL

properties = settings(derandomize=True, deadline=None, max_examples=150)
METHODS = st.sampled_from(["direct", "fft", "auto"])
RANKS = st.sampled_from([1, 2])


@st.composite
def signals(draw, count, same=(), most=60):
    """Some signals of integers, as float64, in one or two dimensions; those numbered in `same` have one shape.

    The last has sides of at most `most`.
    """
    rank, rng = draw(RANKS), np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sides = [60 if rank == 1 else 14] * count
    sides[-1] = min(sides[-1], most)
    shapes = [draw(st.tuples(*[st.integers(1, side)] * rank)) for side in sides]
    return [rng.integers(-8, 9, shapes[same[0] if i in same else i]).astype(float) for i in range(count)]


def close(result, expected):
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-11 * np.abs(expected).max(initial=1))


@properties
@given(signals(2), METHODS)
def test_commutativity(given_signals, method):
    f, g = given_signals
    close(fastconv.convolve(f, g, method=method), fastconv.convolve(g, f, method=method))
    close(fastconv.convolve(f, g, "same"), centre(fastconv.convolve(g, f), f.shape))


@properties
@given(signals(3), METHODS)
def test_associativity(given_signals, method):
    f, g, h = given_signals
    left = fastconv.convolve(fastconv.convolve(f, g, method=method), h, method=method)
    right = fastconv.convolve(f, fastconv.convolve(g, h, method=method), method=method)
    close(left, right)


@properties
@given(signals(3, same=(1, 2)), METHODS, st.integers(-3, 3))
def test_distributivity_and_homogeneity(given_signals, method, factor):
    f, g, h = given_signals
    together = fastconv.convolve(f, g + factor * h, method=method)
    close(together, fastconv.convolve(f, g, method=method) + factor * fastconv.convolve(f, h, method=method))


@properties
@given(signals(1), METHODS)
def test_identity(given_signals, method):
    (f,) = given_signals
    delta = np.ones((1,) * f.ndim)
    close(fastconv.convolve(f, delta, method=method), f)
    wide = np.zeros((5,) * f.ndim)
    wide[(2,) * f.ndim] = 1
    close(fastconv.convolve(f, wide, "same", method), f)


@properties
@given(signals(2), METHODS, st.integers(0, 5))
def test_shift_equivariance(given_signals, method, shift):
    f, g = given_signals
    moved = np.pad(f, [(shift, 0)] + [(0, 0)] * (f.ndim - 1))
    whole = fastconv.convolve(moved, g, method=method)
    close(whole[shift:], fastconv.convolve(f, g, method=method))
    close(whole[:shift], np.zeros_like(whole[:shift]))


@properties
@given(signals(2), st.integers(0, 30), st.integers(0, 30))
def test_periodic_shift_equivariance(given_signals, rows, columns):
    f, g = (np.atleast_2d(array) for array in given_signals)
    moved = fastconv.convolve2d(np.roll(f, (rows, columns), (0, 1)), g, "same", "wrap")
    close(moved, np.roll(fastconv.convolve2d(f, g, "same", "wrap"), (rows, columns), (0, 1)))


@properties
@given(signals(2), st.sampled_from(["direct", "auto"]))
def test_convolution_theorem(given_signals, method):
    """The transform of a convolution is the product of the transforms, with points for all of its results."""
    f, g = given_signals
    result = fastconv.convolve(f, g, method=method)
    axes = tuple(range(f.ndim))
    product = np.fft.fftn(f, result.shape, axes) * np.fft.fftn(g, result.shape, axes)
    close(np.fft.fftn(result), product)


@properties
@given(signals(2))
def test_correlation_is_convolution_with_the_flipped_conjugate(given_signals):
    f, g = given_signals
    f, g = f + 1j * np.flip(f), g - 2j * g
    close(fastconv.correlate(f, g), fastconv.convolve(f, np.flip(g).conj()))


@properties
@given(signals(3), METHODS)
def test_correlation_is_the_adjoint_of_convolution(given_signals, method):
    f, g, h = given_signals
    h = np.resize(h, [a + b - 1 for a, b in zip(f.shape, g.shape, strict=True)])
    one = np.vdot(fastconv.convolve(f, g, method=method), h)
    other = np.vdot(f, fastconv.correlate(h, g, "valid", method))
    close(np.array(one), np.array(other))


@properties
@given(signals(2), METHODS)
def test_sums_multiply(given_signals, method):
    f, g = given_signals
    close(fastconv.convolve(f, g, method=method).sum()[None], (f.sum() * g.sum())[None])


@properties
@given(signals(2, most=14 if ALL else 5))
def test_convolution_is_conv2d_with_a_flipped_kernel(given_signals):
    """Of few sizes, as `conv2d` compiles a kernel for each."""
    f, g = (np.atleast_2d(array) for array in given_signals)
    result = fastconv.conv2d(f[None, ..., None], np.flip(g)[..., None, None], padding="full")[0, ..., 0]
    close(fastconv.convolve(f, g), result)


def centre(array, shape):
    first = [(have - want) // 2 for have, want in zip(array.shape, shape, strict=True)]
    return array[tuple(slice(begin, begin + want) for begin, want in zip(first, shape, strict=True))]
