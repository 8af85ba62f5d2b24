"""What Numba cannot say by itself: raw addresses, records, and register tiles of vectors.

Python's own ``for`` is the unroller here. An intrinsic emits one LLVM value for each vector register of a tile and
loops at run time over everything else, so one compiled tile serves every shape.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from fastconv.kernels.emit import I32, I64, Emitter, literal, scalar_ir
from fastconv.kernels.subnormal import without_subnormals


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
def call_activation(typingctx: Any, entry: Any, values: Any, count: Any) -> Any:
    """Call a compiled activation on `count` values in place; 0 on success."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function = ir.FunctionType(I64, [I64, I64])
        return builder.call(builder.inttoptr(args[0], function.as_pointer()), args[1:])

    return types.intp(types.intp, types.intp, types.intp), codegen


@intrinsic(prefer_literal=True)
def trace_run(
    typingctx: Any, MR: Any, row_parts: Any, column_parts: Any, source: Any, outside: Any, table: Any
) -> Any:  # fmt: skip
    """Write the addresses that MR pixels read at one tap, and return how many of them lie inside the image.

    An address is `source` plus a row part and a column part, the two given by the addresses of MR integers each;
    where their sum is negative the pixel lies in the padding and gets the address `outside`.
    """
    rows = literal(MR)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, row_parts, column_parts, source, outside, table = args
        vector = ir.VectorType(I64, rows)
        lane0 = ir.Constant(ir.VectorType(I32, rows), [0] * rows)

        def load(address: Any) -> Any:
            return builder.load(builder.inttoptr(address, vector.as_pointer()), align=8)

        def splat(value: Any) -> Any:
            one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(I32, 0))
            return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), lane0)

        offset = builder.add(load(row_parts), load(column_parts))
        inside = builder.icmp_signed(">=", offset, ir.Constant(vector, [0] * rows))
        addresses = builder.select(inside, builder.add(offset, splat(source)), splat(outside))
        builder.store(addresses, builder.inttoptr(table, vector.as_pointer()), align=8)
        mask = builder.bitcast(inside, ir.IntType(rows))
        return builder.ctpop(builder.zext(mask, I64))

    return types.intp(MR, *[types.intp] * 5), codegen


UNROLLED = 4
"""Steps of multiply_tile that share their address arithmetic."""
RUN_FIELDS = 3
"""Integers of a run in multiply_tile's table besides the addresses of the rows: scalar step, vector offset, length."""
CHANNEL_START = 0
"""multiply_tile: every row starts with vectors of its own."""
ROW_START = 1
"""multiply_tile: each row starts with a value of its own in all lanes."""


@intrinsic(prefer_literal=True)
def multiply_tile(
    typingctx: Any, REAL: Any, VL: Any, MR: Any, NV: Any, START: Any, DENSE: Any,
    runs: Any, scalars: Any, vectors: Any, vector_step: Any,
    starts: Any, start_offset: Any, floor: Any, targets: Any, target_offset: Any,
) -> Any:  # fmt: skip
    """Register tile of MR rows by NV vectors of VL lanes: ``target[m] = max(start + sum scalar[m] * vector, floor)``.

    The sum goes over `runs` runs of steps. Run r is MR + RUN_FIELDS integers of the table `scalars`: the address of the
    first scalar of each row, then the bytes from one step's scalar to the next, the offset of the run's first vectors
    from `vectors`, and the number of steps; from step to step the vectors move by `vector_step`. `starts` and `targets`
    are tables of the MR addresses of what the rows begin with and of what receives them; offsets are added to all. With
    ROW_START, `starts` is the address of MR scalars instead. Addresses and steps are bytes; nothing is checked here.

    DENSE promises the usual steps, one scalar and DENSE vectors: several steps then share their address arithmetic,
    which would take a tenth of the multiply-adds' slots. 0 promises nothing.
    """
    lanes, rows, width, start_kind, dense = literal(VL), literal(MR), literal(NV), literal(START), literal(DENSE)
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        runs, scalars, vectors, vector_step, starts, start_offset, floor, targets, target_offset = args[6:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        const, add = emit.const, emit.add
        vector_bytes = lanes * emit.item
        entry_bytes = 8 * (rows + RUN_FIELDS)

        if start_kind == CHANNEL_START:
            begins = [add(emit.load_int(add(starts, const(8 * m))), start_offset) for m in range(rows)]
            first = [emit.load(add(begin, const(j * vector_bytes))) for begin in begins for j in range(width)]
        else:
            by_row = [emit.load_broadcast(add(add(starts, start_offset), const(m * emit.item))) for m in range(rows)]
            first = [by_row[m] for m in range(rows) for _ in range(width)]

        def run(r: Any, accumulators: list[Any]) -> list[Any]:
            entry = add(scalars, builder.mul(r, const(entry_bytes)))
            scalar = [emit.load_int(add(entry, const(8 * m))) for m in range(rows)]
            scalar_step = emit.load_int(add(entry, const(8 * rows)))
            vector = add(vectors, emit.load_int(add(entry, const(8 * (rows + 1)))))
            length = emit.load_int(add(entry, const(8 * (rows + 2))))

            def multiply(along: Any, row: Any, accumulators: list[Any]) -> list[Any]:
                v = [emit.load(add(row, const(j * vector_bytes))) for j in range(width)]
                following = []
                for m in range(rows):
                    x = emit.load_broadcast(add(scalar[m], along))
                    following += [emit.fma(x, v[j], accumulators[m * width + j]) for j in range(width)]
                return following

            if not dense:

                def step(k: Any, accumulators: list[Any]) -> list[Any]:
                    along, row = builder.mul(k, scalar_step), add(vector, builder.mul(k, vector_step))
                    return multiply(along, row, accumulators)

                return emit.loop(length, step, accumulators)

            def steps(count: int, first: Any) -> Any:
                def several(k: Any, accumulators: list[Any]) -> list[Any]:
                    k = add(first, builder.mul(k, const(count)))
                    along = builder.mul(k, const(emit.item))
                    row = add(vector, builder.mul(k, const(dense * vector_bytes)))
                    for u in range(count):
                        here = add(row, const(u * dense * vector_bytes))
                        accumulators = multiply(add(along, const(u * emit.item)), here, accumulators)
                    return accumulators

                return several

            whole = builder.sdiv(length, const(UNROLLED))
            accumulators = emit.loop(whole, steps(UNROLLED, const(0)), accumulators)
            done = builder.mul(whole, const(UNROLLED))
            return emit.loop(builder.sub(length, done), steps(1, done), accumulators)

        result = emit.loop(runs, run, first)
        lowest = emit.broadcast(floor)
        for m in range(rows):
            target = add(emit.load_int(add(targets, const(8 * m))), target_offset)
            for j in range(width):
                value = result[m * width + j]
                # An ordered "<" is false for NaN, which therefore passes.
                below = builder.fcmp_ordered("<", value, lowest)
                emit.store(builder.select(below, lowest, value), add(target, const(j * vector_bytes)))
        return context.get_dummy_value()

    integers = [types.intp] * 6
    return types.void(REAL, VL, MR, NV, START, DENSE, *integers, real, types.intp, types.intp), codegen


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
        lane = ir.Constant(ir.VectorType(I32, lanes), list(range(lanes)))
        some = builder.insert_element(
            ir.Constant(lane.type, ir.Undefined), builder.trunc(rest, I32), ir.Constant(I32, 0)
        )
        zeros = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
        inside = builder.icmp_signed("<", lane, builder.shuffle_vector(some, some, zeros))
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
