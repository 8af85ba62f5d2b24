"""The weight gradient: `fastconv.kernels.correlate`, planned."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fastconv.algorithms.base import canonical_strides, canonical_weight_strides
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.grids import TASKS_PER_THREAD, forward_axis, workspace_offsets
from fastconv.kernels import correlate, launch
from fastconv.kernels.params import address, fill
from fastconv.kernels.simd import RUN_FIELDS
from fastconv.kernels.target import Tile, tile
from fastconv.problem import ConvProblem

_PANEL_BYTES = 256 << 10
"""Packed output gradients of a block of pixels: they stay in the second cache level for all taps."""


@dataclass(frozen=True)
class CorrelatePass:
    """The launch of the weight gradient, planned: its record but for the addresses of a call's arrays."""

    problem: ConvProblem
    threads: int
    template: np.ndarray
    tile: Tile
    tasks: int
    tables: tuple[np.ndarray, ...]
    """Offsets and zeros whose addresses the record holds, and which it keeps alive."""

    @property
    def workspace_bytes(self) -> int:
        """Bytes of all threads' panels and tables."""
        return self.threads * int(self.template["workspace_bytes"][0])

    def describe(self) -> str:
        """The tile in words."""
        channels = self.problem.oc_per_group
        return model.describe(self.tile, "output channels", model.filled(channels, self.tile.VL))

    def seconds(self, rate: float) -> float:
        """Predicted time of a call, with `rate` slots a second on each thread."""
        p, problem, shape = self.template[0], self.problem, self.tile
        pixels = problem.n * math.prod(problem.output_size)
        tiles = int(p["channel_tiles"]) * math.prod(problem.kernel_size) * problem.groups
        multiply = tiles * pixels * model.tile_slots(problem.oc_per_group, shape) / model.CORRELATE_SHARE / rate
        blocks, panels = int(p["row_blocks"] * p["column_blocks"]), int(p["panels"])
        add = tiles * blocks * panels * shape.MR * shape.NR * model.ADD_SECONDS
        pack = pixels * panels * int(p["parts"]) * problem.groups * shape.NR * model.PACK_SECONDS
        return model.LAUNCH_SECONDS + (multiply + add + pack) * model.balance(self.tasks, self.threads) / self.threads

    def run(self, x: np.ndarray, grad_y: np.ndarray, grad_w: np.ndarray) -> None:
        """Write the weight gradient to grad_w."""
        grad_w[...] = 0
        launch.run_template(
            correlate.correlate(self.problem.dtype, self.tile), self.template, self.tasks, threads=self.threads,
            source=address(x), gradient=address(grad_y), target=address(grad_w),
        )  # fmt: skip


def plan_correlate(problem: ConvProblem, threads: int) -> CorrelatePass:
    """Plan the launch of the weight gradient."""
    item, groups = problem.itemsize, problem.groups
    rows, columns = forward_axis(problem, 0), forward_axis(problem, 1)
    shape = tile(problem.dtype, problem.ic_per_group)
    x = canonical_strides(problem.x_shape, item, problem.layout)
    y = canonical_strides(problem.y_shape, item, problem.layout)
    w = canonical_weight_strides(problem.w_shape, item, problem.layout)
    panels, channel_tiles = -(-problem.oc_per_group // shape.NR), -(-problem.ic_per_group // shape.MR)
    combinations = len(rows.taps) * len(columns.taps) * channel_tiles
    parts = min(combinations, max(1, -(-TASKS_PER_THREAD * threads // (groups * panels)))) if threads > 1 else 1
    pixels = _PANEL_BYTES // (shape.NR * item)
    column_block = min(columns.count, pixels)
    row_block = min(problem.n * rows.count, max(1, pixels // column_block))
    panel, table, targets, buffer, total = workspace_offsets(
        row_block * column_block * shape.NR * item, row_block * (shape.MR + RUN_FIELDS) * 8, shape.MR * 8,
        shape.MR * shape.NR * item,
    )  # fmt: skip
    row_offsets, column_offsets = np.array(rows.offsets, np.int64), np.array(columns.offsets, np.int64)
    start = np.zeros(shape.NR, problem.dtype)
    template = fill(
        correlate.CORRELATE,
        source=0, source_n=x[0], source_r=x[1], source_c=x[2], source_k=x[3],
        source_group=problem.ic_per_group * x[3],
        source_rows=problem.input_size[0], source_columns=problem.input_size[1],
        gradient=0, gradient_n=y[0], gradient_r=y[1], gradient_c=y[2], gradient_d=y[3],
        gradient_group=problem.oc_per_group * y[3],
        n=problem.n, rows=rows.count, columns=columns.count, row_step=rows.step, column_step=columns.step,
        taps_r=len(rows.taps), taps_c=len(columns.taps),
        row_offsets=address(row_offsets), column_offsets=address(column_offsets),
        reduction=problem.ic_per_group, channels=problem.oc_per_group,
        target=0, target_a=w[0], target_b=w[1], target_k=w[2], target_d=w[3],
        target_group=problem.oc_per_group * w[3],
        start=address(start), row_block=row_block, column_block=column_block,
        row_blocks=-(-problem.n * rows.count // row_block), column_blocks=-(-columns.count // column_block),
        panels=panels, parts=parts, channel_tiles=channel_tiles,
        workspace=0, workspace_bytes=total, panel=panel, table=table, targets=targets, buffer=buffer,
    )  # fmt: skip
    tables = (row_offsets, column_offsets, start)
    return CorrelatePass(problem, threads, template, shape, groups * panels * parts, tables)
