"""Weight gradients on planes (NCHW): products of rows of pixels, read as they lie.

Every weight is the dot product of an input plane and a plane of the output gradient. A register tile sums MR planes of
the gradient against ND of the input, with pixels in the lanes, so that nothing is turned; its lanes are added up at the
end of a block of pixels. Planes of neighbouring images go on where one ends. That is for pointwise layers; for windows,
what each tap of each channel reads is packed as one more plane, a block of pixels at a time.
"""

from __future__ import annotations

import functools

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.kernels import jit
from fastconv.kernels.packing import PACKING
from fastconv.kernels.params import CALL, record
from fastconv.kernels.simd import array_at, call_part, record_at
from fastconv.kernels.target import Tile
from fastconv.kernels.tiles import dot_tile

PIXEL_DOTS = record("""
    source_n source_k source_group gradient_n gradient_d gradient_group target_d target_group
    n pixels inputs outputs groups
    image_block pixel_block image_blocks pixel_blocks slabs slab_bytes
    input_block output_block input_blocks output_blocks
    packing panel_pixels panel_bytes workspace_bytes lefts rights packed
""")
"""Strides, `*_group` and `slab_bytes` are in bytes; `inputs` and `outputs` are the planes of a group, and `pixels`
those of a plane. Where windows are packed, `packing` is the address of the record of `fastconv.kernels.columns`, and
`inputs` are the rows of its panels of `panel_pixels` pixels; an image is a block then. Tasks are (group, slab, block of
outputs, block of inputs)."""


@functools.cache
def pixel_dots(dtype: str, tile: Tile, steps: int = 0) -> CFunc:
    """The kernel for one dtype and tile, MR output by NV input channels; `steps` are the vectors of a panel's rows."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, MR, ND, STEPS = tile.VL, tile.MR, tile.NV, steps

    def pixel_dot_tiles(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, PIXEL_DOTS)
        own = call.workspace + thread * p.workspace_bytes
        lefts = array_at(own + p.lefts, MR, np.int64)
        rights = array_at(own + p.rights, ND, np.int64)
        blocks = p.image_blocks * p.pixel_blocks
        for task in range(begin, end):
            first_input = task % p.input_blocks * p.input_block
            first_output = task // p.input_blocks % p.output_blocks * p.output_block
            slab = task // p.input_blocks // p.output_blocks % p.slabs
            group = task // p.input_blocks // p.output_blocks // p.slabs
            end_input = min(p.inputs, first_input + p.input_block)
            end_output = min(p.outputs, first_output + p.output_block)
            first_block = blocks * slab // p.slabs
            for block in range(first_block, blocks * (slab + 1) // p.slabs):
                image = block // p.pixel_blocks * p.image_block
                pixel = block % p.pixel_blocks * p.pixel_block
                images, pixels = min(p.image_block, p.n - image), min(p.pixel_block, p.pixels - pixel)
                source = call.source + group * p.source_group + image * p.source_n + pixel * ITEM
                gradient = call.other + group * p.gradient_group + image * p.gradient_n + pixel * ITEM
                target = call.target + slab * p.slab_bytes + group * p.target_group
                adds = 1 if block > first_block else 0
                # Rows of a tile are planes of several images, or panels of one.
                rows, columns, left_step, right_step = images, pixels, p.gradient_n, p.source_n
                step, base = p.source_k, source
                if p.packing != 0:
                    q = record_at(p.packing, PACKING)
                    given = call.source + group * q.source_group + image * p.source_n
                    step, base = p.panel_pixels * ITEM, own + p.packed
                    first_panel, rows = pixel // p.panel_pixels, pixels // p.panel_pixels
                    columns, left_step, right_step = p.panel_pixels, step, p.panel_bytes
                    for panel in range((pixels + p.panel_pixels - 1) // p.panel_pixels):
                        place = base + panel * p.panel_bytes
                        call_part(q.entry, (p.packing, given, first_panel + panel, place, 0, 0))
                rest = pixels - rows * columns if p.packing != 0 else 0
                # Rows and columns of a tile past the last channel repeat it.
                for k in range(first_input, end_input, ND):
                    for q in range(ND):
                        rights[q] = base + min(k + q, end_input - 1) * step
                    for d in range(first_output, end_output, MR):
                        for m in range(MR):
                            lefts[m] = gradient + min(d + m, end_output - 1) * p.gradient_d
                        dot_tile(
                            REAL, VL, MR, ND, STEPS, rows, columns, own + p.lefts, left_step, own + p.rights,
                            right_step, target + d * p.target_d + k * ITEM, p.target_d, end_output - d, end_input - k,
                            adds,
                        )  # fmt: skip
                        if rest == 0:
                            continue
                        for m in range(MR):
                            lefts[m] += rows * left_step
                        for q in range(ND):
                            rights[q] += rows * right_step
                        dot_tile(
                            REAL, VL, MR, ND, 0, 1, rest, own + p.lefts, 0, own + p.rights, 0,
                            target + d * p.target_d + k * ITEM, p.target_d, end_output - d, end_input - k, 1,
                        )  # fmt: skip
                        for q in range(ND):
                            rights[q] -= rows * right_step

    return jit.kernel(pixel_dot_tiles)
