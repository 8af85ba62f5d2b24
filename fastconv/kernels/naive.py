"""The convolution as its formula says, loop by loop: the reference that every other algorithm is held against.

    H[n, i, j, d] = U[d] + sum over a, b, c of V[a, b, c, d] X[n, i + a, j + b, c]

with stride, padding and dilation in the two index sums. Groups are an axis g of their own, so that c and d count the
channels of one group. Arrays are seen in the order of this formula whatever their layout in memory.
"""

from __future__ import annotations

import functools

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.kernels import jit
from fastconv.kernels.activation import activate
from fastconv.kernels.params import record
from fastconv.kernels.simd import record_at, tensor

NAIVE = record("""
    x x_n x_i x_j x_c
    v v_a v_b v_c v_d
    h h_n h_i h_j h_d
    u relu activation failed
    n ih iw oh ow kh kw groups ic_per_group oc_per_group
    stride_i stride_j pad_i pad_j dilation_i dilation_j
""")
"""Addresses and strides in bytes of the image, the kernel and the output, and the problem's sizes."""


@jit.inline
def views(p, REAL, CONTIGUOUS):
    """The image X[n, i, j, g, c], the kernel V[a, b, c, g, d] and the output H[n, i, j, g, d]."""
    groups, ic, oc = p.groups, p.ic_per_group, p.oc_per_group
    X = tensor(REAL, CONTIGUOUS, p.x, (p.n, p.ih, p.iw, groups, ic), (p.x_n, p.x_i, p.x_j, ic * p.x_c, p.x_c))
    V = tensor(REAL, CONTIGUOUS, p.v, (p.kh, p.kw, ic, groups, oc), (p.v_a, p.v_b, p.v_c, oc * p.v_d, p.v_d))
    H = tensor(REAL, CONTIGUOUS, p.h, (p.n, p.oh, p.ow, groups, oc), (p.h_n, p.h_i, p.h_j, oc * p.h_d, p.h_d))
    return X, V, H


@functools.cache
def forward(dtype: str, contiguous: int) -> CFunc:
    """H from X, V and U; a task is one output pixel (n, i, j)."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    CONTIGUOUS = int(contiguous)

    def naive_forward(address, begin, end, thread):
        p = record_at(address, NAIVE)
        X, V, H = views(p, REAL, CONTIGUOUS)
        _, ih, iw, _, _ = X.shape
        kh, kw, ic, groups, oc = V.shape
        U = tensor(REAL, 1, p.u, (groups, oc), (oc * ITEM, ITEM))
        for pixel in range(begin, end):
            n, i, j = pixel // (p.oh * p.ow), pixel // p.ow % p.oh, pixel % p.ow
            for g in range(groups):
                for d in range(oc):
                    H[n, i, j, g, d] = U[g, d]
            for a in range(kh):
                row = i * p.stride_i + a * p.dilation_i - p.pad_i
                if row < 0 or row >= ih:
                    continue
                for b in range(kw):
                    column = j * p.stride_j + b * p.dilation_j - p.pad_j
                    if column < 0 or column >= iw:
                        continue
                    for g in range(groups):
                        for c in range(ic):
                            value = X[n, row, column, g, c]
                            for d in range(oc):
                                H[n, i, j, g, d] += V[a, b, c, g, d] * value
            for g in range(groups):
                for d in range(oc):
                    if p.relu != 0 and H[n, i, j, g, d] < 0:
                        H[n, i, j, g, d] = 0
                    if p.activation != 0:
                        activate(p, p.h + n * p.h_n + i * p.h_i + j * p.h_j + (g * oc + d) * p.h_d, 1)

    return jit.kernel(naive_forward)


@functools.cache
def grad_input(dtype: str, contiguous: int) -> CFunc:
    """The gradient for X from the one for H: every tap gives back to the pixel it read; a task is one input pixel."""
    REAL = np.dtype(dtype).type
    CONTIGUOUS = int(contiguous)

    def naive_grad_input(address, begin, end, thread):
        p = record_at(address, NAIVE)
        X, V, H = views(p, REAL, CONTIGUOUS)
        _, oh, ow, _, _ = H.shape
        kh, kw, ic, groups, oc = V.shape
        for pixel in range(begin, end):
            n, row, column = pixel // (p.ih * p.iw), pixel // p.iw % p.ih, pixel % p.iw
            for g in range(groups):
                for c in range(ic):
                    X[n, row, column, g, c] = 0
            for a in range(kh):
                i = (row + p.pad_i - a * p.dilation_i) // p.stride_i
                if i < 0 or i >= oh or i * p.stride_i != row + p.pad_i - a * p.dilation_i:
                    continue
                for b in range(kw):
                    j = (column + p.pad_j - b * p.dilation_j) // p.stride_j
                    if j < 0 or j >= ow or j * p.stride_j != column + p.pad_j - b * p.dilation_j:
                        continue
                    for g in range(groups):
                        for c in range(ic):
                            total = REAL(0)
                            for d in range(oc):
                                total += V[a, b, c, g, d] * H[n, i, j, g, d]
                            X[n, row, column, g, c] += total

    return jit.kernel(naive_grad_input)


@functools.cache
def grad_weight(dtype: str, contiguous: int) -> CFunc:
    """The gradient for V: every weight meets all pixels; a task is one (a, b, c), the weights of one input value.

    Each output row is summed by itself first, so rounding errors grow with a row and the number of rows, not with
    the number of pixels.
    """
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    CONTIGUOUS = int(contiguous)

    def naive_grad_weight(address, begin, end, thread):
        p = record_at(address, NAIVE)
        X, V, H = views(p, REAL, CONTIGUOUS)
        _, ih, iw, _, _ = X.shape
        _, kw, ic, groups, oc = V.shape
        # U is scratch here: a row of sums for each thread.
        sums = tensor(REAL, 1, p.u + thread * groups * oc * ITEM, (groups, oc), (oc * ITEM, ITEM))
        for task in range(begin, end):
            a, b, c = task // (kw * ic), task // ic % kw, task % ic
            V[a, b, c, :, :] = REAL(0)
            for line in range(p.n * p.oh):
                n, i = line // p.oh, line % p.oh
                row = i * p.stride_i + a * p.dilation_i - p.pad_i
                if row < 0 or row >= ih:
                    continue
                sums[:] = REAL(0)
                for j in range(p.ow):
                    column = j * p.stride_j + b * p.dilation_j - p.pad_j
                    if column < 0 or column >= iw:
                        continue
                    for g in range(groups):
                        value = X[n, row, column, g, c]
                        for d in range(oc):
                            sums[g, d] += H[n, i, j, g, d] * value
                for g in range(groups):
                    for d in range(oc):
                        V[a, b, c, g, d] += sums[g, d]

    return jit.kernel(naive_grad_weight)
