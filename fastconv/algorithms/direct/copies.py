"""When channels of some rows are copied: pixels a multiple of 4 KiB apart meet in one set of a cache.

A tile reads a line of each of its pixels, and the CPU fetches ahead those that follow. Where too many of them fall on
one set, these are lost before they are read (docs/experiments.md).
"""

from __future__ import annotations

import math

from fastconv.kernels.params import odd_lines

SET_BYTES = 4 << 10
"""Lines that far apart share a set."""
STRIP_BYTES = 256 << 10
"""Copies that a task keeps at once: they stay in the second cache level."""
_MOST_BYTES = 1 << 20
"""Copies of rows of which one target row needs more are not made."""
PART_BYTES = 512
"""Copied bytes of a pixel: memory gives fewer at a time slowly."""


def sets_of(pixel_bytes: int) -> int:
    """Over how many sets of the first cache level the same lines of pixels spread that lie so far apart."""
    return max(1, SET_BYTES // math.gcd(pixel_bytes, SET_BYTES))


def fits(pixels: int) -> bool:
    """Whether a task may keep copies of so many pixels, and of taps, at once."""
    return pixels * odd_lines(PART_BYTES) <= _MOST_BYTES
