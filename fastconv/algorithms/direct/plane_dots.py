"""Weight gradients of planes (NCHW) whose groups have one source channel, planned: `fastconv.kernels.plane_dots`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fastconv.algorithms.base import canonical_strides
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.base import SlabPass
from fastconv.algorithms.direct.grids import TASKS_PER_THREAD, forward_axis
from fastconv.algorithms.slabs import SLABS_BYTES, Slabs
from fastconv.cost import far_bytes
from fastconv.kernels import plane_dots as kernels
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import fill
from fastconv.kernels.target import Tile, lanes_for, registers, vector_bytes
from fastconv.problem import ConvProblem

_MOST_TAPS = 12
"""Columns of a kernel whose sums and masks find registers."""
_MOST_SHARING = 3
"""Columns of a strided kernel that share loads: what is loaded for more leaves the sums too few registers."""
_MOST_STEP = 2
_MOST_SLABS = 16
_SLAB_PIXELS = 4000
"""Pixels of a slab, at least."""
_MANY_CHANNELS = 32
"""Channels that keep all threads busy without slabs."""
_BLOCK_BYTES = 256 << 10
"""Rows of both operands that one strip of pixels after the other reads: they stay in the second cache level."""
_FAR_TIMES = 2
"""How much slower images that no cache keeps are read plane by plane than in order."""


@dataclass(frozen=True, eq=False)
class PlaneDotPass(SlabPass):
    """The launch of a weight gradient of planes, planned."""

    def _lanes_share(self) -> float:
        return model.filled(self.problem.output_size[1], self.tile.VL)

    def describe(self) -> str:
        return f"dot products of planes with pixels in the lanes, {self._lanes_share():.0%} of them in use"

    def seconds(self, rate: float) -> float:
        problem, p = self.problem, self.launch.plan[0]
        (oh, ow), (kh, kw) = problem.output_size, problem.kernel_size
        vectors = problem.n * problem.oc * oh * -(-ow // self.tile.VL)
        chains = [len(range(q, kh, int(p["tap_step"]))) for q in range(int(p["tap_step"]))]
        passes = sum(rows // self.tile.MR + rows % self.tile.MR for rows in chains)
        loads = passes * (kw * problem.stride[1] + 1)
        costs = model.costs()
        products = (kh * kw + costs.plane_dot_slots) / costs.plane_dot_share
        slots = max(products * model.vector_slots(self.tile.VL, problem.itemsize), costs.plane_dot_load * loads)
        ends = problem.oc * int(p["blocks"] * p["line_step"]) * (kh * kw * model.SUM_SLOTS + passes * model.TILE_SLOTS)
        traffic = max(model.planes_seconds(problem), _FAR_TIMES * model.far_seconds(problem))
        work = max((vectors * slots + ends / model.PLANE_DOT_END_SHARE) / rate, traffic) / self.threads
        # The more gradients one source plane has, the more often it is read again.
        work += far_bytes(problem) * costs.dot_far_seconds * (3 - 2 / problem.oc_per_group)
        work *= model.balance(self.launch.tasks, self.threads)
        total = self.slabs.workspace_bytes / problem.itemsize * model.ADD_SECONDS
        return model.launch_seconds(self.threads) + work + total


def _fitting_rows(taps: int) -> int:
    """Kernel rows of so many taps whose sums find registers, beside rows of the gradient and a vector of the input."""
    return max(1, (registers() - 1) // (taps + 1))


def plan_plane_dots(problem: ConvProblem, threads: int) -> PlaneDotPass | None:
    """Plan the launch; None for groups of several source channels, pixels that lie apart, or long kernel rows."""
    rows, columns = forward_axis(problem, 0), forward_axis(problem, 1)
    alone = problem.in_planes and problem.ic_per_group == 1
    if not alone or columns.step > _MOST_STEP or len(columns.taps) > _MOST_TAPS or vector_bytes() == 16:
        return None  # vectors of 16 bytes have no masked loads
    item, channels = problem.itemsize, problem.oc
    lanes = lanes_for(columns.count, item)
    x = canonical_strides(problem.x_shape, item, problem.layout)
    y = canonical_strides(problem.y_shape, item, problem.layout)
    # Blocks and slabs must not depend on the threads: the result's bits depend on them.
    slabs = 1
    if channels < _MANY_CHANNELS:
        pixels = problem.n * rows.count * columns.count
        slabs = min(_MOST_SLABS, -(-pixels // _SLAB_PIXELS), SLABS_BYTES // (math.prod(problem.w_shape) * item))
    row_block = min(rows.count, -(-problem.n * rows.count // max(1, slabs)))
    source_step = math.lcm(rows.step, problem.dilation[0])
    tap_step, line_step = min(source_step // problem.dilation[0], len(rows.taps)), source_step // rows.step
    meeting = -(-len(rows.taps) // tap_step)
    height = min(meeting, _fitting_rows(len(columns.taps)))
    row_block = max(1, min(row_block, _BLOCK_BYTES // (rows.step * x[1] + y[1])))
    row_blocks = -(-rows.count // row_block)
    blocks = problem.n * row_blocks
    slabs = max(1, min(slabs, blocks))
    parts = min(channels, -(-TASKS_PER_THREAD * threads // slabs)) if threads > 1 else 1
    partial = Slabs(problem, slabs, threads)
    plan = fill(
        kernels.PLANE_DOTS,
        source_n=x[0], source_d=x[3], source_r=x[1],
        source_rows=problem.input_size[0], source_columns=problem.input_size[1],
        gradient_n=y[0], gradient_d=y[3], gradient_r=y[1],
        rows=rows.count, columns=columns.count, row_step=rows.step,
        first_row=rows.offsets[0], first_column=columns.offsets[0],
        tap_rows=problem.dilation[0], tap_columns=problem.dilation[1], taps_r=len(rows.taps),
        tap_step=tap_step, line_step=line_step, source_step=source_step,
        channels=channels, multiplier=channels // problem.ic, row_block=row_block, row_blocks=row_blocks,
        blocks=blocks, parts=parts, slabs=slabs, slab_bytes=partial.bytes_each,
        fetches=far_bytes(problem) > 0 or (model.costs().asks_planes and columns.count > lanes),
    )  # fmt: skip
    shape = Tile(VL=lanes, MR=height, NV=1)
    shares = columns.step > 1 and problem.dilation[1] == 1 and len(columns.taps) <= _MOST_SHARING
    kernel = problem.dtype, lanes, len(columns.taps), columns.step, height, shares, columns.count <= lanes
    launch = Launch(lambda: kernels.plane_dots(*kernel), problem.dtype, plan, slabs * parts, threads)
    return PlaneDotPass(problem, threads, shape, launch, partial, np.zeros(1, problem.dtype))
