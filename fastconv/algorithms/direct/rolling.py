"""Depthwise convolution of planes (NCHW), planned: `fastconv.kernels.rolling`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.algorithms.base import PLAIN, Epilogue
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.base import Pass
from fastconv.algorithms.direct.grids import TASKS_PER_THREAD, Axis, even_step, roles
from fastconv.kernels import rolling as kernels
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import fill
from fastconv.kernels.target import RollingTile, registers, vector_bytes
from fastconv.problem import ConvProblem

_MOST_TAPS = 15
"""Taps whose weights find registers, beside the sums."""
_MOST_STEP = 2
_LEAST_ROWS = 16
"""Rows of a block, whose beginning and end read some rows twice."""
_MOST_VECTORS = 4
"""Vectors of a strip at most."""
_TASK_BYTES = 32 << 10
"""Bytes that a task moves at least: beginning one takes some 0.1 microseconds."""


@dataclass(frozen=True, eq=False)
class RollingPass(Pass):
    """The launch of a depthwise convolution of planes, planned."""

    zeros: np.ndarray
    """What sums begin with where there is no bias."""

    def _lanes_share(self) -> float:
        return model.filled(int(self.launch.plan["columns"][0]), self.tile.VL)

    def describe(self) -> str:
        width = self.tile.VL * self.tile.NV
        return f"sums that roll down strips of {width} pixels, {self._lanes_share():.0%} of the lanes in use"

    def seconds(self, rate: float) -> float:
        p, shape, problem = self.launch.plan[0], self.tile, self.problem
        planes = self.launch.tasks // int(p["row_blocks"])
        vectors = -(-int(p["columns"]) // shape.VL)
        products = shape.KH * shape.KW
        loads = min(shape.AT, shape.KH) * shape.KW * shape.S + 1
        row = vectors * max(products, model.WINDOW_LOAD_SLOTS * loads) / model.ROLLING_SHARE
        rows = int(p["rows"]) + int(p["row_blocks"] * p["line_step"]) * (-(-shape.KH // shape.AT) - 1)
        ends = int(p["strips"] * p["row_blocks"] * p["line_step"]) * model.ROLLING_SLOTS
        traffic = (math.prod(problem.x_shape) + math.prod(problem.y_shape)) * problem.itemsize * model.PLANE_SECONDS
        work = planes * (rows * row + ends) / rate + traffic
        grains = -(-self.launch.tasks // self.launch.grain)
        return model.launch_seconds(self.threads) + work * model.balance(grains, self.threads) / self.threads

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        start = self.zeros if epilogue.bias is None else epilogue.bias
        self.launch(first, second, start, result, epilogue.relu, epilogue.activation, epilogue.failed_address)


def _width(taps: int, depth: int, vectors: int) -> tuple[int, int]:
    """Vectors of a wide strip and the number of strips: as many sums as there are registers, evenly divided."""
    room = registers() - 2 - min(taps, registers() // 2)
    most = max(1, min(_MOST_VECTORS, room // depth))
    strips = -(-vectors // most)
    return -(-vectors // strips), strips


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
    lanes = vector_bytes() // item
    # Kernel rows and columns in the order of the sources that they meet.
    w_r, w_c = part.weights[:2]
    offset = 0
    if spread_r < 0:
        w_r, offset = -w_r, (len(rows.taps) - 1) * w_r
    if spread_c < 0:
        w_c, offset = -w_c, offset + (len(columns.taps) - 1) * w_c
    source_step = math.lcm(rows.step, tap_rows)
    tap_step, line_step = min(source_step // tap_rows, len(rows.taps)), source_step // rows.step
    vectors = -(-columns.count // lanes)
    width, strips = _width(taps, -(-len(rows.taps) // tap_step), vectors)
    first, last, size = min(columns.offsets), max(columns.offsets), part.source_size[1]
    outside = [
        (
            left * columns.step + first < 0,
            (left + lanes - 1) * columns.step + last >= size or left + lanes > columns.count,
        )
        for left in range(0, columns.count, lanes)
    ]
    inner = all(sum(side) <= 1 for side in zip(*outside))
    shape = RollingTile(
        VL=lanes, KH=len(rows.taps), KW=len(columns.taps), AT=tap_step, S=columns.step, NV=width, INNER=int(inner)
    )
    planes = problem.n * problem.groups * part.channels
    blocks = 1
    if threads > 1 and planes < TASKS_PER_THREAD * threads:
        blocks = max(1, min(-(-TASKS_PER_THREAD * threads // planes), rows.count // _LEAST_ROWS))
    row_block = -(-rows.count // blocks)
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
        item=item, multiplier=part.channels, channels=problem.groups * part.channels,
        row_block=row_block, row_blocks=blocks, entry=0, entry_narrow=0,
        wide_strips=vectors - strips * (width - 1), strips=strips, vector_columns=lanes, width=width,
    )  # fmt: skip

    def compiled() -> CFunc:
        plan["entry"] = kernels.strip(problem.dtype, shape).address
        if plan["wide_strips"] < strips:
            plan["entry_narrow"] = kernels.strip(problem.dtype, replace(shape, NV=width - 1)).address
        return kernels.rolling()

    tasks, moved = planes * blocks, (source_d + target_d) // blocks
    grain = max(1, min(_TASK_BYTES // max(1, moved), tasks // (TASKS_PER_THREAD * threads)))
    launch = Launch(compiled, problem.dtype, plan, tasks, threads, 0, grain)
    return RollingPass(problem, threads, shape, launch, np.zeros(problem.groups * part.channels, problem.dtype))
