"""Vector loops over runs of numbers of any length: whole vectors first, then one with a mask.

LLVM vectorises a loop of Numba's with a scalar remainder and a test for overlap in front, which for the 3 to 11 numbers
of a kernel's row take some 50 cycles. A masked vector takes 8, and touches nothing behind the run.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.kernels.emit import I32, I64, Emitter, literal, scalar_ir

_WIDE = 4


class Runs(Emitter):
    """An emitter with the vectors of a run: `whole` of them, and one more with the `rest` of the numbers."""

    def __init__(self, builder: Any, scalar: ir.Type, lanes: int, count: Any) -> None:
        super().__init__(builder, scalar, lanes)
        self.bytes = lanes * self.item
        self.whole = builder.sdiv(count, self.const(lanes))
        self._rest = builder.srem(count, self.const(lanes))
        lane = ir.Constant(ir.VectorType(I32, lanes), list(range(lanes)))
        undefined = ir.Constant(lane.type, ir.Undefined)
        one = builder.insert_element(undefined, builder.trunc(self._rest, I32), ir.Constant(I32, 0))
        zeros = ir.Constant(lane.type, [0] * lanes)
        self._mask = builder.icmp_signed("<", lane, builder.shuffle_vector(one, undefined, zeros))

    def _masked(self, name: str, result: ir.Type, arguments: list[Any], address: Any) -> Any:
        builder = self.builder
        pointer = builder.inttoptr(address, self.vector.as_pointer())
        place = len(arguments) if name == "store" else 0
        arguments.insert(place, pointer)
        arguments.insert(place + 1, ir.Constant(I32, self.item))
        arguments.insert(place + 2, self._mask)
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(result, [argument.type for argument in arguments]),
            f"llvm.masked.{name}.v{self.vector.count}{'f32' if self.item == 4 else 'f64'}.p0",
        )
        return builder.call(function, arguments)

    def load_rest(self, address: Any) -> Any:
        """The numbers of the last vector, and zeros behind them."""
        return self._masked("load", self.vector, [self.constant(0.0)], address)

    def store_rest(self, value: Any, address: Any) -> None:
        """Store the numbers of the last vector."""
        self._masked("store", ir.VoidType(), [value], address)

    def last(self, rest: Any, carried: list[Any]) -> list[Any]:
        """Let `rest(offset, carried)` do the last vector, where there is one."""
        builder = self.builder
        some = builder.zext(builder.icmp_signed(">", self._rest, self.const(0)), I64)
        offset = builder.mul(self.whole, self.const(self.bytes))
        return self.loop(some, lambda _, values: rest(offset, values), carried)

    def each(self, whole: Any, rest: Any, carried: list[Any]) -> list[Any]:
        """Let `whole(offset, carried)` do the whole vectors, and `rest` the last."""
        builder = self.builder
        carried = self.loop(
            self.whole, lambda k, values: whole(builder.mul(k, self.const(self.bytes)), values), carried
        )
        return self.last(rest, carried)

    def each_anew(self, whole: Any, rest: Any) -> None:
        """The same of what may be done twice: the last vector overlaps the one before, and none masks a longer run."""
        builder = self.builder

        def last(offset: Any, _: list[Any]) -> list[Any]:
            before = builder.sub(builder.mul(self._rest, self.const(self.item)), self.const(self.bytes))
            with builder.if_else(builder.icmp_signed(">", self.whole, self.const(0))) as (overlapping, alone):
                with overlapping:
                    whole(self.add(offset, before), [])
                with alone:
                    rest(offset, [])
            return []

        self.each(whole, last, [])

    def sum_lanes(self, value: Any) -> Any:
        """The sum of a vector's lanes, by halves."""
        lanes = self.vector.count
        while lanes > 1:
            lanes //= 2
            order = ir.Constant(ir.VectorType(I32, lanes), list(range(lanes)))
            upper = ir.Constant(order.type, list(range(lanes, 2 * lanes)))
            shuffle = self.builder.shuffle_vector
            value = self.builder.fadd(shuffle(value, value, order), shuffle(value, value, upper))
        return self.builder.extract_element(value, ir.Constant(I32, 0))


@intrinsic(prefer_literal=True)
def dot_runs(
    typingctx: Any, REAL: Any, VL: Any, runs: Any, left: Any, left_step: Any, right: Any, right_step: Any, count: Any
) -> Any:
    """The sum over `runs` pairs of runs of `count` products; their addresses move by the steps, in bytes."""
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, _, runs, left, left_step, right, right_step, count = args
        emit = Runs(builder, scalar_ir(real), literal(VL), count)

        def run(r: Any, sums: list[Any]) -> list[Any]:
            one = emit.add(left, builder.mul(r, left_step))
            other = emit.add(right, builder.mul(r, right_step))

            def multiply(load: Any) -> Any:
                return lambda offset, s: [emit.fma(load(emit.add(one, offset)), load(emit.add(other, offset)), s[0])]

            return emit.each(multiply(emit.load), multiply(emit.load_rest), sums)

        return emit.sum_lanes(emit.loop(runs, run, [emit.constant(0.0)])[0])

    return real(REAL, VL, *[types.intp] * 6), codegen


