"""Weight gradients by windows with channels in the lanes, planned: `fastconv.kernels.window_dots`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.algorithms.base import PLAIN, Epilogue, canonical_strides
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.base import Pass
from fastconv.algorithms.direct.depthwise import MOST_STRIDE
from fastconv.algorithms.direct.grids import TASKS_PER_THREAD, even_step, forward_axis
from fastconv.algorithms.slabs import SLABS_BYTES, Slabs
from fastconv.kernels import window_dots as kernels
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import fill
from fastconv.kernels.target import WindowTile, vector_bytes, window_pixels, window_tile_shape
from fastconv.problem import CHANNELS_LAST, ConvProblem

_MOST_SLABS = 32
"""A number that does not depend on the threads, as the result must not."""
_SLAB_PIXELS = 400
"""Pixels of a slab, at least: every slab reads some rows that its neighbour reads as well."""
_BLOCK_BYTES = 128 << 10
"""Rows of both operands for which one vector of channels after the other is taken. The processor fetches ahead from as
many places as they have pages."""
_RUNS_PER_THREAD = 4
"""Runs of tasks that a thread takes: neighbours share rows, and a thread's caches may still hold its run."""
_MOST_OUTPUTS = 8
"""Target channels of a layer whose lanes may hold source channels: every few targets read all of them anew."""


