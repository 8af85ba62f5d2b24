"""Which indices of a strided axis lie inside an image: those with 0 <= offset + index * step < size."""

from __future__ import annotations

from fastconv.kernels import jit


@jit.inline
def steps_in(count, step):
    """How many there are of every `step`-th of `count`, with the first."""
    return count if step == 1 else (count + step - 1) // step  # a division takes as long as a row of a small plane


@jit.inline
def first_inside(offset, step):
    """The first index >= 0 whose position is not before the image."""
    return steps_in(max(-offset, 0), step)


@jit.inline
def end_inside(offset, step, size, end):
    """The end of the indices < `end` whose position is not behind the image."""
    inside = size - offset if step == 1 else (size - 1 - offset) // step + 1
    return min(end, max(0, inside))
