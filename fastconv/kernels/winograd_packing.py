"""Weights for Winograd's tiles (`fastconv.kernels.winograd`), transformed and packed into panels of target channels.

How they lie decides how target channels come to the lanes: each order has code of its own, a part that knows no form.
"""

from __future__ import annotations

import functools

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.kernels import jit
from fastconv.kernels.packing import AHEAD, asked_bytes
from fastconv.kernels.params import CALL, LINE
from fastconv.kernels.simd import array_at, call_part, copy_first_lanes, pick_columns, prefetch, record_at
from fastconv.kernels.target import vector_bytes
from fastconv.kernels.toomcook import Filtering
from fastconv.kernels.transforms import WEIGHTS, transform_tile
from fastconv.kernels.transpose import transpose_square
from fastconv.kernels.winograd import WINOGRAD, taps_of_piece, trace_matrix

_ROWS_AHEAD = 2
"""Rows of weights to ask for ahead of transforming them where target channels lie side by side."""
_AHEAD_OF_LINE = 2
"""Squares of weights that are asked for ahead."""
_MOST_PICKED = 7
"""Taps of kernels up to which they are picked where kernels follow each other, instead of turning squares of them."""


@functools.cache
def transform_taps(dtype: str, rows: Filtering, columns: Filtering) -> CFunc:
    """The part that transforms `count` vectors of weights, whose taps `table` has.

    `offset` is added to the addresses of the first, and `step` from each to the next; where they go, `target` and
    `target_step`.
    """
    REAL = np.dtype(dtype).type
    VL, (M0, R0, S0), (M1, R1, S1) = vector_bytes() // np.dtype(dtype).itemsize, rows, columns

    def transform_vectors(plan, own, table, count, offset, step, target, target_step):
        p = record_at(plan, WINOGRAD)
        for i in range(count):
            transform_tile(
                REAL, VL, WEIGHTS, M0, R0, S0, M1, R1, S1, table, offset + i * step, own + p.weight_table,
                target + i * target_step, p.zeros, REAL(0),
            )  # fmt: skip

    return jit.part(transform_vectors)


@jit.inline
def transform_in_place(REAL, ITEM, VL, WHOLE, plan, p, own, tap, met, lanes, asked, rows):
    """Transform weights whose target channels lie side by side: `rows` source channels of `lanes` target channels.

    `met` are the first row and column of taps that a piece has, and where they end; the others are zeros.
    With WHOLE, no tap is missing. So many bytes of a row are `asked` for at once.
    """
    first_r, first_c, end_r, end_c = met
    taps_r, taps_c, tap_r, tap_c, pitch = p.r_r, p.r_c, p.tap_r, p.tap_c, p.weight_k
    together, table = lanes // VL if WHOLE != 0 else 0, own + p.weight_source
    single = table + taps_r * taps_c * 8
    in_place = array_at(table, (taps_r, taps_c), np.int64)
    taps = array_at(single, (taps_r, taps_c), np.int64)
    for a in range(taps_r):
        for b in range(taps_c):
            in_place[a, b] = tap + a * tap_r + b * tap_c
    for k in range(rows):
        for a in range(taps_r):
            for b in range(taps_c):
                for line in range(0, asked, LINE):
                    prefetch(tap + (k + _ROWS_AHEAD) * pitch + a * tap_r + b * tap_c + line)
        there = k * p.panel_lanes * ITEM
        call_part(p.transform_taps, (plan, own, table, together, k * pitch, VL * ITEM, there, VL * ITEM))
        for v in range(together * VL, lanes, VL):
            for a in range(taps_r):
                for b in range(taps_c):
                    place = in_place[a, b] + k * pitch + v * ITEM
                    taps[a, b] = place
                    if WHOLE == 0 and not (first_r <= a < end_r and first_c <= b < end_c):
                        taps[a, b] = p.zeros
                    elif lanes - v < VL:
                        taps[a, b] = own + p.buffer + (a * taps_c + b) * VL * ITEM
                        copy_first_lanes(REAL, VL, lanes - v, place, taps[a, b])
            call_part(p.transform_taps, (plan, own, single, 1, 0, 0, there + v * ITEM, 0))


