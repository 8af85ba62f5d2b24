"""Depthwise passes, and those of small groups, with channels in the lanes: `fastconv.kernels.depthwise`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.algorithms.banded import Stage
from fastconv.algorithms.base import Epilogue, canonical_weight_strides
from fastconv.algorithms.direct import copies, model
from fastconv.algorithms.direct.base import BoundPass
from fastconv.algorithms.direct.grids import (
    TASKS_PER_THREAD,
    Axis,
    even_step,
    met_taps,
    roles,
    targets_inside,
    workspace_offsets,
)
from fastconv.cost import leaves_caches
from fastconv.kernels import depthwise, transpose
from fastconv.kernels.addresses import ADDRESS_BYTES
from fastconv.kernels.launch import Bound, Launch
from fastconv.kernels.params import Buffer, address, fill, odd_lines
from fastconv.kernels.target import RowTile, row_tile_shape, vector_bytes
from fastconv.problem import CHANNELS_LAST, ConvProblem, IntPair

MOST_STRIDE = 4
_SOURCE_BYTES = 256 << 10
"""Source rows of a task: the next target row finds most of them in the second cache level."""
_MOST_SHARING = 24
"""Lines of one set that a tile may read for a vector: of more, those that the CPU fetches ahead are lost."""
_NEAR_BYTES = 1 << 20
_SHORT_ROWS = 3
"""An image of no more bytes stands twice as many, but for kernels of few rows and no groups: these have little to do
for a line."""
_TURN_SECONDS = 0.3e-9
"""Moving one weight whose channels change places."""
_GROUP_TIMES = 1.5
"""A larger image of groups stands so many times as many: these have more to do for a line than single channels."""


@dataclass(frozen=True, eq=False)
class DepthwisePass(BoundPass):
    """The launch of a depthwise forward pass or input gradient, planned."""

    tile: RowTile
    turn: Launch | None
    """What exchanges the weights' two channels within groups: an input gradient sums over the outputs."""
    zeros: np.ndarray
    """Padding, and what sums begin with where there is no bias."""
    tables: tuple[np.ndarray, ...]
    """Offsets whose addresses the record holds, and which it keeps alive."""

    @property
    def workspace_bytes(self) -> int:
        """Bytes of the threads' tables and of the weights whose channels have changed places."""
        return self.launch.workspace_bytes + (self.turned_bytes if self.turn else 0)

    @property
    def turned_bytes(self) -> int:
        """Bytes of all weights."""
        return math.prod(self.problem.w_shape) * self.problem.itemsize

    @property
    def turning_seconds(self) -> float:
        """The time of exchanging their channels."""
        if self.turn is None:
            return 0.0
        weights = math.prod(self.problem.w_shape)
        return model.again_seconds(self.turn.threads) + weights * _TURN_SECONDS / self.turn.threads

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
        p, (multiply, around) = self.launch.plan[0], self._work(rate)
        values = int(p["n"] * p["rows"] * p["columns"] * p["channels"])
        traffic = self.problem.n * int(p["source_n"]) + values * self.problem.itemsize
        work = max(multiply, traffic * model.PLANE_SECONDS) + around
        work *= model.balance(self.launch.tasks, self.threads) / self.threads
        return model.launch_seconds(self.threads) + work + self.turning_seconds

    def _work(self, rate: float) -> tuple[float, float]:
        """One thread's time of multiplying what lies in its caches, and of copies and of writing addresses."""
        p, shape = self.launch.plan[0], self.tile
        pixels = int(p["n"] * p["rows"] * p["columns"])
        vectors = pixels * int(p["channels"]) / shape.VL / self._lanes_share()
        chunks, rows = int(p["chunks"]), self._met_rows()
        taps = rows * (chunks * shape.KW + shape.REST) * shape.G
        sources = rows * (chunks + (shape.REST > 0)) * ((shape.MR - 1) * shape.S + shape.KW + 1)
        loads = sources * shape.G / shape.Q
        alone = shape.T == shape.VL  # the group fills a vector: a source channel is broadcast as it is loaded
        if shape.G * shape.T > 1:
            loads += (model.BROADCAST_SLOTS if alone else model.PERMUTE_SLOTS) * sources * shape.G
        costs = model.costs()
        share = model.GROUP_SHARE if alone else costs.depthwise_share
        if alone and self.problem.groups == 1:
            share *= costs.one_group_share
        ends = costs.group_tile if shape.G * shape.T > 1 else costs.depthwise_tile
        slots = taps / share + (costs.channel_load * loads + ends) / shape.MR
        if shape.masked:
            slots /= model.MASKED_SHARE
        around = pixels / shape.MR / self._lanes_share() * sources * int(p["parts"]) * model.TRACE_SECONDS
        if p["copies"]:
            reach = (int(p["row_block"]) - 1) * int(p["row_step"]) + int(p["last_row"]) - int(p["first_row"]) + 1
            copied = int(p["n"] * p["row_blocks"] * p["source_columns"]) * min(reach, int(p["source_rows"]))
            around += copied * int(p["given_c"]) / self.problem.itemsize * model.COPY_SECONDS
        return vectors * slots / rate, around

    def bound(self, epilogue: Epilogue, prepared: np.ndarray | None) -> Bound:
        start = self.zeros if epilogue.bias is None else epilogue.bias
        turn = self.turn
        if turn is None:
            return self.launch.bound(start, epilogue.end)

        def run(first: np.ndarray, second: np.ndarray, result: np.ndarray) -> None:
            with Buffer(self.turned_bytes) as buffer:
                turned = buffer[: self.turned_bytes].view(self.problem.dtype).reshape(1, 1, 1, -1)
                turn(second, second, self.zeros, turned)
                self.launch(first, turned, start, result)  # gradients are not activated

        return run


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

    chunks, vectors = len(columns.taps) // shape.KW, -(-channels // shape.lanes)
    # The last vector overlaps the one before where channels do not fill it, and is the same task's.
    overlapping = int(not shape.masked and channels % shape.lanes != 0)
    vectors -= overlapping
    copied = (shape.masked or channels % shape.VL == 0) and _meets(source, source_size, shape, rows, columns)
    shape = replace(shape, asks=leaves_caches(problem) and not copied)
    lane_bytes, source_lane_bytes = shape.lanes * item, shape.lanes * item // shape.T * shape.G
    row_block, parts = _blocks(problem, rows, source_size[1], vectors, source_lane_bytes, copied, threads)
    reach, taps_r = (shape.MR - 1) * shape.S + shape.KW, len(rows.taps)
    tiles = spread * -(-columns.count // (spread * shape.MR))
    reach_rest = reach - shape.KW + shape.REST
    tile_bytes = (chunks * reach + reach_rest) * 8
    pixel_bytes, kernel_bytes = (odd_lines(-(-vectors // parts) * size) for size in (source_lane_bytes, lane_bytes))
    reached = (row_block - 1) * rows.step + max(rows.offsets) - min(rows.offsets) + 1
    strip_bytes = min(reached, source_size[0]) * source_size[1] * pixel_bytes if copied else 0
    places, table, rest, targets, unused, strip, kernel, total = workspace_offsets(
        tiles * tile_bytes + ADDRESS_BYTES, taps_r * chunks * (reach + 1) * 8 + ADDRESS_BYTES,
        taps_r * (reach_rest + 1) * 8 + ADDRESS_BYTES, shape.MR * 8 + ADDRESS_BYTES, channels * item, strip_bytes,
        taps_r * len(columns.taps) * group * kernel_bytes if copied else 0,
    )  # fmt: skip
    zeros = np.zeros(problem.groups * max(group, others), problem.dtype)
    row_offsets = np.array(rows.offsets, np.int64)
    given = {"given_weights": first_tap * w_c, "given_weight_c": tap_step * w_c, "given_weight_q": w_q}
    weight_offset, weight_c, weight_q = given.values()
    row_weights = given_rows = np.array([tap * w_r for tap in rows.taps], np.int64)
    source_r, source_c = source[1:3]
    if copied:
        source_r, source_c = source_size[1] * pixel_bytes, pixel_bytes
        weight_offset, weight_c, weight_q = 0, group * kernel_bytes, kernel_bytes
        row_weights = np.arange(taps_r, dtype=np.int64) * (len(columns.taps) * weight_c)
    template = fill(
        depthwise.DEPTHWISE,
        source_n=source[0], source_r=source_r, source_c=source_c,
        source_rows=source_size[0], source_columns=source_size[1],
        target_offset=rows.first * target[1] + columns.first * target[2],
        target_n=target[0], target_r=target[1] * rows.every, target_c=target[2] * columns.every,
        weight_offset=weight_offset, weight_c=weight_c, weight_q=weight_q,
        n=problem.n, rows=rows.count, columns=columns.count, row_step=rows.step, column_step=columns.step,
        phases=spread, taps_r=taps_r, chunks=chunks, row_offsets=address(row_offsets),
        row_weights=address(row_weights), first_column=min(columns.offsets),
        channels=channels, zeros=address(zeros), row_block=row_block, row_blocks=-(-rows.count // row_block),
        parts=parts, entry=0, pixels=shape.MR, reach=reach, reach_rest=reach_rest if shape.REST else 0,
        chunk_taps=shape.KW, vectors=vectors, overlapping=overlapping, lane_bytes=lane_bytes,
        source_lane_bytes=source_lane_bytes,
        channel_bytes=channels * item,
        copies=copied, given_r=source[1], given_c=source[2], **given, given_row_weights=address(given_rows),
        taps_c=len(columns.taps), group=group, first_row=min(rows.offsets), last_row=max(rows.offsets),
        workspace_bytes=total, tile_bytes=tile_bytes,
        places=places, table=table, rest=rest, targets=targets, unused=unused, strip=strip, kernel=kernel,
    )  # fmt: skip
    tasks = problem.n * -(-rows.count // row_block) * parts

    def compiled() -> CFunc:
        template["entry"] = depthwise.row_of_vectors(problem.dtype, shape).address
        return depthwise.depthwise()

    launch = Launch(compiled, problem.dtype, template, tasks, threads, total)
    turn = _turn(problem, group, others, threads) if turns else None
    return DepthwisePass(problem, threads, shape, launch, turn, zeros, (row_offsets, row_weights, given_rows))


def _turn(problem: ConvProblem, group: int, others: int, threads: int) -> Launch:
    """The launch that exchanges the channels of groups with so many outputs and inputs."""
    taps = math.prod(problem.kernel_size)
    plan = fill(transpose.TURN_GROUPS, taps=taps, groups=problem.groups, inputs=others, outputs=group)
    if math.prod(problem.w_shape) < model.SHARED_WEIGHTS:
        threads = 1
    return Launch(lambda: transpose.turn_groups(problem.dtype), problem.dtype, plan, taps, threads)


def _meets(source: tuple[int, int, int, int], size: IntPair, shape: RowTile, rows: Axis, columns: Axis) -> bool:
    """Whether the lines that a tile reads for a vector meet in so few sets of a cache that copying them pays."""
    taps = len(columns.taps)
    lines = len(rows.taps) * ((shape.MR - 1) * shape.S + 2 * taps)
    little = rows.step == 1 and len(rows.taps) <= _SHORT_ROWS and shape.G == 1
    near = math.prod(size) * source[2] <= _NEAR_BYTES and not little
    reach = min(size[0], max(rows.offsets) - min(rows.offsets) + 1)
    if not copies.fits(reach * size[1] + len(rows.taps) * taps * shape.G):
        return False
    times = 2 if near else _GROUP_TIMES if shape.G > 1 else 1
    return lines > times * _MOST_SHARING * copies.sets_of(source[2])


def _blocks(
    problem: ConvProblem, rows: Axis, columns: int, vectors: int, lane_bytes: int, copied: bool, threads: int
) -> tuple[int, int]:
    """How many target rows a task takes, and in how many parts tasks split the channels.

    Where what they read is `copied`, of so many source columns, parts are made first: neighbouring blocks of rows copy
    some rows twice.
    """
    wanted = TASKS_PER_THREAD * threads if threads > 1 else 1
    if not copied:
        row_block = max(1, min(rows.count, _SOURCE_BYTES // (columns * vectors * lane_bytes)))
        if wanted > 1:
            row_block = max(1, min(row_block, problem.n * rows.count // wanted))
        return row_block, min(vectors, max(1, wanted // (problem.n * -(-rows.count // row_block))))
    reach = max(rows.offsets) - min(rows.offsets) + 1

    def fitting(parts: int) -> int:
        row_bytes = columns * odd_lines(-(-vectors // parts) * lane_bytes)
        return max(1, min(rows.count, (copies.STRIP_BYTES // row_bytes - reach) // rows.step + 1))

    parts = min(vectors, -(-vectors * lane_bytes // copies.PART_BYTES))
    row_block = fitting(parts)
    while parts < vectors and problem.n * -(-rows.count // row_block) * parts < wanted:
        parts = min(vectors, 2 * parts)
        row_block = fitting(parts)
    while row_block > reach and problem.n * -(-rows.count // row_block) * parts < wanted:
        row_block = max(reach, row_block // 2)
    return row_block, parts
