"""What Numba cannot say by itself: raw addresses, records, and register tiles of vectors.

Python's own ``for`` is the unroller here. An intrinsic emits one LLVM value for each vector register of a tile and
loops at run time over everything else, so one compiled tile serves every shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from fastconv.kernels.emit import I32, I64, Emitter, literal, scalar_ir
from fastconv.kernels.subnormal import without_subnormals
from fastconv.kernels.target import IN_FLIGHT


@intrinsic
def pointer(typingctx: Any, address: Any) -> Any:
    """Turn an address into the pointer that `numba.carray` takes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.intp), codegen


@intrinsic
def record_at(typingctx: Any, address: Any, dtype: Any) -> Any:
    """View the memory at an address as a record; its fields are read as attributes."""
    record = dtype.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(record))

    return record(types.intp, dtype), codegen


@intrinsic(prefer_literal=True)
def tensor(typingctx: Any, REAL: Any, CONTIGUOUS: Any, address: Any, shape: Any, strides: Any) -> Any:
    """View memory as an array with any strides in bytes; CONTIGUOUS promises C order, which then vectorises."""
    array_type = types.Array(REAL.dtype, len(shape), "C" if literal(CONTIGUOUS) else "A")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(array_type)(context, builder)
        item = context.get_abi_sizeof(context.get_data_type(array_type.dtype))
        populate_array(
            array,
            data=builder.inttoptr(args[2], array.data.type),
            shape=cgutils.unpack_tuple(builder, args[3]),
            strides=cgutils.unpack_tuple(builder, args[4]),
            itemsize=context.get_constant(types.intp, item),
            meminfo=None,
        )
        return array._getvalue()

    return array_type(REAL, CONTIGUOUS, types.intp, shape, strides), codegen


@intrinsic
def integer_at(typingctx: Any, address: Any) -> Any:
    """The int64 at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], I64.as_pointer()))

    return types.intp(types.intp), codegen


@intrinsic
def fetch_add(typingctx: Any, address: Any, amount: Any) -> Any:
    """Atomically add to the int64 at an address and return what it was before."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target = builder.inttoptr(args[0], I64.as_pointer())
        return builder.atomic_rmw("add", target, args[1], "monotonic")

    return types.intp(types.intp, types.intp), codegen


@intrinsic
def prefetch(typingctx: Any, address: Any) -> Any:
    """Ask for the cache line at an address, which need not be one that may be read."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        flags = [ir.Constant(I32, flag) for flag in (0, 3, 1)]  # read, keep in all cache levels, data
        builder.call(function, [builder.inttoptr(args[0], byte), *flags])
        return context.get_dummy_value()

    return types.void(types.intp), codegen


@intrinsic(prefer_literal=True)
def copy_first_lanes(typingctx: Any, REAL: Any, COUNT: Any, there: Any, source: Any, target: Any) -> Any:
    """Write COUNT values side by side: the first `there` of them are copied, the others are zeros."""
    real, count = REAL.dtype, literal(COUNT)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder, scalar_ir(real), count)
        emit.store(emit.load_masked(args[3], emit.below(args[2], 0)), args[4])
        return context.get_dummy_value()

    return types.void(REAL, COUNT, *[types.intp] * 3), codegen


@intrinsic(prefer_literal=True)
def copy_run(typingctx: Any, REAL: Any, VL: Any, source: Any, target: Any, count: Any) -> Any:
    """Copy `count` values that lie side by side, VL at once, or write zeros where `source` is 0."""
    real, lanes = REAL.dtype, literal(VL)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, _, source, target, count = args
        emit = Emitter(builder, scalar_ir(real), lanes)
        some = builder.icmp_signed("!=", source, emit.const(0))

        def move(k: Any, _: list[Any]) -> list[Any]:
            done = builder.mul(k, emit.const(lanes))
            place = builder.mul(done, emit.const(emit.item))
            here = emit.below(builder.sub(count, done), 0)
            given = builder.and_(here, emit.below(builder.select(some, emit.const(lanes), emit.const(0)), 0))
            emit.store_masked(emit.load_masked(emit.add(source, place), given), emit.add(target, place), here)
            return []

        emit.loop(builder.sdiv(emit.add(count, emit.const(lanes - 1)), emit.const(lanes)), move, [])
        return context.get_dummy_value()

    return types.void(REAL, VL, *[types.intp] * 3), codegen


@intrinsic
def call_kernel(typingctx: Any, entry: Any, params: Any, begin: Any, end: Any, thread: Any) -> Any:
    """Call a compiled kernel by its address, with subnormal numbers as zeros where they would slow it down."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kernel_type = ir.FunctionType(ir.VoidType(), [I64] * 4)
        kernel = builder.inttoptr(args[0], kernel_type.as_pointer())
        without_subnormals(builder, lambda: builder.call(kernel, args[1:]))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), codegen