@jit.inline
def transform_turned(REAL, ITEM, VL, WHOLE, plan, p, own, tap, met, lanes, before, rows):
    """The same of weights whose source channels lie side by side, turning squares of VL source x VL target channels.

    The last square overlaps the one before, or reads some of the `before` source channels that precede these.
    """
    first_r, first_c, end_r, end_c = met
    taps = array_at(own + p.weight_source, (p.r_r, p.r_c), np.int64)
    for a in range(p.r_r):
        for b in range(p.r_c):
            taps[a, b] = own + p.buffer + (a * p.r_c + b) * VL * VL * ITEM
            if WHOLE == 0 and not (first_r <= a < end_r and first_c <= b < end_c):
                array_at(taps[a, b], VL * VL, REAL)[:] = REAL(0)
    row = p.panel_lanes * ITEM
    for v in range(0, lanes, VL):
        there = min(VL, lanes - v)
        for k in range(0, rows, VL):
            first = max(-before, min(k, rows - VL))
            for a in range(0 if WHOLE != 0 else first_r, p.r_r if WHOLE != 0 else end_r):
                for b in range(0 if WHOLE != 0 else first_c, p.r_c if WHOLE != 0 else end_c):
                    square = tap + v * p.weight_d + first * ITEM + a * p.tap_r + b * p.tap_c
                    for d in range(there):
                        prefetch(square + d * p.weight_d + VL * ITEM)
                    transpose_square(REAL, VL, square, p.weight_d, there, taps[a, b], VL * ITEM)
            count, offset, step = min(VL, rows - k), (k - first) * VL * ITEM, VL * ITEM
            call_part(
                p.transform_taps, (plan, own, own + p.weight_source, count, offset, step, k * row + v * ITEM, row)
            )


@jit.inline
def transform_lines(REAL, ITEM, VL, plan, p, own, tap, lanes, before, rows):
    """The same of whole kernels whose taps lie side by side, turning squares of VL target channels x VL taps.

    The taps of VL source channels are one line where these lie side by side, else a line has those of one. A line's
    last square overlaps the one before, or reads some taps of what precedes it, or follows the first line of all.
    """
    all_taps = p.r_r * p.r_c
    taps = array_at(own + p.weight_source, (p.r_r, p.r_c), np.int64)
    lowest = tap + (p.r_r - 1) * min(p.weight_r, 0) + (p.r_c - 1) * min(p.weight_c, 0)
    turned = own + p.buffer + VL * VL * ITEM
    for a in range(p.r_r):
        for b in range(p.r_c):
            taps[a, b] = turned + (tap + a * p.weight_r + b * p.weight_c - lowest) * VL
    together, row = VL if p.weight_k == all_taps * ITEM else 1, p.panel_lanes * ITEM
    for v in range(0, lanes, VL):
        there = min(VL, lanes - v)
        for k in range(0, rows, together):
            line, count = lowest + v * p.weight_d + k * p.weight_k, min(together, rows - k)
            length = all_taps * count
            for c in range(0, length, VL):
                begin = min(c, length - VL) if before + k > 0 or length >= VL else 0
                square = line + begin * ITEM
                for d in range(there):
                    prefetch(square + d * p.weight_d + _AHEAD_OF_LINE * VL * ITEM)
                transpose_square(REAL, VL, square, p.weight_d, there, turned + begin * VL * ITEM, VL * ITEM)
            step = all_taps * VL * ITEM
            call_part(p.transform_taps, (plan, own, own + p.weight_source, count, 0, step, k * row + v * ITEM, row))


@jit.inline
def transform_picked(REAL, ITEM, VL, TAPS, plan, p, own, tap, lanes, rows):
    """The same of whole kernels of few taps that follow each other, picking what VL target channels have of each."""
    taps = array_at(own + p.weight_source, (p.r_r, p.r_c), np.int64)
    places = array_at(own + p.buffer, TAPS, np.int64)
    picked = own + p.buffer + VL * VL * ITEM
    lowest = tap + (p.r_r - 1) * min(p.weight_r, 0) + (p.r_c - 1) * min(p.weight_c, 0)
    for q in range(TAPS):
        places[q] = q * VL * ITEM
    for a in range(p.r_r):
        for b in range(p.r_c):
            taps[a, b] = picked + (tap + a * p.weight_r + b * p.weight_c - lowest) * VL
    for k in range(rows):
        for v in range(0, lanes, VL):
            line = lowest + v * p.weight_d + k * p.weight_k
            for part in range(0, VL * TAPS * ITEM, LINE):
                prefetch(line + AHEAD * p.weight_k + part)
            pick_columns(REAL, VL, TAPS, line, min(VL, lanes - v), own + p.buffer, picked)
            target = (k * p.panel_lanes + v) * ITEM
            call_part(p.transform_taps, (plan, own, own + p.weight_source, 1, 0, 0, target, 0))


