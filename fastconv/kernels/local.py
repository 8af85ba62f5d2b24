"""The locally connected layer: a convolution in which every output pixel has weights of its own.

    H[n, i, j, d] = U[i, j, d] + sum over a, b, c of V[i, j, a, b, c, d] X[n, i + a, j + b, c]

with stride, padding and dilation in the two index sums. A weight meets one number of each image, so memory sets the
time: every kernel goes through the weights once and brings all images to them. Arrays are NHWC.
"""

from __future__ import annotations

import functools

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.kernels import jit
from fastconv.kernels.params import record
from fastconv.kernels.runs import combine_runs, dot_runs, scale_run
from fastconv.kernels.simd import record_at, tensor
from fastconv.kernels.spans import end_inside, first_inside

LOCAL = record("""
    x v h u
    n ih iw ic oh ow oc kh kw
    stride_i stride_j pad_i pad_j dilation_i dilation_j taps
""")
"""Addresses and sizes. A run is `taps` taps of a row that meet neighbouring pixels: kw, or 1 if dilation parts them."""

CACHED_BYTES = 1 << 18
"""Weights that the input gradient comes back to for the next row: they fit the second cache level."""


@jit.inline
def views(p, REAL, ITEM):
    """X, V and H as flat arrays."""
    X = tensor(REAL, 1, p.x, (p.n * p.ih * p.iw * p.ic,), (ITEM,))
    V = tensor(REAL, 1, p.v, (p.oh * p.ow * p.kh * p.kw * p.ic * p.oc,), (ITEM,))
    H = tensor(REAL, 1, p.h, (p.n * p.oh * p.ow * p.oc,), (ITEM,))
    return X, V, H


@jit.inline
def run_inside(column, iw, taps):
    """The first tap that is inside of a run from that column, and how many are."""
    first = max(0, -column)
    return first, min(taps, iw - column) - first


