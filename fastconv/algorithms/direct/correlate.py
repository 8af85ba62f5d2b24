"""The weight gradient: `fastconv.kernels.correlate`, planned."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fastconv.algorithms.base import PLAIN, Epilogue, canonical_strides, canonical_weight_strides
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.base import Pass
from fastconv.algorithms.direct.grids import Axis, forward_axis, workspace_offsets
from fastconv.kernels import correlate
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import address, fill
from fastconv.kernels.simd import RUN_FIELDS
from fastconv.kernels.target import Tile, correlate_tile
from fastconv.problem import ConvProblem

_PANEL_BYTES = 128 << 10
"""Packed output gradients of a block of pixels: they stay in the second cache level for all taps."""
_TASKS_PER_THREAD = 2
"""Tasks to cut a launch into for each of several threads: few, as each packs for itself."""
_PACKED_BYTES = 512 << 10
"""Packed inputs of a block of pixels: they stay there too."""


@dataclass(frozen=True, eq=False)
class CorrelatePass(Pass):
    """The launch of the weight gradient, planned: its record but for the addresses of a call's arrays."""

    zeros: np.ndarray
    """What sums begin with."""
    tables: tuple[np.ndarray, ...]
    """Offsets and zeros whose addresses the record holds, and which it keeps alive."""

    def describe(self) -> str:
        channels = self.problem.oc_per_group
        return model.describe(self.tile, "output channels", model.filled(channels, self.tile.VL))

    def seconds(self, rate: float) -> float:
        p, problem, shape = self.launch.plan[0], self.problem, self.tile
        pixels = problem.n * math.prod(problem.output_size)
        taps = math.prod(problem.kernel_size)
        tiles = int(p["channel_tiles"]) * taps * problem.groups
        multiply = tiles * pixels * model.tile_slots(problem.oc_per_group, shape) / model.CORRELATE_SHARE / rate
        blocks, panels = int(p["image_blocks"] * p["row_blocks"] * p["column_blocks"]), int(p["panels"])
        add = tiles * blocks * panels * (shape.MR * shape.NR * model.ADD_SECONDS + model.TILE_SLOTS / rate)
        apart = p["source_k"] != problem.itemsize
        each = model.SCATTER_SECONDS if apart else model.PACK_SECONDS
        inputs = blocks * int(p["packed_rows"] * p["packed_columns"] * p["image_block"])
        pack = problem.groups * each * (
            inputs * int(p["channel_tiles"] * p["panel_parts"] * p["tap_parts"]) * shape.MR
            + pixels * panels * int(p["channel_parts"] * p["tap_parts"]) * shape.NR
        )  # fmt: skip
        work = (multiply + add + pack) * model.balance(self.launch.tasks, self.threads)
        return model.LAUNCH_SECONDS + work / self.threads

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        result[...] = 0
        self.launch(second, first, self.zeros, result)


