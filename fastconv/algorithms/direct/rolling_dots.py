"""Depthwise weight gradients with channels in the lanes by strips of pixels: `fastconv.kernels.rolling_dots`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.algorithms.base import canonical_strides
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.base import SlabPass
from fastconv.algorithms.direct.grids import TASKS_PER_THREAD, forward_axis
from fastconv.algorithms.direct.rolling_pixels import (
    MOST_WIDTH,
    STRIP_SLOTS,
    is_depthwise,
    row_block_of,
    strips_seconds,
)
from fastconv.algorithms.slabs import MOST_SLABS, SLABS_BYTES, Slabs, slabs_up_to
from fastconv.cost import leaves_caches
from fastconv.kernels import rolling_dots as kernels
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import address, fill
from fastconv.kernels.target import PixelStripTile, registers, vector_bytes
from fastconv.problem import ConvProblem

_SLAB_PIXELS, _LEAST_PIXELS = 2000, 400
"""Pixels of a slab, and at least so many where there are few channels to share among threads."""


@dataclass(frozen=True, eq=False)
class RollingDotsPass(SlabPass):
    """The launch of a depthwise weight gradient by strips of pixels, planned."""

    zeros: np.ndarray
    """Columns outside the image."""

    def describe(self) -> str:
        return f"gradients that roll down strips of {self.tile.NV} pixels with channels in the lanes"

    def seconds(self, rate: float) -> float:
        p, shape, problem, costs = self.launch.plan[0], self.tile, self.problem, model.costs()
        taps, vectors = shape.KH * shape.KW, int(p["vectors"] + p["overlapping"])
        strips, rows = int(p["units"]), min(int(p["row_block"]), problem.output_size[0])
        # The first and last rows of a strip are loaded anew for each of the kernel's.
        loads = strips * (rows + 2 * shape.KH) * (shape.KW + STRIP_SLOTS)
        slots = math.prod(problem.y_shape[:3]) * (taps + 1 + costs.channel_load) + loads
        slots = vectors * (slots + strips * (costs.rolling_plane + 2 * taps))
        total = self.slabs.workspace_bytes / problem.itemsize * model.ADD_SECONDS
        return strips_seconds(self, slots / costs.rolling_dot_share, rate) + total


def plan_rolling_dots(problem: ConvProblem, threads: int) -> RollingDotsPass | None:
    """Plan the launch; None for other layers than depthwise ones of stride 1 whose channels fill a vector."""
    item, channels, (kh, kw) = problem.itemsize, problem.groups, problem.kernel_size
    lanes = vector_bytes() // item
    most = min(MOST_WIDTH, (registers() - kh * kw - 1) // kh)
    if not is_depthwise(problem) or problem.stride != (1, 1) or most < 2:
        return None
    rows, columns = forward_axis(problem, 0), forward_axis(problem, 1)
    row_step, phases = problem.dilation
    longest = -(-columns.count // phases)
    strips = -(-longest // most)
    width = -(-longest // strips)
    x, y = (canonical_strides(shape, item, problem.layout) for shape in (problem.x_shape, problem.y_shape))
    row_block = row_block_of(rows.count, 2 * (width + kw - 1) * x[2])
    blocks = -(-rows.count // row_block)
    vectors, units = channels // lanes, problem.n * blocks * phases * strips
    pixels = problem.n * rows.count * columns.count
    # Slabs must not depend on the threads: the result's bits depend on them.
    wanted = max(pixels // _SLAB_PIXELS, min(pixels // _LEAST_PIXELS, -(-MOST_SLABS // vectors)))
    slabs = slabs_up_to(min(wanted, MOST_SLABS, units, SLABS_BYTES // (math.prod(problem.w_shape) * item)))
    parts = min(vectors, -(-TASKS_PER_THREAD * threads // slabs)) if threads > 1 else 1
    partial = Slabs(problem, slabs, threads)
    zeros = np.zeros(channels, problem.dtype)
    shape = PixelStripTile(VL=lanes, KH=kh, KW=kw, NV=width, asks=leaves_caches(problem))
    plan = fill(
        kernels.ROLLING_DOTS,
        source_n=x[0], source_r=x[1], source_c=x[2], source_rows=problem.input_size[0],
        source_columns=problem.input_size[1], gradient_n=y[0], gradient_r=y[1], gradient_c=y[2], zeros=address(zeros),
        rows=rows.count, columns=columns.count, first_row=rows.offsets[0], first_column=columns.offsets[0],
        row_step=row_step, phases=phases, channels=channels, vectors=vectors,
        overlapping=int(channels % lanes > 0), lane_bytes=lanes * item,
        channel_bytes=channels * item, taps=kh * kw, row_block=row_block, row_blocks=blocks, strips=strips, width=width,
        units=units, slabs=slabs, slab_bytes=partial.bytes_each, parts=parts, entry=0, entry_narrow=0,
    )  # fmt: skip

    def compiled() -> CFunc:
        plan["entry"] = kernels.strip(problem.dtype, shape).address
        if width > 1 and columns.count < phases * strips * width:
            plan["entry_narrow"] = kernels.strip(problem.dtype, replace(shape, NV=width - 1)).address
        return kernels.rolling_dots()

    launch = Launch(compiled, problem.dtype, plan, slabs * parts, threads)
    return RollingDotsPass(problem, threads, shape, launch, partial, np.zeros(1, problem.dtype), zeros)
