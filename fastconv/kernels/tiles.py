"""Register tiles: rows of scalars times vectors, summed in registers over runs of steps.

An intrinsic emits one LLVM value for each vector register of a tile and loops at run time over everything else, so one
compiled tile serves every shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.kernels.emit import I64, SECOND_LEVEL, Emitter, ask, literal, scalar_ir
from fastconv.kernels.target import IN_FLIGHT

UNROLLED = 4
"""Steps of a tile that share their address arithmetic in most kernels."""
ANYWHERE = 0
"""UNROLL of a tile whose scalars are a distance apart that each run tells."""
RUN_FIELDS = 3
"""Integers of a run in a tile's table besides the addresses of the rows: scalar step, tap, length."""
CHANNEL_START = 0
"""A tile's rows start with vectors."""
ROW_START = 1
"""Each row of a tile starts with a value of its own in all lanes."""


def unrolling(length: int) -> int:
    """How many steps of runs that long to unroll: short ones that are a multiple of 3 leave a step over otherwise."""
    return 3 if length <= 32 and length % 3 == 0 and length % UNROLLED else UNROLLED


class TileSums:
    """The accumulators of a tile of `rows` by `width` vectors, and the loops that add to them.

    There may be several `sets` of them, which the steps of a run take in turn: few sums wait for their own results.
    Of a step's last vector only the lanes in `mask` are read, if there is one. Rounds of unrolled steps ask for lines:
    `asks` are the first one's address and how far on the next one's is.
    """

    def __init__(
        self,
        emit: Emitter,
        rows: int,
        width: int,
        vector_step: Any,
        unroll: int,
        sets: int = 1,
        mask: Any = None,
        asks: tuple[Any, Any] | None = None,
    ) -> None:
        self.emit = emit
        self.rows = rows
        self.width = width
        self.sets = sets
        self._vector_step = vector_step
        self._unroll = unroll
        self._mask = mask
        self._asks = asks

    def _vectors(self, row: Any) -> list[Any]:
        """The vectors of a step."""
        emit = self.emit
        places = [emit.add(row, emit.const(j * emit.vector_bytes)) for j in range(self.width)]
        if self._mask is None:
            return [emit.load(place) for place in places]
        return [*map(emit.load, places[:-1]), emit.load_masked(places[-1], self._mask)]

    def start(self, kind: int, vector_starts: Callable[[int], Any], scalar_starts: Any) -> list[Any]:
        """What the accumulators begin with: vectors at an address for each row, or a scalar for each row."""
        emit, size = self.emit, self.emit.vector_bytes
        if kind == CHANNEL_START:
            begins = [vector_starts(m) for m in range(self.rows)]
            return [emit.load(emit.add(begin, emit.const(j * size))) for begin in begins for j in range(self.width)]
        values = [emit.load_broadcast(emit.add(scalar_starts, emit.const(m * emit.item))) for m in range(self.rows)]
        return [value for value in values for _ in range(self.width)]

    def add_step(self, scalars: list[Any], along: Any, row: Any, sums: list[Any]) -> list[Any]:
        """Add one step: the scalar `along` bytes after each row's, times the vectors at `row`."""
        emit, v = self.emit, self._vectors(row)
        following = []
        for m in range(self.rows):
            x = emit.load_broadcast(emit.add(scalars[m], along))
            following += [emit.fma(x, v[j], sums[m * self.width + j]) for j in range(self.width)]
        return following

    def add_run(self, scalars: list[Any], scalar_step: Any, vector: Any, length: Any, sums: list[Any]) -> list[Any]:
        """Add `length` steps, whose scalars begin at one address for each row, and whose vectors begin at `vector`.

        Where scalars lie side by side, several steps share their address arithmetic, which would take a tenth of the
        multiply-adds' slots.
        """
        emit = self.emit
        const, add, multiply = emit.const, emit.add, emit.builder.mul
        if self._unroll == ANYWHERE:

            def one(k: Any, sums: list[Any]) -> list[Any]:
                along, row = multiply(k, scalar_step), add(vector, multiply(k, self._vector_step))
                return self.add_step(scalars, along, row, sums)

            if self.sets == 1:
                return emit.loop(length, one, sums)

            def in_turn(k: Any, sums: list[Any]) -> list[Any]:
                k = multiply(k, const(self.sets))
                parts = [one(add(k, const(u)), sums[u :: self.sets]) for u in range(self.sets)]
                return [value for values in zip(*parts, strict=True) for value in values]

            rounds = emit.builder.sdiv(length, const(self.sets))
            sums = emit.loop(rounds, in_turn, sums)
            done = multiply(rounds, const(self.sets))
            firsts = sums[:: self.sets]
            firsts = emit.loop(emit.builder.sub(length, done), lambda k, sums: one(add(done, k), sums), firsts)
            return [firsts[i // self.sets] if i % self.sets == 0 else value for i, value in enumerate(sums)]

        def side_by_side(k: Any) -> Callable[[int], Any]:
            along = multiply(k, const(emit.item))
            return lambda u: add(along, const(u * emit.item))

        return self._add_unrolled(scalars, side_by_side, vector, length, self._unroll, sums)

    def add_listed(self, scalars: list[Any], offsets: Any, vector: Any, length: Any, sums: list[Any]) -> list[Any]:
        """Add `length` steps, whose scalars lie after each row's address by the offsets listed at `offsets`."""
        emit = self.emit

        def listed(k: Any) -> Callable[[int], Any]:
            place = emit.add(offsets, emit.builder.mul(k, emit.const(8)))
            return lambda u: emit.load_int(emit.add(place, emit.const(8 * u)))

        return self._add_unrolled(scalars, listed, vector, length, self._unroll or UNROLLED, sums)

    def _add_unrolled(
        self, scalars: list[Any], along: Callable[[Any], Callable[[int], Any]], vector: Any, length: Any, unroll: int,
        sums: list[Any],
    ) -> list[Any]:  # fmt: skip
        """Add `length` steps, `unroll` at once; ``along(k)(u)`` is how far step k + u's scalars lie after the rows'."""
        emit = self.emit
        const, add, multiply = emit.const, emit.add, emit.builder.mul

        def steps(count: int, first: Any) -> Any:
            def several(k: Any, sums: list[Any]) -> list[Any]:
                if self._asks is not None and count == unroll:
                    begin, step = self._asks
                    ask(emit.builder, add(begin, multiply(k, step)), SECOND_LEVEL)
                k = add(first, multiply(k, const(count)))
                places, row = along(k), add(vector, multiply(k, self._vector_step))
                for u in range(count):
                    sums = self.add_step(scalars, places(u), row, sums)
                    row = add(row, self._vector_step)
                return sums

            return several

        rounds = emit.builder.sdiv(length, const(unroll))
        sums = emit.loop(rounds, steps(unroll, const(0)), sums)
        done = multiply(rounds, const(unroll))
        return emit.loop(emit.builder.sub(length, done), steps(1, done), sums)

    def store(self, sums: list[Any], floor: Any, targets: Callable[[int], Any], lanes: Any) -> None:
        """Store ``max(sum, floor)``, the first `lanes` lanes of each row."""
        emit = self.emit
        lowest = emit.broadcast(floor)
        places = [targets(m) for m in range(self.rows)]
        # An ordered "<" is false for NaN, which therefore passes.
        values = [emit.builder.select(emit.builder.fcmp_ordered("<", value, lowest), lowest, value) for value in sums]
        size = emit.vector_bytes
        whole = emit.builder.icmp_signed("==", lanes, emit.const(self.width * emit.vector.count))
        with emit.builder.if_else(whole) as (all_lanes, some_lanes):
            with all_lanes:
                for i, value in enumerate(values):
                    emit.store(value, emit.add(places[i // self.width], emit.const(i % self.width * size)))
            with some_lanes:
                for j in range(self.width):
                    there = [emit.add(place, emit.const(j * size)) for place in places]
                    emit.store_all_masked(values[j :: self.width], there, emit.below(lanes, j * emit.vector.count))

    def add_to(self, sums: list[Any], targets: Callable[[int], Any], rows: Any, lanes: Any, adds: Any) -> None:
        """Add the first `lanes` lanes of the first `rows` rows to the targets, or write them where `adds` is 0."""
        emit, size = self.emit, self.emit.vector_bytes
        first, *others = (sums[u :: self.sets] for u in range(self.sets))
        for other in others:
            first = [emit.builder.fadd(*pair) for pair in zip(first, other, strict=True)]
        adding = emit.builder.select(emit.builder.icmp_signed("!=", adds, emit.const(0)), lanes, emit.const(0))
        firsts = range(0, self.width * emit.vector.count, emit.vector.count)
        here, before = [emit.below(lanes, first) for first in firsts], [emit.below(adding, first) for first in firsts]
        for m in range(self.rows):
            with emit.builder.if_then(emit.builder.icmp_signed("<", emit.const(m), rows)):
                for j in range(self.width):
                    place = emit.add(targets(m), emit.const(j * size))
                    total = emit.builder.fadd(first[m * self.width + j], emit.load_masked(place, before[j]))
                    emit.store_masked(total, place, here[j])


@intrinsic(prefer_literal=True)
def multiply_tile(
    typingctx: Any, REAL: Any, VL: Any, MR: Any, NV: Any, START: Any, UNROLL: Any, MASKED: Any,
    runs: Any, scalars: Any, vectors: Any, vector_step: Any, tap_step: Any,
    starts: Any, start_offset: Any, floor: Any, targets: Any, target_offset: Any, lanes: Any,
) -> Any:  # fmt: skip
    """Register tile of MR rows by NV vectors of VL lanes: ``target[m] = max(start + sum scalar[m] * vector, floor)``.

    The sum goes over `runs` runs of steps. Run r is MR + RUN_FIELDS integers of the table `scalars`: the address of the
    first scalar of each row, then the bytes from one step's scalar to the next, how many `tap_step` the run's first
    vectors lie after `vectors`, and the number of steps; from step to step the vectors move by `vector_step`. `starts`
    and `targets` are tables of the MR addresses of what the rows begin with and of what receives the first `lanes`
    lanes of them; offsets are added to all. With ROW_START, `starts` is the address of MR scalars instead. Addresses
    and steps are bytes; nothing is checked here. Where UNROLL is not ANYWHERE the
    scalars lie side by side, and so many steps share their address arithmetic. Where MASKED is 1, no vector is read
    past the first `lanes` lanes.
    """
    width, rows, start_kind, unroll = literal(NV), literal(MR), literal(START), literal(UNROLL)
    real, vector_lanes = REAL.dtype, literal(VL)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        runs, scalars, vectors, vector_step, tap_step = args[7:12]
        starts, start_offset, floor, targets, target_offset, lanes = args[12:]
        emit = Emitter(builder, scalar_ir(real), vector_lanes)
        const, add = emit.const, emit.add
        mask = emit.below(lanes, (width - 1) * vector_lanes) if literal(MASKED) else None
        tile = TileSums(emit, rows, width, vector_step, unroll, mask=mask)

        def run(r: Any, sums: list[Any]) -> list[Any]:
            entry = add(scalars, builder.mul(r, const(8 * (rows + RUN_FIELDS))))
            fields = [emit.load_int(add(entry, const(8 * m))) for m in range(rows + RUN_FIELDS)]
            vector = add(vectors, builder.mul(fields[rows + 1], tap_step))
            return tile.add_run(fields[:rows], fields[rows], vector, fields[rows + 2], sums)

        first = tile.start(
            start_kind,
            lambda m: add(emit.load_int(add(starts, const(8 * m))), start_offset),
            add(starts, start_offset),
        )
        sums = emit.loop(runs, run, first)
        tile.store(sums, floor, lambda m: add(emit.load_int(add(targets, const(8 * m))), target_offset), lanes)
        return context.get_dummy_value()

    integers = [types.intp] * 7
    return types.void(REAL, VL, MR, NV, START, UNROLL, MASKED, *integers, real, *[types.intp] * 3), codegen


def _pitched_run(
    tile: TileSums, table: Any, scalars: Any, pitch: Any, vectors: Any, tap_step: Any, apart: bool = False
) -> Callable[..., Any]:
    """What adds a run of `pitched_tile` to a tile's sums.

    Where rows lie `apart`, the optimiser may not compute their addresses from each other: a tile of 6 x 4 then took 32
    cycles a step instead of 12 on Zen 5.
    """
    emit = tile.emit
    const, add, multiply = emit.const, emit.add, emit.builder.mul

    def run(r: Any, sums: list[Any]) -> list[Any]:
        entry = add(table, multiply(r, const(8 * (1 + RUN_FIELDS))))
        scalar, step, vector, length = (emit.load_int(add(entry, const(8 * q))) for q in range(1 + RUN_FIELDS))
        first = add(scalars, scalar)
        addresses = [add(first, multiply(pitch, const(m))) for m in range(tile.rows)]
        if apart:
            addresses = list(map(emit.opaque, addresses))
        return tile.add_run(addresses, step, add(vectors, multiply(vector, tap_step)), length, sums)

    return run


@intrinsic(prefer_literal=True)
def pitched_tile(
    typingctx: Any, REAL: Any, VL: Any, MR: Any, NV: Any, START: Any, UNROLL: Any, LISTED: Any, MASKED: Any,
    runs: Any, table: Any, scalars: Any, pitch: Any, vectors: Any, vector_step: Any, tap_step: Any,
    start: Any, floor: Any, target: Any, target_pitch: Any, lanes: Any, asked: Any, ask_step: Any,
) -> Any:  # fmt: skip
    """The tile of `multiply_tile` where all rows follow each other at one pitch, so that nobody has to list them.

    Run r is 1 + RUN_FIELDS integers of `table`: the offset of the first row's first scalar from `scalars`, then as
    there; the next row's scalars lie `pitch` bytes on. Where LISTED is 1, `runs` counts steps, `table` has the offset
    of each, and their vectors follow each other. All rows begin with the vectors at `start`, or each with its own
    scalar there; the first row goes to `target`, the next `target_pitch` on. Where rows begin with scalars, each round
    of UNROLL steps asks for a line: the first for that at `asked`, the next for one `ask_step` bytes on.
    """
    width, rows, start_kind, unroll = literal(NV), literal(MR), literal(START), literal(UNROLL)
    real, vector_lanes = REAL.dtype, literal(VL)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        runs, table, scalars, pitch, vectors, vector_step, tap_step = args[8:15]
        start, floor, target, target_pitch, lanes, asked, ask_step = args[15:]
        emit = Emitter(builder, scalar_ir(real), vector_lanes)
        const, add = emit.const, emit.add
        mask = emit.below(lanes, (width - 1) * vector_lanes) if literal(MASKED) else None
        asks = (asked, ask_step) if start_kind == ROW_START else None
        tile = TileSums(emit, rows, width, vector_step, unroll, mask=mask, asks=asks)

        first = tile.start(start_kind, lambda m: start, start)
        if literal(LISTED):
            addresses = [add(scalars, builder.mul(pitch, const(m))) for m in range(rows)]
            sums = tile.add_listed(addresses, table, vectors, runs, first)
        else:
            sums = emit.loop(runs, _pitched_run(tile, table, scalars, pitch, vectors, tap_step), first)
        tile.store(sums, floor, lambda m: add(target, builder.mul(target_pitch, const(m))), lanes)
        return context.get_dummy_value()

    integers = [types.intp] * 8
    return types.void(REAL, VL, MR, NV, START, UNROLL, LISTED, MASKED, *integers, real, *[types.intp] * 5), codegen


@intrinsic(prefer_literal=True)
def added_tile(
    typingctx: Any, REAL: Any, VL: Any, MR: Any, NV: Any, APART: Any,
    runs: Any, table: Any, scalars: Any, pitch: Any, vectors: Any, vector_step: Any,
    target: Any, target_pitch: Any, rows: Any, lanes: Any, adds: Any,
) -> Any:  # fmt: skip
    """The sums of `pitched_tile`, begun with zeros; a run's vectors are an offset, and APART says that rows lie so.

    The first `rows` rows and `lanes` lanes are added to the target, or written there where `adds` is 0.
    """
    width, height = literal(NV), literal(MR)
    real, vector_lanes = REAL.dtype, literal(VL)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        runs, table, scalars, pitch, vectors, vector_step, target, target_pitch, rows, lanes, adds = args[5:]
        emit = Emitter(builder, scalar_ir(real), vector_lanes)
        sets = -(-IN_FLIGHT // (height * width))
        tile = TileSums(emit, height, width, vector_step, ANYWHERE, sets)
        run = _pitched_run(tile, table, scalars, pitch, vectors, emit.const(1), bool(literal(APART)))
        sums = emit.loop(runs, run, [emit.constant(0.0)] * (sets * height * width))
        tile.add_to(
            sums, lambda m: emit.add(target, builder.mul(target_pitch, emit.const(m))), rows, lanes, adds
        )  # fmt: skip
        return context.get_dummy_value()

    return types.void(REAL, VL, MR, NV, APART, *[types.intp] * 11), codegen


@intrinsic(prefer_literal=True)
def dot_tile(
    typingctx: Any, REAL: Any, VL: Any, MR: Any, ND: Any, STEPS: Any,
    rows: Any, columns: Any, left: Any, left_step: Any, right: Any, right_step: Any,
    target: Any, target_pitch: Any, lefts: Any, rights: Any, adds: Any,
) -> Any:  # fmt: skip
    """Register tile of MR by ND dot products over rows of pixels: ``target[m, d] = sum left[m] * right[d]``.

    `left` is the address of a table of MR addresses and `right` of one of ND, each of the first value of a plane;
    from row to row they move by `left_step` and `right_step` bytes. A row has `columns` values side by side, and
    nothing past the last is read; with STEPS > 0 all rows have that many vectors. The first `lefts` rows of the first
    `rights` products, `target_pitch` bytes from row to row, are added to the target, or written where `adds` is 0.
    """
    lanes, ups, downs = literal(VL), literal(MR), literal(ND)
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows, columns, left, left_step, right, right_step = args[5:11]
        target, target_pitch, first_rows, first_columns, adds = args[11:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        const, add = emit.const, emit.add
        whole, rest = builder.sdiv(columns, const(lanes)), builder.srem(columns, const(lanes))
        lefts = [emit.load_int(add(left, const(8 * m))) for m in range(ups)]
        rights = [emit.load_int(add(right, const(8 * d))) for d in range(downs)]
        inside = emit.below(rest, 0)

        def multiply(along_left: Any, along_right: Any, sums: list[Any], masked: bool) -> list[Any]:
            def load(address: Any) -> Any:
                return emit.load_masked(address, inside) if masked else emit.load(address)

            sums = list(sums)
            # The side of fewer planes stays in registers, beside all sums.
            if ups > downs:
                kept = [load(add(address, along_right)) for address in rights]
                for m in range(ups):
                    value = load(add(lefts[m], along_left))
                    for d in range(downs):
                        sums[m * downs + d] = emit.fma(value, kept[d], sums[m * downs + d])
            else:
                kept = [load(add(address, along_left)) for address in lefts]
                for d in range(downs):
                    value = load(add(rights[d], along_right))
                    for m in range(ups):
                        sums[m * downs + d] = emit.fma(kept[m], value, sums[m * downs + d])
            return sums

        def row(r: Any, sums: list[Any]) -> list[Any]:
            row_left, row_right = builder.mul(r, left_step), builder.mul(r, right_step)

            def step(k: Any, sums: list[Any]) -> list[Any]:
                along = builder.mul(k, const(emit.vector_bytes))
                return multiply(add(row_left, along), add(row_right, along), sums, masked=False)

            def tail(_: Any, sums: list[Any]) -> list[Any]:
                along = builder.mul(whole, const(emit.vector_bytes))
                return multiply(add(row_left, along), add(row_right, along), sums, masked=True)

            if literal(STEPS):
                for k in range(literal(STEPS)):
                    sums = step(const(k), sums)
                return sums
            once = builder.zext(builder.icmp_signed(">", rest, const(0)), I64)
            return emit.loop(once, tail, emit.loop(whole, step, sums))

        sums = emit.loop(rows, row, [emit.constant(0.0)] * (ups * downs))
        fewer = builder.icmp_signed("<", first_columns, const(downs))
        first_columns = builder.select(fewer, first_columns, const(downs))
        adding = builder.select(builder.icmp_signed("!=", adds, const(0)), first_columns, const(0))
        for m in range(ups):
            with builder.if_then(builder.icmp_signed("<", const(m), first_rows)):
                for d in range(0, downs, lanes):
                    total = emit.sums_of_lanes(sums[m * downs + d : (m + 1) * downs][:lanes])
                    place = add(target, add(builder.mul(target_pitch, const(m)), const(d * emit.item)))
                    total = builder.fadd(total, emit.load_masked(place, emit.below(adding, d)))
                    emit.store_masked(total, place, emit.below(first_columns, d))
        return context.get_dummy_value()

    return types.void(REAL, VL, MR, ND, STEPS, *[types.intp] * 11), codegen
