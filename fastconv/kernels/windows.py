"""One window of a pooling in vectors over its lanes, which are channels side by side: its value, and its gradient.

Numba's own loops over the rows of a window and channels inside took 2 to 3 times as long: where they write to several
rows, LLVM finds that the address ranges interleave and runs scalar code, and written row by row they go through the
gradient four times.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.kernels.emit import literal, scalar_ir
from fastconv.kernels.runs import Runs


class _Window(Runs):
    """An emitter that visits the values of a window, `row` and `pixel` bytes apart."""

    def __init__(
        self, builder: Any, scalar: ir.Type, lanes: int, count: Any, size: tuple[int, int], steps: tuple[Any, Any]
    ) -> None:
        super().__init__(builder, scalar, lanes, count)
        self._size, self._steps = size, steps

    def visit(self, body: Any, carried: list[Any]) -> list[Any]:
        """Let `body(offset, carried)` see each value; LLVM unrolls the loops over small windows."""
        (rows, columns), (row, pixel), mul = map(self.const, self._size), self._steps, self.builder.mul

        def line(a: Any, values: list[Any]) -> list[Any]:
            first = mul(a, row)
            return self.loop(columns, lambda b, inner: body(self.add(first, mul(b, pixel)), inner), values)

        return self.loop(rows, line, carried)

    def reduce(self, load: Any, source: Any, largest: int) -> Any:
        """The largest value, where NaN is larger than any and the first one stays, or the sum."""
        builder = self.builder

        def take(offset: Any, values: list[Any]) -> list[Any]:
            value, best = load(self.add(source, offset)), values[0]
            if not largest:
                return [builder.fadd(best, value)]
            takes = builder.and_(builder.fcmp_unordered(">", value, best), builder.fcmp_ordered("ord", best, best))
            return [builder.select(takes, value, best)]

        return self.visit(take, [load(source) if largest else self.constant(0.0)])[0]


@intrinsic(prefer_literal=True)
def pool_window(
    typingctx: Any, REAL: Any, VL: Any, KH: Any, KW: Any, LARGEST: Any, floor: Any, source: Any, row: Any, pixel: Any,
    count: Any, target: Any,
) -> Any:  # fmt: skip
    """``target = max(window)``, or its mean, for `count` lanes; values below `floor` become it, none if it is NaN."""
    real, size, largest = REAL.dtype, (literal(KH), literal(KW)), literal(LARGEST)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        floor, source, row, pixel, count, target = args[5:]
        emit = _Window(builder, scalar_ir(real), literal(VL), count, size, (row, pixel))
        lowest, share = emit.broadcast(floor), emit.constant(1 / (size[0] * size[1]))

        def pool(load: Any, store: Any) -> Any:
            def vector(offset: Any, _: list[Any]) -> list[Any]:
                value = emit.reduce(load, emit.add(source, offset), largest)
                if largest:
                    value = builder.select(builder.fcmp_ordered("<", value, lowest), lowest, value)
                else:
                    value = builder.fmul(value, share)
                store(value, emit.add(target, offset))
                return []

            return vector

        emit.each_anew(pool(emit.load, emit.store), pool(emit.load_rest, emit.store_rest))
        return context.get_dummy_value()

    return types.void(REAL, VL, KH, KW, LARGEST, real, *[types.intp] * 5), codegen


@intrinsic(prefer_literal=True)
def return_window(
    typingctx: Any, REAL: Any, VL: Any, KH: Any, KW: Any, LARGEST: Any, ADD: Any, floor: Any, source: Any, row: Any,
    pixel: Any, count: Any, gradient: Any, target: Any,
) -> Any:  # fmt: skip
    """Give each lane's gradient to the first largest value of its window, or a share to all; the others get 0.

    A largest value that is not above `floor` gets none either, which never happens if it is NaN. ADD 1 adds to the
    target, whose rows and pixels lie as those of the source.
    """
    real, size, largest, add = REAL.dtype, (literal(KH), literal(KW)), literal(LARGEST), literal(ADD)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        floor, source, row, pixel, count, gradient, target = args[6:]
        emit = _Window(builder, scalar_ir(real), literal(VL), count, size, (row, pixel))
        lowest, zero, share = emit.broadcast(floor), emit.constant(0.0), emit.constant(1 / (size[0] * size[1]))

        def give(load: Any, store: Any) -> Any:
            def vector(offset: Any, _: list[Any]) -> list[Any]:
                start, place, rest = (
                    emit.add(source, offset),
                    emit.add(target, offset),
                    load(emit.add(gradient, offset)),
                )
                if largest:
                    best = emit.reduce(load, start, largest)
                    rest = builder.select(builder.fcmp_ordered("<=", best, lowest), zero, rest)
                else:
                    rest = builder.fmul(rest, share)

                def hand_out(step: Any, values: list[Any]) -> list[Any]:
                    part, left = values[0], values[0]
                    if largest:
                        value = load(emit.add(start, step))
                        hit = builder.or_(
                            builder.fcmp_ordered("==", value, best), builder.fcmp_unordered("uno", value, value)
                        )
                        part, left = builder.select(hit, left, zero), builder.select(hit, zero, left)
                    here = emit.add(place, step)
                    store(builder.fadd(load(here), part) if add else part, here)
                    return [left]

                emit.visit(hand_out, [rest])
                return []

            return vector

        whole, rest = give(emit.load, emit.store), give(emit.load_rest, emit.store_rest)
        if add:
            emit.each(whole, rest, [])
        else:
            emit.each_anew(whole, rest)
        return context.get_dummy_value()

    return types.void(REAL, VL, KH, KW, LARGEST, ADD, real, *[types.intp] * 6), codegen
