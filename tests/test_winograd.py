"""What holds for the algorithms that transform data: the identity behind them, their error bound, epilogues, NaN."""

import functools
import re

import numba
import numpy as np
import pytest

import fastconv
from fastconv.algorithms.winograd.forms import FORMS, form_of, tiles_along
from fastconv.kernels.target import vector_bytes
from fastconv.kernels.toomcook import Filtering, transforms

from . import reference
from .cases import DIRECTIONS, DTYPES, LAYOUTS, by_name, data
from .checks import assert_same_bits
from .extent import COMBINATIONS
from .transformed import assert_error_near_plain_sums, assert_prepared_as_called, each_activation

TILED = [taken for taken in COMBINATIONS if taken[0].name.startswith(("winograd-", "threads-winograd"))]
each_tiled = pytest.mark.parametrize(
    ("case", "layout", "dtype"), TILED, ids=lambda value: getattr(value, "name", value)
)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
KERNELS = [*FORMS, (4, 4), (6, 6), (7, 7), (9, 9), (3, 5), (8, 3), (1, 11), (6, 1)]
each_kernel = pytest.mark.parametrize("size", KERNELS, ids=lambda size: f"{size[0]}x{size[1]}")


FILTERINGS = [(4, 3), (3, 3), (2, 5), (3, 4), (1, 6), (6, 1), (4, 5), (2, 7), (1, 1), (2, 3, 2), (5, 4, 2), (4, 9, 3)]
"""m and r, and the stride."""


@pytest.mark.parametrize("filtering", [Filtering(*sizes) for sizes in FILTERINGS])
def test_transforms_compute_a_correlation(filtering):
    m, r, stride = filtering
    rng = np.random.default_rng(m)
    d, g = rng.standard_normal(filtering.n), rng.standard_normal(r)
    output, weights, inputs = (np.array(matrix) for matrix in transforms(*filtering))
    expected = [d[i : i + r] @ g for i in range(0, m * stride, stride)]
    np.testing.assert_allclose(output @ ((weights @ g) * (inputs @ d)), expected, rtol=1e-12)


def test_a_negative_stride_is_that_of_the_input_gradient():
    filtering = Filtering(2, 3, -2)
    rng = np.random.default_rng(2)
    d, g = rng.standard_normal(filtering.inputs), rng.standard_normal(3)
    output, weights, inputs = (np.array(matrix) for matrix in transforms(*filtering))
    expected = [d[0] * g[0] + d[1] * g[2], d[1] * g[1], d[1] * g[0] + d[2] * g[2], d[2] * g[1]]
    np.testing.assert_allclose(output @ ((weights @ g) * (inputs @ d)), expected, rtol=1e-12)


@each_tiled
@each_activation
def test_prepared_layer_has_the_bits_of_the_call(activation, dtype, layout, case):
    assert_prepared_as_called("winograd", activation, dtype, layout, case)


@each_dtype
@each_kernel
def test_error_is_near_that_of_the_plain_sum(size, dtype):
    rng = np.random.default_rng(7)
    x, w = (rng.standard_normal(shape).astype(dtype) for shape in ((1, 32, 32, 64), (*size, 64, 32)))
    exact = reference.conv2d(x.astype(np.longdouble), w.astype(np.longdouble), padding=1)

    compute = functools.partial(fastconv.conv2d, x, w, padding=1)
    assert_error_near_plain_sums("winograd", compute, exact, dtype)


@each_dtype
def test_error_of_a_strided_form_is_near_that_of_the_plain_sum(dtype):
    rng = np.random.default_rng(7)
    x, w = (rng.standard_normal(shape).astype(dtype) for shape in ((1, 37, 38, 64), (3, 3, 64, 32)))
    assert "of stride 2" in fastconv.plan_conv2d(x.shape, w.shape, dtype=dtype, stride=2, algorithm="winograd").why
    exact = reference.conv2d(x.astype(np.longdouble), w.astype(np.longdouble), stride=2)

    compute = functools.partial(fastconv.conv2d, x, w, stride=2)
    assert_error_near_plain_sums("winograd", compute, exact, dtype, 1.5)


