"""How results are divided into blocks, lines and tiles, and what each division should cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fastconv.kernels import launch
from fastconv.kernels.signal import FILL, SYMM, WRAP
from fastconv.kernels.target import Tile, registers
from fastconv.signal.problem import Axis, SignalProblem

_STRIP_BYTES = 256 << 10
"""Strip of a block of results: it stays in the second cache level."""
_COLUMNS = 4096
"""Most columns of a block: with a few rows of taps they stay in the first cache level."""
_TASKS = 8
"""Tasks of work that is large enough for threads."""

CYCLES_PER_SECOND = 2.5e9
_LATENCY = 4.0  # cycles from a multiply-add to the next on the same sum
_CROSSING = 1.0  # cycles to load a vector that straddles two cache lines
_TILE, _RUN, _DOT = 25.0, 6.0, 15.0  # cycles for each tile, row of taps in it, and dot product, besides its products
_COPY, _MOVE = 0.3, 1.2  # cycles to copy a value beside its neighbours, and apart from them


@dataclass(frozen=True)
class Side:
    """One axis as the kernels see it: taps slide over the source. Of the `given` ones some may be added up before."""

    source: int
    given: int
    taps: int
    first: int
    size: int


def side(axis: Axis, swapped: bool, boundary: int = FILL) -> Side:
    """An axis with in1 as the source, or with the roles swapped.

    Taps a period of the continued source apart meet the same values, and are one tap.
    """
    source, taps = (axis.in2, axis.in1) if swapped else (axis.in1, axis.in2)
    period = {FILL: taps, WRAP: source, SYMM: 2 * source}[boundary]
    return Side(source, taps, min(taps, period), axis.first - (taps - 1), axis.size)


@dataclass(frozen=True)
class Shape:
    """One division: which kernel ("line", "row", "run" or "dot") with which tile, the blocks, and the cycles of all."""

    kernel: str
    tile: Tile
    row_blocks: int
    column_blocks: int
    pitch: int
    cycles: float
    flat: bool = False
    run: int = 0


def shapes(problem: SignalProblem, rows: Side, columns: Side, lanes: int, item: int) -> Iterator[Shape]:
    """All divisions that come into question."""
    parts, trim = problem.parts, problem.commutes
    products = rows.size * columns.size * rows.taps * columns.taps * parts * parts
    tasks = 1 if launch.threads_for(2 * products) == 1 else _TASKS
    most = max(_COLUMNS // parts, columns.taps)
    if rows.size == 1:
        most = max(8 * lanes, min(most, -(-columns.size // tasks)))
    column_blocks = -(-columns.size // most)
    pitch = -(-columns.size // column_blocks) + columns.taps - 1
    if column_blocks == 1 and problem.boundary == FILL:  # the end of a row is the beginning of the next
        pitch -= max(0, min(-columns.first, columns.first + pitch - columns.source))
    in_cache = max(_STRIP_BYTES // (pitch * item * parts) - rows.taps, rows.taps, 8)
    row_blocks = min(rows.size, max(tasks, -(-rows.size // in_cache)))
    move = _COPY if parts == 1 else _MOVE
    copied = (rows.size + row_blocks * (rows.taps - 1)) * pitch * column_blocks * parts * move
    copied += rows.taps * columns.taps * parts * parts * move

    runs = met(rows, 1) if trim else rows.size * rows.taps
    for width in (4, 2, 1):
        tile = Tile(lanes, parts, width)
        step = max(_LATENCY, width * _CROSSING + parts / 2, width * parts / 2)
        tiles = -(-columns.size // tile.NR)
        taps = met(columns, tile.NR) if trim else tiles * columns.taps
        cycles = copied + runs * (taps * step + tiles * _RUN) + rows.size * tiles * _TILE
        yield Shape("line", tile, row_blocks, column_blocks, pitch, cycles)
        if column_blocks == 1 and rows.size > 1:
            length = (-(-rows.size // row_blocks) - 1) * pitch + columns.size
            tiles = row_blocks * -(-length // tile.NR)
            cycles = copied + tiles * (rows.taps * (columns.taps * step + _RUN) + _TILE)
            yield Shape("line", tile, row_blocks, column_blocks, pitch, cycles, flat=True)
        if parts > 1:
            continue
        tile = Tile(lanes, 4, width)
        fits = rows.size >= tile.MR and rows.taps >= tile.MR - 1 and columns.size // column_blocks >= tile.NR
        if fits and tile.MR * width + width < registers():
            blocks = min(row_blocks, rows.size // tile.MR)
            tiles = -(-columns.size // tile.NR)
            taps = met(columns, tile.NR) if trim else tiles * columns.taps
            step = max(_LATENCY, tile.MR * width / 2, width * _CROSSING + tile.MR / 2)
            shared = Side(rows.source, rows.given, rows.taps + tile.MR - 1, rows.first, rows.size)
            runs_of_tiles = (met(shared, 1) if trim else rows.size * shared.taps) / tile.MR
            cycles = copied + runs_of_tiles * (taps * step + tiles * _RUN) + rows.size / tile.MR * tiles * _TILE
            yield Shape("row", tile, blocks, column_blocks, pitch, cycles)
    if rows.size * columns.size <= 4 * lanes:
        cycles = copied + rows.size * columns.size * parts * parts * rows.taps * (columns.taps / lanes + _DOT)
        yield Shape("dot", Tile(lanes, parts, 1), 1, 1, columns.size + columns.taps - 1, cycles)
    if rows.size == 1 and rows.taps == 1 and parts == 1:
        yield from _runs(columns, trim, lanes, item, tasks)


def _runs(columns: Side, trim: bool, lanes: int, item: int, tasks: int) -> Iterator[Shape]:
    """One row as a run of results for each lane."""
    tile = Tile(lanes, 8, 1)
    blocks = max(tasks, -(-columns.size // max(_STRIP_BYTES // (2 * item), 4 * columns.taps)))
    run = max(tile.MR, -(-columns.size // (blocks * lanes)))
    if columns.taps < tile.MR - 1 or (run - 1) * lanes > columns.size:
        return
    shared = Side(columns.source, columns.given, columns.taps + tile.MR - 1, columns.first, columns.size)
    taps = met(shared, lanes * run) * run if trim else blocks * run * shared.taps
    step = max(_LATENCY, tile.MR / 2 + 0.5)
    moved = blocks * lanes * (2 * run + columns.taps) * _MOVE
    cycles = moved + columns.taps * _COPY + taps / tile.MR * step + blocks * run / tile.MR * _TILE
    yield Shape("run", tile, 1, blocks, 0, cycles, run=run)


def met(side: Side, width: int) -> int:
    """Taps that meet the source, summed over all groups of `width` results."""
    starts = side.first + np.arange(0, side.size, width)
    ranges = np.minimum(side.taps, side.source - starts) - np.maximum(0, -starts - (width - 1))
    return int(np.clip(ranges, 0, None).sum())
