"""The register tiles of `fastconv.kernels.sums`: outputs in the lanes, taps one after another."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.kernels.emit import I32, Emitter, literal, scalar_ir


class _Integers(Emitter):
    """The same for integers, which wrap as NumPy's do."""

    def __init__(self, builder: Any, scalar: ir.IntType, lanes: int) -> None:
        self.builder = builder
        self.scalar = scalar
        self.vector = ir.VectorType(scalar, lanes)
        self.item = scalar.width // 8
        self._undef = ir.Constant(self.vector, ir.Undefined)
        self._lane0 = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """Multiply a by b and add c."""
        return self.builder.add(self.builder.mul(a, b), c)


def _emitter(builder: Any, number: Any, lanes: int) -> Emitter:
    if isinstance(number, types.Integer):
        bits = number.bitwidth  # type: ignore[attr-defined]
        return _Integers(builder, ir.IntType(bits), lanes)
    return Emitter(builder, scalar_ir(number), lanes)


@intrinsic(prefer_literal=True)
def tap_tile(
    typingctx: Any, REAL: Any, VL: Any, MR: Any, NV: Any, planes: Any, rows: Any, columns: Any,
    taps: Any, taps_row: Any, taps_plane: Any, source: Any, source_row: Any, source_plane: Any,
    target: Any, target_plane: Any,
) -> Any:  # fmt: skip
    """Register tile of MR results by NV vectors: ``target[m] = sum taps[m, p, a, b] * source[p, a, b : b + lanes]``.

    Taps lie side by side in a row, rows `taps_row` bytes apart and planes `taps_plane`; those of the next result follow
    on those of all planes. The other steps are bytes too.
    """
    lanes, results, width = literal(VL), literal(MR), literal(NV)
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        planes, rows, columns, taps, taps_row, taps_plane, source, source_row, source_plane, target, target_plane = (
            args[4:]
        )
        emit = _emitter(builder, real, lanes)
        const, add, mul = emit.const, emit.add, builder.mul
        vector_bytes = lanes * emit.item
        of_result = [mul(mul(planes, taps_plane), const(m)) for m in range(results)]

        def plane(p: Any, sums: list[Any]) -> list[Any]:
            plane_taps, plane_source = add(taps, mul(p, taps_plane)), add(source, mul(p, source_plane))

            def row(a: Any, sums: list[Any]) -> list[Any]:
                row_taps, row_source = add(plane_taps, mul(a, taps_row)), add(plane_source, mul(a, source_row))

                def tap(b: Any, sums: list[Any]) -> list[Any]:
                    along = mul(b, const(emit.item))
                    here = add(row_source, along)
                    values = [emit.load(add(here, const(j * vector_bytes))) for j in range(width)]
                    following = []
                    for m in range(results):
                        weight = emit.load_broadcast(add(add(row_taps, along), of_result[m]))
                        following += [emit.fma(weight, values[j], sums[m * width + j]) for j in range(width)]
                    return following

                return emit.loop(columns, tap, sums)

            return emit.loop(rows, row, sums)

        zero = ir.Constant(emit.vector, [0] * lanes)
        sums = emit.loop(planes, plane, [zero] * (results * width))
        for m in range(results):
            for j in range(width):
                emit.store(sums[m * width + j], add(add(target, mul(target_plane, const(m))), const(j * vector_bytes)))
        return context.get_dummy_value()

    return types.void(REAL, VL, MR, NV, *[types.intp] * 11), codegen


@intrinsic(prefer_literal=True)
def row_tile(
    typingctx: Any, REAL: Any, VL: Any, MR: Any, NV: Any, taps_r: Any, taps_c: Any, first: Any, last: Any,
    taps: Any, taps_row: Any, source: Any, source_row: Any, target: Any, target_row: Any,
) -> Any:  # fmt: skip
    """Register tile of MR rows by NV vectors: ``target[m] = sum taps[i - m, b] * source[i, b : b + lanes]``.

    Neighbouring rows of results share all but one row of the source: a vector is loaded once for all of them. Only the
    source's rows from `first` to before `last`, of taps_r + MR - 1, are read; taps_r must not be less than MR - 1. Rows
    are `taps_row`, `source_row` and `target_row` bytes apart.
    """
    lanes, results, width = literal(VL), literal(MR), literal(NV)
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        taps_r, taps_c, first, last, taps, taps_row, source, source_row, target, target_row = args[4:]
        emit = _emitter(builder, real, lanes)
        const, add, mul, sub = emit.const, emit.add, builder.mul, builder.sub
        vector_bytes = lanes * emit.item

        def smaller(a: Any, b: Any) -> Any:
            return builder.select(builder.icmp_signed("<", a, b), a, b)

        def larger(a: Any, b: Any) -> Any:
            return builder.select(builder.icmp_signed(">", a, b), a, b)

        def rows(begin: Any, end: Any, active: range, sums: list[Any]) -> list[Any]:
            """Source rows of a range, which meet taps for the active results only."""
            begin, end = larger(begin, first), smaller(end, last)

            def row(step: Any, sums: list[Any]) -> list[Any]:
                i = add(begin, step)
                here = add(source, mul(i, source_row))
                lines = {m: add(taps, mul(sub(i, const(m)), taps_row)) for m in active}

                def tap(b: Any, sums: list[Any]) -> list[Any]:
                    along = mul(b, const(emit.item))
                    values = [emit.load(add(add(here, along), const(j * vector_bytes))) for j in range(width)]
                    following = list(sums)
                    for m in active:
                        weight = emit.load_broadcast(add(lines[m], along))
                        for j in range(width):
                            following[m * width + j] = emit.fma(weight, values[j], sums[m * width + j])
                    return following

                return emit.loop(taps_c, tap, sums)

            return emit.loop(sub(end, begin), row, sums)

        sums = [ir.Constant(emit.vector, [0] * lanes)] * (results * width)
        for i in range(results - 1):
            sums = rows(const(i), const(i + 1), range(i + 1), sums)
        sums = rows(const(results - 1), taps_r, range(results), sums)
        for m in range(1, results):
            begin = add(taps_r, const(m - 1))
            sums = rows(begin, add(begin, const(1)), range(m, results), sums)
        for m in range(results):
            for j in range(width):
                place = add(add(target, mul(target_row, const(m))), const(j * vector_bytes))
                emit.store(sums[m * width + j], place)
        return context.get_dummy_value()

    return types.void(REAL, VL, MR, NV, *[types.intp] * 10), codegen
