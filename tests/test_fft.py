"""What holds for products of spectra: their error bound, blocks, prepared layers, NaN, and where `auto` takes them."""

import functools
import re

import numba
import numpy as np
import pytest

import fastconv
from fastconv.algorithms.fft import FftOperation
from fastconv.kernels import fft

from . import reference
from .cases import CASES, DIRECTIONS, DTYPES, INEXACT, LAYOUTS, by_name, data, inexact_tolerance
from .checks import assert_same_bits
from .transformed import assert_error_near_plain_sums, assert_prepared_as_called, each_activation

IN_BLOCKS = [case for case in CASES if case.name.startswith(("blocks-", "threads-blocks"))]
each_block_case = pytest.mark.parametrize("case", IN_BLOCKS, ids=lambda case: case.name)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
each_direction = pytest.mark.parametrize("direction", DIRECTIONS)


@pytest.mark.parametrize("n", [16, 32, 40, 48, 60, 80, 96, 125, 1536])
def test_frequencies_are_those_of_the_stages(n):
    """Decimation in frequency, written with NumPy, gives every frequency where `frequencies` says."""
    x = np.random.default_rng(n).standard_normal(n) + 0j
    m = n
    for radix in fft.radices(n):
        blocks, m = n // m, m // radix
        parts = x.reshape(blocks, radix, m)
        turned = np.einsum(
            "jk,bkm->bjm", np.exp(-2j * np.pi * np.outer(np.arange(radix), np.arange(radix)) / radix), parts
        )
        x = (turned * fft.unit(np.outer(np.arange(radix), np.arange(m)), radix * m).view(complex)[..., 0]).ravel()
    expected = np.fft.fft(np.random.default_rng(n).standard_normal(n))
    np.testing.assert_allclose(x, expected[fft.frequencies(n)], rtol=0, atol=1e-11)


@each_block_case
@each_layout
@each_dtype
@each_activation
def test_prepared_layer_has_the_bits_of_the_call(activation, dtype, layout, case):
    assert_prepared_as_called("fft", activation, dtype, layout, case)