IN_PLACE = "target channels side by side"
PICKED = "short kernels side by side"
LINES = "taps side by side"
TURNED = "source channels side by side"
"""How weights lie, each with code of its own for bringing target channels to the lanes."""


def order_of_weights(plan: np.ndarray, taps: int, whole: bool, item: int) -> str:
    """How the weights of a planned record lie, whose pieces have so many taps; a kernel of one piece is `whole`."""
    channel, column = int(plan["weight_d"][0]), abs(int(plan["weight_c"][0]))
    if channel == item:
        return IN_PLACE
    if column != item:
        return TURNED
    return PICKED if whole and taps <= _MOST_PICKED and channel == taps * item else LINES


@jit.inline
def weights_of_piece(p, own, weights, panel, piece, first, packed):
    """Where a piece's weights of a panel begin, the taps it has (`met`), its target channels and source channels.

    Where they go transformed is written to the workspace.
    """
    a, b, end_r, end_c = taps_of_piece(p, piece)
    met = (1 if a < p.lead_r else 0), (1 if b < p.lead_c else 0), end_r, end_c
    trace_matrix(p.matrices, own + p.weight_table, packed, p.weight_step)
    tap = weights + first * p.weight_k + panel * p.panel_lanes * p.weight_d + a * p.weight_r + b * p.weight_c
    return tap, met, min(p.panel_lanes, p.channels - panel * p.panel_lanes), min(p.chunk, p.reduction - first)


@functools.cache
def transform_weights(dtype: str, order: str, whole: bool, taps: int) -> CFunc:
    """The part that transforms a panel's weights of a piece and the source channels from `first` on into `packed`.

    These are n0 n1 matrices of at most `chunk` source channels x `panel_lanes` target channels. Lanes past the
    last channel hold anything; their products are not used. A kernel of a single piece is `whole`; `taps` is 0 but for
    kernels that are picked. What knows a form is `transform_taps`: a part of each form for all orders took 5 s to
    compile.
    """
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, WHOLE, TAPS = vector_bytes() // ITEM, int(whole), taps

    def transform_in_place_panel(plan, own, weights, panel, piece, first, packed):
        p = record_at(plan, WINOGRAD)
        tap, met, lanes, rows = weights_of_piece(p, own, weights, panel, piece, first, packed)
        begin = panel * p.panel_lanes * ITEM
        asked = asked_bytes(begin, begin + lanes * ITEM, p.channels * ITEM)
        transform_in_place(REAL, ITEM, VL, WHOLE, plan, p, own, tap, met, lanes, asked, rows)

    def transform_picked_panel(plan, own, weights, panel, piece, first, packed):
        p = record_at(plan, WINOGRAD)
        tap, _, lanes, rows = weights_of_piece(p, own, weights, panel, piece, first, packed)
        transform_picked(REAL, ITEM, VL, TAPS, plan, p, own, tap, lanes, rows)

    def transform_lines_panel(plan, own, weights, panel, piece, first, packed):
        p = record_at(plan, WINOGRAD)
        tap, _, lanes, rows = weights_of_piece(p, own, weights, panel, piece, first, packed)
        transform_lines(REAL, ITEM, VL, plan, p, own, tap, lanes, first, rows)

    def transform_turned_panel(plan, own, weights, panel, piece, first, packed):
        p = record_at(plan, WINOGRAD)
        tap, met, lanes, rows = weights_of_piece(p, own, weights, panel, piece, first, packed)
        transform_turned(REAL, ITEM, VL, WHOLE, plan, p, own, tap, met, lanes, first, rows)

    return jit.part({
        IN_PLACE: transform_in_place_panel, PICKED: transform_picked_panel, LINES: transform_lines_panel,
        TURNED: transform_turned_panel,
    }[order])  # fmt: skip


@functools.cache
def pack() -> CFunc:
    """Transform all weights once; a task is one panel of one group, and of one phase of the targets."""

    def transform_panels(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, WINOGRAD)
        own = call.workspace + thread * p.workspace_bytes
        chunks, phases = (p.reduction + p.chunk - 1) // p.chunk, p.pieces_r * p.pieces_c // p.summed
        for task in range(begin, end):
            weights = call.source + p.weight_offset + task // (p.panels * phases) * p.weight_group
            panel, phase, target = task % p.panels, task // p.panels % phases, call.target + task * p.weight_panel
            for step in range(p.summed * chunks):
                piece, k, packed = phase + step // chunks, step % chunks * p.chunk, target + step * p.weight_chunk
                call_part(p.transform_weights, (call.plan, own, weights, panel, piece, k, packed))

    return jit.kernel(transform_panels)
