"""The weight gradient by the transforms of F(m0 x m1, r0 x r1), with as few multiplications as the forward pass.

A tile of m0 x m1 output gradients meets n0 x n1 inputs, n = m + r - 1, and what it adds to the r0 x r1 gradient is the
forward algorithm transposed: ``G0' ((B0 x B1') * (A0' y A1)) G1``. The last transform is linear, so it waits until all
tiles are added up: n0 n1 matrix products (input channels x tiles) (tiles x output channels) come first, then a
transform of their sums.

A task owns the sums of a block of input and output channels, which stay in the second cache level while it walks its
tiles, transforming some of them at a time. Padding, edges and dilation are addresses, as in the forward kernel. A piece
of a larger kernel is a gradient by itself, from inputs further on.
"""

from __future__ import annotations

import functools

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.kernels import jit
from fastconv.kernels.params import CALL, record
from fastconv.kernels.simd import array_at, call_part, record_at
from fastconv.kernels.target import Tile, vector_bytes
from fastconv.kernels.tiles import RUN_FIELDS, added_tile
from fastconv.kernels.toomcook import Filtering
from fastconv.kernels.transforms import SUMS, transform_tile
from fastconv.kernels.winograd import (
    FORM,
    first_target,
    locate_tile,
    next_tile,
    taps_of_piece,
    trace_inputs,
    trace_matrix,
)

WINOGRAD_WEIGHTS = record(f"""
    {FORM}
    source_n source_r source_c source_group source_rows source_columns first_row first_column
    dilation_r dilation_c stride_r stride_c
    gradient_n gradient_r gradient_c gradient_group rows columns
    target_r target_c target_k target_group slab_bytes
    pieces_r pieces_c phases_r phases_c taps_r taps_c apart_r apart_c read_r read_c
    tile_rows tile_columns tiles block slabs groups
    inputs outputs input_block output_block input_blocks output_blocks
    input_pitch output_pitch value_step gradient_step product_step zeros asks
    trace_inputs trace_gradients transform_inputs transform_gradients multiply transform_sums
    workspace_bytes values gradients products value_table gradient_table product_table target_table pixels
    met spare_table spare run
""")
"""Strides and `*_group` are in bytes. Output gradient (i, j) meets inputs from (i + first_row, j + first_column) on,
every read_r-th x read_c-th.
`*_block` are channels, `*_pitch` bytes from a transformed tile to the next, `*_step` those from a matrix to the next.
`slab_bytes` are those of a partial gradient; where they are 0, slabs follow each other and add to one gradient.
Where it `asks`, the pixels of the next tile are asked for. `pixels` and `met` are the addresses of the inputs and the
output gradients that a tile reads; `trace_*` and `transform_*` are those of compiled parts, which know no register
tile, `multiply` that of the one which does. The last lines' fields are offsets into each thread's workspace."""


@functools.cache
def transform_sums(dtype: str, rows: Filtering, columns: Filtering) -> CFunc:
    """The part that transforms the sums of a block of channels into the gradient, or adds them to it.

    Taps that a piece of a kernel has beyond those of the kernel have no place there: their address is 0.
    """
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, (M0, R0, S0), (M1, R1, S1) = vector_bytes() // ITEM, rows, columns

    def write_gradient(plan, own, inputs, outputs, adds):
        p = record_at(plan, WINOGRAD_WEIGHTS)
        targets = array_at(own + p.target_table, R0 * R1, np.int64)
        whole = targets.min() != 0
        for k in range(inputs):
            for v in range(0, outputs, VL):
                there, place = min(VL, outputs - v), k * p.target_k + v * ITEM
                direct = there == VL and adds == 0 and whole
                transform_tile(
                    REAL, VL, SUMS, M0, R0, S0, M1, R1, S1, own + p.product_table, k * p.output_pitch + v * ITEM,
                    own + p.target_table if direct else own + p.spare_table, place if direct else 0, p.zeros, REAL(0),
                )  # fmt: skip
                if direct:
                    continue
                for e in range(R0 * R1):
                    if targets[e] == 0:
                        continue
                    row = array_at(own + p.spare + e * VL * ITEM, VL, REAL)
                    weights = array_at(targets[e] + place, there, REAL)
                    for d in range(there):
                        weights[d] = weights[d] + row[d] if adds != 0 else row[d]

    return jit.part(write_gradient)


