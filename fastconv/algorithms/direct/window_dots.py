"""Weight gradients by windows with channels in the lanes, planned: `fastconv.kernels.window_dots`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.algorithms.base import PLAIN, Epilogue, canonical_strides
from fastconv.algorithms.direct import copies, model
from fastconv.algorithms.direct.base import Pass
from fastconv.algorithms.direct.depthwise import MOST_STRIDE
from fastconv.algorithms.direct.grids import TASKS_PER_THREAD, even_step, forward_axis, workspace_offsets
from fastconv.algorithms.slabs import SLABS_BYTES, Slabs
from fastconv.cost import leaves_caches
from fastconv.kernels import window_dots as kernels
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import fill, odd_lines
from fastconv.kernels.target import WindowTile, vector_bytes, window_pixels, window_tile_shape
from fastconv.problem import CHANNELS_LAST, ConvProblem

_MOST_SLABS = 32
"""A number that does not depend on the threads, as the result must not."""
_SLAB_PIXELS = 400
"""Pixels of a slab, at least: every slab reads some rows that its neighbour reads as well."""
_BLOCK_BYTES = 128 << 10
"""Rows of both operands for which one vector of channels after the other is taken. The processor fetches ahead from as
many places as they have pages."""
_NEAR_BYTES, _SETS = 600 << 10, 2
"""Images of more bytes are copied block by block where their pixels spread over so few sets of a cache."""
_TALL, _SETS_IF_TALL = 5, 4
"""The same of all images where kernels have as many rows, which read each line as often."""
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
        lines = chunks * rounds * model.costs().window_line / problem.output_size[1] / shape.NV
        slots = outputs * kh * kw + loads * model.costs().window_load + lines
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


def _meets(problem: ConvProblem, pixel_bytes: int) -> bool:
    """Whether a block's pixels spread over so few sets of a cache that copying them pays."""
    values = (math.prod(problem.x_shape) + math.prod(problem.y_shape)) // problem.n
    tall = problem.stride == (1, 1) and problem.kernel_size[0] >= _TALL
    most = _SETS_IF_TALL if tall else _SETS if values * problem.itemsize > _NEAR_BYTES else 0
    reach = min(problem.input_size[0], (problem.kernel_size[0] - 1) * problem.dilation[0] + 1)
    if not copies.fits(reach * problem.input_size[1] + problem.output_size[1]):
        return False
    return copies.sets_of(pixel_bytes) <= most


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
    (source_r, source_c), (gradient_r, gradient_c), copied = x[1:3], y[1:3], 0
    strip_bytes = gradient_bytes = 0
    most = max(1, _BLOCK_BYTES // (rows.step * x[1] + y[1]))
    if not shape.ND and _meets(problem, x[2]):
        copied = copies.PART_BYTES // (shape.VL * item) * shape.VL
        pixel_bytes = odd_lines(min(copied, problem.ic) * item)
        source_r, source_c = problem.input_size[1] * pixel_bytes, pixel_bytes
        gradient_r, gradient_c = columns.count * pixel_bytes, pixel_bytes
        reach = rows.offsets[-1] - rows.offsets[0] + 1
        most = max(1, (copies.STRIP_BYTES - (reach - rows.step) * source_r) // (rows.step * source_r + gradient_r))
        row_block = min(row_block, most)
        strip_bytes = min(problem.input_size[0], (row_block - 1) * rows.step + reach) * source_r
        gradient_bytes = row_block * gradient_r
    row_block = min(row_block, most)
    strip, gradients, total = workspace_offsets(strip_bytes, gradient_bytes)
    row_blocks = -(-rows.count // row_block)
    blocks = problem.n * row_blocks
    slabs = max(1, min(slabs, blocks))
    parts = 1
    if threads > 1:
        tiles = -(-problem.ic // (shape.VL * shape.NV))
        parts = min(tiles, -(-TASKS_PER_THREAD * threads // slabs))
    partial = Slabs(problem, slabs, threads)
    shape = replace(shape, asks=leaves_caches(problem) and not copied)
    lower_rows = (len(rows.taps) - shape.KH) * problem.dilation[0]
    template = fill(
        kernels.WINDOW_DOTS,
        source_n=x[0], source_r=source_r, source_c=source_c,
        source_rows=problem.input_size[0], source_columns=problem.input_size[1],
        gradient_n=y[0], gradient_r=gradient_r, gradient_c=gradient_c,
        rows=rows.count, columns=columns.count, row_step=rows.step, column_step=columns.step, taps_r=len(rows.taps),
        tap_rows=problem.dilation[0], phases=spread, first_row=rows.offsets[0], first_column=columns.offsets[0],
        channels=problem.ic, outputs=problem.oc if shape.ND else 1, row_block=row_block, row_blocks=row_blocks,
        blocks=blocks, parts=parts, slabs=slabs, slab_bytes=partial.bytes_each,
        all_rows=0, one_row=0, taps_c=shape.KW, together=shape.KH, pixels=window_pixels(shape.KW),
        tile_channels=shape.VL * shape.NV, item=item,
        ahead_source=(row_block * rows.step + lower_rows) * source_r, ahead_gradient=row_block * gradient_r,
        copies=copied, given_r=x[1], given_c=x[2], given_gradient_r=y[1], given_gradient_c=y[2],
        last_row=rows.offsets[-1], workspace_bytes=total, strip=strip, gradients=gradients,
    )  # fmt: skip

    def compiled() -> CFunc:
        template["all_rows"] = kernels.rows_of_taps(problem.dtype, shape).address
        template["one_row"] = kernels.rows_of_taps(problem.dtype, replace(shape, KH=1, asks=False)).address
        return kernels.window_dots()

    launch = Launch(
        compiled, problem.dtype, template, slabs * parts, threads, total,
        grain=max(1, slabs * parts // (_RUNS_PER_THREAD * threads)),
    )  # fmt: skip
    return WindowDotPass(problem, threads, shape, launch, partial, np.zeros(1, problem.dtype))
