"""What Numba cannot say by itself: raw addresses, records, calls by address, and vectors copied, masked and turned.

Python's own ``for`` is the unroller here: an intrinsic emits one LLVM value for each vector register that it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from fastconv.kernels.emit import I32, I64, Emitter, ask, literal, scalar_ir
from fastconv.kernels.subnormal import without_subnormals

_LONG_ROW = 4
"""Squares of a row that is turned from a cache line on: a shorter one would have a square more for nothing."""
_SET_BYTES = 1 << 12
"""Lines that far apart share a set of the first cache level."""


@intrinsic
def record_at(typingctx: Any, address: Any, dtype: Any) -> Any:
    """View the memory at an address as a record; its fields are read as attributes."""
    record = dtype.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(record))

    return record(types.intp, dtype), codegen


def _view(context: Any, builder: Any, array_type: Any, address: Any, shape: Any, strides: Any = None) -> Any:
    """The array of that type at an address; in C order where no strides are given."""
    array = context.make_array(array_type)(context, builder)
    item = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(array_type.dtype)))
    if strides is None:
        strides = [item]
        for length in shape[:0:-1]:
            strides.insert(0, builder.mul(strides[0], length))
    data = builder.inttoptr(address, array.data.type)
    populate_array(array, data=data, shape=shape, strides=strides, itemsize=item, meminfo=None)
    return array._getvalue()


@intrinsic
def array_at(typingctx: Any, address: Any, shape: Any, dtype: Any) -> Any:
    """View the memory at an address as an array in C order, as `numba.carray` does, which compiles more."""
    several = isinstance(shape, types.BaseTuple)
    given = types.UniTuple(types.intp, len(shape)) if several else types.intp
    array_type = types.Array(dtype.dtype, len(shape) if several else 1, "C")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lengths = cgutils.unpack_tuple(builder, args[1]) if several else [args[1]]
        return _view(context, builder, array_type, args[0], lengths)

    return array_type(types.intp, given, dtype), codegen


@intrinsic(prefer_literal=True)
def tensor(typingctx: Any, REAL: Any, CONTIGUOUS: Any, address: Any, shape: Any, strides: Any) -> Any:
    """View memory as an array with any strides in bytes; CONTIGUOUS promises C order, which then vectorises."""
    array_type = types.Array(REAL.dtype, len(shape), "C" if literal(CONTIGUOUS) else "A")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lengths, strides = (cgutils.unpack_tuple(builder, arg) for arg in args[3:])
        return _view(context, builder, array_type, args[2], lengths, strides)

    return array_type(REAL, CONTIGUOUS, types.intp, shape, strides), codegen


@intrinsic
def integer_at(typingctx: Any, address: Any) -> Any:
    """The int64 at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], I64.as_pointer()))

    return types.intp(types.intp), codegen


@intrinsic
def copy_item(typingctx: Any, item: Any, source: Any, target: Any) -> Any:
    """Copy one value, of `item` bytes: 4 or 8."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def copy(word: ir.Type) -> None:
            source, target = (builder.inttoptr(address, word.as_pointer()) for address in args[1:])
            builder.store(builder.load(source), target)

        with builder.if_else(builder.icmp_signed("==", args[0], I64(4))) as (single, double):
            with single:
                copy(I32)
            with double:
                copy(I64)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 3), codegen


@intrinsic
def store_past_caches(typingctx: Any, source: Any, target: Any) -> Any:
    """Copy 16 bytes to an address that is a multiple of as many, whose cache line is not read first."""
    words = ir.VectorType(I64, 2)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, target = (builder.inttoptr(address, words.as_pointer()) for address in args)
        store = builder.store(builder.load(source, align=16), target, align=16)
        store.set_metadata("nontemporal", builder.module.add_metadata([I32(1)]))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), codegen


@intrinsic
def fence(typingctx: Any) -> Any:
    """Let no later write of this thread be seen before those that passed the caches."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


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
        ask(builder, args[0])
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
def copy_values(typingctx: Any, REAL: Any, COUNT: Any, source: Any, target: Any) -> Any:
    """Copy COUNT values that lie side by side."""
    real, count = REAL.dtype, literal(COUNT)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder, scalar_ir(real), count)
        emit.store(emit.load(args[2]), args[3])
        return context.get_dummy_value()

    return types.void(REAL, COUNT, types.intp, types.intp), codegen


@intrinsic(prefer_literal=True)
def add_values(typingctx: Any, REAL: Any, COUNT: Any, source: Any, target: Any) -> Any:
    """Add COUNT values that lie side by side to those at the target."""
    real, count = REAL.dtype, literal(COUNT)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder, scalar_ir(real), count)
        emit.store(builder.fadd(emit.load(args[3]), emit.load(args[2])), args[3])
        return context.get_dummy_value()

    return types.void(REAL, COUNT, types.intp, types.intp), codegen


_AT_ONCE = 4
"""Vectors that are copied in one step."""


