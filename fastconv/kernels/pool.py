"""Pooling: the largest value or the mean of each window, and the gradient for the input.

Images are seen as (image, row, column, lane). The lanes of NHWC are the channels, which fill vectors (`windows.py`). In
NCHW (planes) every channel is an image of its own with one lane: there the window's sizes are compile-time constants,
the loops over it unroll, and the one inside, over columns, is what LLVM vectorises. The gradient for planes goes
through panels, because rows are short and the columns of a window lie side by side.
"""

from __future__ import annotations

import functools

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.kernels import jit, target
from fastconv.kernels.params import CALL, record
from fastconv.kernels.simd import array_at, record_at
from fastconv.kernels.spans import steps_in
from fastconv.kernels.windows import pool_window, return_window

POOL = record("ih iw oh ow lanes block workspace_bytes")
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
def floor_of(call, REAL):
    """What a fused ReLU lifts values to; nothing is below NaN."""
    return REAL(0) if call.relu != 0 else REAL(np.nan)


@jit.inline
def whole_vectors(p, VL):
    """The lanes of a pixel's vectors, and up to which output column these are more than its own.

    The vector of few lanes then reads and writes those of the next pixels, which are written anew after it.
    """
    lanes = max(p.lanes, VL)
    return lanes, p.ow - steps_in(lanes - p.lanes, p.lanes)


@functools.cache
def forward_lanes(dtype: str, kh: int, kw: int, sh: int, sw: int, largest: bool) -> CFunc:
    """The pooled image of several lanes; a task is one output row of one image."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    KH, KW, SH, SW, LARGEST = int(kh), int(kw), int(sh), int(sw), int(largest)
    VL = target.vector_bytes() // ITEM

    def pool_lanes(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, POOL)
        floor, pixel = floor_of(call, REAL), p.lanes * ITEM
        row = p.iw * pixel
        lanes, safe = whole_vectors(p, VL)
        for task in range(begin, end):
            image, i = task // p.oh, task % p.oh
            source, place = call.source + (image * p.ih + i * SH) * row, call.target + task * p.ow * pixel
            for j in range(p.ow):
                pool_window(
                    REAL, VL, KH, KW, LARGEST, floor, source + j * SW * pixel, row, pixel,
                    lanes if j < safe else p.lanes, place + j * pixel,
                )  # fmt: skip

    return jit.kernel(pool_lanes)


@functools.cache
def forward_planes(dtype: str, kh: int, kw: int, sh: int, sw: int, largest: bool) -> CFunc:
    """The pooled image of one lane; a task is one output row of one image."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    KH, KW, SH, SW, LARGEST = int(kh), int(kw), int(sh), int(sw), int(largest)
    SHARE, ZERO = REAL(1 / (kh * kw)), REAL(0)

    def pool_planes(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, POOL)
        floor = floor_of(call, REAL)
        for task in range(begin, end):
            image, i = task // p.oh, task % p.oh
            X = array_at(call.source + (image * p.ih + i * SH) * p.iw * ITEM, (KH, p.iw), REAL)
            Y = array_at(call.target + task * p.ow * ITEM, p.ow, REAL)
            for j in range(p.ow):
                if LARGEST:
                    best = X[0, j * SW]
                    for a in range(KH):
                        for b in range(KW):
                            value = X[a, j * SW + b]
                            if larger(value, best):
                                best = value
                    Y[j] = floor if best < floor else best
                else:
                    total = ZERO
                    for a in range(KH):
                        for b in range(KW):
                            total += X[a, j * SW + b]
                    Y[j] = total * SHARE

    return jit.kernel(pool_planes)


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
    APART = int(sh >= kh and sw >= kw)
    ADD, CLOSE = 1 - APART, int(sh == kh and sw == kw)
    VL, ZERO = target.vector_bytes() // ITEM, REAL(0)

    def return_lanes(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, POOL)
        floor, pixel = floor_of(call, REAL), p.lanes * ITEM
        row = p.iw * pixel
        covered = CLOSE and p.ih == p.oh * KH and p.iw == p.ow * KW
        lanes, safe = whole_vectors(p, VL)
        if not CLOSE:  # what lies between windows, or in several, is not written anew
            safe = 0
        for task in range(begin, end):
            image, top, bottom, first, last = own_rows(p, task, SH)
            if not covered:
                own = call.target + (image * p.ih + first) * row
                array_at(own, (last - first) * p.iw * p.lanes, REAL)[:] = ZERO
            for i in range(top, bottom):
                gradient, window = call.other + (image * p.oh + i) * p.ow * pixel, (image * p.ih + i * SH) * row
                for j in range(p.ow):
                    here = window + j * SW * pixel
                    return_window(
                        REAL, VL, KH, KW, LARGEST, ADD, floor, call.source + here, row, pixel,
                        lanes if j < safe else p.lanes, gradient + j * pixel, call.target + here,
                    )  # fmt: skip

    return jit.kernel(return_lanes)


@functools.cache
def backward_planes(dtype: str, kh: int, kw: int, sh: int, sw: int, largest: bool) -> CFunc:
    """The gradient for an image with one lane; a task is a block of output rows of one image."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    KH, KW, SH, SW, LARGEST, TAPS = int(kh), int(kw), int(sh), int(sw), int(largest), int(kh * kw)
    SHARE, ZERO = REAL(1 / (kh * kw)), REAL(0)

    def return_planes(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, POOL)
        floor = floor_of(call, REAL)
        panel = array_at(call.workspace + thread * p.workspace_bytes, (TAPS, PANEL), REAL)
        for task in range(begin, end):
            image, top, bottom, first, last = own_rows(p, task, SH)
            X = array_at(call.source + image * p.ih * p.iw * ITEM, (p.ih, p.iw), REAL)
            D = array_at(call.target + image * p.ih * p.iw * ITEM, (p.ih, p.iw), REAL)
            G = array_at(call.other + image * p.oh * p.ow * ITEM, p.oh * p.ow, REAL)
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
                        if best <= floor:
                            rest = ZERO
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