@each_dtype
@pytest.mark.parametrize("direction", ["forward", "grad_weight"])
def test_few_targets_that_lie_a_dilation_apart_take_smaller_tiles(direction, dtype):
    rng = np.random.default_rng(10)
    shapes = (1, 21, 33, 32), (3, 3, 32, 48), (1, 21, 33, 48)
    x, w, grad_y = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    keywords = {"padding": 6, "dilation": 6}
    plan = fastconv.plan_conv2d(x.shape, w.shape, dtype=dtype, direction=direction, algorithm="winograd", **keywords)
    assert "F(3 x 3, 3 x 3)" in plan.why
    finer = [array.astype(np.longdouble) for array in (x, w, grad_y)]
    if direction == "forward":
        exact = reference.conv2d(finer[0], finer[1], **keywords)
        compute = functools.partial(fastconv.conv2d, x, w, **keywords)
    else:
        exact = reference.conv2d_grad_weight(finer[2], finer[0], (3, 3), **keywords)
        compute = functools.partial(fastconv.conv2d_grad_weight, grad_y, x, (3, 3), **keywords)
    assert_error_near_plain_sums("winograd", compute, exact, dtype)


@each_dtype
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(3, 3), (5, 5), (4, 7), (9, 9)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_error_of_tiles_of_rows_is_near_that_of_the_plain_sum(size, stride, dtype):
    rng = np.random.default_rng(9)
    x, w = (rng.standard_normal(shape).astype(dtype) for shape in ((1, 40, 70, 3), (*size, 3, 32)))
    if stride == 2 and size == (3, 3):
        with pytest.raises(ValueError, match="saves no multiplications for rows of 3 taps"):
            fastconv.conv2d(x, w, stride=stride, algorithm="winograd")
        return
    exact = reference.conv2d(x.astype(np.longdouble), w.astype(np.longdouble), padding=1, stride=stride)

    compute = functools.partial(fastconv.conv2d, x, w, padding=1, stride=stride)
    assert_error_near_plain_sums("winograd", compute, exact, dtype)


@each_dtype
@each_kernel
def test_error_of_the_weight_gradient_is_near_that_of_the_plain_sum(size, dtype):
    """Over many pixels as well: sums are taken in blocks, and the blocks in slabs."""
    rng = np.random.default_rng(8)
    shapes = (1, 160, 160, 16), (1, 161 - size[0], 161 - size[1], 16)
    x, grad_y = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    finer = {"float32": np.float64, "float64": np.longdouble}[dtype]
    exact = reference.conv2d_grad_weight(grad_y.astype(finer), x.astype(finer), size)

    compute = functools.partial(fastconv.conv2d_grad_weight, grad_y, x, size)
    times = {"float32": 4, "float64": 6}[dtype] if size[0] == size[1] else 8
    assert_error_near_plain_sums("winograd", compute, exact, dtype, times)


@pytest.mark.parametrize(
    "name",
    [
        "threads-winograd-slabs",
        "threads-winograd-blocks",
        "winograd-groups",
        "threads-winograd-k5-slabs",
        "threads-winograd-dilated",
        "threads-winograd-k7-slabs",
        "threads-winograd-k5-strided",
    ],
)
def test_weight_gradient_depends_on_threads_nowhere(name, set_threads):
    """One thread adds slabs to the gradient where several keep them apart until the end."""
    case = by_name(name)
    given = data(case, "floats", "NHWC", "float32")
    set_threads(1)
    alone = fastconv.conv2d_grad_weight(given.grad_y, given.x, case.kernel, algorithm="winograd", **case.arguments)
    set_threads(min(2, numba.config.NUMBA_NUM_THREADS))
    together = fastconv.conv2d_grad_weight(given.grad_y, given.x, case.kernel, algorithm="winograd", **case.arguments)
    assert_same_bits(alone, together)