@intrinsic
def call_part(typingctx: Any, entry: Any, arguments: Any) -> Any:
    """Call a compiled part of kernels (`fastconv.kernels.jit.part`) by its address, with a tuple of integers."""
    count = len(arguments)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [I64] * count)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), cgutils.unpack_tuple(builder, args[1]))
        return context.get_dummy_value()

    return types.void(types.intp, types.UniTuple(types.intp, count)), codegen


@intrinsic(prefer_literal=True)
def turn_line(
    typingctx: Any, REAL: Any, VL: Any, MASKED: Any, source: Any, first: Any, rows: Any, row_step: Any, columns: Any,
    target: Any, slots: Any, period: Any, target_step: Any,
) -> Any:  # fmt: skip
    """Transpose VL rows of `columns` values, those from the `first` of `rows` on, `row_step` bytes apart.

    Rows past the last repeat it; where MASKED is 1 they are not stored.

    Of every `period` columns the q-th is stored as a vector at `target` plus the q-th of `slots`, or nowhere if that is
    negative; `target` then moves by `target_step`.
    """
    lanes = literal(VL)
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, first, rows, row_step, columns, target, slots, period, target_step = args[3:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        const, add = emit.const, emit.add
        last = builder.sub(rows, const(1))
        there = emit.below(builder.sub(rows, first), 0)

        def store(vector: Any, place: Any) -> None:
            if literal(MASKED):
                emit.store_masked(vector, place, there)
            else:
                emit.store(vector, place)

        starts = []
        for i in range(lanes):
            row = add(first, const(i))
            row = builder.select(builder.icmp_signed("<", row, last), row, last)
            starts.append(add(source, builder.mul(row, row_step)))
        whole, rest = builder.sdiv(columns, const(lanes)), builder.srem(columns, const(lanes))

        def square(load: Callable[[Any], Any], along: Any, stored: Any, place: list[Any]) -> list[Any]:
            """Turn a square `along` bytes on and store its columns below `stored`; `place` is (slot, target)."""
            slot, target = place
            for q, vector in enumerate(emit.transposed([load(add(start, along)) for start in starts])):
                offset = emit.load_int(add(slots, builder.mul(slot, const(8))))
                wanted = builder.icmp_signed(">=", offset, const(0))
                with builder.if_then(builder.and_(wanted, builder.icmp_signed("<", const(q), stored))):
                    store(vector, add(target, offset))
                slot = add(slot, const(1))
                turned = builder.icmp_signed("==", slot, period)
                slot = builder.select(turned, const(0), slot)
                target = builder.select(turned, add(target, target_step), target)
            return [slot, target]

        def full(s: Any, place: list[Any]) -> list[Any]:
            return square(emit.load, builder.mul(s, const(emit.vector_bytes)), const(lanes), place)

        def tail(_: Any, place: list[Any]) -> list[Any]:
            along, inside = builder.mul(whole, const(emit.vector_bytes)), emit.below(rest, 0)
            return square(lambda start: emit.load_masked(start, inside), along, rest, place)

        once = builder.zext(builder.icmp_signed(">", rest, const(0)), I64)
        emit.loop(once, tail, emit.loop(whole, full, [const(0), target]))
        return context.get_dummy_value()

    return types.void(REAL, VL, MASKED, *[types.intp] * 9), codegen


@intrinsic(prefer_literal=True)
def interleave(
    typingctx: Any, REAL: Any, VL: Any, C: Any, source: Any, source_row: Any, target: Any, columns: Any
) -> Any:  # fmt: skip
    """Write the columns of C rows of `columns` values one after another: a turn of few rows, without waste."""
    lanes, rows = literal(VL), literal(C)
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, source_row, target, columns = args[3:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        const, add = emit.const, emit.add
        starts = [add(source, builder.mul(source_row, const(c))) for c in range(rows)]

        def block(i: Any, _: list[Any]) -> list[Any]:
            first = builder.mul(i, const(lanes))
            left = builder.sub(columns, first)
            inside, along = emit.below(left, 0), builder.mul(first, const(emit.item))
            vectors = [emit.load_masked(add(start, along), inside) for start in starts]
            place, values = add(target, builder.mul(along, const(rows))), builder.mul(left, const(rows))
            for j in range(rows):
                # Lane l of vector j is column (j * lanes + l) // rows of row (j * lanes + l) % rows.
                mixed = vectors[0]
                wanted = [divmod(j * lanes + lane, rows) for lane in range(lanes)]
                for c in range(1, rows):
                    mask = [
                        lanes + column if row == c else lane if c > 1 else column
                        for lane, (column, row) in enumerate(wanted)
                    ]
                    mixed = builder.shuffle_vector(mixed, vectors[c], ir.Constant(ir.VectorType(I32, lanes), mask))
                emit.store_masked(mixed, add(place, const(j * emit.vector_bytes)), emit.below(values, j * lanes))
            return []

        emit.loop(builder.sdiv(add(columns, const(lanes - 1)), const(lanes)), block, [])
        return context.get_dummy_value()

    return types.void(REAL, VL, C, *[types.intp] * 4), codegen


@intrinsic(prefer_literal=True)
def turn_tile(
    typingctx: Any, REAL: Any, VL: Any, source: Any, source_row: Any, rows: Any, target: Any, target_row: Any,
    columns: Any,
) -> Any:  # fmt: skip
    """Transpose at most VL `rows` of `columns` values, `source_row` bytes apart, into rows `target_row` bytes apart.

    Whole vectors are read, up to the last of the rows; what is stored is no more than asked for.
    """
    lanes = literal(VL)
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, source_row, rows, target, target_row, columns = args[2:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        there, vectors = emit.below(rows, 0), []
        for i in range(lanes):
            vectors.append(emit.load(source))
            more = builder.icmp_signed("<", emit.const(i + 1), rows)
            source = builder.select(more, emit.add(source, source_row), source)
        for i, vector in enumerate(emit.transposed(vectors)):
            with builder.if_then(builder.icmp_signed("<", emit.const(i), columns)):
                emit.store_masked(vector, emit.add(target, builder.mul(target_row, emit.const(i))), there)
        return context.get_dummy_value()

    return types.void(REAL, VL, *[types.intp] * 6), codegen


@intrinsic(prefer_literal=True)
def pick_columns(
    typingctx: Any, REAL: Any, VL: Any, PERIOD: Any, source: Any, rows: Any, slots: Any, target: Any
) -> Any:  # fmt: skip
    """Transpose at most VL `rows` of PERIOD values that follow each other: `turn_line` without wasted lanes.

    Column q is stored as a vector at `target` plus the q-th of `slots`, or nowhere if that is negative.
    """
    lanes, period = literal(VL), literal(PERIOD)
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, rows, slots, target = args[3:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        values = builder.mul(rows, emit.const(period))
        places = [emit.add(source, emit.const(i * emit.vector_bytes)) for i in range(period)]
        vectors = [emit.load_masked(place, emit.below(values, i * lanes)) for i, place in enumerate(places)]
        for q in range(period):
            offset = emit.load_int(emit.add(slots, emit.const(8 * q)))
            with builder.if_then(builder.icmp_signed(">=", offset, emit.const(0))):
                column = vectors[0]
                at = [divmod(lane * period + q, lanes) for lane in range(lanes)]  # the vector and lane of each row's
                for i in range(1, period):
                    mask = [lanes + low if high == i else low if i == 1 else n for n, (high, low) in enumerate(at)]
                    column = builder.shuffle_vector(column, vectors[i], ir.Constant(ir.VectorType(I32, lanes), mask))
                emit.store(column, emit.add(target, offset))
        return context.get_dummy_value()

    return types.void(REAL, VL, PERIOD, *[types.intp] * 4), codegen


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


class _Sums:
    """The accumulators of a tile of `rows` by `width` vectors, and the loops that add to them.

    There may be several `sets` of them, which the steps of a run take in turn: few sums wait for their own results.
    Of a step's last vector only the lanes in `mask` are read, if there is one.
    """

    def __init__(
        self, emit: Emitter, rows: int, width: int, vector_step: Any, unroll: int, sets: int = 1, mask: Any = None
    ) -> None:
        self.emit = emit
        self.rows = rows
        self.width = width
        self.sets = sets
        self._vector_step = vector_step
        self._unroll = unroll
        self._mask = mask

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

    def add_run(self, scalars: list[Any], scalar_step: Any, vector: Any, length: Any, sums: list[Any]) -> list[Any]:
        """Add `length` steps, whose scalars begin at one address for each row, and whose vectors begin at `vector`.

        Where scalars lie side by side, several steps share their address arithmetic, which would take a tenth of the
        multiply-adds' slots.
        """
        emit = self.emit
        const, add, multiply = emit.const, emit.add, emit.builder.mul

        def step(along: Any, row: Any, sums: list[Any]) -> list[Any]:
            v = self._vectors(row)
            following = []
            for m in range(self.rows):
                x = emit.load_broadcast(add(scalars[m], along))
                following += [emit.fma(x, v[j], sums[m * self.width + j]) for j in range(self.width)]
            return following

        def steps(count: int, first: Any) -> Any:
            def several(k: Any, sums: list[Any]) -> list[Any]:
                k = add(first, multiply(k, const(count)))
                along, row = multiply(k, const(emit.item)), add(vector, multiply(k, self._vector_step))
                for u in range(count):
                    sums = step(add(along, const(u * emit.item)), row, sums)
                    row = add(row, self._vector_step)
                return sums

            return several

        if self._unroll == ANYWHERE:

            def one(k: Any, sums: list[Any]) -> list[Any]:
                return step(multiply(k, scalar_step), add(vector, multiply(k, self._vector_step)), sums)

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
        rounds = emit.builder.sdiv(length, const(self._unroll))
        sums = emit.loop(rounds, steps(self._unroll, const(0)), sums)
        done = multiply(rounds, const(self._unroll))
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
                masks = [emit.below(lanes, j * emit.vector.count) for j in range(self.width)]
                for i, value in enumerate(values):
                    place = emit.add(places[i // self.width], emit.const(i % self.width * size))
                    emit.store_masked(value, place, masks[i % self.width])

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
        tile = _Sums(emit, rows, width, vector_step, unroll, mask=mask)

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


def _pitched_run(tile: _Sums, table: Any, scalars: Any, pitch: Any, vectors: Any, tap_step: Any) -> Callable[..., Any]:
    """What adds a run of `pitched_tile` to a tile's sums."""
    emit = tile.emit
    const, add, multiply = emit.const, emit.add, emit.builder.mul

    def run(r: Any, sums: list[Any]) -> list[Any]:
        entry = add(table, multiply(r, const(8 * (1 + RUN_FIELDS))))
        scalar, step, vector, length = (emit.load_int(add(entry, const(8 * q))) for q in range(1 + RUN_FIELDS))
        first = add(scalars, scalar)
        addresses = [add(first, multiply(pitch, const(m))) for m in range(tile.rows)]
        return tile.add_run(addresses, step, add(vectors, multiply(vector, tap_step)), length, sums)

    return run


@intrinsic(prefer_literal=True)
def pitched_tile(
    typingctx: Any, REAL: Any, VL: Any, MR: Any, NV: Any, START: Any, UNROLL: Any, MASKED: Any,
    runs: Any, table: Any, scalars: Any, pitch: Any, vectors: Any, vector_step: Any, tap_step: Any,
    start: Any, floor: Any, target: Any, target_pitch: Any, lanes: Any,
) -> Any:  # fmt: skip
    """The tile of `multiply_tile` where all rows follow each other at one pitch, so that nobody has to list them.

    Run r is 1 + RUN_FIELDS integers of `table`: the offset of the first row's first scalar from `scalars`, then as
    there; the next row's scalars lie `pitch` bytes on. All rows begin with the vectors at `start`, or each with its own
    scalar there; the first row goes to `target`, the next `target_pitch` on.
    """
    width, rows, start_kind, unroll = literal(NV), literal(MR), literal(START), literal(UNROLL)
    real, vector_lanes = REAL.dtype, literal(VL)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        runs, table, scalars, pitch, vectors, vector_step, tap_step = args[7:14]
        start, floor, target, target_pitch, lanes = args[14:]
        emit = Emitter(builder, scalar_ir(real), vector_lanes)
        const, add = emit.const, emit.add
        mask = emit.below(lanes, (width - 1) * vector_lanes) if literal(MASKED) else None
        tile = _Sums(emit, rows, width, vector_step, unroll, mask=mask)

        run = _pitched_run(tile, table, scalars, pitch, vectors, tap_step)
        sums = emit.loop(runs, run, tile.start(start_kind, lambda m: start, start))
        tile.store(sums, floor, lambda m: add(target, builder.mul(target_pitch, const(m))), lanes)
        return context.get_dummy_value()

    integers = [types.intp] * 8
    return types.void(REAL, VL, MR, NV, START, UNROLL, MASKED, *integers, real, *[types.intp] * 3), codegen


@intrinsic(prefer_literal=True)
def added_tile(
    typingctx: Any, REAL: Any, VL: Any, MR: Any, NV: Any,
    runs: Any, table: Any, scalars: Any, vectors: Any, vector_step: Any,
    target: Any, target_pitch: Any, rows: Any, lanes: Any, adds: Any,
) -> Any:  # fmt: skip
    """The sums of `pitched_tile`, begun with zeros, of scalars side by side; a run's vectors are an offset.

    The first `rows` rows and `lanes` lanes are added to the target, or written there where `adds` is 0.
    """
    width, height = literal(NV), literal(MR)
    real, vector_lanes = REAL.dtype, literal(VL)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        runs, table, scalars, vectors, vector_step, target, target_pitch, rows, lanes, adds = args[4:]
        emit = Emitter(builder, scalar_ir(real), vector_lanes)
        sets = -(-IN_FLIGHT // (height * width))
        tile = _Sums(emit, height, width, vector_step, ANYWHERE, sets)
        run = _pitched_run(tile, table, scalars, emit.const(emit.item), vectors, emit.const(1))
        sums = emit.loop(runs, run, [emit.constant(0.0)] * (sets * height * width))
        tile.add_to(
            sums, lambda m: emit.add(target, builder.mul(target_pitch, emit.const(m))), rows, lanes, adds
        )  # fmt: skip
        return context.get_dummy_value()

    return types.void(REAL, VL, MR, NV, *[types.intp] * 10), codegen


@intrinsic(prefer_literal=True)
def dot_tile(
    typingctx: Any, REAL: Any, VL: Any, MR: Any, ND: Any,
    rows: Any, columns: Any, left: Any, left_step: Any, right: Any, right_step: Any, target: Any,
) -> Any:  # fmt: skip
    """Register tile of MR by ND dot products over rows of pixels: ``target[m, d] = sum left[m] * right[d]``.

    `left` is the address of a table of MR addresses and `right` of one of ND, each of the first value of a plane;
    from row to row they move by `left_step` and `right_step` bytes. A row has `columns` values side by side, of which
    those past the last are never used, though up to VL - 1 more are read. The MR x ND vectors of partial sums, one
    sum for each lane, are stored at `target`.
    """
    lanes, ups, downs = literal(VL), literal(MR), literal(ND)
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows, columns, left, left_step, right, right_step, target = args[4:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        const, add = emit.const, emit.add
        vector_bytes = lanes * emit.item
        whole = builder.sdiv(columns, const(lanes))
        rest = builder.srem(columns, const(lanes))
        lefts = [emit.load_int(add(left, const(8 * m))) for m in range(ups)]
        rights = [emit.load_int(add(right, const(8 * d))) for d in range(downs)]
        # Lanes past the end count as zero, on both sides: 0 times whatever lies there might be NaN.
        inside = emit.below(rest, 0)
        nothing = ir.Constant(emit.vector, [0.0] * lanes)

        def multiply(along_left: Any, along_right: Any, sums: list[Any], masked: bool) -> list[Any]:
            def load(address: Any) -> Any:
                value = emit.load(address)
                return builder.select(inside, value, nothing) if masked else value

            right_values = [load(add(address, along_right)) for address in rights]
            following = []
            for m in range(ups):
                value = load(add(lefts[m], along_left))
                following += [emit.fma(value, right_values[d], sums[m * downs + d]) for d in range(downs)]
            return following

        def row(r: Any, sums: list[Any]) -> list[Any]:
            row_left, row_right = builder.mul(r, left_step), builder.mul(r, right_step)

            def step(k: Any, sums: list[Any]) -> list[Any]:
                along = builder.mul(k, const(vector_bytes))
                return multiply(add(row_left, along), add(row_right, along), sums, masked=False)

            def tail(_: Any, sums: list[Any]) -> list[Any]:
                along = builder.mul(whole, const(vector_bytes))
                return multiply(add(row_left, along), add(row_right, along), sums, masked=True)

            once = builder.zext(builder.icmp_signed(">", rest, const(0)), I64)
            return emit.loop(once, tail, emit.loop(whole, step, sums))

        for i, value in enumerate(emit.loop(rows, row, [nothing] * (ups * downs))):
            emit.store(value, add(target, const(i * vector_bytes)))
        return context.get_dummy_value()

    return types.void(REAL, VL, MR, ND, *[types.intp] * 7), codegen
