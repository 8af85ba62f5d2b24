"""Passes over planes as they lie, with pixels in the lanes (NCHW): `fastconv.kernels.stencil`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastconv.algorithms.base import PLAIN, Epilogue
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.base import Pass
from fastconv.algorithms.direct.grids import TASKS_PER_THREAD, Axis, even_step, roles, workspace_offsets
from fastconv.kernels import stencil
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import address, fill
from fastconv.kernels.target import StencilTile, stencil_tile_shape, vector_bytes
from fastconv.problem import ConvProblem

_MOST_STEPS = (4, 2)
"""Strides of rows and columns that tiles are made for."""
_MOST_SOURCES = 32
"""Source channels of a group: a tile reads them all anew for each target channel, from the first cache level."""
_ROW_BYTES = 256 << 10
"""Longest row of zeros to keep."""


@dataclass(frozen=True, eq=False)
class StencilPass(Pass):
    """One launch of the stencil kernel, planned: its record but for the addresses of a call's arrays."""

    tile: StencilTile
    zeros: np.ndarray
    """What sums begin with where there is no bias."""
    outside: np.ndarray
    """A source row in the padding."""

    def _lanes_share(self) -> float:
        return model.filled(int(self.launch.plan["columns"][0]), self.tile.NR)

    def describe(self) -> str:
        tile = f"register tiles of {self.tile.MR} rows x {self.tile.NR} pixels of a plane"
        return f"{tile}, {self._lanes_share():.0%} of the lanes in use"

    def seconds(self, rate: float) -> float:
        p, shape, problem = self.launch.plan[0], self.tile, self.problem
        planes = problem.n * problem.groups
        column_tiles = -(-int(p["columns"]) // shape.NR)
        runs = int(p["reduction"]) * (int(p["chunks"]) + (shape.REST > 0))
        kernel_rows = int(p["reduction"]) * (int(p["chunks"]) * shape.KH + shape.REST)
        products = kernel_rows * shape.MR * shape.NV
        loads = (runs * (shape.MR - 1) * shape.SR + kernel_rows) * shape.NV * shape.SC
        # A load that straddles two cache lines takes as long as a pair of multiply-adds.
        step = max(products, 2 * loads) / model.STENCIL_SHARE + model.STENCIL_TAP_SLOTS
        tiles = planes * int(p["row_tiles"]) * column_tiles * int(p["channels"])
        multiply = tiles * (int(p["taps_c"]) * step + model.STENCIL_TILE_SLOTS) / rate
        addresses = runs * ((shape.MR - 1) * shape.SR + shape.KH + 1)
        trace = planes * int(p["row_tiles"]) * int(p["parts"]) * addresses * model.TRACE_SECONDS
        values = planes * int(p["reduction"] * p["source_rows"] * p["source_columns"])
        values += planes * int(p["channels"] * p["rows"] * p["columns"])
        work = max(multiply, values * problem.itemsize * model.STREAM_SECONDS) + trace
        balance = model.balance(-(-self.launch.tasks // self.launch.grain), self.threads)
        return model.LAUNCH_SECONDS + work * balance / self.threads

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        start = self.zeros if epilogue.bias is None else epilogue.bias
        self.launch(first, second, start, result, epilogue.relu, epilogue.activation, epilogue.failed_address)


def plan_stencil(problem: ConvProblem, direction: str, rows: Axis, columns: Axis, threads: int) -> StencilPass | None:
    """Plan the launch for one dense sub-problem; None where tiles of planes do not fit it."""
    if problem.layout != "NCHW" or vector_bytes() == 16:  # vectors of 16 bytes have no masked loads
        return None
    item, groups = problem.itemsize, problem.groups
    source, target, source_size, reduction, channels, weights, weight_group = roles(problem, direction)
    w_r, w_c, w_k, w_d = weights
    steps, spreads = (rows.step, columns.step), (even_step(rows.offsets), even_step(columns.offsets))
    taps = even_step(rows.taps), even_step(columns.taps)
    if None in spreads or None in taps or any(step > most for step, most in zip(steps, _MOST_STEPS, strict=True)):
        return None
    if columns.every > 1 or (rows.step > 1 and abs(spreads[0]) > 1):
        return None
    if reduction > _MOST_SOURCES or source_size[1] * item > _ROW_BYTES:
        return None
    phases = abs(spreads[0])
    shape = stencil_tile_shape(problem.dtype, len(rows.taps), -(-rows.count // phases), columns.count, steps)
    # Taps in the order of the source pixels that they read.
    offset = w_r * rows.taps[-1 if spreads[0] < 0 else 0] + w_c * columns.taps[-1 if spreads[1] < 0 else 0]
    w_r, w_c = w_r * taps[0] * (-1 if spreads[0] < 0 else 1), w_c * taps[1] * (-1 if spreads[1] < 0 else 1)
    chunks = len(rows.taps) // shape.KH
    phase_tiles = -(-rows.count // (phases * shape.MR))
    row_tiles = min(phases, rows.count) * phase_tiles
    planes, row_block, parts, grain = problem.n * groups, row_tiles, 1, 1
    if threads > 1:
        wanted = TASKS_PER_THREAD * threads
        row_block = max(1, min(row_tiles, row_tiles * planes // wanted))
        parts = min(channels, max(1, wanted // (planes * -(-row_tiles // row_block))))
        grain = max(1, planes // wanted)
    row_blocks = -(-row_tiles // row_block)
    reach = (shape.MR - 1) * shape.SR + 1
    table, rest, total = workspace_offsets(
        reduction * chunks * (reach + shape.KH) * 8, reduction * (reach + shape.REST) * 8
    )
    outside = np.zeros(source_size[1], problem.dtype)
    template = fill(
        stencil.STENCIL,
        source_n=source[0], source_r=source[1], source_k=source[3], source_group=reduction * source[3],
        source_rows=source_size[0], source_columns=source_size[1],
        target_offset=rows.first * target[1] + columns.first * target[2],
        target_n=target[0], target_r=target[1] * rows.every, target_d=target[3], target_group=channels * target[3],
        weight_offset=offset, weight_r=w_r, weight_c=w_c, weight_k=w_k, weight_d=w_d, weight_group=weight_group,
        start_group=channels * item,
        groups=groups, rows=rows.count, columns=columns.count, phases=phases,
        first_row=min(rows.offsets), first_column=min(columns.offsets), column_spread=abs(spreads[1]),
        chunks=chunks, taps_c=len(columns.taps), reduction=reduction, channels=channels,
        zeros=address(outside), row_tiles=row_tiles, phase_tiles=phase_tiles, row_block=row_block,
        row_blocks=row_blocks, parts=parts, workspace_bytes=total, table=table, rest=rest,
    )  # fmt: skip
    launch = Launch(
        lambda: stencil.stencil(problem.dtype, shape), problem.dtype, template, planes * row_blocks * parts, threads,
        total, grain,
    )  # fmt: skip
    return StencilPass(problem, threads, shape, launch, np.zeros(groups * channels, problem.dtype), outside)
