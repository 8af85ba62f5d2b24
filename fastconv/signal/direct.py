"""The sums themselves: how `fastconv.kernels.sums` is launched for a problem."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import cast

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.kernels import launch, signal, sums
from fastconv.kernels.params import LINE, Buffer, address, fill
from fastconv.kernels.target import vector_bytes
from fastconv.signal.problem import SignalProblem
from fastconv.signal.shapes import CYCLES_PER_SECOND, Shape, Side, shapes, side

Operation = Callable[[np.ndarray, np.ndarray], np.ndarray]

_CALL_SECONDS = 1e-6


class Direct:
    """A planned launch, of the cheapest shape unless one is given.

    `run` takes the two inputs, of the dtype that is computed in.
    """

    def __init__(self, problem: SignalProblem, shape: Shape | None = None) -> None:
        self._swapped = swapped = problem.commutes and _fewer_in1(problem)
        sides = [side(axis, swapped, problem.boundary) for axis in problem.axes]
        rows, columns = sides if len(sides) == 2 else (Side(1, 1, 1, 0, 1), *sides)
        self._dtype, self._shape, parts = problem.computed, problem.shape, problem.parts
        item = self._dtype.itemsize // parts
        self.shapes = tuple(shapes(problem, rows, columns, vector_bytes() // item, item))
        self.shape = shape = shape or min(self.shapes, key=lambda shape: shape.cycles)
        self._flops = 2 * rows.size * columns.size * rows.taps * columns.taps * parts * parts
        self._fill = np.array([problem.fill], self._dtype)
        areas = _areas(shape, rows, columns, parts, item)
        self._workspace_bytes = areas.pop("workspace_bytes")
        self._tasks = shape.row_blocks * shape.column_blocks
        kernel, pack_taps, fill_strip = (cast(int, part.address) for part in _compiled(self._dtype, parts, shape))
        self._entry = kernel
        # A correlation takes in2 in reverse, and taps meet the source in reverse unless that undoes it.
        self._plan = fill(
            signal.PLAN, entry=kernel, pack_taps=pack_taps, fill_strip=fill_strip, tasks=self._tasks,
            source_rows=rows.source, source_columns=columns.source,
            source_flip=swapped and problem.correlates,
            source_conjugate=problem.conjugated == (2 if swapped else 1),
            taps_r=rows.taps, taps_c=columns.taps, given_r=rows.given, given_c=columns.given,
            taps_flip=swapped or not problem.correlates,
            taps_conjugate=problem.conjugated == (1 if swapped else 2),
            rows=rows.size, columns=columns.size, first_row=rows.first, first_column=columns.first,
            boundary=problem.boundary, trim=problem.commutes, fill=address(self._fill),
            row_blocks=shape.row_blocks, column_blocks=shape.column_blocks, flat=shape.flat, pitch=shape.pitch,
            run=shape.run, workspace_bytes=self._workspace_bytes, **areas,
        )  # fmt: skip
        self._plan_address: int = self._plan.ctypes.data
        self._call = signal.caller(self._dtype.name, len(sides))
        self._prepare = functools.partial(signal.preparer, self._dtype.name, len(sides))
        self.run = self._one_thread() if self._tasks == 1 else self._all_threads
        """What computes the result from the two inputs."""

    @property
    def seconds(self) -> float:
        """What a call should take on the threads that there are."""
        threads = 1 if self._tasks == 1 else launch.threads_for(self._flops)
        return _CALL_SECONDS + self.shape.cycles / CYCLES_PER_SECOND / threads

    def _one_thread(self) -> Operation:
        """Everything that a call looks up is a local variable here: small calls are quicker by a tenth."""
        empty, shape, dtype, call, plan = np.empty, self._shape, self._dtype, self._call, self._plan_address
        records = self._plan, self._fill  # the function may outlive this object, and the plan is but an address to it
        if self._swapped:

            def run(in1: np.ndarray, in2: np.ndarray, keeps: object = records) -> np.ndarray:
                out = empty(shape, dtype)
                call(plan, in2, in1, out)
                return out
        else:

            def run(in1: np.ndarray, in2: np.ndarray, keeps: object = records) -> np.ndarray:
                out = empty(shape, dtype)
                call(plan, in1, in2, out)
                return out

        return run

    def _all_threads(self, in1: np.ndarray, in2: np.ndarray) -> np.ndarray:
        source, taps = (in2, in1) if self._swapped else (in1, in2)
        out = np.empty(self._shape, self._dtype)
        threads = launch.threads_for(self._flops)
        with Buffer(launch.HEAD + threads * self._workspace_bytes) as buffer:
            record = self._prepare()(self._plan_address, source, taps, out, buffer)
            launch.spread(self._entry, record, self._tasks, threads)
        return out


def _fewer_in1(problem: SignalProblem) -> bool:
    return math.prod(axis.in1 for axis in problem.axes) < math.prod(axis.in2 for axis in problem.axes)


def _compiled(dtype: np.dtype, parts: int, shape: Shape) -> tuple[CFunc, CFunc, CFunc]:
    """The kernel, and the parts that it calls: those that pack the taps and fill the strip."""
    real = f"{'float' if dtype.kind in 'fc' else 'int'}{8 * dtype.itemsize // parts}"
    if shape.kernel == "dot":
        kernel = sums.dot_sums(real, parts)
    elif shape.kernel == "line":
        kernel = sums.line_sums(real, parts, shape.tile)
    else:
        kernel = (sums.row_sums if shape.kernel == "row" else sums.run_sums)(real, shape.tile)
    return kernel, signal.taps_part(real, parts), signal.strip_part(real, parts)


def _areas(shape: Shape, rows: Side, columns: Side, parts: int, item: int) -> dict[str, int]:
    """Where the parts of a thread's workspace begin, each on a cache line, and how large it is."""
    row_block, column_block = -(-rows.size // shape.row_blocks), -(-columns.size // shape.column_blocks)
    strip_rows, width = row_block + rows.taps - 1, shape.tile.NR
    strip_plane = (strip_rows * shape.pitch + column_block + columns.taps + width) * item
    line = (row_block - 1) * shape.pitch + column_block if shape.flat else column_block
    scratch_plane, linear = max(line, width) * item, 0
    if shape.run:
        linear = (width * shape.run + columns.taps - 1) * item
        strip_plane, scratch_plane = width * (shape.run + columns.taps - 1) * item, width * shape.run * item
    sizes = {
        "taps": parts * parts * rows.taps * columns.taps * item,
        "strip": parts * strip_plane,
        "scratch": parts * scratch_plane,
        "line": linear,
    }
    areas, end = {"strip_plane": strip_plane, "scratch_plane": scratch_plane}, 0
    for name, size in sizes.items():
        areas[name] = end
        end += -(-size // LINE) * LINE
    return {**areas, "workspace_bytes": end}