def plan_correlate(problem: ConvProblem, threads: int) -> CorrelatePass:
    """Plan the launch of the weight gradient."""
    item, groups = problem.itemsize, problem.groups
    rows, columns = forward_axis(problem, 0), forward_axis(problem, 1)
    shape = correlate_tile(problem.dtype, problem.ic_per_group, problem.oc_per_group)
    x = canonical_strides(problem.x_shape, item, problem.layout)
    y = canonical_strides(problem.y_shape, item, problem.layout)
    w = canonical_weight_strides(problem.w_shape, item, problem.layout)
    panels, channel_tiles = -(-problem.oc_per_group // shape.NR), -(-problem.ic_per_group // shape.MR)
    channel_parts, panel_parts, tap_parts = _parts(problem, channel_tiles, panels, threads)

    # Blocks must not depend on the threads: the result's bits depend on them.
    block = _block(problem, rows, columns, shape)
    packed_rows, row_step = _packed(rows, block.rows)
    packed_columns, column_step = _packed(columns, block.columns)
    # Odd lines between the tiles' channels keep these from meeting in the same lines of the first cache level.
    tile_bytes = -(-block.images * packed_rows * packed_columns * shape.MR * item // 64) * 64 + 64
    packed, panel, table, buffer, total = workspace_offsets(
        -(-channel_tiles // channel_parts) * tile_bytes, block.pixels * shape.NR * item,
        block.images * block.rows * (1 + RUN_FIELDS) * 8, shape.MR * shape.NR * item,
    )  # fmt: skip
    row_offsets, column_offsets = np.array(rows.offsets, np.int64), np.array(columns.offsets, np.int64)
    template = fill(
        correlate.CORRELATE,
        source_n=x[0], source_r=x[1], source_c=x[2], source_k=x[3],
        source_group=problem.ic_per_group * x[3],
        source_rows=problem.input_size[0], source_columns=problem.input_size[1],
        gradient_n=y[0], gradient_r=y[1], gradient_c=y[2], gradient_d=y[3],
        gradient_group=problem.oc_per_group * y[3],
        n=problem.n, rows=rows.count, columns=columns.count, row_step=rows.step, column_step=columns.step,
        taps_r=len(rows.taps), taps_c=len(columns.taps),
        row_offsets=address(row_offsets), column_offsets=address(column_offsets),
        first_row=min(rows.offsets), first_column=min(columns.offsets),
        reduction=problem.ic_per_group, channels=problem.oc_per_group,
        target_a=w[0], target_b=w[1], target_k=w[2], target_d=w[3],
        target_group=problem.oc_per_group * w[3],
        image_block=block.images, row_block=block.rows, column_block=block.columns,
        image_blocks=-(-problem.n // block.images), row_blocks=-(-rows.count // block.rows),
        column_blocks=-(-columns.count // block.columns),
        panels=panels, panel_parts=panel_parts, channel_tiles=channel_tiles, channel_parts=channel_parts,
        tap_parts=tap_parts,
        packed_rows=packed_rows, packed_columns=packed_columns, packed_row_step=row_step,
        packed_column_step=column_step, tile_bytes=tile_bytes,
        workspace_bytes=total, packed=packed, panel=panel, table=table, buffer=buffer,
    )  # fmt: skip
    launch = Launch(
        lambda: correlate.correlate(problem.dtype, shape), problem.dtype, template,
        groups * channel_parts * panel_parts * tap_parts, threads, total,
    )  # fmt: skip
    return CorrelatePass(
        problem, threads, shape, launch, np.zeros(shape.NR, problem.dtype), (row_offsets, column_offsets)
    )


def _parts(problem: ConvProblem, channel_tiles: int, panels: int, threads: int) -> tuple[int, int, int]:
    """In how many parts tasks split input channels, output channels and taps: so that the least is packed again."""
    wanted = -(-_TASKS_PER_THREAD * threads // problem.groups) if threads > 1 else 1
    inputs, gradients = (math.prod(shape) for shape in (problem.x_shape, problem.y_shape))
    splits = [(parts, min(panels, -(-wanted // parts))) for parts in range(1, min(channel_tiles, wanted) + 1)]
    most = max(parts * others for parts, others in splits)
    enough = [split for split in splits if split[0] * split[1] >= min(wanted, most)]
    parts, others = min(enough, key=lambda split: split[0] * gradients + split[1] * inputs)
    return parts, others, min(math.prod(problem.kernel_size), -(-wanted // (parts * others)))


class _Block(NamedTuple):
    """How many images, output rows and output columns are packed at once."""

    images: int
    rows: int
    columns: int

    @property
    def pixels(self) -> int:
        return self.images * self.rows * self.columns


def _packed(axis: Axis, count: int) -> tuple[int, int]:
    """How many input positions `count` outputs read along an axis, and how far apart those are."""
    if len(axis.taps) == 1:
        return count, axis.step
    return (count - 1) * axis.step + max(axis.offsets) - min(axis.offsets) + 1, 1


def _block(problem: ConvProblem, rows: Axis, columns: Axis, shape: Tile) -> _Block:
    """The largest block of whole rows, or whole images, whose packed copies stay in the second cache level."""
    channels = -(-problem.ic_per_group // shape.MR) * shape.MR

    def fits(block: _Block) -> bool:
        inputs = block.images * _packed(rows, block.rows)[0] * _packed(columns, block.columns)[0] * channels
        gradients = block.pixels * shape.NR
        return inputs * problem.itemsize <= _PACKED_BYTES and gradients * problem.itemsize <= _PANEL_BYTES

    def most(block: Callable[[int], _Block], count: int) -> int:
        """The largest number up to `count` of which a block fits, at least 1; even shares of `count`."""
        low, high = 1, count
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(block(middle)) else (low, middle - 1)
        return -(-count // -(-count // low))

    width = most(lambda count: _Block(1, 1, count), columns.count)
    height = most(lambda count: _Block(1, count, width), rows.count) if width == columns.count else 1
    images = most(lambda count: _Block(count, height, width), problem.n) if height == rows.count else 1
    return _Block(images, height, width)
