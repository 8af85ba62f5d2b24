"""Depthwise convolution of planes (NCHW), planned: `fastconv.kernels.rolling`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.base import ZerosPass
from fastconv.algorithms.direct.grids import TASKS_PER_THREAD, Axis, even_step, roles
from fastconv.cost import far_bytes, images_bytes
from fastconv.kernels import rolling as kernels
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import LINE, fill
from fastconv.kernels.rolling_rows import pair_offsets
from fastconv.kernels.target import PairTile, RollingTile, lanes_for, masks_have_registers, registers, vector_bytes
from fastconv.problem import ConvProblem

_MOST_TAPS, _MOST_FAR_TAPS = 25, 15
"""Taps of kernels, also of those over planes beyond `_FAR_PLANE_BYTES` whose columns share no loads: a strip of these
with few sums at once reads as many rows in pages of their own."""
_MOST_STEP = 2
"""Columns from one window to the next, at most."""
_MOST_WIDE_PAIR_TAPS = 15
"""Taps up to which strips of an input gradient of stride 2 have two vectors."""
_LEAST_ROWS = 16
"""Rows of a block, whose beginning and end read some rows twice."""
_MOST_VECTORS = 4
"""Vectors of a strip at most."""
_FAR_PLANE_BYTES = 200 << 10
"""A plane that leaves the nearer caches before the next strip writes other parts of its rows."""
_MANY_PAGES_BYTES = 2 << 20
"""A plane whose rows lie in more pages than a core keeps in mind: strips of a cache line look each up again."""
_TASK_BYTES = 32 << 10
"""Bytes that a task moves at least: beginning one takes some 0.1 microseconds."""


@dataclass(frozen=True, eq=False)
class RollingPass(ZerosPass):
    """The launch of a depthwise convolution of planes, planned."""

    def _lanes_share(self) -> float:
        return model.filled(int(self.launch.plan["columns"][0]), self.tile.VL)

    def describe(self) -> str:
        width = self.tile.VL * self.tile.NV
        return f"sums that roll down strips of {width} pixels, {self._lanes_share():.0%} of the lanes in use"

    def seconds(self, rate: float) -> float:
        p, shape = self.launch.plan[0], self.tile
        planes = self.launch.tasks // int(p["row_blocks"])
        vectors = -(-int(p["columns"]) // shape.VL)
        met, depth = min(shape.AT, shape.KH), -(-shape.KH // shape.AT)
        products = shape.KH * shape.KW * model.vector_slots(shape.VL, self.problem.itemsize)
        spills = shape.KH * shape.KW + depth * shape.NV > registers() - 2
        products /= model.costs().spilled_share if spills else model.costs().rolling_share
        # Of strided columns a pair of vectors is loaded and taken apart, and then shifted for the columns further on.
        loads = met * (shape.KW + (2 if shape.S > 1 else 0)) + 1
        row = vectors * (products + loads if shape.S > 1 else max(products, loads))
        # Where lines meet several source rows, some of these may be there at the edges.
        edges = int(p["row_blocks"] * p["line_step"]) * (depth - 1) if met > 1 else 0
        return self._seconds(planes * (int(p["rows"]) + edges) * row, rate)

    def _seconds(self, slots: float, rate: float) -> float:
        """The time of a launch whose rows take so many slots."""
        p, problem, costs = self.launch.plan[0], self.problem, model.costs()
        lines = int(p["line_step"])  # where there are several, the rows of each lie apart
        strip = costs.rolling_plane if p["whole"] else costs.rolling_strip
        slots += self.launch.tasks * int(p["strips"]) * lines * min(lines, 2) * strip
        grains = -(-self.launch.tasks // self.launch.grain)
        share = model.balance(grains, self.threads) / self.threads
        far = p["strips"] > 1 and p["rows"] * p["target_r"] > _FAR_PLANE_BYTES
        moved = far_bytes(problem)
        if p["rows"] * p["target_r"] > _MANY_PAGES_BYTES and self.tile.VL * self.tile.NV * problem.itemsize <= LINE:
            moved = images_bytes(problem)
        apart = moved * model.STREAM_SECONDS if far else 0.0
        work = max(slots / rate, model.planes_seconds(problem))
        return model.launch_seconds(self.threads) + work * share + apart


@dataclass(frozen=True, eq=False)
class PairPass(RollingPass):
    """The same for an input gradient of stride 2."""

    def seconds(self, rate: float) -> float:
        p, shape = self.launch.plan[0], self.tile
        planes = self.launch.tasks // int(p["row_blocks"])
        vectors = -(-int(p["columns"]) // (2 * shape.VL))
        slots = shape.KH * shape.KW + shape.KW // 2 + 1 + 4 * model.costs().pair_store
        slots *= model.vector_slots(shape.VL, self.problem.itemsize) / model.costs().rolling_share
        rows = int(p["source_rows"]) + int(p["row_blocks"] - 1) * (shape.KH // 2)
        return self._seconds(planes * rows * vectors * slots, rate)


def _width(taps: int, depth: int, vectors: int) -> tuple[int, int]:
    """Vectors of a wide strip and the number of strips: as many sums as there are registers, evenly divided."""
    room = registers() - 2 - min(taps, registers() // 2)
    most = max(1, min(_MOST_VECTORS, room // depth))
    strips = -(-vectors // most)
    return -(-vectors // strips), strips


def _row_block(planes: int, rows: int, together: int, threads: int) -> int:
    """Rows of a task, a multiple of `together`: all of a plane's unless there are too few planes."""
    wanted = 1 if threads == 1 else -(-TASKS_PER_THREAD * threads // planes)
    blocks = max(1, min(wanted, rows // (together * _LEAST_ROWS)))
    return -(-rows // (together * blocks)) * together


def _launch(
    part: Callable[[str, Any], CFunc], shape: Any, problem: ConvProblem, plan: np.ndarray, tasks: int, threads: int
) -> Launch:
    """The launch of a plan whose strips a `part` of the kernel does, compiled for one or two widths."""

    def compiled() -> CFunc:
        plan["entry"] = part(problem.dtype, shape).address
        if plan["wide_strips"] < plan["strips"]:
            plan["entry_narrow"] = part(problem.dtype, replace(shape, NV=shape.NV - 1)).address
        if plan["reach"]:
            plan["entry_inside"] = part(problem.dtype, replace(shape, INNER=2)).address
        return kernels.rolling()

    moved = (math.prod(problem.x_shape) + math.prod(problem.y_shape)) * problem.itemsize // tasks
    grain = max(1, min(_TASK_BYTES // max(1, moved), tasks // (TASKS_PER_THREAD * threads)))
    return Launch(compiled, problem.dtype, plan, tasks, threads, 0, grain)


def plan_rolling(problem: ConvProblem, direction: str, rows: Axis, columns: Axis, threads: int) -> RollingPass | None:
    """Plan the launch; None for groups of several source channels, other layouts, and large kernels."""
    part, item = roles(problem, direction), problem.itemsize
    if not problem.in_planes or part.reduction > 1 or vector_bytes() == 16:
        return None  # vectors of 16 bytes have no masked loads
    taps = len(rows.taps) * len(columns.taps)
    spread_r, spread_c = even_step(rows.offsets), even_step(columns.offsets)
    if (rows.every, columns.every) != (1, 1) or taps > _MOST_TAPS or columns.step > _MOST_STEP:
        return None
    assert spread_r is not None
    assert spread_c is not None
    tap_rows, tap_columns = abs(spread_r), abs(spread_c)
    lanes = lanes_for(columns.count, item)
    if columns.step > 1 and (tap_columns > 1 or len(columns.taps) > lanes + 1):
        return None  # these share no loads
    # Kernel rows and columns in the order of the sources that they meet.
    w_r, w_c = part.weights[:2]
    offset = 0
    if spread_r < 0:
        w_r, offset = -w_r, (len(rows.taps) - 1) * w_r
    if spread_c < 0:
        w_c, offset = -w_c, offset + (len(columns.taps) - 1) * w_c
    source_step = math.lcm(rows.step, tap_rows)
    tap_step, line_step = min(source_step // tap_rows, len(rows.taps)), source_step // rows.step
    if columns.step == 1 and taps > _MOST_FAR_TAPS and rows.count * part.target[1] > _FAR_PLANE_BYTES:
        return None
    vectors = -(-columns.count // lanes)
    width, strips = _width(taps, -(-len(rows.taps) // tap_step), vectors)
    first, size = min(columns.offsets), part.source_size[1]
    # A vector of every second column is taken out of two whole ones.
    reach = (lanes - 1) * columns.step + max(columns.offsets) + columns.step - 1
    outside = [
        (left * columns.step + first < 0, left * columns.step + reach >= size or left + lanes > columns.count)
        for left in range(0, columns.count, lanes)
    ]
    inner = width <= 2 or all(sum(side) <= 1 for side in zip(*outside, strict=True))
    shape = RollingTile(
        VL=lanes, KH=len(rows.taps), KW=len(columns.taps), AT=tap_step, S=columns.step, NV=width, INNER=int(inner)
    )
    wide_strips = vectors - strips * (width - 1)
    # Where masks are in the way of the sums, strips that meet nothing outside do without.
    reach = (columns.step * width + (columns.step > 1 and len(columns.taps) > 2)) * lanes
    reach += (len(columns.taps) - 1) * tap_columns if columns.step == 1 else 0
    begins = [number * width * lanes * columns.step + first for number in range(wide_strips)]
    whole_ones = columns.count // (width * lanes)
    if masks_have_registers() or not any(begin >= 0 and begin + reach <= size for begin in begins[:whole_ones]):
        reach = 0
    adjoin = line_step == 1 and part.target[1] == columns.count * item
    last_first = adjoin and columns.count % lanes != 0 and not masks_have_registers()
    planes = problem.n * problem.groups * part.channels
    row_block = _row_block(planes, rows.count, 1, threads)
    blocks = -(-rows.count // row_block)
    # Of images with one channel, each is a plane.
    source_d, target_d = (strides[3 if problem.layout == "NCHW" else 0] for strides in (part.source, part.target))
    plan = fill(
        kernels.ROLLING,
        source_d=source_d, source_r=part.source[1], source_rows=part.source_size[0],
        source_columns=size, target_d=target_d, target_r=part.target[1], rows=rows.count, columns=columns.count,
        first_row=min(rows.offsets), first_column=first, row_step=rows.step, tap_rows=tap_rows,
        tap_columns=tap_columns, line_step=line_step, source_step=source_step,
        weight_offset=offset, weight_r=w_r, weight_c=w_c,
        weight_d=part.weights[3] if part.channels > 1 else part.weight_group,
        item=item, multiplier=part.channels, channels=problem.groups * part.channels, images=problem.n,
        row_block=row_block, row_blocks=blocks, entry=0, entry_narrow=0, entry_inside=0,
        wide_strips=wide_strips, strips=strips, vector_columns=lanes, width=width, last_first=last_first,
        whole=int(strips * blocks * line_step == 1), column_step=columns.step, reach=reach,
        reach_rows=(len(rows.taps) - 1) * tap_rows + 1, fetches=strips > 1 and model.costs().asks_planes,
    )  # fmt: skip

    launch = _launch(kernels.strip, shape, problem, plan, planes * blocks, threads)
    return RollingPass(problem, threads, shape, launch, np.zeros(problem.groups * part.channels, problem.dtype))


def plan_pairs(problem: ConvProblem, threads: int) -> RollingPass | None:
    """Plan the launch of an input gradient of stride 2, all phases at once; None for others, as `plan_rolling`."""
    item, (kh, kw) = problem.itemsize, problem.kernel_size
    if problem.layout != "NCHW" or max(problem.ic_per_group, problem.oc_per_group) > 1 or vector_bytes() == 16:
        return None
    if (problem.stride, problem.dilation) != ((2, 2), (1, 1)) or min(kh, kw) < 2 or kh * kw > _MOST_TAPS:
        return None
    part = roles(problem, "grad_input")
    (low_r, _), (low_c, _) = problem.padding
    rows, columns = problem.input_size
    lanes = lanes_for(-(-columns // 2), item)
    least, most = pair_offsets(kw, low_c % 2)
    vectors = -(-columns // (2 * lanes))
    width = 2 if vectors > 1 and kh * kw <= _MOST_WIDE_PAIR_TAPS else 1
    strips = -(-vectors // width)
    width = -(-vectors // strips)
    source_rows, source_columns = part.source_size
    firsts = range(low_c // 2, low_c // 2 + vectors * lanes, lanes)
    outside = [(first + least < 0, first + most + lanes > source_columns) for first in firsts]
    inner = width <= 2 or all(sum(side) <= 1 for side in zip(*outside, strict=True))
    shape = PairTile(VL=lanes, KH=kh, KW=kw, PR=low_r % 2, PC=low_c % 2, NV=width, INNER=int(inner))
    planes = problem.n * problem.groups
    row_block = _row_block(planes, rows, 2, threads)
    blocks = -(-rows // row_block)
    plan = fill(
        kernels.ROLLING,
        source_d=part.source[3], source_r=part.source[1], source_rows=source_rows, source_columns=source_columns,
        target_d=part.target[3], target_r=part.target[1], rows=rows, columns=columns,
        first_row=low_r // 2, first_column=low_c // 2, row_step=1, tap_rows=1, tap_columns=1, line_step=1,
        source_step=1,
        weight_offset=0, weight_r=part.weights[0], weight_c=part.weights[1], weight_d=part.weight_group,
        item=item, multiplier=1, channels=problem.groups, images=problem.n, row_block=row_block, row_blocks=blocks,
        entry=0, entry_narrow=0, entry_inside=0, wide_strips=vectors - strips * (width - 1), strips=strips,
        vector_columns=2 * lanes, width=width, whole=int(strips * blocks == 1), column_step=1, reach=0,
        reach_rows=0, fetches=0, last_first=0,
    )  # fmt: skip

    launch = _launch(kernels.pair_strip, shape, problem, plan, planes * blocks, threads)
    return PairPass(problem, threads, shape, launch, np.zeros(problem.groups, problem.dtype))