@functools.cache
def multiply(dtype: str, tile: Tile) -> CFunc:
    """The part that knows its register tile: the products of a block's transformed tiles, added to those so far."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, MR, NV, NR = tile.VL, tile.MR, tile.NV, tile.NR

    def multiply_matrices(plan, own, inputs, outputs, tiles, adds):
        p = record_at(plan, WINOGRAD_WEIGHTS)
        run = array_at(own + p.run, 1 + RUN_FIELDS, np.int64)
        run[0], run[1], run[2], run[3] = 0, p.input_pitch, 0, tiles
        for e in range(p.matrices):
            values, gradients = own + p.values + e * p.value_step, own + p.gradients + e * p.gradient_step
            products = own + p.products + e * p.product_step
            for k in range(0, inputs, MR):
                for v in range(0, outputs, NR):
                    added_tile(
                        REAL, VL, MR, NV, 0, 1, own + p.run, values + k * ITEM, ITEM, gradients + v * ITEM,
                        p.output_pitch, products + k * p.output_pitch + v * ITEM, p.output_pitch, MR, NR, adds,
                    )  # fmt: skip

    return jit.part(multiply_matrices)


@functools.cache
def winograd_weights() -> CFunc:
    """The kernel for all dtypes and forms; tasks are (slab, group, piece, block of inputs, block of outputs)."""

    def winograd_gradient(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, WINOGRAD_WEIGHTS)
        own = call.workspace + thread * p.workspace_bytes
        trace_matrix(p.matrices, own + p.value_table, own + p.values, p.value_step)
        trace_matrix(p.matrices, own + p.gradient_table, own + p.gradients, p.gradient_step)
        trace_matrix(p.matrices, own + p.product_table, own + p.products, p.product_step)
        trace_matrix(p.matrices, own + p.spare_table, own + p.spare, p.vector)
        pieces = p.pieces_r * p.pieces_c
        for task in range(begin, end):
            first_output = task % p.output_blocks * p.output_block
            first_input = task // p.output_blocks % p.input_blocks * p.input_block
            whole = task // p.output_blocks // p.input_blocks
            piece, group = whole % pieces, whole // pieces % p.groups
            slab = whole // pieces // p.groups
            taps = taps_of_piece(p, piece)
            inputs, outputs = min(p.input_block, p.inputs - first_input), min(p.output_block, p.outputs - first_output)
            source = call.source + group * p.source_group
            gradient = call.other + group * p.gradient_group
            begin_tile, end_tile = p.tiles * slab // p.slabs, p.tiles * (slab + 1) // p.slabs
            for first in range(begin_tile, end_tile, p.block):
                tiles = min(p.block, end_tile - first)
                image, a, b = locate_tile(p, first)
                for t in range(tiles):
                    i, j = first_target(a, p.m_r, p.dilation_r), first_target(b, p.m_c, p.dilation_c)
                    there = source + image * p.source_n
                    trace_inputs(p, taps, there, i, j, own + p.pixels + t * p.tile_inputs * 8)
                    call_part(
                        p.trace_gradients,
                        (
                            gradient + image * p.gradient_n, p.gradient_r, p.gradient_c, p.rows, p.columns, i, j,
                            p.dilation_r, p.dilation_c, own + p.met + t * p.outputs_r * p.outputs_c * 8, p.zeros,
                        ),
                    )  # fmt: skip
                    image, a, b = next_tile(p, image, a, b)
                call_part(
                    p.transform_inputs,
                    (
                        tiles, own + p.pixels, first_input * p.item, inputs, own + p.value_table, 0, p.input_pitch,
                        own + p.spare, own + p.spare_table, p.zeros, p.asks,
                    ),
                )  # fmt: skip
                call_part(
                    p.transform_gradients,
                    (
                        tiles, own + p.met, first_output * p.item, outputs, own + p.gradient_table, 0, p.output_pitch,
                        own + p.spare, own + p.spare_table, p.zeros, p.asks,
                    ),
                )  # fmt: skip
                adds = 1 if first > begin_tile else 0
                call_part(p.multiply, (call.plan, own, inputs, outputs, tiles, adds))
            target = call.target + slab * p.slab_bytes + group * p.target_group
            target += first_input * p.target_k + first_output * p.item
            targets = array_at(own + p.target_table, (p.r_r, p.r_c), np.int64)
            for a in range(p.r_r):
                for b in range(p.r_c):
                    i, j = taps[0] + a * p.apart_r, taps[1] + b * p.apart_c
                    there = a < taps[2] and b < taps[3]
                    targets[a, b] = target + i * p.target_r + j * p.target_c if there else 0
            adds = 1 if slab > 0 and p.slab_bytes == 0 else 0
            call_part(p.transform_sums, (call.plan, own, inputs, outputs, adds))

    return jit.kernel(winograd_gradient)
