"""How the direct algorithm cuts a problem into launches: which pixels meet which taps, and the sizes of the blocks."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np

from fastconv.algorithms.base import canonical_strides, canonical_weight_strides
from fastconv.kernels import correlate, gather
from fastconv.kernels.params import address, fill
from fastconv.kernels.target import Tile, tile
from fastconv.problem import ConvProblem

_TABLE_BYTES = 32 << 10
"""Addresses that a block of tiles may take: half of the smallest first cache level in use."""
_COPY_BYTES = 256 << 10
"""Copies of runs at the image's border that a block may take (layouts whose channels lie apart only)."""
_MAX_TILES = 16
_PANEL_BYTES = 256 << 10
"""Packed output gradients of a block of pixels: they stay in the second cache level for all taps."""
_TASKS_PER_THREAD = 8


@dataclass(frozen=True)
class Axis:
    """One spatial axis of a dense sub-problem: `count` targets from `first` in steps of `every`.

    Target t reads source position t * step + offset of each tap; `taps` are the kernel positions and `offsets` theirs.
    """

    first: int
    every: int
    count: int
    step: int
    taps: tuple[int, ...]
    offsets: tuple[int, ...]


def forward_axis(problem: ConvProblem, axis: int) -> Axis:
    """The only sub-problem of the forward pass along an axis."""
    taps = range(problem.kernel_size[axis])
    low = problem.padding[axis][0]
    offsets = tuple(a * problem.dilation[axis] - low for a in taps)
    return Axis(0, 1, problem.output_size[axis], problem.stride[axis], tuple(taps), offsets)