@each_layout
@each_kernel
def test_weight_gradient_takes_a_nan_to_the_weights_of_its_channel(size, layout):
    channels, x_shape = (16, 33), (1, 24, 24, 16)
    x, grad_y = np.ones(x_shape, np.float32), np.ones((1, 25 - size[0], 25 - size[1], 33), np.float32)
    for array, channel in ((x, 3), (grad_y, 32)):
        dirty = {"x": x.copy(), "grad_y": grad_y.copy()}
        name = "x" if array is x else "grad_y"
        dirty[name][0, 9, 9, channel] = np.nan
        if layout == "NCHW":
            dirty = {key: value.transpose(0, 3, 1, 2) for key, value in dirty.items()}
        result = fastconv.conv2d_grad_weight(**dirty, kernel_size=size, layout=layout, algorithm="winograd")
        reached = np.isnan(result if layout == "NHWC" else result.transpose(2, 3, 1, 0))
        expected = np.zeros((*size, *channels), bool)
        if name == "x":
            expected[:, :, channel] = True
        else:
            expected[..., channel] = True
        assert reached[expected].all()
        assert not reached[~expected].any()


@pytest.mark.parametrize(
    "name",
    [
        "threads-winograd-batch",
        "threads-winograd-k5-batch",
        "threads-winograd-dilated",
        "threads-winograd-k7-batch",
        "threads-winograd-k5-strided",
        "threads-winograd-rows",
        "threads-winograd-rows-k7-strided",
    ],
)
def test_result_depends_on_neither_batch_nor_threads(name, set_threads):
    case = by_name(name)
    given = data(case, "floats", "NHWC", "float32")
    keywords = {"algorithm": "winograd", **case.arguments}
    results = []
    for threads in range(1, min(2, numba.config.NUMBA_NUM_THREADS) + 1):
        set_threads(threads)
        results.append(fastconv.conv2d(given.x, given.w, **keywords))
        alone = [fastconv.conv2d(image, given.w, **keywords) for image in given.x]
        assert_same_bits(np.stack(alone), results[-1])
    assert_same_bits(results[0], results[-1])