@intrinsic(prefer_literal=True)
def sum_runs(typingctx: Any, REAL: Any, VL: Any, runs: Any, source: Any, step: Any, count: Any, target: Any) -> Any:
    """``target = sum over runs`` in float64, for runs of `count` numbers that lie `step` bytes apart.

    The target has room for whole vectors: what is behind the run becomes 0.
    """
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, _, runs, source, step, count, target = args
        emit = Runs(builder, scalar_ir(real), literal(VL), count)
        wide = ir.VectorType(ir.DoubleType(), literal(VL))
        zeros = ir.Constant(wide, [0.0] * wide.count)

        def extend(value: Any) -> Any:
            return builder.fpext(value, wide) if emit.item == 4 else value

        def add_up(load: Any) -> Any:
            def vector(offset: Any, _: list[Any]) -> list[Any]:
                first = emit.add(source, offset)

                def run(r: Any, sums: list[Any]) -> list[Any]:
                    return [builder.fadd(sums[0], extend(load(emit.add(first, builder.mul(r, step)))))]

                total = emit.loop(runs, run, [zeros])[0]
                place = emit.add(target, builder.mul(offset, emit.const(8 // emit.item)))
                builder.store(total, builder.inttoptr(place, wide.as_pointer()), align=8)
                return []

            return vector

        emit.each(add_up(emit.load), add_up(emit.load_rest), [])
        return context.get_dummy_value()

    return types.void(REAL, VL, *[types.intp] * 5), codegen


@intrinsic(prefer_literal=True)
def scale_run(typingctx: Any, REAL: Any, VL: Any, factor: Any, source: Any, count: Any, target: Any) -> Any:
    """``target = factor * source`` for one run of `count` numbers."""
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, _, factor, source, count, target = args
        emit = Runs(builder, scalar_ir(real), literal(VL), count)
        factors = emit.broadcast(factor)

        def scale(load: Any, store: Any) -> Any:
            def step(offset: Any, _: list[Any]) -> list[Any]:
                store(builder.fmul(factors, load(emit.add(source, offset))), emit.add(target, offset))
                return []

            return step

        emit.each(scale(emit.load, emit.store), scale(emit.load_rest, emit.store_rest), [])
        return context.get_dummy_value()

    return types.void(REAL, VL, real, types.intp, types.intp, types.intp), codegen


@intrinsic(prefer_literal=True)
def combine_runs(
    typingctx: Any, REAL: Any, VL: Any, ADD: Any, runs: Any, factor: Any, factor_step: Any, source: Any,
    source_step: Any, count: Any, target: Any,
) -> Any:  # fmt: skip
    """``target = sum factor * source`` over `runs` runs of `count` numbers, with a factor each.

    From run to run the addresses of factor and source move by their steps, in bytes. ADD 1 adds to the target.
    """
    real, adds = REAL.dtype, bool(literal(ADD))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, _, _, runs, factor, factor_step, source, source_step, count, target = args
        emit = Runs(builder, scalar_ir(real), literal(VL), count)

        def combine(load: Any, store: Any, width: int, offset: Any) -> None:
            offsets = [emit.add(offset, emit.const(j * emit.bytes)) for j in range(width)]

            def step(r: Any, sums: list[Any]) -> list[Any]:
                scale = emit.load_broadcast(emit.add(factor, builder.mul(r, factor_step)))
                run = emit.add(source, builder.mul(r, source_step))
                return [emit.fma(scale, load(emit.add(run, o)), sum_) for o, sum_ in zip(offsets, sums)]

            start = [load(emit.add(target, o)) if adds else emit.constant(0.0) for o in offsets]
            sums = emit.loop(runs, step, start)
            for o, sum_ in zip(offsets, sums):
                store(sum_, emit.add(target, o))

        def wide(k: Any, _: list[Any]) -> list[Any]:
            combine(emit.load, emit.store, _WIDE, builder.mul(k, emit.const(_WIDE * emit.bytes)))
            return []

        def single(k: Any, _: list[Any]) -> list[Any]:
            combine(emit.load, emit.store, 1, builder.mul(emit.add(done, k), emit.const(emit.bytes)))
            return []

        def rest(offset: Any, _: list[Any]) -> list[Any]:
            combine(emit.load_rest, emit.store_rest, 1, offset)
            return []

        groups = builder.sdiv(emit.whole, emit.const(_WIDE))
        done = builder.mul(groups, emit.const(_WIDE))
        emit.loop(groups, wide, [])
        emit.loop(builder.sub(emit.whole, done), single, [])
        emit.last(rest, [])
        return context.get_dummy_value()

    return types.void(REAL, VL, ADD, *[types.intp] * 7), codegen
