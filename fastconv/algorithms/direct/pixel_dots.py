"""Weight gradients on planes (NCHW), planned: pointwise ones, and of windows with few values: `kernels.pixel_dots`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.algorithms.base import canonical_strides
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.base import SlabPass
from fastconv.algorithms.direct.frames import Windows, windows_of
from fastconv.algorithms.direct.grids import forward_axis, roles, tasks_wanted, workspace_offsets
from fastconv.algorithms.slabs import MOST_SLABS, SLABS_BYTES, Slabs, slabs_up_to
from fastconv.kernels import pixel_dots as kernels
from fastconv.kernels.columns import pack_columns
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import fill
from fastconv.kernels.target import Tile, patch_tile, plane_tile, vector_bytes
from fastconv.problem import ConvProblem

_BLOCK_BYTES = 384 << 10
"""Pixels of a block, of all planes that a task multiplies: they stay in the second cache level."""
_BLOCK_PIXELS = 512
"""Pixels of a block, beside which adding up a tile's lanes takes some tenth of the time."""
_TASKS_PER_THREAD = 4
"""Tasks of blocks of channels: each reads the planes of the others again."""
_PANEL_LANES = 64
"""Pixels of a panel of what windows read."""
_PATCH_PIXELS = 512
"""Pixels of a block of such panels at most."""
_LEAST_PIXELS = 128
"""And at least."""
_NEAR_PANEL_BYTES = 16 << 10
"""Panels that stay in the first cache level beside the gradients."""
_SLAB_PIXELS = 800
"""Pixels of a slab: with so many, adding its partial gradient takes some hundredth of computing it."""