@each_kernel
def test_nan_stays_within_the_tiles_that_read_it(size):
    x, w = np.ones((1, 24, 24, 16), np.float32), np.ones((*size, 16, 16), np.float32)
    x[0, 9, 9, 3] = np.nan
    windows, tiles = [], []  # the outputs whose windows hold (9, 9), and those of their tiles
    form = form_of(size, (1, 1), "forward")
    for r, m in zip(size, (form.rows.m, form.columns.m), strict=True):
        first, last = 9 - r // 2, 9 + (r - 1) // 2
        windows.append(slice(first, last + 1))
        tiles.append(slice(first // m * m, last // m * m + m))
    reached = np.isnan(fastconv.conv2d(x, w, padding="same", algorithm="winograd")).any(axis=(0, 3))
    assert reached[tuple(windows)].all()
    reached[tuple(tiles)] = False
    assert not reached.any()
    assert np.isnan(fastconv.conv2d(x, w, padding="same", algorithm="exact")).sum() == np.prod(size) * 16


def test_nan_stays_within_the_tiles_of_its_rows():
    x, w = np.ones((1, 24, 32, 3), np.float32), np.ones((3, 3, 3, 16), np.float32)
    assert "F(1 x 4, 1 x 3)" in fastconv.plan_conv2d(x.shape, w.shape, padding="same", algorithm="winograd").why
    x[0, 9, 18, 1] = np.nan
    reached = np.isnan(fastconv.conv2d(x, w, padding="same", algorithm="winograd")).any(axis=(0, 3))
    assert reached[8:11, 17:20].all()
    reached[8:11, 16:20] = False  # the tile of 4 pixels that holds 17 to 19
    assert not reached.any()


def test_nan_stays_within_its_phase_of_a_dilated_problem():
    x, w = np.ones((1, 24, 24, 16), np.float32), np.ones((3, 3, 16, 16), np.float32)
    x[0, 9, 9, 3] = np.nan
    reached = np.isnan(fastconv.conv2d(x, w, padding=3, dilation=3, algorithm="winograd")).any(axis=(0, 3))
    assert reached[6:13:3, 6:13:3].all()
    reached[::3, ::3] = False
    assert not reached.any()


@pytest.mark.parametrize("m", [1, 2, 4])
@pytest.mark.parametrize("dilation", [1, 2, 3, 7])
def test_tiles_cover_every_target_once(dilation, m):
    for count in range(1, 40):
        tiles = tiles_along(Filtering(m, 3), count, dilation)
        first = [a // dilation * m * dilation + a % dilation for a in range(tiles)]
        targets = [i + k * dilation for i in first for k in range(m)]
        assert max(first) < count
        assert sorted(target for target in targets if target < count) == list(range(count))


@pytest.mark.parametrize(
    ("kernel", "options", "words"),
    [
        ((2, 5), {}, "pieces of 3 or 4 taps along each axis, or 1 along one, not (2, 5)"),
        ((17, 17), {}, "kernels of at most 16 pieces"),
        ((3, 3), {"stride": 3}, "pieces of 3 or 4 taps along each axis, or 1 along one, not (3, 3)"),
        ((3, 3), {"stride": 2, "dilation": 2}, "strides without dilation, not (2, 2) with (2, 2)"),
        ((5, 5), {"groups": 8}, "channels in a group to read, not 2"),
        ((3, 3), {"ic": 3, "stride": (1, 2)}, "saves no multiplications for rows of 3 taps, stride (1, 2)"),
        ((3, 3), {"ic": 3, "dilation": 2}, "no dilation along rows"),
        ((40, 40), {"ic": vector_bytes() // 4 - 1}, "transforms more of these rows and weights than it may keep"),
    ],
)
def test_declines_with_a_reason(kernel, options, words):
    options = dict(options)
    ic = options.pop("ic", 16)
    x = np.ones((1, 40, 40, ic), np.float32)
    w = np.ones((*kernel, ic // options.get("groups", 1), 16), np.float32)
    with pytest.raises(ValueError, match=re.escape(words)):
        fastconv.conv2d(x, w, algorithm="winograd", **options)


@pytest.mark.parametrize(("size", "stride"), [((2, 2), 2), ((12, 12), 2), ((5, 3), 4), ((4, 1), (1, 2))])
def test_strided_input_gradients_need_a_few_taps_in_each_phase(size, stride):
    shapes = (1, 20, 20, 16), (*size, 16, 16)
    with pytest.raises(ValueError, match=re.escape("at least the stride with 2 to 5 taps in a phase")):
        fastconv.plan_conv2d(*shapes, stride=stride, direction="grad_input", algorithm="winograd")


@each_layout
@pytest.mark.parametrize("padding", [0, 1, 2, ((3, 0), (0, 4))])
@pytest.mark.parametrize(
    ("size", "stride"), [((4, 4), 2), ((5, 5), 2), ((7, 8), 2), ((3, 5), (3, 1)), ((9, 6), (4, 2))]
)
def test_phases_of_an_input_gradient_lie_in_their_places(size, stride, padding, layout):
    """Whatever phase the padding begins with, and whether zeros fill up the kernel."""
    rng = np.random.default_rng(9)
    for image in ((9, 9), (10, 13), (23, 12)):
        x_shape, w_shape = (1, *image, 18), (*size, 18, 17)
        if layout == "NCHW":
            x_shape, w_shape = (1, 18, *image), (17, 18, *size)
        options = {"stride": stride, "padding": padding, "layout": layout}
        plan = fastconv.plan_conv2d(x_shape, w_shape, direction="grad_input", algorithm="winograd", **options)
        grad_y, w = (rng.standard_normal(shape).astype("f") for shape in (plan.problem.y_shape, w_shape))
        result, plain = (
            fastconv.conv2d_grad_input(grad_y, w, x_shape, algorithm=name, **options) for name in ("winograd", "naive")
        )
        np.testing.assert_allclose(result, plain, atol=2e-5 * np.abs(plain).max())


@each_dtype
@pytest.mark.parametrize("taps", [4, 5, 7])
def test_error_of_a_strided_input_gradient_is_near_that_of_the_plain_sum(taps, dtype):
    rng = np.random.default_rng(10)
    grad_y, w = (rng.standard_normal(shape).astype(dtype) for shape in ((1, 20, 20, 64), (taps, taps, 16, 64)))
    x_shape = (1, 38 + taps, 38 + taps, 16)
    exact = reference.conv2d_grad_input(grad_y.astype(np.longdouble), w.astype(np.longdouble), x_shape, stride=2)
    compute = functools.partial(fastconv.conv2d_grad_input, grad_y, w, x_shape, stride=2)
    assert_error_near_plain_sums("winograd", compute, exact, dtype, 4)


@each_layout
@pytest.mark.parametrize("name", ["threads-winograd-k5-strided", "threads-winograd-k4-strided"])
def test_strided_input_gradient_depends_on_neither_batch_nor_threads(name, layout, set_threads):
    case = by_name(name)
    given = data(case, "floats", layout, "float32")
    keywords = {"algorithm": "winograd", "layout": layout, **case.arguments}
    results = []
    for threads in range(1, min(2, numba.config.NUMBA_NUM_THREADS) + 1):
        set_threads(threads)
        results.append(fastconv.conv2d_grad_input(given.grad_y, given.w, given.x.shape, **keywords))
        each = (1, *given.x.shape[1:])
        alone = [fastconv.conv2d_grad_input(image[None], given.w, each, **keywords) for image in given.grad_y]
        assert_same_bits(np.concatenate(alone), results[-1])
    assert_same_bits(results[0], results[-1])


@each_dtype
@pytest.mark.parametrize("padding", [0, 1, ((0, 3), (2, 1))])
@pytest.mark.parametrize("image", [(3, 3), (8, 9), (17, 22)])
def test_strided_forms_are_exact_on_integers(image, padding, dtype):
    """Their coefficients are all 0 and +-1."""
    rng = np.random.default_rng(3)
    x, w = (rng.integers(-4, 5, shape).astype(dtype) for shape in ((2, *image, 17), (3, 3, 17, 18)))
    options = {"stride": 2, "padding": padding}
    y = fastconv.conv2d(x, w, algorithm="winograd", **options)
    np.testing.assert_array_equal(y, fastconv.conv2d(x, w, algorithm="naive", **options))
    for gradient, other, last in (
        (fastconv.conv2d_grad_input, w, x.shape),
        (fastconv.conv2d_grad_weight, x, (3, 3)),
    ):
        result = gradient(y, other, last, algorithm="winograd", **options)
        np.testing.assert_array_equal(result, gradient(y, other, last, algorithm="naive", **options))


@pytest.mark.parametrize("width", [13, 14, 15, 20, 29])
def test_depthwise_weight_gradient_takes_a_nan_to_the_taps_that_meet_it(width):
    channels = 16
    x, grad_y = np.ones((1, 5, width, channels), np.float32), np.ones((1, 3, width - 2, channels), np.float32)
    x[0, 0, width - 1] = np.nan  # only the tap in the upper right corner reads it
    result = fastconv.conv2d_grad_weight(grad_y, x, 3, groups=channels, algorithm="direct")
    assert np.isnan(result[0, 2]).all()
    result[0, 2] = 0
    assert not np.isnan(result).any()


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("n", "size", "ic", "oc", "kernel"), [
    (1, 27, 64, 192, 5), (8, 27, 64, 192, 5), (1, 28, 128, 256, 5), (8, 56, 64, 64, 3), (1, 33, 512, 512, 3),
    (1, 14, 512, 512, 7), (1, 46, 128, 128, 7), (1, 56, 64, 32, 16), (1, 30, 384, 64, 11),
])  # fmt: skip
def test_workspace_keeps_to_its_limit(n, size, ic, oc, kernel, direction, set_threads):
    """A tenth of the arrays, or 2 MB a thread."""
    set_threads(min(2, numba.config.NUMBA_NUM_THREADS))
    shapes = (n, size, size, ic), (kernel, kernel, ic, oc)
    plan = fastconv.plan_conv2d(*shapes, padding=kernel // 2, algorithm="winograd", direction=direction)
    arrays = 4 * (n * size * size * (ic + oc) + kernel * kernel * ic * oc)
    assert plan.workspace_bytes <= max(arrays / 10, numba.get_num_threads() * 2 * 2**20)
