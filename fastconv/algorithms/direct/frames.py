"""What tasks copy before they multiply: padded rows with channels side by side, or what windows read of planes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.grids import Axis, Roles, roles
from fastconv.kernels import columns as kernels
from fastconv.kernels.pad import PAD
from fastconv.kernels.params import address, fill
from fastconv.problem import ConvProblem

_STRIP_BYTES = 1 << 19
"""Rows that a task copies at most."""
_INTERLEAVED = 4
"""Channels up to which rows are turned as fast as they are copied."""


@dataclass(frozen=True)
class Frame:
    """How tasks copy the rows that they read: with zeros around them and channels side by side, into a strip."""

    record: np.ndarray
    part: Roles
    """The roles with the copy as the source."""
    rows: Axis
    columns: Axis
    group_bytes: int
    """From group to group in the copy; 0 where each is copied by itself."""
    turns: bool
    """Whether the source's channels lie apart."""
    slots: np.ndarray

    @property
    def row_bytes(self) -> int:
        return int(self.record["row_bytes"][0])

    def strip_rows(self, pixels: int) -> int:
        """The most padded rows that so many target pixels, which follow each other, read."""
        rows = self.rows
        lines, reach = -(-pixels // self.columns.count) + 1, max(rows.offsets) + 1
        # Between images lie the rows that only the last windows of the one before reach.
        return lines * rows.step + reach + (lines // rows.count + 1) * max(0, reach - rows.step)

    def fits(self, pixels: int) -> bool:
        """Whether the rows that so many pixels read stay in the second cache level."""
        return self.strip_rows(pixels) * self.row_bytes <= _STRIP_BYTES

    @property
    def seconds_per_row(self) -> float:
        """Time of copying one."""
        few = self.record["channels"][0] <= _INTERLEAVED and self.record["column_step"][0] == 1
        value = model.costs().transpose_seconds if self.turns and not few else model.COPY_SECONDS
        return self.row_bytes / self.part.source[3] * value


def _copied_axis(axis: Axis, skips: bool) -> tuple[Axis, int, int]:
    """The axis of a copy that begins with the first position read, its length and the step of what it copies.

    Where the copy `skips`, it leaves out what a single tap steps over.
    """
    if skips and len(axis.taps) == 1:
        return replace(axis, step=1, offsets=(0,)), axis.count, axis.step
    low = min(axis.offsets)
    length = (axis.count - 1) * axis.step + max(axis.offsets) - low + 1
    return replace(axis, offsets=tuple(offset - low for offset in axis.offsets)), length, 1


def frame_of(problem: ConvProblem, direction: str, rows: Axis, columns: Axis) -> Frame:
    """Plan the copies for one dense sub-problem."""
    item, part = problem.itemsize, roles(problem, direction)
    source_n, source_r, source_c, source_k = part.source
    together = problem.groups if source_k == item else 1  # groups in one copy
    channels = together * part.reduction
    top, first = min(rows.offsets), min(columns.offsets)
    inner_rows, height, row_step = _copied_axis(rows, True)
    inner_columns, width, column_step = _copied_axis(columns, source_k != item)
    left = min(width, -(min(first, 0) // column_step))
    first += left * column_step
    copied = max(0, min(width - left, -((first - part.source_size[1]) // column_step)))
    turns = source_k != item and not channels == column_step == 1
    slots = np.array([0] + [-1] * (column_step - 1), np.int64)
    row_bytes = width * channels * item
    record = fill(
        PAD, entry=0, source_group=0 if together > 1 else channels * source_k, source_n=source_n, source_r=source_r,
        source_rows=part.source_size[0], padded_rows=height, top=top, row_step=row_step, row_bytes=row_bytes,
        left=left * channels, copied=copied * channels, right=(width - left - copied) * channels,
        source_first=first * source_c, source_k=source_k if turns else item, channels=channels,
        columns=max(0, (copied - 1) * column_step + 1), column_step=column_step, slots=address(slots),
    )  # fmt: skip
    copy = (height * row_bytes, row_bytes, channels * item, item)
    inner = part._replace(source=copy, source_size=(height, width))
    group_bytes = part.reduction * item if together > 1 else 0
    return Frame(record, inner, inner_rows, inner_columns, group_bytes, turns, slots)


@dataclass(frozen=True)
class Windows:
    """How tasks pack what the windows of a panel of pixels read of planes: `fastconv.kernels.columns`."""

    record: np.ndarray
    step: int
    """Columns between windows, 0 for more than are picked from vectors."""
    panel_bytes: int
    mask_bytes: int
    """What lies behind a panel while it is packed."""
    seconds_per_row: float
    """Time of packing what one tap of one channel reads for all pixels."""
    offsets: tuple[np.ndarray, np.ndarray]
    """Tables whose addresses the record holds, and which it keeps alive."""


def windows_of(
    part: Roles, rows: Axis, columns: Axis, dtype: str, lanes: int, channel_row: int, tap_row: int
) -> Windows:  # fmt: skip
    """How panels of `lanes` pixels are packed: a tap of a channel has the row `channel_row` and `tap_row` tell."""
    source, size, item, pixels = part.source, part.source_size, np.dtype(dtype).itemsize, rows.count * columns.count
    taps = len(rows.taps) * len(columns.taps)
    step = columns.step if columns.step <= kernels.MOST_STEPS else 0
    flat = rows.step == columns.step == 1 and columns.count == size[1]
    panel_bytes = part.reduction * taps * lanes * item
    row_offsets, column_offsets = np.array(rows.offsets, np.int64), np.array(columns.offsets, np.int64)
    record = fill(
        kernels.COLUMNS, entry=0, source_group=part.reduction * source[3], source_r=source[1], source_k=source[3],
        source_rows=size[0], source_columns=size[1], rows=rows.count, columns=columns.count, row_step=rows.step,
        column_step=columns.step, taps_r=len(rows.taps), taps_c=len(columns.taps), row_offsets=address(row_offsets),
        column_offsets=address(column_offsets), first_row=min(rows.offsets), last_row=max(rows.offsets),
        first_column=min(columns.offsets), last_column=max(columns.offsets), reduction=part.reduction,
        channel_row=channel_row, tap_row=tap_row, flat=flat, panel_bytes=panel_bytes,
    )  # fmt: skip
    panels = -(-pixels // lanes)
    runs = panels if flat else panels + rows.count
    tap = model.COLUMN_TAP_SECONDS + (0.0 if flat else model.costs().masked_tap_seconds)
    each = model.COLUMN_RUN_SECONDS + tap / min(part.reduction, kernels.TOGETHER)
    seconds = pixels * model.COLUMN_SECONDS[step] + runs * each
    return Windows(record, step, panel_bytes, taps * max(1, step) * 8, seconds, (row_offsets, column_offsets))
