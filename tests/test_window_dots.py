"""Weight gradients by windows: rows of every width beside the tiles, and borders that meet no padding."""

import numba
import numpy as np
import pytest

import fastconv

CHANNELS = 20


def integers(*shape):
    return np.random.default_rng(sum(shape)).integers(-3, 4, shape).astype(np.float32)


@pytest.mark.parametrize("outputs", [None, 2])
@pytest.mark.parametrize("padding", [0, 1, ((0, 3), (4, 1))])
def test_rows_of_every_width(outputs, padding):
    """None or several of three pixels in tiles, none or some beside them, fewer than the padding has columns."""
    groups, targets = (CHANNELS, CHANNELS) if outputs is None else (1, outputs)
    for height, width in [(3, width) for width in range(3, 14)] + [(height, 7) for height in range(4, 8)]:
        options = {"padding": padding, "groups": groups}
        x, w = integers(2, height, width, CHANNELS), integers(3, 3, CHANNELS // groups, targets)
        grad_y = integers(*fastconv.conv2d(x, w, **options).shape)
        result = fastconv.conv2d_grad_weight(grad_y, x, 3, algorithm="direct", **options)
        expected = fastconv.conv2d_grad_weight(grad_y, x, 3, algorithm="naive", **options)
        np.testing.assert_array_equal(result, expected, err_msg=f"{height} x {width}")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 4), (5, 8), (3, 8), (2, 3)])
def test_gradient_of_a_border_pixel_meets_no_padding(row, column, value):
    x, grad_y = np.ones((1, 6, 9, CHANNELS), np.float32), np.ones((1, 6, 9, CHANNELS), np.float32)
    grad_y[0, row, column] = value
    result = fastconv.conv2d_grad_weight(grad_y, x, 3, padding=1, groups=CHANNELS, algorithm="direct")
    rows, columns = row + np.arange(3) - 1, column + np.arange(3) - 1
    met = ((rows >= 0) & (rows < 6))[:, None] & ((columns >= 0) & (columns < 9))
    np.testing.assert_array_equal(~np.isfinite(result[..., 0, :]), np.broadcast_to(met[..., None], (3, 3, CHANNELS)))


def test_error_over_a_million_pixels():
    """Values of one sign: a single running sum would lose five digits."""
    rng = np.random.default_rng(1)
    x, grad_y = (rng.uniform(0.5, 1, (1, 1000, 1000, 16)).astype(np.float32) for _ in range(2))
    result = fastconv.conv2d_grad_weight(grad_y, x, (3, 3), padding=1, groups=16, algorithm="direct")
    middle = np.einsum("rck,rck->k", grad_y[0], x[0], dtype=np.float64)
    np.testing.assert_allclose(result[1, 1, 0], middle, rtol=2e-5)


@pytest.mark.parametrize(("outputs", "kernel"), [(None, 3), (3, 3), (2, 1)])
def test_bits_do_not_depend_on_threads(outputs, kernel, set_threads):
    groups, targets = (48, 48) if outputs is None else (1, outputs)
    x, grad_y = (np.random.default_rng(2).standard_normal((3, 40, 41, c)).astype(np.float32) for c in (48, targets))
    results = []
    for threads in (1, numba.config.NUMBA_NUM_THREADS):
        set_threads(threads)
        results.append(
            fastconv.conv2d_grad_weight(
                grad_y, x, kernel, padding=kernel // 2, groups=groups, algorithm="direct"
            )
        )  # fmt: skip
    np.testing.assert_array_equal(*results)
