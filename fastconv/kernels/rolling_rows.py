"""The loop over source rows that rolling sums have in common, of planes and of pixels.

Each source row is loaded once and added to the sums of all target rows that it reaches, which roll through the
registers: with every row one is complete, and one begins. Rows outside the image are not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from fastconv.kernels.emit import Emitter

Product = tuple[int, int, Callable[[Any, Any], Any]]
"""The number of a target vector, that of a kernel column, and what adds their product: (weight, sum) to sum."""


def kernel_weights(
    emit: Emitter, size: tuple[int, int], load: Callable[[Any], Any], weights: Any, weight_r: Any, weight_c: Any
) -> list[list[Any]]:
    """The weights of a kernel of so many rows and columns, each a vector that `load` gets from its address."""

    def weight(a: int, b: int) -> Any:
        along = emit.add(emit.builder.mul(weight_r, emit.const(a)), emit.builder.mul(weight_c, emit.const(b)))
        return load(emit.add(weights, along))

    return [[weight(a, b) for b in range(size[1])] for a in range(size[0])]


@dataclass(frozen=True)
class Rows:
    """The rows of a strip.

    Source row `row` + `step` i + `apart` q lies `source_line` for each from `source`, if it is one of `source_rows`;
    from line `begin` to `end` of the loop all are. Target row i of `lines` lies i times `target_line` from `target`.
    """

    lines: Any
    begin: Any
    end: Any
    row: Any
    apart: Any
    step: Any
    source: Any
    source_line: Any
    source_rows: Any
    target: Any
    target_line: Any


def roll_rows(
    emit: Emitter, rows: Rows, kernel: list[list[Any]], apart: int, width: int, begins: Any, floor: Any,
    products: Callable[[Any, Any], Iterable[Product]], store: Callable[[int, Any, Any, Any], None],
) -> None:  # fmt: skip
    """Sum and store all target rows, of `width` vectors: no less than `floor`, from what each `begins` with.

    Every `apart`-th of the kernel's rows meets a source row by the target row at hand, and the ones `apart` on by those
    before. `products` are those of the source row at an address, which are zero where it does not exist; `store` puts
    a vector, by its number, into the target row at an address, and is told the row's number.
    """
    builder, const, add, multiply = emit.builder, emit.const, emit.add, emit.builder.mul
    height = len(kernel)
    depth, met_rows = -(-height // apart), min(apart, height)

    def rows_between(low: Any, high: Any, carried: list[Any], edge: bool) -> list[Any]:
        def line(i: Any, carried: list[Any]) -> list[Any]:
            i = add(i, low)
            sums = [*[begins] * width, *carried]
            here = add(rows.row, multiply(rows.step, i))
            # At an edge, some of the rows that a line meets are not there: of one row, it is not.
            for q in range(0 if edge and met_rows == 1 else met_rows):
                place = add(here, multiply(rows.apart, const(q)))
                exists = builder.icmp_unsigned("<", place, rows.source_rows) if edge else None
                place = add(rows.source, multiply(place, rows.source_line))
                for v, b, added in products(place, exists):
                    for m, a in enumerate(range(q, height, apart)):
                        sums[m * width + v] = added(kernel[a][b], sums[m * width + v])
            done = builder.sub(i, const(depth - 1))
            with builder.if_then(builder.icmp_signed(">=", done, const(0))):
                there = add(rows.target, multiply(done, rows.target_line))
                for v, total in enumerate(sums[(depth - 1) * width :]):
                    # An ordered "<" is false for NaN, which therefore passes.
                    store(v, builder.select(builder.fcmp_ordered("<", total, floor), floor, total), there, done)
            return sums[: (depth - 1) * width]

        return emit.loop(builder.sub(high, low), line, carried)

    carried = rows_between(const(0), rows.begin, [begins] * ((depth - 1) * width), True)
    carried = rows_between(rows.begin, rows.end, carried, False)
    rows_between(rows.end, add(rows.lines, const(depth - 1)), carried, True)


Phases = tuple[list[tuple[int, int]], list[tuple[int, int]]]
"""Of an axis, the taps that an even and an odd target meet, each with how many sources on it reads."""


def pair_phases(taps: int, odd: int) -> Phases:
    """The taps of both targets of a pair along an axis whose padding is `odd`: target p meets those of its parity."""
    even_one, odd_one = ([(a, (p + odd - a) // 2) for a in range(taps) if (p + odd - a) % 2 == 0] for p in range(2))
    return even_one, odd_one


def pair_offsets(taps: int, odd: int) -> tuple[int, int]:
    """How far before and behind its own a pair of targets reads sources: the least and the largest offset."""
    offsets = [offset for phase in pair_phases(taps, odd) for _, offset in phase]
    return min(offsets), max(offsets)


@dataclass(frozen=True)
class PairRows:
    """The rows of a strip of pairs, of which `lines` target rows are stored.

    Source row i lies i times `source_line` from `source`; rows from `low` to `high` are there, of which those from
    `begin` to `end` are visited. Target row i lies i times `target_line` from `target`.
    """

    lines: Any
    begin: Any
    end: Any
    low: Any
    high: Any
    source: Any
    source_line: Any
    target: Any
    target_line: Any


def roll_pairs(
    emit: Emitter, rows: PairRows, kernel: list[list[Any]], phases: tuple[Phases, Phases], width: int,
    products: Callable[[Any], Iterable[Product]], store: Callable[[list[Any], Any], None],
) -> None:  # fmt: skip
    """Sum and store all target rows of an input gradient of stride 2, of `width` vectors of pairs.

    Each source row is added to the sums of two target rows, of even and of odd columns. `products` are those of the
    source row at an address, by the vector's number and the offset of the column that it reads; `store` puts a row's
    vectors, the even ones first, at an address.
    """
    builder, const, add, each = emit.builder, emit.const, emit.add, 2 * width
    rows_of, columns_of = phases
    nearest = [min(o for _, o in phase) for phase in rows_of]
    depths = [max(o for _, o in phase) - least + 1 for phase, least in zip(rows_of, nearest, strict=True)]
    nothing = emit.constant(0.0)

    def rows_between(low: Any, high: Any, carried: list[Any], edge: bool) -> list[Any]:
        def line(i: Any, carried: list[Any]) -> list[Any]:
            i = add(i, low)
            sums, begun = [], 0  # by row of a pair: by target row, the newest first, column's phase and vector
            for depth in depths:
                sums.append([*[nothing] * each, *carried[begun : begun + (depth - 1) * each]])
                begun += (depth - 1) * each
            # No row at an edge is there.
            for v, shift, added in () if edge else products(add(rows.source, builder.mul(i, rows.source_line))):
                for p, phase in enumerate(rows_of):
                    for a, o in phase:
                        for q in range(2):
                            for b in (b for b, offset in columns_of[q] if offset == shift):
                                k = (o - nearest[p]) * each + q * width + v
                                sums[p][k] = added(kernel[a][b], sums[p][k])
            for p, depth in enumerate(depths):
                done = builder.sub(i, const(nearest[p] + depth - 1))
                row = add(builder.mul(done, const(2)), const(p))
                wanted = builder.and_(
                    builder.icmp_signed(">=", done, const(0)), builder.icmp_signed("<", row, rows.lines)
                )
                with builder.if_then(wanted):
                    store(sums[p][(depth - 1) * each :], add(rows.target, builder.mul(row, rows.target_line)))
            return [total for p, depth in enumerate(depths) for total in sums[p][: (depth - 1) * each]]

        return emit.loop(builder.sub(high, low), line, carried)

    begin_there = emit.limited(rows.low, rows.begin, rows.end)
    end_there = emit.limited(rows.high, begin_there, rows.end)
    carried = rows_between(rows.begin, begin_there, [nothing] * sum(each * (depth - 1) for depth in depths), True)
    carried = rows_between(begin_there, end_there, carried, False)
    rows_between(end_there, rows.end, carried, True)