@functools.cache
def forward(dtype: str, lanes: int, single: int) -> CFunc:
    """H from X, V and U; a task is one output pixel.

    `single` is for one output channel: a run of weights is then as contiguous as what it meets.
    """
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, SINGLE = int(lanes), bool(single)

    def local_forward(address, begin, end, thread):
        p = record_at(address, LOCAL)
        _, _, H = views(p, REAL, ITEM)
        ow, oc, kw, taps, iw, ic = p.ow, p.oc, p.kw, p.taps, p.iw, p.ic
        U = tensor(REAL, 1, p.u, (p.oh * ow * oc,), (ITEM,))
        images, runs, x_address, v_address, h_address = p.n, kw // taps, p.x, p.v, p.h
        image, output, weights = p.ih * iw * ic, p.oh * ow * oc, p.kh * kw * ic * oc
        x_step, v_step = p.dilation_i * iw * ic, kw * ic * oc
        stride_j, pad_j, dilation_j = p.stride_j, p.pad_j, p.dilation_j
        for i in range(begin // ow, (end - 1) // ow + 1):
            top = i * p.stride_i - p.pad_i
            low, high = first_inside(top, p.dilation_i), end_inside(top, p.dilation_i, p.ih, p.kh)
            for pixel in range(max(begin, i * ow), min(end, (i + 1) * ow)):
                h = pixel * oc
                for n in range(images):
                    for d in range(oc):
                        H[h + d + n * output] = U[h + d]
                for r in range(runs):
                    column = (pixel - i * ow) * stride_j - pad_j + r * dilation_j
                    first, count = run_inside(column, iw, taps)
                    if count <= 0:
                        continue
                    source = x_address + (((top + low * p.dilation_i) * iw + column + first) * ic) * ITEM
                    v = v_address + (pixel * weights + low * v_step + (r + first) * ic * oc) * ITEM
                    for n in range(images):
                        x = source + n * image * ITEM
                        if SINGLE:
                            H[h + n * output] += dot_runs(
                                REAL, VL, high - low, x, x_step * ITEM, v, v_step * ITEM, count * ic
                            )
                        else:
                            target = h_address + (h + n * output) * ITEM
                            for a in range(high - low):
                                combine_runs(
                                    REAL, VL, 1, count * ic, x + a * x_step * ITEM, ITEM, v + a * v_step * ITEM,
                                    oc * ITEM, oc, target,
                                )  # fmt: skip

    return jit.kernel(local_forward)


@functools.cache
def grad_weight(dtype: str, lanes: int, single: int) -> CFunc:
    """The gradient for V from X and the one for H; a task is the weights of one output pixel. `single` as above."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, SINGLE = int(lanes), bool(single)

    def local_grad_weight(address, begin, end, thread):
        p = record_at(address, LOCAL)
        _, V, H = views(p, REAL, ITEM)
        ow, oc, kh, kw, taps, iw, ic = p.ow, p.oc, p.kh, p.kw, p.taps, p.iw, p.ic
        images, runs, x_address, v_address, h_address = p.n, kw // taps, p.x, p.v, p.h
        image, output, weights = p.ih * iw * ic, p.oh * ow * oc, kh * kw * ic * oc
        v_step, stride_j, pad_j, dilation_j = kw * ic * oc, p.stride_j, p.pad_j, p.dilation_j
        for i in range(begin // ow, (end - 1) // ow + 1):
            top = i * p.stride_i - p.pad_i
            low, high = first_inside(top, p.dilation_i), end_inside(top, p.dilation_i, p.ih, kh)
            for pixel in range(max(begin, i * ow), min(end, (i + 1) * ow)):
                left = (pixel - i * ow) * stride_j - pad_j
                if high - low < kh or left < 0 or left + (kw - 1) * dilation_j >= iw:
                    for k in range(pixel * weights, (pixel + 1) * weights):
                        V[k] = 0
                for r in range(runs):
                    column = left + r * dilation_j
                    first, count = run_inside(column, iw, taps)
                    for a in range(low, high):
                        x = x_address + ((top + a * p.dilation_i) * iw + column + first) * ic * ITEM
                        v = v_address + (pixel * weights + a * v_step + (r + first) * ic * oc) * ITEM
                        h = h_address + pixel * oc * ITEM
                        if SINGLE and images == 1:
                            scale_run(REAL, VL, H[pixel], x, count * ic, v)
                        elif SINGLE:
                            combine_runs(REAL, VL, 0, images, h, output * ITEM, x, image * ITEM, count * ic, v)
                        elif images == 1:
                            pixels = tensor(REAL, 1, x, (count * ic,), (ITEM,))
                            for k in range(count * ic):
                                scale_run(REAL, VL, pixels[k], h, oc, v + k * oc * ITEM)
                        else:
                            for k in range(count * ic):
                                combine_runs(
                                    REAL, VL, 0, images, x + k * ITEM, image * ITEM, h, output * ITEM, oc,
                                    v + k * oc * ITEM,
                                )  # fmt: skip

    return jit.kernel(local_grad_weight)


@functools.cache
def grad_input(dtype: str, lanes: int, single: int) -> CFunc:
    """The gradient for X from V and the one for H; a task is one row of the input, of every image. `single` as above.

    With one output channel, all windows of a column that meet the row give back to it at once: the sum of their runs
    stays in a register.
    """
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, SINGLE = int(lanes), bool(single)

    def local_grad_input(address, begin, end, thread):
        p = record_at(address, LOCAL)
        X, _, _ = views(p, REAL, ITEM)
        ow, oc, kw, taps, iw, ic = p.ow, p.oc, p.kw, p.taps, p.iw, p.ic
        images, runs, x_address, v_address, h_address = p.n, kw // taps, p.x, p.v, p.h
        image, output, weights = p.ih * iw * ic, p.oh * ow * oc, p.kh * kw * ic * oc
        stride_j, pad_j, dilation_j = p.stride_j, p.pad_j, p.dilation_j
        for n in range(images):
            for k in range(begin * iw * ic, end * iw * ic):
                X[k + n * image] = 0
        block = max(1, CACHED_BYTES // (p.kh * weights * ITEM))
        for task in range((ow + block - 1) // block * (end - begin)):
            left, row = task // (end - begin) * block, begin + task % (end - begin)
            # The taps that meet the row, and the output rows of their windows, are arithmetic progressions.
            windows, tap, i, tap_step, i_step = 0, 0, 0, 0, 0
            for a in range(p.kh):
                above = row + p.pad_i - a * p.dilation_i
                if above < 0 or above % p.stride_i != 0 or above // p.stride_i >= p.oh:
                    continue
                if windows == 0:
                    tap, i = a, above // p.stride_i
                elif windows == 1:
                    tap_step, i_step = a - tap, above // p.stride_i - i
                windows += 1
            h_step, v_step = i_step * ow * oc, i_step * ow * weights + tap_step * kw * ic * oc
            for j in range(left, min(left + block, ow)):
                for r in range(runs):
                    column = j * stride_j - pad_j + r * dilation_j
                    first, count = run_inside(column, iw, taps)
                    if count <= 0:
                        continue
                    x = (row * iw + column + first) * ic
                    v = v_address + ((i * ow + j) * weights + ((tap * kw) + r + first) * ic * oc) * ITEM
                    for n in range(images):
                        h = h_address + ((i * ow + j) * oc + n * output) * ITEM
                        if SINGLE:
                            combine_runs(
                                REAL, VL, 1, windows, h, h_step * ITEM, v, v_step * ITEM, count * ic,
                                x_address + (x + n * image) * ITEM,
                            )  # fmt: skip
                        else:
                            for k in range(count * ic):
                                X[x + k + n * image] += dot_runs(
                                    REAL, VL, windows, h, h_step * ITEM, v + k * oc * ITEM, v_step * ITEM, oc
                                )

    return jit.kernel(local_grad_input)
