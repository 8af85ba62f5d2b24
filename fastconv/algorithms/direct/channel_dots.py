"""Weight gradients of small groups, with channels in the lanes, planned: `fastconv.kernels.channel_dots`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.algorithms.base import PLAIN, Epilogue, canonical_strides
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.base import Pass
from fastconv.algorithms.direct.depthwise import MOST_STRIDE
from fastconv.algorithms.direct.grids import TASKS_PER_THREAD, even_step, forward_axis, workspace_offsets
from fastconv.algorithms.slabs import SLABS_BYTES, Slabs
from fastconv.kernels import channel_dots as kernels
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import address, fill
from fastconv.kernels.target import RowTile, row_tile_shape, vector_bytes
from fastconv.problem import ConvProblem

_MOST_SLABS = 32
"""A number that does not depend on the threads, as the result must not."""


@dataclass(frozen=True, eq=False)
class ChannelDotPass(Pass):
    """The launch of a weight gradient with channels in the lanes, planned."""

    tile: RowTile
    slabs: Slabs
    tables: tuple[np.ndarray, ...]
    """Offsets and zeros whose addresses the record holds, and which it keeps alive."""

    @property
    def workspace_bytes(self) -> int:
        """Bytes of all threads' tables and of the partial gradients."""
        return self.launch.workspace_bytes + self.slabs.workspace_bytes

    def _lanes_share(self) -> float:
        shape = self.tile
        return model.filled(int(self.launch.plan["channels"][0]), shape.lanes) * shape.lanes / shape.VL

    def describe(self) -> str:
        return f"dot products over pixels with channels in the lanes, {self._lanes_share():.0%} of them in use"

    def seconds(self, rate: float) -> float:
        problem, shape, p = self.problem, self.tile, self.launch.plan[0]
        pixels = problem.n * math.prod(problem.output_size)
        vectors = pixels * -(-int(p["channels"]) // shape.lanes)
        kh, _ = problem.kernel_size
        loads = 2 * (shape.S + 1) * shape.G / shape.Q
        loads += model.PERMUTE_SLOTS * shape.S * shape.G
        costs = model.costs()
        products, loads = shape.KW * shape.G / costs.channel_dot_share, costs.channel_dot_load * loads
        slots = kh * (max(products, loads) if costs.hides_loads else products + loads)
        trace = pixels * kh * 2 * shape.S * int(p["parts"]) * model.TRACE_SECONDS
        traffic = vectors * shape.VL * problem.itemsize * (1 + shape.S) * model.PLANE_SECONDS
        work = max(vectors * slots / rate, traffic) + trace
        total = self.slabs.workspace_bytes / problem.itemsize * model.ADD_SECONDS
        work *= model.balance(self.launch.tasks, self.threads) / self.threads
        return model.launch_seconds(self.threads) + work + total

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        self.slabs.run(self.launch, second, first, self.tables[1], result)


def _shape(problem: ConvProblem) -> RowTile | None:
    """The tile; None where groups do not fit the lanes, or have one channel on either side."""
    columns = forward_axis(problem, 1)
    inputs, outputs = problem.ic_per_group, problem.oc_per_group
    if problem.layout != "NHWC" or not 1 < max(inputs, outputs) <= vector_bytes() // problem.itemsize:
        return None
    shape = row_tile_shape(problem.dtype, len(columns.taps), columns.count, columns.step, inputs, outputs)
    # Sums are added to what was written before, which two vectors that overlap would do twice.
    masked = shape.masked or problem.oc % shape.lanes != 0
    if masked and vector_bytes() == 16:  # those have no masked loads
        return None
    return replace(shape, masked=masked)


def plan_channel_dots(problem: ConvProblem, threads: int) -> ChannelDotPass | None:
    """Plan the launch; None where groups are not small, channels do not fit the lanes, or a kernel row is long."""
    rows, columns = forward_axis(problem, 0), forward_axis(problem, 1)
    shape, spread, item = _shape(problem), even_step(columns.offsets), problem.itemsize
    if shape is None or spread is None:
        return None
    if len(columns.taps) != shape.KW or columns.step > MOST_STRIDE or (columns.step > 1 and spread > 1):
        return None
    x = canonical_strides(problem.x_shape, item, problem.layout)
    y = canonical_strides(problem.y_shape, item, problem.layout)
    row_block = min(rows.count, max(1, -(-problem.n * rows.count // _MOST_SLABS)))
    row_blocks = -(-rows.count // row_block)
    blocks = problem.n * row_blocks
    slabs = max(1, min(blocks, _MOST_SLABS, SLABS_BYTES // max(1, math.prod(problem.w_shape) * item)))
    vectors = -(-problem.oc // shape.lanes)
    parts = min(vectors, -(-TASKS_PER_THREAD * threads // slabs)) if threads > 1 else 1
    tiles = row_block * (columns.count // shape.MR + 1)
    table, singles, total = workspace_offsets(
        tiles * ((shape.MR - 1) * shape.S + shape.KW + shape.MR) * 8, row_block * columns.count * (shape.KW + 1) * 8
    )
    row_offsets, zeros = np.array(rows.offsets, np.int64), np.zeros(problem.ic, problem.dtype)
    partial = Slabs(problem, slabs, threads)
    template = fill(
        kernels.CHANNEL_DOTS,
        source_n=x[0], source_r=x[1], source_c=x[2],
        source_rows=problem.input_size[0], source_columns=problem.input_size[1],
        gradient_n=y[0], gradient_r=y[1], gradient_c=y[2],
        rows=rows.count, columns=columns.count, row_step=rows.step, column_step=columns.step, phases=spread,
        taps_r=len(rows.taps), row_offsets=address(row_offsets), first_column=min(columns.offsets),
        channels=problem.oc, zeros=address(zeros), row_block=row_block, row_blocks=row_blocks,
        blocks=blocks, parts=parts, slabs=slabs, slab_bytes=partial.bytes_each, line_bytes=problem.oc * item,
        entry=0, pixels=shape.MR, taps_c=shape.KW, reach=(shape.MR - 1) * shape.S + shape.KW, sums=shape.KW * shape.G,
        vectors=vectors, vector_bytes=shape.lanes * item,
        workspace_bytes=total, table=table, singles=singles,
    )  # fmt: skip

    def compiled() -> CFunc:
        template["entry"] = kernels.row_of_sums(problem.dtype, shape).address
        return kernels.channel_dots()

    launch = Launch(compiled, problem.dtype, template, slabs * parts, threads, total)
    return ChannelDotPass(problem, threads, shape, launch, partial, (row_offsets, zeros))
