"""Pooling: the largest value or the mean of each window, and the gradient for the input.

Images are seen as (image, row, column, lane). The lanes of NHWC are the channels; in NCHW (PLANES) every channel is an
image of its own with one lane. The window's sizes are compile-time constants: the loops over it unroll, so that the one
inside, over lanes or columns, is what LLVM vectorises.

The gradient for lanes writes one input row at a time. Where a loop writes to several, LLVM checks before the outermost
loop whether their address ranges are disjoint, finds that they interleave, and runs scalar code, 8 times slower. The
gradient for planes goes through panels, because rows are short and the columns of a window lie side by side.
"""

from __future__ import annotations

import functools

import numpy as np
from numba import carray
from numba.core.ccallback import CFunc

from fastconv.kernels import jit
from fastconv.kernels.params import record
from fastconv.kernels.simd import pointer, record_at

POOL = record("x y grad_x grad_y ih iw oh ow lanes block workspace workspace_bytes")
"""`block` is how many output rows are a task of a gradient, with the input rows that only they read."""

PANEL = 256
"""Windows that the gradient for planes takes at a time; one value of each is a row of its workspace."""


@jit.inline
def larger(value, best):
    """Whether a value takes the place of the best so far; NaN does, and stays."""
    return not value <= best and best == best


@jit.inline
def give(value, best, rest, zero):
    """What a value of a window gets of the gradient, and what is left for those after it: the first best gets all."""
    hit = (value == best) | (value != value)
    return (rest if hit else zero), (zero if hit else rest)


@jit.inline
def largest_of_windows(X, Y, KH, KW, SW):
    """Y[j, c] = max over a, b of X[a, j * SW + b, c]."""
    columns, lanes = Y.shape
    for j in range(columns):
        for c in range(lanes):
            best = X[0, j * SW, c]
            for a in range(KH):
                for b in range(KW):
                    value = X[a, j * SW + b, c]
                    if larger(value, best):
                        best = value
            Y[j, c] = best


@functools.cache
def forward(dtype: str, planes: bool, kh: int, kw: int, sh: int, sw: int, largest: bool) -> CFunc:
    """The pooled image; a task is one output row of one image."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    KH, KW, SH, SW, PLANES, LARGEST = int(kh), int(kw), int(sh), int(sw), int(planes), int(largest)
    SHARE, ZERO = REAL(1 / (kh * kw)), REAL(0)

    def pool_rows(address, begin, end, thread):
        p = record_at(address, POOL)
        lanes = 1 if PLANES else p.lanes
        for task in range(begin, end):
            image, i = task // p.oh, task % p.oh
            X = carray(pointer(p.x + (image * p.ih + i * SH) * p.iw * lanes * ITEM), (KH, p.iw, lanes), REAL)
            Y = carray(pointer(p.y + task * p.ow * lanes * ITEM), (p.ow, lanes), REAL)
            if LARGEST:
                largest_of_windows(X, Y, KH, KW, SW)
            else:
                for j in range(p.ow):
                    for c in range(lanes):
                        total = ZERO
                        for a in range(KH):
                            for b in range(KW):
                                total += X[a, j * SW + b, c]
                        Y[j, c] = total * SHARE

    return jit.kernel(pool_rows)


@jit.inline
def own_rows(p, task, SH):
    """The image of a task, its output rows, and the input rows that are its own."""
    blocks = (p.oh + p.block - 1) // p.block
    image, top = task // blocks, task % blocks * p.block
    bottom = min(top + p.block, p.oh)
    return image, top, bottom, top * SH, p.ih if bottom == p.oh else bottom * SH


@functools.cache
def backward_lanes(dtype: str, kh: int, kw: int, sh: int, sw: int, largest: bool) -> CFunc:
    """The gradient for an image with several lanes; a task is a block of output rows of one image."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    KH, KW, SH, SW, LARGEST = int(kh), int(kw), int(sh), int(sw), int(largest)
    SHARE, ZERO = REAL(1 / (kh * kw)), REAL(0)

    def return_lanes(address, begin, end, thread):
        p = record_at(address, POOL)
        in_row, out_row = p.iw * p.lanes * ITEM, p.ow * p.lanes * ITEM
        own = p.workspace + thread * p.workspace_bytes
        best = carray(pointer(own), (p.ow, p.lanes), REAL)
        rest = carray(pointer(own + out_row), (p.ow, p.lanes), REAL)
        for task in range(begin, end):
            image, top, bottom, first, last = own_rows(p, task, SH)
            carray(pointer(p.grad_x + (image * p.ih + first) * in_row), (last - first) * p.iw * p.lanes, REAL)[:] = ZERO
            for i in range(top, bottom):
                G = carray(pointer(p.grad_y + (image * p.oh + i) * out_row), (p.ow, p.lanes), REAL)
                X = carray(pointer(p.x + (image * p.ih + i * SH) * in_row), (KH, p.iw, p.lanes), REAL)
                if LARGEST:
                    largest_of_windows(X, best, KH, KW, SW)
                for j in range(p.ow):
                    for c in range(p.lanes):
                        rest[j, c] = G[j, c] if LARGEST else G[j, c] * SHARE
                for a in range(KH):
                    D = carray(pointer(p.grad_x + (image * p.ih + i * SH + a) * in_row), (p.iw, p.lanes), REAL)
                    for b in range(KW):
                        for j in range(p.ow):
                            for c in range(p.lanes):
                                part = rest[j, c]
                                if LARGEST:
                                    part, rest[j, c] = give(X[a, j * SW + b, c], best[j, c], part, ZERO)
                                D[j * SW + b, c] += part

    return jit.kernel(return_lanes)


