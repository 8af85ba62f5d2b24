"""Which indices of a strided axis lie inside an image: those with 0 <= offset + index * step < size."""

from __future__ import annotations

from fastconv.kernels import jit


@jit.inline
def first_inside(offset, step):
    """The first index >= 0 whose position is not before the image."""
    return (max(-offset, 0) + step - 1) // step


@jit.inline
def end_inside(offset, step, size, end):
    """The end of the indices < `end` whose position is not behind the image."""
    return min(end, max(0, (size - 1 - offset) // step + 1))
