"""The same by the convolution theorem, with NumPy's transforms: for complex signals, integers and very long ones.

Blocks of a size that the caches hold cost less
than one large transform, and threads take them independently; a block writes to its own place in the result.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.lib.stride_tricks import as_strided

from fastconv.arrays import QUIET
from fastconv.kernels import launch
from fastconv.signal.blocks import Blocks, blocks_of
from fastconv.signal.problem import SignalProblem
from fastconv.signal.shapes import side

_CACHED_POINTS = 1 << 15
_CACHED, _UNCACHED = 0.32e-9, 0.45e-9  # seconds for each point and octave of a transform, by where the points lie
_ACROSS = 1.5  # times as long where the points lie apart
_PRODUCT = 1.5e-9
_CALLS = 1.2e-5  # seconds of Python for each block along an axis
_THREADED_SECONDS = 1e-3
_POOL_SECONDS = 2e-4
_THREAD_SHARE = 0.4  # of a further thread's time that is not lost: Python's part is done by one at a time


@functools.cache
def _good_sizes() -> tuple[int, ...]:
    """Sizes of blocks that transforms are quick for, a few in each octave."""
    return tuple(sorted(m << e for m in (4, 5, 6) for e in range(3, 17)))


@functools.lru_cache(maxsize=1024)
def good_size(least: int) -> int:
    """The smallest product of powers of 2, 3 and 5 that is not less, and even."""
    best = 1 << max(1, (least - 1).bit_length())
    fives = 1
    while fives < best:
        odd = fives
        while odd < best:
            best = min(best, odd << max(1, (-(-least // odd) - 1).bit_length()))
            odd *= 3
        fives *= 5
    return best


def _seconds(blocks: Sequence[Blocks], parts: int) -> float:
    """What transforms of these blocks should take on one thread."""
    points = math.prod(b.points for b in blocks)
    rate = (_CACHED if points <= _CACHED_POINTS else _UNCACHED) * parts
    octaves = math.log2(blocks[-1].points)
    if len(blocks) == 2:
        octaves += _ACROSS * math.log2(blocks[0].points)
    count = math.prod(b.count for b in blocks)
    transform, product = points * octaves * rate, points * parts * _PRODUCT
    return (2 * count + 1) * transform + count * (product + _CALLS * len(blocks) ** 2) + 2 * _CALLS


class Spectral:
    """Planned transforms, in the quickest blocks unless some are given; `run` takes the two inputs."""

    def __init__(self, problem: SignalProblem, blocks: Sequence[Blocks] | None = None) -> None:
        self._problem = problem
        self._parts = problem.parts
        kept = "f" if problem.dtype.char in "ef" else "d"
        self._dtype = problem.dtype if self._parts == 2 else np.dtype(kept)
        sizes = ([axis.in1 for axis in problem.axes], [axis.in2 for axis in problem.axes])
        self._swapped = math.prod(sizes[0]) < math.prod(sizes[1])
        sides = (side(axis, self._swapped) for axis in problem.axes)
        self.choices = tuple(itertools.product(*(blocks_of(side, good_size, _good_sizes()) for side in sides)))
        self.blocks = blocks or min(self.choices, key=lambda blocks: _seconds(blocks, self._parts))
        self._count = math.prod(b.count for b in self.blocks)
        self._serial_seconds = _seconds(self.blocks, self._parts)

    @property
    def _threads(self) -> int:
        return min(launch.max_threads(), self._count) if self._serial_seconds > _THREADED_SECONDS else 1

    @property
    def seconds(self) -> float:
        """What a call should take on the threads that there are."""
        threads = self._threads
        if threads == 1:
            return self._serial_seconds
        return _POOL_SECONDS + self._serial_seconds / (1 + _THREAD_SHARE * (threads - 1))

    @QUIET
    def run(self, in1: np.ndarray, in2: np.ndarray) -> np.ndarray:
        """Compute the result from the two inputs."""
        in1, in2 = in1.astype(self._dtype, copy=False), in2.astype(self._dtype, copy=False)
        if self._problem.correlates:
            in2 = np.flip(in2).conj()
        source, taps = (in2, in1) if self._swapped else (in1, in2)
        points, axes = [b.points for b in self.blocks], tuple(range(-len(self.blocks), 0))
        forward, backward = (np.fft.fftn, np.fft.ifftn) if self._parts == 2 else (np.fft.rfftn, np.fft.irfftn)
        windows = self._windows(source)
        spectrum = forward(taps, points, axes)
        out = np.empty(self._problem.shape, self._dtype)

        def compute(block: tuple[int, ...]) -> None:
            product = forward(windows[block], points, axes)
            product *= spectrum
            result = backward(product, points, axes)
            to, part = [], []
            for index, b in zip(block, self.blocks, strict=True):
                to.append(slice(index * b.step, min((index + 1) * b.step, b.size)))
                part.append(slice(b.offset, b.offset + to[-1].stop - to[-1].start))
            out[tuple(to)] = result[tuple(part)]

        threads, blocks = self._threads, itertools.product(*(range(b.count) for b in self.blocks))
        if threads == 1:
            for block in blocks:
                compute(block)
        else:
            # A pool of its own: threads that outlive the call would not survive a fork.
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(compute, blocks))
        if self._problem.dtype.kind in "biu":
            np.rint(out, out=out)
        return out.astype(self._problem.dtype, copy=False)

    def _windows(self, source: np.ndarray) -> np.ndarray:
        """The blocks of the source with zeros around it: axes that number them, then their own axes."""
        blocks = self.blocks
        padded = np.zeros([(b.count - 1) * b.step + b.points for b in blocks], self._dtype)
        to, part = [], []
        for b, length in zip(blocks, padded.shape, strict=True):
            begin, end = max(b.start, 0), min(b.source, b.start + length)
            to.append(slice(begin - b.start, end - b.start))
            part.append(slice(begin, end))
        padded[tuple(to)] = source[tuple(part)]
        steps = [stride * b.step for stride, b in zip(padded.strides, blocks, strict=True)]
        shape = [b.count for b in blocks] + [b.points for b in blocks]
        return as_strided(padded, shape, (*steps, *padded.strides), writeable=False)
