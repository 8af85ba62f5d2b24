"""The same for real signals, with transforms of our own: how `fastconv.kernels.fourier` is launched for a problem."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np

from fastconv.kernels import fft, fourier, launch
from fastconv.kernels.params import Buffer, address, aligned, fill
from fastconv.kernels.target import vector_bytes
from fastconv.signal.blocks import Blocks, blocks_of
from fastconv.signal.problem import SignalProblem
from fastconv.signal.shapes import side

_MOST_POINTS = 1 << 16
"""Of a block's axis, about: the tables of all sizes together are some tens of megabytes, and are kept."""
_CACHED_POINTS = 1 << 16
_CACHED, _UNCACHED = 0.38e-9, 0.5e-9  # seconds for each point and octave of float64, by where the block lies
_CALLS = 2.5e-6  # seconds of a call's other parts
_THREADED_SECONDS = 4e-5


class Fourier:
    """Planned transforms of floating-point signals, in the quickest blocks unless some are given.

    `run` takes the two inputs, of the dtype that is computed in.
    """

    def __init__(self, problem: SignalProblem, blocks: Sequence[Blocks] | None = None) -> None:
        self._problem = problem
        sizes = ([axis.in1 for axis in problem.axes], [axis.in2 for axis in problem.axes])
        self._swapped = math.prod(sizes[0]) < math.prod(sizes[1])
        self._dtype = problem.computed
        self._lanes = vector_bytes() // self._dtype.itemsize
        whole, some = (fft.good_size, fft.good_sizes) if len(problem.axes) == 2 else (_folded_size, _folded_sizes)
        sides = [side(axis, self._swapped) for axis in problem.axes]
        of_axes = (blocks_of(side, functools.partial(whole, self._lanes), some(self._lanes)) for side in sides)
        few = ([b for b in blocks if b.points <= 2 * _MOST_POINTS] for blocks in of_axes)
        self.choices = tuple(itertools.product(*few))
        self.blocks = tuple(blocks or min(self.choices, key=self._seconds))
        self._count = math.prod(b.count for b in self.blocks)
        self._points = n0, n1 = self._axes()
        row_bytes = 2 * self._lanes * self._dtype.itemsize
        self._panel_bytes = row_bytes * n0 + row_bytes  # a row more: panels a power of two apart would share cache sets
        self._workspace_bytes = n1 // self._lanes * self._panel_bytes + n1 * row_bytes
        self._serial = self._count == 1 or self._serial_seconds(self.blocks) < _THREADED_SECONDS
        self._shape, self._reverse = problem.shape, (slice(None, None, -1),) * len(problem.axes)

    @classmethod
    def takes(cls, problem: SignalProblem) -> bool:
        """Whether the problem is one for this kernel."""
        if problem.dtype.char not in "fd":
            return False
        if len(problem.axes) == 2:
            return all(axis.in1 + axis.in2 <= _MOST_POINTS for axis in problem.axes)
        return min(problem.axes[0].in1, problem.axes[0].in2) <= _MOST_POINTS // 2

    def _serial_seconds(self, blocks: Sequence[Blocks]) -> float:
        """What transforms of these blocks should take on one thread."""
        points = math.prod(b.points for b in blocks)
        total = points * math.prod(b.count for b in blocks)
        rate = (_CACHED if points <= _CACHED_POINTS else _UNCACHED) * self._dtype.itemsize / 8
        return _CALLS + total * math.log2(points) * rate

    def _seconds(self, blocks: Sequence[Blocks]) -> float:
        """The same on the threads that there are, of which each takes whole blocks."""
        serial, count = self._serial_seconds(blocks), math.prod(b.count for b in blocks)
        if serial < _THREADED_SECONDS or count == 1:
            return serial
        return _CALLS + serial / count * -(-count // launch.max_threads())

    @property
    def seconds(self) -> float:
        """What a call should take."""
        return self._seconds(self.blocks)

    @functools.cached_property
    def _entry(self) -> int:
        return cast(int, fourier.fourier(self._dtype.name, self._lanes).address)

    @functools.cached_property
    def _call(self) -> Callable[..., int]:
        return cast(Callable[..., int], fourier.caller(self._dtype.name, len(self.blocks)))

    def _axes(self) -> tuple[int, int]:
        if len(self.blocks) == 2:
            return self.blocks[0].points, self.blocks[1].points
        return _folded(self._lanes, self.blocks[0].points)

    @functools.cached_property
    def _planned(self) -> tuple[np.ndarray, ...]:
        """The record, and the arrays that it points to."""
        (n0, n1), linear, name = self._points, len(self.blocks) == 1, self._dtype.name
        tables = fft.table(n0, name), fft.table(n1, name)
        factors = _factors(n0, n1, self._lanes, name) if linear else None
        columns = self.blocks[-1]
        rows = Blocks(1, 1, 1, 1, 1, 0, 0, n0) if linear else self.blocks[0]
        plan = fill(
            fourier.FOURIER, linear=linear, n0=n0, n1=n1, panel_bytes=self._panel_bytes,
            workspace_bytes=self._workspace_bytes, blocks_c=columns.count,
            transform=cast(int, fft.transform(name, self._lanes).address),
            tables_0=tables[0][0].ctypes.data, tables_1=tables[1][0].ctypes.data, factors=address(factors),
            source_r=rows.source, source_c=columns.source, taps_r=rows.taps, taps_c=columns.taps,
            rows=rows.size, columns=columns.size, start_r=rows.start, start_c=columns.start, step_r=rows.step,
            step_c=columns.step, offset_r=rows.offset, offset_c=columns.offset,
        )  # fmt: skip
        return plan, *tables[0], *tables[1], *(() if factors is None else (factors,))

    @functools.cached_property
    def _plan_address(self) -> int:
        return int(self._planned[0].ctypes.data)

    def run(self, in1: np.ndarray, in2: np.ndarray) -> np.ndarray:
        """Compute the result from the two inputs."""
        if self._problem.correlates:
            in2 = in2[self._reverse]
        source, taps = (in2, in1) if self._swapped else (in1, in2)
        source, taps = np.ascontiguousarray(source), np.ascontiguousarray(taps)
        out = np.empty(self._shape, self._dtype)
        threads = 1 if self._serial else min(launch.max_threads(), self._count)
        with Buffer(launch.HEAD + threads * self._workspace_bytes) as buffer:
            first = self._count if threads == 1 else 0
            record = self._call(self._entry, self._plan_address, first, source, taps, out, buffer)
            if not first:
                launch.spread(self._entry, record, self._count, threads)
        return out


def _folded(lanes: int, points: int) -> tuple[int, int]:
    """The two axes that one of so many points is folded into, the second at least as long."""
    n = math.isqrt(points) // lanes * lanes
    while points % n or points // n % lanes:
        n -= lanes
    return n, points // n


@functools.lru_cache(maxsize=1024)
def _folded_size(lanes: int, least: int) -> int:
    """The smallest number of points that is not less, for which one axis is at most twice the other."""
    best = 0
    n = lanes
    while not best or n * n < best:
        if fft.is_smooth(n):
            other = fft.good_size(lanes, max(n, -(-least // n)))
            if other <= max(2 * n, n + lanes) and (not best or n * other < best):
                best = n * other
        n += lanes
    return best


@functools.cache
def _folded_sizes(lanes: int) -> tuple[int, ...]:
    """Sizes of blocks along one axis."""
    return tuple(1 << e for e in range(6, 17) if (1 << e) % (lanes * lanes) == 0)


@functools.cache
def _factors(n0: int, n1: int, lanes: int, dtype: str) -> np.ndarray:
    """What lies between the transforms of a folded axis, in the order in which the kernel's rows meet it."""
    units = fft.unit(np.outer(fft.frequencies(n0), np.arange(n1)), n0 * n1)
    ordered = units.reshape(n0 // lanes, lanes, n1, 2).transpose(0, 2, 3, 1)
    table = aligned(ordered.shape, dtype)
    table[...] = ordered
    return table
