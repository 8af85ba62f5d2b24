"""Signals in blocks for transforms (overlap-save).

A block of results needs the source under them and the taps' reach before them. Transformed with at least that many
points, the product's wrapped part falls on results that are not taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from fastconv.signal.shapes import Side


@dataclass(frozen=True)
class Blocks:
    """One axis in blocks: block b reads `points` values from start + b * step on, and its results begin at `offset`."""

    source: int
    taps: int
    size: int
    count: int
    step: int
    start: int
    offset: int
    points: int


def blocks_of(side: Side, good_size: Callable[[int], int], sizes: Iterable[int]) -> Iterator[Blocks]:
    """One block of at least as many points as are needed, or blocks of each of the sizes that fits."""
    source, taps, size = side.source, side.taps, side.size
    start, end = max(0, side.first), side.first + taps - 1 + size
    offset = side.first + taps - 1 - start
    # What wraps around must fall before the first result.
    whole = good_size(max(end - start, min(source, end) - start + taps - 1 - offset))
    yield Blocks(source, taps, size, 1, size, start, offset, whole)
    for points in sizes:
        step = points - taps + 1
        if points < whole and 16 <= step >= taps // 2:
            yield Blocks(source, taps, size, -(-size // step), step, side.first, taps - 1, points)