@intrinsic(prefer_literal=True)
def copy_run(typingctx: Any, REAL: Any, VL: Any, source: Any, target: Any, count: Any) -> Any:
    """Copy `count` values that lie side by side, VL at once, or write zeros where `source` is 0."""
    real, lanes = REAL.dtype, literal(VL)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, _, source, target, count = args
        emit = Emitter(builder, scalar_ir(real), lanes)
        const, size = emit.const, emit.vector_bytes
        whole, rest = builder.sdiv(count, const(lanes)), builder.srem(count, const(lanes))
        inside = emit.below(rest, 0)
        last = builder.mul(whole, const(size))
        rounds = builder.sdiv(whole, const(_AT_ONCE))

        def write(value: Callable[[Any], Any], tail: Callable[[Any], Any]) -> None:
            def vectors(number: int, first: Any) -> Callable[[Any, list[Any]], list[Any]]:
                def move(k: Any, _: list[Any]) -> list[Any]:
                    place = builder.mul(emit.add(first, builder.mul(k, const(number))), const(size))
                    places = [emit.add(place, const(j * size)) for j in range(number)]
                    for there, moved in zip(places, map(value, places), strict=True):
                        emit.store(moved, emit.add(target, there))
                    return []

                return move

            done = builder.mul(rounds, const(_AT_ONCE))
            emit.loop(rounds, vectors(_AT_ONCE, const(0)), [])
            emit.loop(builder.sub(whole, done), vectors(1, done), [])
            with builder.if_then(builder.icmp_signed(">", rest, const(0))):
                emit.store_masked(tail(last), emit.add(target, last), inside)

        with builder.if_else(builder.icmp_signed("!=", source, const(0))) as (some, none):
            with some:
                write(
                    lambda place: emit.load(emit.add(source, place)),
                    lambda place: emit.load_masked(emit.add(source, place), inside),
                )
            with none:
                write(lambda _: emit.constant(0.0), lambda _: emit.constant(0.0))
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


def _row_starts(emit: Emitter, source: Any, first: Any, rows: Any, row_step: Any) -> list[Any]:
    """Where as many rows begin as a vector has lanes, from the `first` on; those past the last of `rows` repeat it."""
    builder, last, starts = emit.builder, emit.builder.sub(rows, emit.const(1)), []
    for i in range(emit.vector.count):
        row = emit.add(first, emit.const(i))
        row = builder.select(builder.icmp_signed("<", row, last), row, last)
        starts.append(emit.add(source, builder.mul(row, row_step)))
    return starts


def _lead(emit: Emitter, source: Any, columns: Any) -> Any:
    """Values of a long row before the first that begins an aligned vector."""
    builder, lanes = emit.builder, emit.vector.count
    lead = builder.udiv(builder.sub(emit.const(0), source), emit.const(emit.item))
    long = builder.icmp_signed(">=", columns, emit.const(_LONG_ROW * lanes))
    return builder.select(long, builder.and_(lead, emit.const(lanes - 1)), emit.const(0))