@dataclass(frozen=True, eq=False)
class PixelDotPass(SlabPass):
    """The launch of the weight gradient, planned."""

    windows: Windows | None = None
    """How tasks pack what windows read; None for pointwise layers."""

    def _lanes_share(self) -> float:
        return model.filled(min(int(self.launch.plan[name][0]) for name in ("pixels", "pixel_block")), self.tile.VL)

    def describe(self) -> str:
        tile = f"register tiles of {self.tile.MR} x {self.tile.NV} dot products over pixels"
        return f"{tile}, {self._lanes_share():.0%} of the lanes in use"

    def seconds(self, rate: float) -> float:
        p, shape, problem = self.launch.plan[0], self.tile, self.problem
        tiles = problem.groups * math.prod(
            -(-int(p[name]) // size) for name, size in (("outputs", shape.MR), ("inputs", shape.NV))
        )
        vectors = problem.n * int(p["pixels"]) / self._lanes_share() / shape.VL
        blocks = int(p["image_blocks"] * p["pixel_blocks"])
        products = shape.MR * shape.NV
        slots = tiles * vectors * max(products, model.costs().pixel_dot_load * (shape.MR + shape.NV))
        slots /= model.PATCH_DOT_SHARE if self.windows else model.costs().pixel_dot_share
        if self.windows and p["panel_bytes"] > _NEAR_PANEL_BYTES:
            slots /= model.costs().patch_far_share
        if p["source_k"] % model.CONFLICT_BYTES == 0:
            slots /= model.PIXEL_DOT_CONFLICT_SHARE
        slots += tiles * blocks * (products * model.costs().dot + model.TILE_SLOTS)
        total = self.slabs.workspace_bytes * model.STREAM_SECONDS
        packing = 0.0
        if self.windows:
            packing = problem.n * problem.groups * int(p["inputs"]) * self.windows.seconds_per_row
            packing += problem.groups * blocks * model.PATCH_BLOCK_SECONDS
        multiply = max(slots / rate, model.far_seconds(problem))
        work = (multiply + packing) * model.balance(self.launch.tasks, self.threads)
        return model.launch_seconds(self.threads) + (work + total) / self.threads


def _channel_blocks(inputs: int, outputs: int, channels: int, shape: Tile, wanted: int) -> tuple[int, int]:
    """Input and output channels of a task: at most so many together, and so few that there are as many tasks."""
    parts = [1, 1]
    sizes, heights = (inputs, outputs), (shape.NV, shape.MR)

    def block(axis: int) -> int:
        return -(-sizes[axis] // (parts[axis] * heights[axis])) * heights[axis]

    while block(0) + block(1) > channels or math.prod(parts) < wanted:
        larger = int(block(1) >= block(0))
        if block(larger) <= heights[larger]:
            larger = 1 - larger
        if block(larger) <= heights[larger]:
            break
        parts[larger] += 1
    return block(0), block(1)


def plan_pixel_dots(problem: ConvProblem, threads: int) -> PixelDotPass | None:
    """Plan the launch; None for other kernels than pointwise ones, and images that are no planes."""
    pointwise = problem.kernel_size == problem.stride == (1, 1) and problem.input_size == problem.output_size
    pixels = math.prod(problem.output_size)
    shape = plane_tile(problem.dtype)
    whole = pixels % shape.VL == 0  # vectors of 16 bytes have no masked loads
    if problem.layout != "NCHW" or not pointwise or (vector_bytes() == 16 and not whole):
        return None
    item, inputs, outputs = problem.itemsize, problem.ic_per_group, problem.oc_per_group
    x = canonical_strides(problem.x_shape, item, problem.layout)
    y = canonical_strides(problem.y_shape, item, problem.layout)
    # Blocks and slabs must not depend on the threads: the result's bits depend on them.
    most = _BLOCK_PIXELS * (2 if x[3] % model.CONFLICT_BYTES == 0 else 1)  # shorter blocks meet in half of the cache
    w_bytes = math.prod(problem.w_shape) * item
    slabs = min(MOST_SLABS, SLABS_BYTES // w_bytes, problem.n * pixels // _SLAB_PIXELS)
    slabs = slabs_up_to(max(1, slabs))
    image_block = max(1, min(problem.n // slabs, most // pixels))
    image_blocks = -(-problem.n // image_block)
    pixel_blocks = -(-pixels // most)
    if image_blocks < slabs:  # as many blocks in each slab
        pixel_blocks = -(-pixel_blocks // slabs) * slabs
    pixel_block = -(-pixels // (pixel_blocks * shape.VL)) * shape.VL
    pixel_blocks = -(-pixels // pixel_block)
    slabs = slabs_up_to(min(slabs, image_blocks * pixel_blocks))
    partial = Slabs(problem, slabs, threads)
    channels = _BLOCK_BYTES // (image_block * min(pixel_block, pixels) * item)
    wanted = -(-min(_TASKS_PER_THREAD * threads, tasks_wanted(problem, threads)) // (problem.groups * slabs))
    input_block, output_block = _channel_blocks(inputs, outputs, channels, shape, wanted)
    input_blocks, output_blocks = -(-inputs // input_block), -(-outputs // output_block)
    lefts, rights, total = workspace_offsets(shape.MR * 8, shape.NV * 8)
    plan = fill(
        kernels.PIXEL_DOTS,
        source_n=x[0], source_k=x[3], source_group=inputs * x[3],
        gradient_n=y[0], gradient_d=y[3], gradient_group=outputs * y[3],
        target_d=inputs * item, target_group=outputs * inputs * item,
        n=problem.n, pixels=pixels, inputs=inputs, outputs=outputs, groups=problem.groups,
        image_block=image_block, pixel_block=pixel_block, image_blocks=image_blocks, pixel_blocks=pixel_blocks,
        slabs=slabs, slab_bytes=partial.bytes_each,
        input_block=input_block, output_block=output_block, input_blocks=input_blocks, output_blocks=output_blocks,
        packing=0, panel_pixels=0, panel_bytes=0, workspace_bytes=total, lefts=lefts, rights=rights, packed=0,
    )  # fmt: skip
    tasks = problem.groups * slabs * input_blocks * output_blocks
    launch = Launch(lambda: kernels.pixel_dots(problem.dtype, shape), problem.dtype, plan, tasks, threads, total)
    return PixelDotPass(problem, threads, shape, launch, partial, np.zeros(1, problem.dtype))


def plan_patch_dots(problem: ConvProblem, threads: int) -> PixelDotPass | None:
    """Plan the launch for windows of planes; None for pointwise layers, and where few pixels' windows fill a cache."""
    if problem.layout != "NCHW" or problem.kernel_size == (1, 1) or vector_bytes() == 16:
        return None
    item, pixels, shape = problem.itemsize, math.prod(problem.output_size), patch_tile(problem.dtype)
    x = canonical_strides(problem.x_shape, item, problem.layout)
    y = canonical_strides(problem.y_shape, item, problem.layout)
    rows, columns = forward_axis(problem, 0), forward_axis(problem, 1)
    vectors = min(_PANEL_LANES // shape.VL, -(-pixels // shape.VL))
    lanes, inputs, outputs = vectors * shape.VL, math.prod(problem.w_shape[1:]), problem.oc_per_group
    part = roles(problem, "forward")
    windows = windows_of(part, rows, columns, problem.dtype, lanes, math.prod(problem.kernel_size), 1)
    # Blocks and slabs must not depend on the threads: the result's bits depend on them.
    fitting = (_BLOCK_BYTES - windows.mask_bytes) // windows.panel_bytes
    panels = min(_PATCH_PIXELS // lanes, fitting, -(-pixels // lanes))
    if panels * lanes < min(pixels, _LEAST_PIXELS):
        return None
    blocks = -(-pixels // (panels * lanes))
    pixel_block = -(-pixels // (blocks * lanes)) * lanes
    blocks = -(-pixels // pixel_block)
    slabs = min(MOST_SLABS, SLABS_BYTES // (math.prod(problem.w_shape) * item), problem.n * pixels // _SLAB_PIXELS)
    slabs = slabs_up_to(max(1, min(slabs, problem.n * blocks)))
    partial = Slabs(problem, slabs, threads)
    lefts, rights, packed, total = workspace_offsets(
        shape.MR * 8, shape.NV * 8, panels * windows.panel_bytes + windows.mask_bytes
    )
    plan = fill(
        kernels.PIXEL_DOTS,
        source_n=x[0], source_k=0, source_group=0,
        gradient_n=y[0], gradient_d=y[3], gradient_group=outputs * y[3],
        target_d=inputs * item, target_group=outputs * inputs * item,
        n=problem.n, pixels=pixels, inputs=inputs, outputs=outputs, groups=problem.groups,
        image_block=1, pixel_block=pixel_block, image_blocks=problem.n, pixel_blocks=blocks,
        slabs=slabs, slab_bytes=partial.bytes_each,
        input_block=inputs, output_block=outputs, input_blocks=1, output_blocks=1,
        packing=windows.record.ctypes.data, panel_pixels=lanes, panel_bytes=windows.panel_bytes,
        workspace_bytes=total, lefts=lefts, rights=rights, packed=packed,
    )  # fmt: skip

    def compiled() -> CFunc:
        windows.record["entry"] = pack_columns(problem.dtype, vectors, shape.VL, windows.step).address
        return kernels.pixel_dots(problem.dtype, shape, vectors)

    launch = Launch(compiled, problem.dtype, plan, problem.groups * slabs, threads, total)
    return PixelDotPass(problem, threads, shape, launch, partial, np.zeros(1, problem.dtype), windows)