@dataclass(frozen=True, eq=False)
class WindowDotPass(Pass):
    """The launch of a weight gradient by windows, planned."""

    tile: WindowTile
    slabs: Slabs
    unused: np.ndarray
    """Stands for what sums begin with, which is nothing."""

    @property
    def workspace_bytes(self) -> int:
        """Bytes of the partial gradients, and of one whose axes are to be exchanged."""
        turned = math.prod(self.problem.w_shape) * self.problem.itemsize if self._turns() else 0
        return self.launch.workspace_bytes + self.slabs.workspace_bytes + turned

    def _turns(self) -> bool:
        return self.tile.ND > 0 and (self.problem.oc > 1 or self.problem.layout == CHANNELS_LAST)

    def describe(self) -> str:
        share = model.filled(int(self.launch.plan["channels"][0]), self.tile.VL)
        return f"windows of {self.tile.KH} x {self.tile.KW} taps with channels in the lanes, {share:.0%} of them in use"

    def seconds(self, rate: float) -> float:
        problem, shape, p = self.problem, self.tile, self.launch.plan[0]
        pixels = problem.n * math.prod(problem.output_size)
        vectors, outputs = -(-int(p["channels"]) // shape.VL), int(p["outputs"])
        kh, kw = problem.kernel_size
        # A chunk of kernel rows loads a column of each and a gradient for every pixel, the rest one by one.
        chunks = kh // shape.KH + kh % shape.KH
        rounds, values = -(-outputs // max(1, shape.ND)), max(1, shape.ND)
        loads = rounds * (kh * min(shape.S, kw) + chunks * values / shape.NV)
        lines = chunks * rounds * model.WINDOW_LINE_SLOTS / problem.output_size[1] / shape.NV
        slots = outputs * kh * kw + loads * model.WINDOW_LOAD_SLOTS + lines
        read = vectors * shape.VL * rounds * min(shape.S, kw) * shape.S + (outputs if shape.ND else vectors * shape.VL)
        work = max(pixels * vectors * slots / rate, pixels * read * problem.itemsize * model.PLANE_SECONDS)
        total = self.slabs.workspace_bytes / problem.itemsize * model.ADD_SECONDS
        work *= model.balance(self.launch.tasks, self.threads) / self.threads
        return model.launch_seconds(self.threads) + work + total

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        if not self._turns():
            self.slabs.run(self.launch, second, first, self.unused, result)
            return
        turned = np.empty((*self.problem.kernel_size, self.problem.oc, self.problem.ic), self.problem.dtype)
        self.slabs.run(self.launch, second, first, self.unused, turned)
        result[...] = turned.transpose((3, 0, 1, 2) if self.problem.layout == CHANNELS_LAST else (0, 1, 3, 2))


def _shape(problem: ConvProblem) -> WindowTile | None:
    """The tile; None where the layer is neither depthwise nor one of few outputs, or a kernel row is long."""
    columns = forward_axis(problem, 1)
    few = problem.groups == 1 and problem.oc <= _MOST_OUTPUTS and problem.ic >= vector_bytes() // problem.itemsize
    depthwise = problem.ic_per_group == problem.oc_per_group == 1
    if problem.layout == "NCHW" or not (few or depthwise):
        return None
    outputs = problem.oc if few else None
    shape = window_tile_shape(
        problem.dtype, len(forward_axis(problem, 0).taps), len(columns.taps), columns.step, problem.ic, outputs
    )
    # Vectors of 16 bytes have no masked loads; those that overlap would add twice.
    return None if shape is None or (shape.masked and vector_bytes() == 16) else shape


def plan_window_dots(problem: ConvProblem, threads: int) -> WindowDotPass | None:
    """Plan the launch; None where the layer is neither depthwise nor one of few outputs, or a kernel row is long."""
    rows, columns = forward_axis(problem, 0), forward_axis(problem, 1)
    shape, spread, item = _shape(problem), even_step(columns.offsets), problem.itemsize
    if shape is None or spread is None or columns.step > MOST_STRIDE or (columns.step > 1 and spread > 1):
        return None
    x = canonical_strides(problem.x_shape, item, problem.layout)
    y = canonical_strides(problem.y_shape, item, problem.layout)
    # Blocks and slabs must not depend on the threads: the result's bits depend on them.
    pixels = problem.n * rows.count * columns.count
    slabs = min(_MOST_SLABS, -(-pixels // _SLAB_PIXELS), SLABS_BYTES // max(1, math.prod(problem.w_shape) * item))
    row_block = min(rows.count, -(-problem.n * rows.count // max(1, slabs)))
    row_block = max(1, min(row_block, _BLOCK_BYTES // (rows.step * x[1] + y[1])))
    row_blocks = -(-rows.count // row_block)
    blocks = problem.n * row_blocks
    slabs = max(1, min(slabs, blocks))
    parts = 1
    if threads > 1:
        tiles = -(-problem.ic // (shape.VL * shape.NV))
        parts = min(tiles, -(-TASKS_PER_THREAD * threads // slabs))
    partial = Slabs(problem, slabs, threads)
    template = fill(
        kernels.WINDOW_DOTS,
        source_n=x[0], source_r=x[1], source_c=x[2],
        source_rows=problem.input_size[0], source_columns=problem.input_size[1],
        gradient_n=y[0], gradient_r=y[1], gradient_c=y[2],
        rows=rows.count, columns=columns.count, row_step=rows.step, column_step=columns.step, taps_r=len(rows.taps),
        tap_rows=problem.dilation[0], phases=spread, first_row=rows.offsets[0], first_column=columns.offsets[0],
        channels=problem.ic, outputs=problem.oc if shape.ND else 1, row_block=row_block, row_blocks=row_blocks,
        blocks=blocks, parts=parts, slabs=slabs, slab_bytes=partial.bytes_each,
        all_rows=0, one_row=0, taps_c=shape.KW, together=shape.KH, pixels=window_pixels(shape.KW),
        tile_channels=shape.VL * shape.NV, item=item,
    )  # fmt: skip

    def compiled() -> CFunc:
        template["all_rows"] = kernels.rows_of_taps(problem.dtype, shape).address
        template["one_row"] = kernels.rows_of_taps(problem.dtype, replace(shape, KH=1)).address
        return kernels.window_dots()

    launch = Launch(
        compiled, problem.dtype, template, slabs * parts, threads,
        grain=max(1, slabs * parts // (_RUNS_PER_THREAD * threads)),
    )  # fmt: skip
    return WindowDotPass(problem, threads, shape, launch, partial, np.zeros(1, problem.dtype))