@functools.cache
def backward_planes(dtype: str, kh: int, kw: int, sh: int, sw: int, largest: bool) -> CFunc:
    """The gradient for an image with one lane; a task is a block of output rows of one image."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    KH, KW, SH, SW, LARGEST, TAPS = int(kh), int(kw), int(sh), int(sw), int(largest), int(kh * kw)
    SHARE, ZERO = REAL(1 / (kh * kw)), REAL(0)

    def return_planes(address, begin, end, thread):
        p = record_at(address, POOL)
        panel = carray(pointer(p.workspace + thread * p.workspace_bytes), (TAPS, PANEL), REAL)
        for task in range(begin, end):
            image, top, bottom, first, last = own_rows(p, task, SH)
            X = carray(pointer(p.x + image * p.ih * p.iw * ITEM), (p.ih, p.iw), REAL)
            D = carray(pointer(p.grad_x + image * p.ih * p.iw * ITEM), (p.ih, p.iw), REAL)
            G = carray(pointer(p.grad_y + image * p.oh * p.ow * ITEM), p.oh * p.ow, REAL)
            D[first:last] = ZERO
            for begin_at in range(top * p.ow, bottom * p.ow, PANEL):
                count = min(PANEL, bottom * p.ow - begin_at)
                if LARGEST:
                    filled = 0
                    while filled < count:
                        i, j = (begin_at + filled) // p.ow, (begin_at + filled) % p.ow
                        width = min(p.ow - j, count - filled)
                        for a in range(KH):
                            for k in range(width):
                                for b in range(KW):
                                    panel[a * KW + b, filled + k] = X[i * SH + a, (j + k) * SW + b]
                        filled += width
                for k in range(count):
                    rest = G[begin_at + k]
                    if LARGEST:
                        best = panel[0, k]
                        for t in range(TAPS):
                            value = panel[t, k]
                            if larger(value, best):
                                best = value
                        for t in range(TAPS):
                            panel[t, k], rest = give(panel[t, k], best, rest, ZERO)
                    else:
                        for t in range(TAPS):
                            panel[t, k] = rest * SHARE
                filled = 0
                while filled < count:
                    i, j = (begin_at + filled) // p.ow, (begin_at + filled) % p.ow
                    width = min(p.ow - j, count - filled)
                    for a in range(KH):
                        for k in range(width):
                            for b in range(KW):
                                D[i * SH + a, (j + k) * SW + b] += panel[a * KW + b, filled + k]
                    filled += width

    return jit.kernel(return_planes)
