"""The weight gradient: `fastconv.kernels.correlate`, planned."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fastconv.algorithms.base import PLAIN, Epilogue, canonical_strides, canonical_weight_strides
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.base import Pass
from fastconv.algorithms.direct.grids import TASKS_PER_THREAD, forward_axis, workspace_offsets
from fastconv.kernels import correlate
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import address, fill
from fastconv.kernels.simd import RUN_FIELDS
from fastconv.kernels.target import tile
from fastconv.problem import ConvProblem

_PANEL_BYTES = 256 << 10
"""Packed output gradients of a block of pixels: they stay in the second cache level for all taps."""


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
        tiles = int(p["channel_tiles"]) * math.prod(problem.kernel_size) * problem.groups
        apart = p["source_k"] != problem.itemsize
        share = model.CORRELATE_APART_SHARE if apart else model.CORRELATE_SHARE
        multiply = tiles * pixels * model.tile_slots(problem.oc_per_group, shape) / share / rate
        blocks, panels = int(p["row_blocks"] * p["column_blocks"]), int(p["panels"])
        add = tiles * blocks * panels * shape.MR * shape.NR * model.ADD_SECONDS
        each = model.SCATTER_SECONDS if apart else model.PACK_SECONDS
        pack = pixels * panels * int(p["parts"]) * problem.groups * shape.NR * each
        return (
            model.LAUNCH_SECONDS
            + (multiply + add + pack) * model.balance(self.launch.tasks, self.threads) / self.threads
        )

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
    shape = tile(problem.dtype, problem.ic_per_group, problem.oc_per_group)
    x = canonical_strides(problem.x_shape, item, problem.layout)
    y = canonical_strides(problem.y_shape, item, problem.layout)
    w = canonical_weight_strides(problem.w_shape, item, problem.layout)
    panels, channel_tiles = -(-problem.oc_per_group // shape.NR), -(-problem.ic_per_group // shape.MR)
    combinations = len(rows.taps) * len(columns.taps) * channel_tiles
    parts = min(combinations, max(1, -(-TASKS_PER_THREAD * threads // (groups * panels)))) if threads > 1 else 1
    pixels = _PANEL_BYTES // (shape.NR * item)
    column_block = min(columns.count, pixels)
    row_block = min(problem.n * rows.count, max(1, pixels // column_block))
    panel, table, targets, starts, buffer, total = workspace_offsets(
        row_block * column_block * shape.NR * item, row_block * (shape.MR + RUN_FIELDS) * 8, shape.MR * 8, shape.MR * 8,
        shape.MR * shape.NR * item,
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
        reduction=problem.ic_per_group, channels=problem.oc_per_group,
        target_a=w[0], target_b=w[1], target_k=w[2], target_d=w[3],
        target_group=problem.oc_per_group * w[3],
        row_block=row_block, column_block=column_block,
        row_blocks=-(-problem.n * rows.count // row_block), column_blocks=-(-columns.count // column_block),
        panels=panels, parts=parts, channel_tiles=channel_tiles,
        rows_adjoin=y[0] == rows.count * y[1],
        workspace_bytes=total, panel=panel, table=table, targets=targets, starts=starts, buffer=buffer,
    )  # fmt: skip
    launch = Launch(
        lambda: correlate.correlate(problem.dtype, shape), problem.dtype, template, groups * panels * parts, threads,
        total,
    )  # fmt: skip
    return CorrelatePass(
        problem, threads, shape, launch, np.zeros(shape.NR, problem.dtype), (row_offsets, column_offsets)
    )
