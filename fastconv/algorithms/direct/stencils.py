"""Passes over planes as they lie, with pixels in the lanes: `fastconv.kernels.stencil`.

Planes are those of NCHW, images of one channel, and those of depthwise layers of a few channels side by side: an image
with as many more columns, taps so many columns apart, and weights that differ from lane to lane.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.algorithms.base import PLAIN, Epilogue
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.base import Pass
from fastconv.algorithms.direct.grids import (
    TASKS_PER_THREAD,
    Axis,
    even_step,
    roles,
    spread_of,
    sub_problems,
    tap_order,
    workspace_offsets,
)
from fastconv.kernels import stencil
from fastconv.kernels.addresses import ADDRESS_BYTES
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import address, fill
from fastconv.kernels.target import MOST_MIXED, StencilTile, mixed_vectors, stencil_tile_shape, vector_bytes
from fastconv.problem import ConvProblem

_MOST_STEPS = (4, 2)
"""Strides of rows and columns that tiles are made for, of sources or of targets."""
_MOST_SOURCES = 32
"""Source channels of a group: a tile reads them all anew for each target channel, from the first cache level."""
_ROW_BYTES = 256 << 10
"""Longest row of zeros to keep."""


@dataclass(frozen=True, eq=False)
class StencilPass(Pass):
    """One launch of the stencil kernel, planned: its records but for the addresses of a call's arrays."""

    tile: StencilTile
    zeros: np.ndarray
    """What sums begin with where there is no bias."""
    outside: np.ndarray
    """A source row in the padding."""
    channels: int
    """Channels of a pixel that lie side by side in a plane."""

    def _lanes_share(self) -> float:
        return model.filled(int(self.launch.plan["columns"][0]), self.tile.NR)

    @property
    def workspace_bytes(self) -> int:
        taps = math.prod(self.problem.kernel_size) if self.channels > 1 else 0
        return super().workspace_bytes + taps * self.tile.NR * self.problem.itemsize

    @property
    def prepared_key(self) -> Any:
        return self.tile.NR // self.channels if self.channels > 1 else None

    def prepare(self, w: np.ndarray) -> np.ndarray:
        """The channels' weights side by side as often as a tile holds them."""
        return w.repeat(self.tile.NR // self.channels, axis=-2) if self.channels > 1 else w

    def describe(self) -> str:
        tile = f"register tiles of {self.tile.MR} rows x {self.tile.NR} pixels of a plane"
        return f"{tile}, {self._lanes_share():.0%} of the lanes in use"

    def seconds(self, rate: float) -> float:
        problem, planes = self.problem, self.problem.n * self.problem.groups
        work = planes * sum(self._plane_seconds(record, rate) for record in self.launch.plan)
        traffic = model.planes_seconds(problem)
        balance = model.balance(-(-self.launch.tasks // self.launch.grain), self.threads)
        repeat = model.ARRAY_SECONDS if self.channels > 1 else 0.0
        return model.launch_seconds(self.threads) + (work + traffic) * balance / self.threads + repeat

    def _plane_seconds(self, p: np.void, rate: float) -> float:
        """Time of one part of the problem for one group of one image."""
        shape, reduction = self.tile, int(p["reduction"])
        runs = reduction * int(p["chunks"] + (p["rest_rows"] > 0))
        kernel_rows = reduction * int(p["chunks"] * shape.KH + p["rest_rows"])
        products = kernel_rows * shape.MR * shape.NV
        loads = (runs * (shape.MR - 1) * shape.SR + kernel_rows) * shape.NV * shape.SC
        costs = model.costs()
        step = max(products, costs.stencil_load * loads) / model.STENCIL_SHARE + costs.stencil_tap
        plane_bytes = int(p["source_rows"] * p["source_r"])
        if reduction * plane_bytes > model.STENCIL_FAR_BYTES:
            step *= 1 + max(0, reduction - model.STENCIL_PLANES) / costs.stencil_more_planes
        elif reduction >= model.STENCIL_CONFLICT_PLANES and plane_bytes % model.CONFLICT_BYTES == 0:
            step /= costs.stencil_conflict_share
        elif reduction > model.STENCIL_PLANES:
            step /= costs.stencil_planes_share
        tiles = int(p["row_tiles"] * p["channels"]) * -(-int(p["columns"]) // shape.NR)
        multiply = tiles * (int(p["taps_c"]) * step + costs.stencil_tile) / rate
        addresses = runs * ((shape.MR - 1) * shape.SR + shape.KH + 1)
        return multiply + int(p["row_tiles"] * p["parts"]) * addresses * model.TRACE_SECONDS

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        start = self.zeros if epilogue.bias is None else epilogue.bias
        if self.channels > 1:
            second = self.prepare(second) if prepared is None else prepared
            start = self.zeros if epilogue.bias is None else self.prepare(start[None]).reshape(-1)
        self.launch(first, second, start, result, epilogue.end)


def _fits(rows: Axis, columns: Axis) -> bool:
    """Whether tiles of planes can do this part of a problem: evenly spaced taps, strides that they are made for."""
    even = [even_step(values) for axis in (rows, columns) for values in (axis.taps, axis.offsets)]
    steps = all(max(axis.step, axis.every) <= most for axis, most in zip((rows, columns), _MOST_STEPS, strict=True))
    return None not in even and steps and (rows.step == 1 or abs(spread_of(rows)) == 1)


def _as_plane(problem: ConvProblem) -> ConvProblem | None:
    """A depthwise problem of a few channels side by side as one of a plane; None if it is another, or has too many."""
    channels = problem.ic
    if problem.layout != "NHWC" or not problem.groups == problem.ic == problem.oc or problem.stride != (1, 1):
        return None
    if channels * problem.itemsize >= vector_bytes() or mixed_vectors(problem.dtype, channels) > MOST_MIXED:
        return None
    (ih, iw), (dilation_r, dilation_c), (rows, (left, right)) = problem.input_size, problem.dilation, problem.padding
    return replace(
        problem, ic=1, oc=1, groups=1, layout="NCHW", input_size=(ih, iw * channels),
        padding=(rows, (left * channels, right * channels)), dilation=(dilation_r, dilation_c * channels),
    )  # fmt: skip


def plan_stencil(
    problem: ConvProblem, direction: str, parts: tuple[tuple[Axis, Axis], ...], threads: int
) -> StencilPass | None:
    """Plan the launch for all dense sub-problems at once; None where tiles of planes do not fit them."""
    if vector_bytes() == 16:  # those have no masked loads
        return None
    mixed = 1
    if not problem.in_planes:
        plane = _as_plane(problem)
        if plane is None:
            return None
        mixed, problem, parts = problem.ic, plane, tuple(sub_problems(plane, direction))
    item, groups = problem.itemsize, problem.groups
    source, target, source_size, reduction, channels, (w_r, w_c, w_k, w_d), weight_group = roles(problem, direction)
    if reduction > _MOST_SOURCES or source_size[1] * item > _ROW_BYTES:
        return None
    if not parts or not all(_fits(*part) for part in parts):
        return None
    heights = sorted({len(rows.taps) for rows, _ in parts})
    high = -(-max(rows.count for rows, _ in parts) // min(abs(spread_of(rows)) for rows, _ in parts))
    wide = max(columns.count for _, columns in parts)
    steps = parts[0][0].step, parts[0][1].step
    shape = stencil_tile_shape(problem.dtype, heights[-1], heights[0], high, wide, steps, parts[0][1].every, mixed)
    if mixed > 1:
        w_r, w_c = w_r * shape.NR, w_c * shape.NR
    if any(height % shape.KH not in (0, shape.REST) for height in heights):
        return None

    def phase_tiles(rows: Axis) -> int:
        return -(-rows.count // (abs(spread_of(rows)) * shape.MR))

    row_tiles = max(min(abs(spread_of(rows)), rows.count) * phase_tiles(rows) for rows, _ in parts)
    planes, row_block, parts_of_channels, grain = problem.n * groups, row_tiles, 1, 1
    if threads > 1:
        wanted = TASKS_PER_THREAD * threads
        row_block = max(1, min(row_tiles, row_tiles * planes // wanted))
        parts_of_channels = min(channels, max(1, wanted // (planes * -(-row_tiles // row_block))))
        grain = max(1, planes // wanted)
    row_blocks = -(-row_tiles // row_block)
    chunks = heights[-1] // shape.KH
    reach = (shape.MR - 1) * shape.SR + 1
    table, rest, total = workspace_offsets(
        reduction * chunks * (reach + shape.KH) * 8 + ADDRESS_BYTES,
        reduction * (reach + shape.REST) * 8 + ADDRESS_BYTES,
    )
    outside = np.zeros(source_size[1], problem.dtype)
    records = []
    for rows, columns in parts:
        (first_r, step_r), (first_c, step_c) = tap_order(rows, w_r), tap_order(columns, w_c)
        phases = abs(spread_of(rows))
        records.append(fill(
            stencil.STENCIL,
            source_r=source[1], source_k=source[3], source_group=source[0] // groups,
            source_rows=source_size[0], source_columns=source_size[1],
            target_offset=rows.first * target[1] + columns.first * target[2],
            target_r=target[1] * rows.every, target_d=target[3], target_group=target[0] // groups,
            weight_offset=first_r + first_c, weight_r=step_r, weight_c=step_c, weight_k=w_k, weight_d=w_d,
            weight_group=weight_group, start_group=channels * item,
            parts_of_problem=len(parts), groups=groups, rows=rows.count, columns=columns.count, phases=phases,
            first_row=min(rows.offsets), first_column=min(columns.offsets), column_spread=abs(spread_of(columns)),
            chunks=len(rows.taps) // shape.KH, rest_rows=len(rows.taps) % shape.KH, taps_c=len(columns.taps),
            reduction=reduction, channels=channels, entry=0, tile_rows=shape.MR, row_step=shape.SR,
            chunk_rows=shape.KH, sources=reach - 1 + shape.KH, sources_rest=reach - 1 + shape.REST,
            zeros=address(outside), row_tiles=min(phases, rows.count) * phase_tiles(rows),
            phase_tiles=phase_tiles(rows), row_block=row_block, shares=row_blocks * parts_of_channels,
            parts=parts_of_channels, workspace_bytes=total, table=table, rest=rest,
        ))  # fmt: skip
    plan = np.concatenate(records)

    def compiled() -> CFunc:
        plan["entry"] = stencil.columns(problem.dtype, shape).address
        return stencil.stencil()

    launch = Launch(compiled, problem.dtype, plan, planes * row_blocks * parts_of_channels, threads, total, grain)
    zeros = np.zeros(groups * channels if mixed == 1 else shape.NR, problem.dtype)
    return StencilPass(problem, threads, shape, launch, zeros, outside, mixed)
