"""The weight gradient of depthwise convolution: `fastconv.kernels.depthwise_dots`, planned."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fastconv.algorithms.base import PLAIN, Epilogue, canonical_strides
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.base import Pass
from fastconv.algorithms.direct.depthwise import MOST_STRIDE
from fastconv.algorithms.direct.grids import TASKS_PER_THREAD, even_step, forward_axis, workspace_offsets
from fastconv.kernels import depthwise_dots as kernels
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import address, fill
from fastconv.kernels.target import RowTile, row_tile_shape
from fastconv.problem import ConvProblem

_BLOCKS = 32
"""Blocks of rows to cut a problem into: a number that does not depend on the threads, as the result must not."""


@dataclass(frozen=True, eq=False)
class DepthwiseDotPass(Pass):
    """The launch of a depthwise weight gradient, planned."""

    tile: RowTile
    blocks: int
    tables: tuple[np.ndarray, ...]
    """Offsets and zeros whose addresses the record holds, and which it keeps alive."""

    @property
    def workspace_bytes(self) -> int:
        """Bytes of all threads' tables and of the partial gradients."""
        return self.launch.workspace_bytes + self.blocks * math.prod(self.problem.w_shape) * self.problem.itemsize

    def describe(self) -> str:
        share = model.filled(self.problem.ic, self.tile.VL)
        return f"dot products over pixels with channels in the lanes, {share:.0%} of them in use"

    def seconds(self, rate: float) -> float:
        problem, shape = self.problem, self.tile
        pixels = problem.n * math.prod(problem.output_size)
        vectors = pixels * -(-problem.ic // shape.VL)
        kh, _ = problem.kernel_size
        slots = kh * (shape.KW / model.DEPTHWISE_SHARE + 2 * (shape.S + 1))
        trace = pixels * kh * 2 * shape.S * int(self.launch.plan["parts"][0]) * model.TRACE_SECONDS
        traffic = vectors * shape.VL * problem.itemsize * (1 + shape.S) * model.STREAM_SECONDS
        work = max(vectors * slots / rate, traffic) + trace
        total = self.blocks * math.prod(problem.w_shape) * model.ADD_SECONDS
        work *= model.balance(self.launch.tasks, self.threads) / self.threads
        return model.launch_seconds(self.threads) + work + total

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        kh, kw = self.problem.kernel_size
        partial = np.empty((self.blocks, kh, kw, self.problem.ic), self.problem.dtype)
        self.launch(second, first, partial.reshape(-1), partial)
        np.add.reduce(partial, axis=0, out=result.reshape(kh, kw, self.problem.ic))


def plan_depthwise_dots(problem: ConvProblem, threads: int) -> DepthwiseDotPass | None:
    """Plan the launch; None where it is not depthwise, channels do not fill a vector, or a kernel row is long."""
    rows, columns = forward_axis(problem, 0), forward_axis(problem, 1)
    shape = row_tile_shape(problem.dtype, len(columns.taps), columns.count, columns.step)
    item, channels = problem.itemsize, problem.ic
    depthwise = problem.groups == channels == problem.oc and problem.layout != "NCHW"
    spread = even_step(columns.offsets)
    if not depthwise or channels < shape.VL or len(columns.taps) != shape.KW or spread is None:
        return None
    if columns.step > MOST_STRIDE or (columns.step > 1 and spread > 1):
        return None
    x = canonical_strides(problem.x_shape, item, problem.layout)
    y = canonical_strides(problem.y_shape, item, problem.layout)
    row_block = max(1, -(-problem.n * rows.count // _BLOCKS))
    row_block = min(row_block, rows.count)
    row_blocks = -(-rows.count // row_block)
    blocks = problem.n * row_blocks
    vectors = -(-channels // shape.VL)
    parts = min(vectors, -(-TASKS_PER_THREAD * threads // blocks)) if threads > 1 else 1
    tiles = row_block * (columns.count // shape.MR + 1)
    table, singles, total = workspace_offsets(
        tiles * ((shape.MR - 1) * shape.S + shape.KW + shape.MR) * 8, row_block * columns.count * (shape.KW + 1) * 8
    )
    row_offsets, zeros = np.array(rows.offsets, np.int64), np.zeros(channels, problem.dtype)
    template = fill(
        kernels.DEPTHWISE_DOTS,
        source_n=x[0], source_r=x[1], source_c=x[2],
        source_rows=problem.input_size[0], source_columns=problem.input_size[1],
        gradient_n=y[0], gradient_r=y[1], gradient_c=y[2],
        rows=rows.count, columns=columns.count, row_step=rows.step, column_step=columns.step, phases=spread,
        taps_r=len(rows.taps), row_offsets=address(row_offsets), first_column=min(columns.offsets),
        channels=channels, zeros=address(zeros), row_block=row_block, row_blocks=row_blocks, parts=parts,
        block_bytes=math.prod(problem.w_shape) * item,
        workspace_bytes=total, table=table, singles=singles,
    )  # fmt: skip
    launch = Launch(
        lambda: kernels.depthwise_dots(problem.dtype, shape), problem.dtype, template, blocks * parts, threads, total
    )
    return DepthwiseDotPass(problem, threads, shape, launch, blocks, (row_offsets, zeros))