@each_dtype
@pytest.mark.parametrize(("size", "times"), [(3, 6), (15, 4), (31, 4)])
def test_error_is_near_that_of_the_plain_sum(size, times, dtype):
    """A short sum has few errors of its own, and the transforms as many as before."""
    rng = np.random.default_rng(7)
    x, w = (rng.standard_normal(shape).astype(dtype) for shape in ((1, 90, 70, 1), (size, size, 1, 1)))
    exact = reference.conv2d(x.astype(np.longdouble), w.astype(np.longdouble), padding=size // 2)

    compute = functools.partial(fastconv.conv2d, x, w, padding=size // 2)
    assert_error_near_plain_sums("fft", compute, exact, dtype, times)


@each_dtype
def test_error_of_the_weight_gradient_is_near_that_of_the_plain_sum(dtype):
    rng = np.random.default_rng(8)
    x, grad_y = (rng.standard_normal((1, edge, edge, 1)).astype(dtype) for edge in (160, 145))
    exact = reference.conv2d_grad_weight(grad_y.astype(np.longdouble), x.astype(np.longdouble), (16, 16))

    compute = functools.partial(fastconv.conv2d_grad_weight, grad_y, x, 16)
    assert_error_near_plain_sums("fft", compute, exact, dtype)


@each_dtype
@pytest.mark.parametrize("kind", ["one pixel", "constant", "one tap", "brightness", "steep"])
def test_error_follows_the_largest_output(kind, dtype):
    """The bound of docs/reliability.md for images and kernels far from noise."""
    rng = np.random.default_rng(9)
    x, w = rng.uniform(-1, 1, (1, 100, 120, 1)), rng.uniform(-1, 1, (17, 21, 1, 1))
    if kind == "one pixel":
        x[:], x[0, 50, 60] = 0, 1
    elif kind == "constant":
        x[:] = 1
    elif kind == "one tap":
        w[:], w[3, 5] = 0, 1
    elif kind == "brightness":
        x = 255 + x
    else:
        x *= np.exp(np.linspace(0, 30, 120))[:, None]
    x, w = x.astype(dtype), w.astype(dtype)
    keywords = {"padding": "same"}
    expected = fastconv.conv2d(x.astype(np.float64), w.astype(np.float64), algorithm="naive", **keywords)
    magnitude = fastconv.conv2d(
        np.abs(x.astype(np.float64)), np.abs(w.astype(np.float64)), algorithm="naive", **keywords
    )
    result = fastconv.conv2d(x, w, algorithm="fft", **keywords)
    terms = 1 if kind == "one tap" else w.size
    assert np.all(np.abs(result - expected) <= inexact_tolerance(dtype, terms, magnitude))


@each_direction
@pytest.mark.parametrize("name", ["threads-blocks", "threads-blocks-depthwise"])
def test_result_depends_on_neither_batch_nor_threads(name, direction, set_threads):
    case = by_name(name)
    given = data(case, "floats", "NHWC", "float32")
    keywords = {"algorithm": "fft", **case.arguments}

    def compute(x, grad_y):
        if direction == "forward":
            return fastconv.conv2d(x, given.w, **keywords)
        if direction == "grad_input":
            return fastconv.conv2d_grad_input(grad_y, given.w, x.shape, **keywords)
        return fastconv.conv2d_grad_weight(grad_y, x, case.kernel, **keywords)

    results = []
    for threads in range(1, min(2, numba.config.NUMBA_NUM_THREADS) + 1):
        set_threads(threads)
        results.append(compute(given.x, given.grad_y))
        if direction != "grad_weight":
            alone = [compute(x[None], grad_y[None])[0] for x, grad_y in zip(given.x, given.grad_y, strict=True)]
            assert_same_bits(np.stack(alone), results[-1])
    assert_same_bits(results[0], results[-1])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_stays_within_the_pair_of_blocks_that_read_it(value):
    x, w = np.ones((1, 400, 50, 2), np.float32), np.ones((15, 15, 1, 2), np.float32)
    x[0, 9, 9, 1] = value
    keywords = {"padding": "same", "groups": 2}
    blocks = fastconv.plan_conv2d(x.shape, w.shape, algorithm="fft", **keywords).operation.blocks
    result = fastconv.conv2d(x, w, algorithm="fft", **keywords)
    reached = ~np.isfinite(result[0])
    assert not reached[..., 0].any()
    assert reached[2:17, 2:17, 1].all()
    assert blocks.blocks_c == 1
    assert blocks.count > 2
    assert not reached[2 * blocks.step_r + 7 :].any()
    exact = fastconv.conv2d(x, w, algorithm="exact", **keywords)
    assert (~np.isfinite(exact)).sum() == 15**2


@each_layout
def test_weight_gradient_takes_a_nan_to_the_weights_of_its_channel(layout):
    for name in ("x", "grad_y"):
        dirty = {"x": np.ones((1, 40, 40, 3), np.float32), "grad_y": np.ones((1, 26, 26, 3), np.float32)}
        dirty[name][0, 9, 9, 1] = np.nan
        if layout == "NCHW":
            dirty = {key: value.transpose(0, 3, 1, 2) for key, value in dirty.items()}
        result = fastconv.conv2d_grad_weight(**dirty, kernel_size=15, groups=3, layout=layout, algorithm="fft")
        reached = np.isnan(result if layout == "NHWC" else result.transpose(2, 3, 1, 0))
        assert reached[..., 1].all()
        assert not reached[..., ::2].any()


@each_direction
@pytest.mark.parametrize(
    ("channels", "size", "options", "words"),
    [
        (1, 15, {"stride": 2}, "stride 1, not (2, 2)"),
        (1, 15, {"dilation": (1, 2)}, "dilation 1, not (1, 2)"),
        (64, 15, {}, "64 to 64 channels"),
        (1, 600, {}, "(600, 600)"),
    ],
)
def test_declines_what_it_is_not_for(channels, size, options, words, direction):
    shapes = (1, 40, 40, channels), (size, size, channels, channels)
    keywords = {"padding": size, "direction": direction, **options}
    with pytest.raises(ValueError, match=re.escape(words)):
        fastconv.plan_conv2d(*shapes, algorithm="fft", **keywords)
    assert fastconv.plan_conv2d(*shapes, **keywords).algorithm != "fft"


@each_direction
@each_layout
@pytest.mark.parametrize(("n", "size", "ic", "oc", "groups", "kernel"), [
    (1, 1000, 1, 1, 1, 63), (1, 56, 128, 128, 128, 31), (8, 14, 960, 960, 960, 15), (4, 200, 3, 16, 1, 25),
    (1, 300, 1, 1, 1, 200), (1, 1000, 1, 1, 1, 250),
])  # fmt: skip
def test_workspace_keeps_to_its_limit(n, size, ic, oc, groups, kernel, layout, direction, set_threads):
    """A tenth of the arrays, or 2 MB a thread."""
    set_threads(min(2, numba.config.NUMBA_NUM_THREADS))
    x, w = (n, size, size, ic), (kernel, kernel, ic // groups, oc)
    if layout == "NCHW":
        x, w = (n, ic, size, size), (oc, ic // groups, kernel, kernel)
    keywords = {"padding": "same", "groups": groups, "layout": layout, "direction": direction}
    plan = fastconv.plan_conv2d(x, w, algorithm="fft", **keywords)
    arrays = 4 * (n * size * size * (ic + oc) + kernel * kernel * ic // groups * oc)
    assert plan.workspace_bytes <= max(arrays / 10, numba.get_num_threads() * 2 * 2**20)


def test_groups_in_several_steps_have_the_bits_of_a_prepared_layer():
    """The spectra of all weights at once would take more than a call may."""
    rng = np.random.default_rng(10)
    x, w = (rng.standard_normal(s).astype("float32") for s in ((1, 400, 40, 40), (400, 1, 15, 15)))
    keywords = {"padding": 7, "groups": 400, "layout": "NCHW", "algorithm": "fft"}
    operation = fastconv.plan_conv2d(x.shape, w.shape, **keywords).operation
    assert isinstance(operation, FftOperation)
    assert len(operation._steps) > 1
    result = fastconv.conv2d(x, w, **keywords)
    assert_same_bits(fastconv.prepare_conv2d(w, **keywords)(x), result)
    plain = fastconv.conv2d(x, w, padding=7, groups=400, layout="NCHW", algorithm="direct")
    np.testing.assert_allclose(result, plain, rtol=0, atol=1e-4)


@each_direction
@each_dtype
def test_auto_takes_it_for_large_kernels_alone(dtype, direction):
    keywords = {"padding": "same", "direction": direction, "dtype": dtype}
    x = (1, 1000, 1000, 1)
    assert fastconv.plan_conv2d(x, (31, 31, 1, 1), **keywords).algorithm == "fft"
    assert fastconv.plan_conv2d(x, (31, 31, 1, 1), algorithm="exact", **keywords).algorithm not in INEXACT
    assert fastconv.plan_conv2d(x, (3, 3, 1, 1), **keywords).algorithm not in INEXACT
    assert fastconv.plan_conv2d((1, 16, 16, 1), (5, 5, 1, 1), **keywords).algorithm not in INEXACT
