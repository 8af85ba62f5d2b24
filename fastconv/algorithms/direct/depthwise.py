"""Depthwise passes, and those of small groups, with channels in the lanes: `fastconv.kernels.depthwise`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.algorithms.banded import Stage
from fastconv.algorithms.base import PLAIN, Epilogue, canonical_weight_strides
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.base import Pass
from fastconv.algorithms.direct.grids import (
    TASKS_PER_THREAD,
    Axis,
    even_step,
    met_taps,
    roles,
    targets_inside,
    workspace_offsets,
)
from fastconv.kernels import depthwise
from fastconv.kernels.addresses import ADDRESS_BYTES
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import address, fill
from fastconv.kernels.target import RowTile, row_tile_shape, vector_bytes
from fastconv.problem import CHANNELS_LAST, ConvProblem

MOST_STRIDE = 4
_SOURCE_BYTES = 256 << 10
"""Source rows of a task: the next target row finds most of them in the second cache level."""


@dataclass(frozen=True, eq=False)
class DepthwisePass(Pass):
    """The launch of a depthwise forward pass or input gradient, planned."""

    tile: RowTile
    turns: bool
    """Whether the weights' two channels change places within groups: an input gradient sums over the outputs."""
    zeros: np.ndarray
    """Padding, and what sums begin with where there is no bias."""
    tables: tuple[np.ndarray, ...]
    """Offsets whose addresses the record holds, and which it keeps alive."""

    @property
    def workspace_bytes(self) -> int:
        """Bytes of the threads' tables and of the weights whose channels have changed places."""
        turned = math.prod(self.problem.w_shape) * self.problem.itemsize if self.turns else 0
        return self.launch.workspace_bytes + turned

    def describe(self) -> str:
        tile = f"register tiles of {self.tile.MR} pixels with channels in the lanes"
        return f"{tile}, {self._lanes_share():.0%} of them in use"

    def _lanes_share(self) -> float:
        p, shape = self.launch.plan[0], self.tile
        per_phase = -(-int(p["columns"]) // int(p["phases"]))
        channels = model.filled(int(p["channels"]), shape.lanes) * shape.lanes / shape.VL
        return channels * model.filled(per_phase, shape.MR)

    def _met_rows(self) -> float:
        """Kernel rows that a row of targets meets inside the image: the others are left out."""
        step, size, count = (int(self.launch.plan[0][name]) for name in ("row_step", "source_rows", "rows"))
        offsets = self.tables[0].tolist()
        return sum(len(targets_inside(o, o, step, size, count)) for o in offsets) / count

    def stage(self) -> Stage:
        """What the pass is to a band that one thread computes."""
        channels = int(self.launch.plan["channels"][0])
        return Stage(self.launch, self.zeros[:channels], lambda rate: sum(self._work(rate)))

    def seconds(self, rate: float) -> float:
        p, (multiply, trace) = self.launch.plan[0], self._work(rate)
        values = int(p["n"] * p["rows"] * p["columns"] * p["channels"])
        traffic = self.problem.n * int(p["source_n"]) + values * self.problem.itemsize
        work = max(multiply, traffic * model.PLANE_SECONDS) + trace
        return model.launch_seconds(self.threads) + work * model.balance(self.launch.tasks, self.threads) / self.threads

    def _work(self, rate: float) -> tuple[float, float]:
        """One thread's time of multiplying what lies in its caches, and of writing addresses."""
        p, shape = self.launch.plan[0], self.tile
        pixels = int(p["n"] * p["rows"] * p["columns"])
        vectors = pixels * int(p["channels"]) / shape.VL / self._lanes_share()
        chunks, rows = int(p["chunks"]), self._met_rows()
        taps = rows * (chunks * shape.KW + shape.REST) * shape.G
        sources = rows * (chunks + (shape.REST > 0)) * ((shape.MR - 1) * shape.S + shape.KW + 1)
        loads = sources * shape.G / shape.Q
        if shape.G * shape.T > 1:
            loads += model.PERMUTE_SLOTS * sources * shape.G
        slots = taps / model.DEPTHWISE_SHARE + (loads + model.DEPTHWISE_SLOTS) / shape.MR
        if shape.masked:
            slots /= model.MASKED_SHARE
        trace = pixels / shape.MR / self._lanes_share() * sources * int(p["parts"]) * model.TRACE_SECONDS
        return vectors * slots / rate, trace

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        start = self.zeros if epilogue.bias is None else epilogue.bias
        if self.turns:
            by_group = second.reshape(*second.shape[:2], self.tile.T, -1, self.tile.G)
            second = np.ascontiguousarray(by_group.swapaxes(2, 4)).reshape(*second.shape[:2], self.tile.G, -1)
        self.launch(first, second, start, result, epilogue.relu, epilogue.activation, epilogue.failed_address)


def plan_depthwise(
    problem: ConvProblem, direction: str, rows: Axis, columns: Axis, threads: int
) -> DepthwisePass | None:
    """Plan the launch for one dense sub-problem; None where groups or all channels do not fit vectors."""
    source, target, source_size, group, others, _, _ = roles(problem, direction)
    rows, columns = met_taps(rows, source_size[0]), met_taps(columns, source_size[1])
    item, channels = problem.itemsize, problem.groups * others
    shape = row_tile_shape(problem.dtype, len(columns.taps), columns.count, columns.step, group, others, channels)
    if max(group, others) > shape.VL or (shape.masked and vector_bytes() == 16):  # those have no masked loads
        return None
    if problem.layout not in ("NHWC", CHANNELS_LAST) or (max(group, others) > 1 and problem.layout != "NHWC"):
        return None
    turns = direction == "grad_input" and max(group, others) > 1
    w_shape = (*problem.kernel_size, group, channels) if turns else problem.w_shape
    w_r, w_c, w_q, _ = canonical_weight_strides(w_shape, item, problem.layout)
    spread, tap_step = even_step(columns.offsets), even_step(columns.taps)
    if spread is None or tap_step is None or columns.step > MOST_STRIDE or (columns.step > 1 and abs(spread) > 1):
        return None
    first_tap = columns.taps[0]
    if spread < 0:  # taps in the order of the source pixels that they read
        spread, tap_step, first_tap = -spread, -tap_step, columns.taps[-1]

    chunks = len(columns.taps) // shape.KW
    row_bytes = source_size[1] * problem.groups * group * item
    row_block = max(1, min(rows.count, _SOURCE_BYTES // row_bytes))
    parts = 1
    if threads > 1:
        wanted = TASKS_PER_THREAD * threads
        row_block = max(1, min(row_block, problem.n * rows.count // wanted))
        vectors = -(-channels // shape.lanes)
        parts = min(vectors, max(1, wanted // (problem.n * -(-rows.count // row_block))))
    reach, taps_r = (shape.MR - 1) * shape.S + shape.KW, len(rows.taps)
    tiles = spread * -(-columns.count // (spread * shape.MR))
    reach_rest = reach - shape.KW + shape.REST
    tile_bytes = (chunks * reach + reach_rest) * 8
    places, table, rest, targets, unused, total = workspace_offsets(
        tiles * tile_bytes + ADDRESS_BYTES, taps_r * chunks * (reach + 1) * 8 + ADDRESS_BYTES,
        taps_r * (reach_rest + 1) * 8 + ADDRESS_BYTES, shape.MR * 8 + ADDRESS_BYTES, channels * item,
    )  # fmt: skip
    zeros = np.zeros(problem.groups * max(group, others), problem.dtype)
    row_offsets = np.array(rows.offsets, np.int64)
    row_weights = np.array([tap * w_r for tap in rows.taps], np.int64)
    template = fill(
        depthwise.DEPTHWISE,
        source_n=source[0], source_r=source[1], source_c=source[2],
        source_rows=source_size[0], source_columns=source_size[1],
        target_offset=rows.first * target[1] + columns.first * target[2],
        target_n=target[0], target_r=target[1] * rows.every, target_c=target[2] * columns.every,
        weight_offset=first_tap * w_c, weight_c=tap_step * w_c, weight_q=w_q,
        n=problem.n, rows=rows.count, columns=columns.count, row_step=rows.step, column_step=columns.step,
        phases=spread, taps_r=taps_r, chunks=chunks, row_offsets=address(row_offsets),
        row_weights=address(row_weights), first_column=min(columns.offsets),
        channels=channels, zeros=address(zeros), row_block=row_block, row_blocks=-(-rows.count // row_block),
        parts=parts, entry=0, pixels=shape.MR, reach=reach, reach_rest=reach_rest if shape.REST else 0,
        chunk_taps=shape.KW, vectors=-(-channels // shape.lanes), workspace_bytes=total, tile_bytes=tile_bytes,
        places=places, table=table, rest=rest, targets=targets, unused=unused,
    )  # fmt: skip
    tasks = problem.n * -(-rows.count // row_block) * parts

    def compiled() -> CFunc:
        template["entry"] = depthwise.row_of_vectors(problem.dtype, shape).address
        return depthwise.depthwise()

    launch = Launch(compiled, problem.dtype, template, tasks, threads, total)
    return DepthwisePass(problem, threads, shape, launch, turns, zeros, (row_offsets, row_weights))
