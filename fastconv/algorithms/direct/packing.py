"""How weights are packed for gathered tiles: `fastconv.kernels.packing`, planned."""

from __future__ import annotations

import itertools
import math

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.algorithms.direct.grids import roles
from fastconv.kernels import packing
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import address, fill
from fastconv.kernels.target import vector_bytes
from fastconv.problem import ConvProblem

_LANES_OF_A_LINE = 16
"""Values of a line that are turned together."""
_MOST_PICKED = 9
"""Taps of a channel up to which picking them from vectors is quicker than turning squares with as many columns."""
_LAUNCH_WEIGHTS = 1 << 15
"""Weights whose packing takes as long as starting another thread."""


def pack_part(problem: ConvProblem, pack: np.ndarray, lanes: int) -> CFunc:
    """The part that packs as a record says: by the order in which the weights lie."""
    if pack["source_d"][0] == problem.itemsize:
        return packing.copy_part(problem.dtype, lanes)
    line, together = int(pack["line"][0]), pack["source_d"][0] == pack["period"][0] * problem.itemsize
    short = together and line == pack["period"][0] and 1 < line <= _MOST_PICKED and vector_bytes() > 16
    return packing.pick_part(problem.dtype, lanes, line) if short else packing.turn_part(problem.dtype, lanes)


def plan_pack(
    problem: ConvProblem, direction: str, rows: tuple[int, ...], columns: tuple[int, ...],
    packed_shape: tuple[int, ...], threads: int,
) -> tuple[Launch, tuple[np.ndarray, ...]]:  # fmt: skip
    """Plan the packing of the weights, and the taps whose addresses its record holds."""
    part = roles(problem, direction)
    w_r, w_c, w_k, w_d = part.weights
    groups, panels, taps, reduction, lanes = packed_shape
    panel_bytes = taps * reduction * lanes * problem.itemsize
    row_taps, column_taps = np.array(rows, np.int64), np.array(columns, np.int64)
    kh, kw = problem.kernel_size
    tap_bytes, step_bytes = reduction * lanes * problem.itemsize, lanes * problem.itemsize
    # What lies side by side along a target channel's weights: source channels, or the taps of one or of all of them.
    # Where few of these taps are wanted, reading all of them takes longer than reading each for itself.
    if w_k != problem.itemsize and taps * _LANES_OF_A_LINE < kh * kw:
        lines = [row * w_r + column * w_c + k * w_k for row in rows for column in columns for k in range(reduction)]
        line, slots, line_bytes = 1, [0], step_bytes
    elif w_k == problem.itemsize:
        lines = [row * w_r + column * w_c for row in rows for column in columns]
        line, slots, line_bytes = reduction, [0], tap_bytes
    else:
        together = reduction if w_k == kh * kw * problem.itemsize else 1
        lines, line, line_bytes = [k * w_k for k in range(0, reduction, together)], kh * kw * together, step_bytes
        kept = {row * kw + column: i * tap_bytes for i, (row, column) in enumerate(itertools.product(rows, columns))}
        slots = [kept.get(tap, -1) for tap in range(kh * kw)]
    line_offsets, tap_slots = np.array(lines, np.int64), np.array(slots, np.int64)
    template = fill(
        packing.PACK,
        source_r=w_r, source_c=w_c, source_k=w_k, source_d=w_d, source_group=part.weight_group,
        target_group=panels * panel_bytes, target_panel=panel_bytes,
        taps_r=len(row_taps), taps_c=len(column_taps), rows=address(row_taps), columns=address(column_taps),
        reduction=reduction, channels=part.channels, panels=panels,
        lines=len(lines), line=line, line_offsets=address(line_offsets), line_bytes=line_bytes,
        slots=address(tap_slots), period=len(slots), entry=0,
    )  # fmt: skip
    tasks = groups * panels
    grain = max(1, _LAUNCH_WEIGHTS * tasks // math.prod(packed_shape))

    def compiled() -> CFunc:
        template["entry"] = pack_part(problem, template, lanes).address
        return packing.pack()

    pack = Launch(compiled, problem.dtype, template, tasks, threads, 0, grain)
    return pack, (row_taps, column_taps, line_offsets, tap_slots)