@intrinsic(prefer_literal=True)
def turn_line(
    typingctx: Any, REAL: Any, VL: Any, MASKED: Any, source: Any, first: Any, rows: Any, row_step: Any, columns: Any,
    target: Any, slots: Any, period: Any, target_step: Any,
) -> Any:  # fmt: skip
    """Transpose VL rows of `columns` values, those from the `first` of `rows` on, `row_step` bytes apart.

    Rows past the last repeat it; where MASKED is 1 they are not stored.

    Of every `period` columns the q-th is stored as a vector at `target` plus the q-th of `slots`, or nowhere if that is
    negative; `target` then moves by `target_step`. Where rows lie a multiple of 4 KiB apart, squares begin as those of
    `turn_row` do.
    """
    lanes = literal(VL)
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, first, rows, row_step, columns, target, slots, period, target_step = args[3:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        const, add = emit.const, emit.add
        there = emit.below(builder.sub(rows, first), 0)

        def store(vector: Any, place: Any) -> None:
            if literal(MASKED):
                emit.store_masked(vector, place, there)
            else:
                emit.store(vector, place)

        starts = _row_starts(emit, source, first, rows, row_step)
        meet = builder.icmp_signed("==", builder.and_(row_step, const(_SET_BYTES - 1)), const(0))
        lead = builder.select(meet, _lead(emit, source, columns), const(0))
        left = builder.sub(columns, lead)
        whole, rest = builder.sdiv(left, const(lanes)), builder.srem(left, const(lanes))
        begin = builder.mul(lead, const(emit.item))

        def square(load: Callable[[Any], Any], along: Any, stored: Any, place: list[Any]) -> list[Any]:
            """Turn a square `along` bytes on and store its columns below `stored`; `place` is (slot, target)."""
            for q, vector in enumerate(emit.transposed([load(add(start, along)) for start in starts])):
                slot, target = place
                offset = emit.load_int(add(slots, builder.mul(slot, const(8))))
                inside = builder.icmp_signed("<", const(q), stored)
                with builder.if_then(builder.and_(builder.icmp_signed(">=", offset, const(0)), inside)):
                    store(vector, add(target, offset))
                slot = builder.select(inside, add(slot, const(1)), slot)
                turned = builder.icmp_signed("==", slot, period)
                slot = builder.select(turned, const(0), slot)
                place = [slot, builder.select(turned, add(target, target_step), target)]
            return place

        def head(_: Any, place: list[Any]) -> list[Any]:
            return square(emit.load, const(0), lead, place)

        def full(s: Any, place: list[Any]) -> list[Any]:
            return square(emit.load, add(begin, builder.mul(s, const(emit.vector_bytes))), const(lanes), place)

        def tail(_: Any, place: list[Any]) -> list[Any]:
            along = add(begin, builder.mul(whole, const(emit.vector_bytes)))
            inside = emit.below(rest, 0)
            return square(lambda start: emit.load_masked(start, inside), along, rest, place)

        def some(count: Any) -> Any:
            return builder.zext(builder.icmp_signed(">", count, const(0)), I64)

        place = emit.loop(some(lead), head, [const(0), target])
        emit.loop(some(rest), tail, emit.loop(whole, full, place))
        return context.get_dummy_value()

    return types.void(REAL, VL, MASKED, *[types.intp] * 9), codegen


@intrinsic(prefer_literal=True)
def turn_row(
    typingctx: Any, REAL: Any, VL: Any, source: Any, first: Any, rows: Any, row_step: Any, columns: Any, target: Any,
    target_step: Any,
) -> Any:  # fmt: skip
    """Transpose VL rows of `columns` values, those from the `first` of `rows` on, `row_step` bytes apart.

    Rows past the last repeat it. Each column becomes a vector, the first at `target`, the next `target_step` on. The
    squares of a long row begin where its vectors are aligned, but for the first and the last, which overlap their
    neighbours: of rows a multiple of 4 KiB apart, a vector in two cache lines is gone before the next one comes.
    """
    lanes = literal(VL)
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, first, rows, row_step, columns, target, target_step = args[2:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        const, add, sub, multiply = emit.const, emit.add, builder.sub, builder.mul
        starts = _row_starts(emit, source, first, rows, row_step)

        def square(s: Any, nothing: list[Any]) -> list[Any]:
            at = add(lead, multiply(sub(s, begins), const(lanes)))
            at = emit.limited(at, const(0), sub(columns, const(lanes)))
            along = multiply(at, const(emit.item))
            for q, vector in enumerate(emit.transposed([emit.load(add(start, along)) for start in starts])):
                emit.store(vector, add(target, multiply(add(at, const(q)), target_step)))
            return nothing

        def short(_: Any, nothing: list[Any]) -> list[Any]:
            there = emit.below(columns, 0)
            for q, vector in enumerate(emit.transposed([emit.load_masked(start, there) for start in starts])):
                with builder.if_then(builder.icmp_signed("<", const(q), columns)):
                    emit.store(vector, add(target, multiply(const(q), target_step)))
            return nothing

        lead = _lead(emit, source, columns)
        begins = builder.zext(builder.icmp_signed(">", lead, const(0)), I64)
        squares = add(begins, builder.sdiv(add(sub(columns, lead), const(lanes - 1)), const(lanes)))
        whole = builder.icmp_signed(">=", columns, const(lanes))
        emit.loop(builder.select(whole, squares, const(0)), square, [])
        few = builder.and_(builder.icmp_signed(">", columns, const(0)), builder.not_(whole))
        emit.loop(builder.zext(few, I64), short, [])
        return context.get_dummy_value()

    return types.void(REAL, VL, *[types.intp] * 7), codegen


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
    columns: Any, whole: Any,
) -> Any:  # fmt: skip
    """Transpose at most VL `rows` of `columns` values, `source_row` bytes apart, into rows `target_row` bytes apart.

    Whole vectors are read, up to the last of the rows; and the first `whole` rows of the target are stored as such, one
    after another, which costs no mask. Of the others no more is stored than asked for.
    """
    lanes = literal(VL)
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, source_row, rows, target, target_row, columns, whole = args[2:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        there, vectors = emit.below(rows, 0), []
        for i in range(lanes):
            vectors.append(emit.load(source))
            more = builder.icmp_signed("<", emit.const(i + 1), rows)
            source = builder.select(more, emit.add(source, source_row), source)
        for i, vector in enumerate(emit.transposed(vectors)):
            place = emit.add(target, builder.mul(target_row, emit.const(i)))
            with builder.if_else(builder.icmp_signed("<", emit.const(i), whole)) as (as_vector, in_part):
                with as_vector:
                    emit.store(vector, place)
                with in_part, builder.if_then(builder.icmp_signed("<", emit.const(i), columns)):
                    emit.store_masked(vector, place, there)
        return context.get_dummy_value()

    return types.void(REAL, VL, *[types.intp] * 7), codegen


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
