"""Some channels of some rows, copied to where their pixels spread over all sets of a cache."""

from __future__ import annotations

import numpy as np

from fastconv.kernels import jit
from fastconv.kernels.params import LINE
from fastconv.kernels.simd import copy_run, prefetch

AHEAD = 8
"""Pixels to ask for ahead of copying: they lie in pages of their own mostly, which the CPU does not foresee."""


@jit.inline
def copy_pixels(WORDS, source, source_r, source_c, target, target_r, target_c, rows, columns, count):
    """Copy `count` bytes of each pixel; rows and pixels lie `*_r` and `*_c` bytes apart, a vector holds WORDS of 4."""
    for row in range(rows):
        line, place = source + row * source_r, target + row * target_r
        for column in range(columns):
            here = line + column * source_c
            for ahead in range(0, count, LINE):
                prefetch(here + AHEAD * source_c + ahead)
            copy_run(np.float32, WORDS, here, place + column * target_c, count // 4)