def grad_input_axes(problem: ConvProblem, axis: int) -> tuple[Axis, ...]:
    """The sub-problems of the input gradient along an axis: the phases of the stride that any tap meets.

    Input position p met output position (p + pad - a * dilation) / stride at tap a where that is a whole number.
    """
    size, stride = problem.input_size[axis], problem.stride[axis]
    dilation, low = problem.dilation[axis], problem.padding[axis][0]
    phases: dict[int, list[int]] = {}
    for a in range(problem.kernel_size[axis]):
        phases.setdefault((a * dilation - low) % stride, []).append(a)
    return tuple(
        Axis(
            phase, stride, -(-(size - phase) // stride), 1,
            tuple(taps), tuple((phase + low - a * dilation) // stride for a in taps),
        )
        for phase, taps in sorted(phases.items())
        if phase < size
    )  # fmt: skip


@dataclass(frozen=True)
class Pass:
    """One launch of the gather kernel, planned: its record but for the addresses of this call's arrays."""

    template: np.ndarray
    tile: Tile
    tasks: int
    workspace_bytes: int
    target_offset: int
    rows: np.ndarray
    columns: np.ndarray
    row_taps: np.ndarray
    column_taps: np.ndarray
    zeros: np.ndarray
    packed_shape: tuple[int, ...]
    in_place_weights: bool

    @property
    def start_channels(self) -> int:
        """Channels of a group, rounded up to whole panels."""
        return self.packed_shape[1] * self.tile.NR


@functools.lru_cache(maxsize=1024)
def plan_passes(problem: ConvProblem, direction: str, threads: int) -> tuple[Pass, ...]:
    """Plan the launches of a forward pass or input gradient; none where no output has a tap."""
    if direction == "forward":
        grids = [(forward_axis(problem, 0), forward_axis(problem, 1))]
    else:
        grids = list(itertools.product(grad_input_axes(problem, 0), grad_input_axes(problem, 1)))
    return tuple(_plan_pass(problem, direction, rows, columns, threads) for rows, columns in grids)


def _blocks(tiles: int, entry_bytes: int, copy_bytes: int, panels: int, groups: int, threads: int) -> tuple[int, int]:
    """How many tiles a task takes, and in how many parts it splits the channel panels.

    Tasks first get shorter, then narrower, until every thread has several: a short task shares a panel of weights
    between fewer tiles, a narrow one traces the same addresses again.
    """
    size = min(_MAX_TILES, tiles, max(1, _TABLE_BYTES // entry_bytes), max(1, _COPY_BYTES // max(copy_bytes, 1)))
    wanted = _TASKS_PER_THREAD * threads if threads > 1 else 1
    while size > 4 and groups * -(-tiles // size) < wanted:
        size = max(4, size // 2)
    parts = min(panels, -(-wanted // (groups * -(-tiles // size))))
    while size > 1 and groups * -(-tiles // size) * parts < wanted:
        size //= 2
    return size, parts


def _offsets(*sizes: int) -> tuple[int, ...]:
    """Where the parts of a workspace begin, each on a cache line, and its whole size."""
    return tuple(itertools.accumulate(sizes, lambda end, size: -(-(end + size) // 64) * 64, initial=0))


def _plan_pass(problem: ConvProblem, direction: str, rows: Axis, columns: Axis, threads: int) -> Pass:
    item, groups = problem.itemsize, problem.groups
    forward = direction == "forward"
    x_strides = canonical_strides(problem.x_shape, item, problem.layout)
    y_strides = canonical_strides(problem.y_shape, item, problem.layout)
    source, target = (x_strides, y_strides) if forward else (y_strides, x_strides)
    reduction, channels = problem.ic_per_group, problem.oc_per_group
    source_size = problem.input_size
    if not forward:
        reduction, channels, source_size = channels, reduction, problem.output_size

    pixels = problem.n * rows.count * columns.count
    shape = tile(problem.dtype, pixels)
    tiles, panels = -(-pixels // shape.MR), -(-channels // shape.NR)
    taps = len(rows.taps) * len(columns.taps)
    apart = source[3] != item
    entry_bytes = taps * (shape.MR + 2) * 8
    copy_bytes = taps * reduction * shape.MR * item if apart else 0
    size, parts = _blocks(tiles, entry_bytes, copy_bytes, panels, groups, threads)

    # Weights already lie in panels where output channels are contiguous; packing them pays off over a few tiles.
    w_strides = canonical_weight_strides(problem.w_shape, item, problem.layout)
    in_place = forward and w_strides[3] == item and channels % shape.VL == 0 and tiles <= 2
    packed_shape = (groups, panels, taps, reduction, shape.NR)
    panel_bytes = taps * reduction * shape.NR * item

    table, counts, targets, row_parts, column_parts, buffer, copies, total = _offsets(
        size * entry_bytes, size * 8, (size + 1) * shape.MR * 8, len(rows.taps) * shape.MR * 8,
        len(columns.taps) * shape.MR * 8, shape.MR * shape.NR * item, size * copy_bytes,
    )  # fmt: skip
    zeros = np.zeros(0 if apart else reduction, problem.dtype)
    row_offsets, column_offsets = np.array(rows.offsets, np.int64), np.array(columns.offsets, np.int64)
    template = fill(
        gather.GATHER,
        source=0, source_n=source[0], source_r=source[1], source_c=source[2], source_k=source[3],
        target=0, target_n=target[0], target_r=target[1] * rows.every, target_c=target[2] * columns.every,
        target_d=target[3],
        source_group=reduction * source[3], target_group=channels * target[3],
        weight_group=channels * item if in_place else panels * panel_bytes,
        source_rows=source_size[0], source_columns=source_size[1],
        n=problem.n, rows=rows.count, columns=columns.count, row_step=rows.step, column_step=columns.step,
        taps_r=len(rows.taps), taps_c=len(columns.taps),
        row_offsets=address(row_offsets), column_offsets=address(column_offsets),
        reduction=reduction, channels=channels,
        weights=0, weight_tap=w_strides[1] if in_place else reduction * shape.NR * item,
        weight_step=w_strides[2] if in_place else shape.NR * item,
        weight_panel=shape.NR * item if in_place else panel_bytes,
        start=0, start_group=panels * shape.NR * item,
        relu=0, activation=0, failed=0, zeros=address(zeros),
        tiles=tiles, tiles_per_block=size, blocks=-(-tiles // size), panel_parts=parts,
        workspace=0, workspace_bytes=total,
        table=table, counts=counts, targets=targets, row_parts=row_parts, column_parts=column_parts,
        buffer=buffer, copies=copies,
    )  # fmt: skip
    return Pass(
        template, shape, groups * -(-tiles // size) * parts, total,
        rows.first * target[1] + columns.first * target[2],
        row_offsets, column_offsets, np.array(rows.taps, np.int64), np.array(columns.taps, np.int64),
        zeros, packed_shape, in_place,
    )  # fmt: skip


@dataclass(frozen=True)
class Correlation:
    """The weight gradient's launch, planned."""

    template: np.ndarray
    tile: Tile
    tasks: int
    workspace_bytes: int
    row_offsets: np.ndarray
    column_offsets: np.ndarray
    start: np.ndarray


@functools.lru_cache(maxsize=1024)
def plan_correlation(problem: ConvProblem, threads: int) -> Correlation:
    """Plan the launch of the weight gradient."""
    item, groups = problem.itemsize, problem.groups
    rows, columns = forward_axis(problem, 0), forward_axis(problem, 1)
    shape = tile(problem.dtype, problem.ic_per_group)
    x = canonical_strides(problem.x_shape, item, problem.layout)
    y = canonical_strides(problem.y_shape, item, problem.layout)
    w = canonical_weight_strides(problem.w_shape, item, problem.layout)
    panels, channel_tiles = -(-problem.oc_per_group // shape.NR), -(-problem.ic_per_group // shape.MR)
    combinations = len(rows.taps) * len(columns.taps) * channel_tiles
    parts = min(combinations, max(1, -(-_TASKS_PER_THREAD * threads // (groups * panels)))) if threads > 1 else 1
    pixels = _PANEL_BYTES // (shape.NR * item)
    column_block = min(columns.count, pixels)
    row_block = min(problem.n * rows.count, max(1, pixels // column_block))
    panel, table, targets, buffer, total = _offsets(
        row_block * column_block * shape.NR * item, row_block * (shape.MR + 2) * 8, shape.MR * 8,
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
    return Correlation(template, shape, groups * panels * parts, total, row_offsets, column_offsets, start)
