"""Weights packed into panels of target channels, in the order in which a tile reads them.

A panel holds, tap by tap and source channel by source channel, the weights of as many target channels as a tile has in
its lanes. All panels are packed by a launch of their own, or each by the task that uses it.
"""

from __future__ import annotations

import functools

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.kernels import jit
from fastconv.kernels.params import CALL, LINE, record
from fastconv.kernels.simd import (
    array_at,
    call_part,
    copy_first_lanes,
    copy_run,
    copy_values,
    pick_columns,
    prefetch,
    record_at,
    turn_line,
)
from fastconv.kernels.target import lanes_dividing

AHEAD = 16
"""Rows of weights to ask for ahead of packing: they lie too far apart for the CPU to foresee."""
TOGETHER_BYTES = 256
"""Bytes of such a row that are asked for together: line by line they come slowly from memory."""

PACKING = record("entry source_group")
"""What records of packing begin with: the address of the compiled part that packs a panel, and the bytes from group to
group of what it packs."""

PACK = record("""
    entry source_group source_r source_c source_k source_d
    target_group target_panel
    taps_r taps_c rows columns reduction channels panels
    lines line line_offsets line_bytes slots period
""")
"""Where weights lie; `rows` and `columns` are the addresses of the taps to take. Where target channels lie apart, each
has `lines` lines of `line` weights side by side, at `line_offsets` in the source and `line_bytes` apart in a panel. Of
every `period` weights the q-th goes to the q-th of `slots` there, or nowhere if that is negative; the next ones follow
on the next row. With a period of 1 each tap has as many lines. `entry` is the address of `copy_part`,
`turn_part` or `pick_part`, compiled."""


@jit.inline
def asked_bytes(begin, end, row_bytes):
    """How many bytes of each row to ask for where a panel of it, from `begin` to `end`, is packed.

    The first panel of a stretch of TOGETHER_BYTES asks for all of these; the others find them in some cache.
    """
    if -(-begin // TOGETHER_BYTES) * TOGETHER_BYTES < end:
        end = min(row_bytes, -(-end // TOGETHER_BYTES) * TOGETHER_BYTES)
    return end - begin


@functools.cache
def copy_part(dtype: str, lanes: int) -> CFunc:
    """The part of kernels that packs a panel of so many target channels which lie side by side in the source.

    All parts pack in the order (tap, source channel, target channel), filled up with zeros, so that a tile reads a
    panel from front to end: the taps from `begin` to `end`.
    """
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    NR = lanes
    VL = lanes_dividing(NR, ITEM)

    def copy_taps(plan, source, panel, target, begin, end):
        q = record_at(plan, PACK)
        rows = array_at(q.rows, q.taps_r, np.int64)
        columns = array_at(q.columns, q.taps_c, np.int64)
        lanes = min(NR, q.channels - panel * NR)
        first = source + panel * NR * ITEM
        asked = asked_bytes(panel * NR * ITEM, (panel * NR + lanes) * ITEM, q.channels * ITEM)
        for t in range(begin, end):
            tap = first + rows[t // q.taps_c] * q.source_r + columns[t % q.taps_c] * q.source_c
            place = target + (t - begin) * q.reduction * NR * ITEM
            if lanes == NR and q.source_k == NR * ITEM:
                copy_run(REAL, VL, tap, place, q.reduction * NR)
                continue
            for k in range(q.reduction):
                row, there = tap + k * q.source_k, place + k * NR * ITEM
                for line in range(0, asked, LINE):
                    prefetch(row + AHEAD * q.source_k + line)
                if lanes == NR:
                    copy_values(REAL, NR, row, there)
                    continue
                for v in range(0, NR * ITEM, VL * ITEM):
                    copy_first_lanes(REAL, VL, lanes - v // ITEM, row + v, there + v)

    return jit.part(copy_taps)


@functools.cache
def turn_part(dtype: str, lanes: int) -> CFunc:
    """The same of target channels that lie apart, whose lines of weights are turned in squares.

    The lines of the taps from `begin` to `end` are packed where each tap has its own, else all.
    """
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    NR = lanes
    VL = lanes_dividing(NR, ITEM)

    def turn_taps(plan, source, panel, target, begin, end):
        q = record_at(plan, PACK)
        lanes = min(NR, q.channels - panel * NR)
        first = source + panel * NR * q.source_d
        offsets = array_at(q.line_offsets, q.lines, np.int64)
        each = q.lines // (q.taps_r * q.taps_c)
        lines = range(begin * each, end * each) if q.period == 1 else range(q.lines)
        for i in lines:
            for d in range(0, NR, VL):
                turn_line(
                    REAL, VL, 0, first + offsets[i], d, lanes, q.source_d, q.line,
                    target + (i - lines.start) * q.line_bytes + d * ITEM, q.slots, q.period, NR * ITEM,
                )  # fmt: skip

    return jit.part(turn_taps)


@functools.cache
def pick_part(dtype: str, lanes: int, period: int) -> CFunc:
    """The same where a target channel's line of `period` weights follows another's: each tap is picked from vectors."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    NR, PERIOD = lanes, period
    VL = lanes_dividing(NR, ITEM)

    def pick_taps(plan, source, panel, target, begin, end):
        q = record_at(plan, PACK)
        lanes = min(NR, q.channels - panel * NR)
        first = source + panel * NR * q.source_d
        offsets = array_at(q.line_offsets, q.lines, np.int64)
        for i in range(q.lines):
            for d in range(0, NR, VL):
                pick_columns(
                    REAL, VL, PERIOD, first + offsets[i] + d * q.source_d, min(VL, lanes - d), q.slots,
                    target + i * q.line_bytes + d * ITEM,
                )  # fmt: skip

    return jit.part(pick_taps)


@functools.cache
def pack() -> CFunc:
    """The kernel that packs all weights; tasks are (group, panel)."""

    def pack_panels(address, begin, end, thread):
        call = record_at(address, CALL)
        q = record_at(call.plan, PACK)
        for task in range(begin, end):
            group, panel = task // q.panels, task % q.panels
            source = call.source + group * q.source_group
            target = call.target + group * q.target_group + panel * q.target_panel
            call_part(q.entry, (call.plan, source, panel, target, 0, q.taps_r * q.taps_c))

    return jit.kernel(pack_panels)
