"""The convolution as its formula says, loop by loop: the reference that every other algorithm is held against.

    H[n, i, j, d] = U[d] + sum over a, b, c of V[a, b, c, d] X[n, i + a, j + b, c]

with stride, padding and dilation in the two index sums, and groups as separate ranges of channels. Arrays are seen
in the order of this formula (n, row, column, channel) whatever their layout in memory.
"""

from __future__ import annotations

import functools

import numpy as np
from numba import carray
from numba.core.ccallback import CFunc

from fastconv.kernels import jit
from fastconv.kernels.params import record
from fastconv.kernels.simd import call_activation, pointer, record_at, tensor

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
    """The image X, the kernel V and the output H as arrays."""
    ic, oc = p.groups * p.ic_per_group, p.groups * p.oc_per_group
    X = tensor(REAL, CONTIGUOUS, p.x, (p.n, p.ih, p.iw, ic), (p.x_n, p.x_i, p.x_j, p.x_c))
    V = tensor(REAL, CONTIGUOUS, p.v, (p.kh, p.kw, p.ic_per_group, oc), (p.v_a, p.v_b, p.v_c, p.v_d))
    H = tensor(REAL, CONTIGUOUS, p.h, (p.n, p.oh, p.ow, oc), (p.h_n, p.h_i, p.h_j, p.h_d))
    return X, V, H


@functools.cache
def forward(dtype: str, contiguous: int) -> CFunc:
    """H from X, V and U; a task is one output pixel (n, i, j)."""
    REAL = np.dtype(dtype).type
    CONTIGUOUS = int(contiguous)

    def naive_forward(address, begin, end, thread):
        p = record_at(address, NAIVE)
        X, V, H = views(p, REAL, CONTIGUOUS)
        U = carray(pointer(p.u), p.groups * p.oc_per_group, REAL)
        for pixel in range(begin, end):
            n, i, j = pixel // (p.oh * p.ow), pixel // p.ow % p.oh, pixel % p.ow
            for d in range(p.groups * p.oc_per_group):
                H[n, i, j, d] = U[d]
            for a in range(p.kh):
                row = i * p.stride_i + a * p.dilation_i - p.pad_i
                if row < 0 or row >= p.ih:
                    continue
                for b in range(p.kw):
                    column = j * p.stride_j + b * p.dilation_j - p.pad_j
                    if column < 0 or column >= p.iw:
                        continue
                    for group in range(p.groups):
                        for c in range(p.ic_per_group):
                            value = X[n, row, column, group * p.ic_per_group + c]
                            for d in range(group * p.oc_per_group, (group + 1) * p.oc_per_group):
                                H[n, i, j, d] += V[a, b, c, d] * value
            for d in range(p.groups * p.oc_per_group):
                if p.relu != 0 and H[n, i, j, d] < 0:
                    H[n, i, j, d] = 0
                if p.activation != 0:
                    where = p.h + n * p.h_n + i * p.h_i + j * p.h_j + d * p.h_d
                    if call_activation(p.activation, where, 1) != 0:
                        carray(pointer(p.failed), 1, np.int64)[0] = 1

    return jit.kernel(naive_forward)


@functools.cache
def grad_input(dtype: str, contiguous: int) -> CFunc:
    """The gradient for X from the one for H: every tap gives back to the pixel it read; a task is one input pixel."""
    REAL = np.dtype(dtype).type
    CONTIGUOUS = int(contiguous)

    def naive_grad_input(address, begin, end, thread):
        p = record_at(address, NAIVE)
        X, V, H = views(p, REAL, CONTIGUOUS)
        for pixel in range(begin, end):
            n, row, column = pixel // (p.ih * p.iw), pixel // p.iw % p.ih, pixel % p.iw
            for c in range(p.groups * p.ic_per_group):
                X[n, row, column, c] = 0
            for a in range(p.kh):
                i = (row + p.pad_i - a * p.dilation_i) // p.stride_i
                if i < 0 or i >= p.oh or i * p.stride_i != row + p.pad_i - a * p.dilation_i:
                    continue
                for b in range(p.kw):
                    j = (column + p.pad_j - b * p.dilation_j) // p.stride_j
                    if j < 0 or j >= p.ow or j * p.stride_j != column + p.pad_j - b * p.dilation_j:
                        continue
                    for group in range(p.groups):
                        for c in range(p.ic_per_group):
                            total = REAL(0)
                            for d in range(group * p.oc_per_group, (group + 1) * p.oc_per_group):
                                total += V[a, b, c, d] * H[n, i, j, d]
                            X[n, row, column, group * p.ic_per_group + c] += total

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
        oc = p.groups * p.oc_per_group
        # U is scratch here: a row of oc sums for each thread.
        sums = carray(pointer(p.u + thread * oc * ITEM), oc, REAL)
        for task in range(begin, end):
            a, b, c = task // (p.kw * p.ic_per_group), task // p.ic_per_group % p.kw, task % p.ic_per_group
            for d in range(oc):
                V[a, b, c, d] = 0
            for line in range(p.n * p.oh):
                n, i = line // p.oh, line % p.oh
                row = i * p.stride_i + a * p.dilation_i - p.pad_i
                if row < 0 or row >= p.ih:
                    continue
                sums[:] = REAL(0)
                for j in range(p.ow):
                    column = j * p.stride_j + b * p.dilation_j - p.pad_j
                    if column < 0 or column >= p.iw:
                        continue
                    for group in range(p.groups):
                        value = X[n, row, column, group * p.ic_per_group + c]
                        for d in range(group * p.oc_per_group, (group + 1) * p.oc_per_group):
                            sums[d] += H[n, i, j, d] * value
                for d in range(oc):
                    V[a, b, c, d] += sums[d]

    return jit.kernel(naive_grad_weight)
