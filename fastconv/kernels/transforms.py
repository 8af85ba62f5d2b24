"""Winograd's transforms of one tile of values, vector by vector: an intrinsic that keeps a whole tile in registers."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.kernels.emit import Emitter, literal, scalar_ir
from fastconv.kernels.toomcook import Filtering, Matrix, transforms, transposed

INPUT = 0
WEIGHTS = 1
OUTPUT = 2
GRADIENT = 3
"""The output gradient's: OUTPUT's matrix transposed."""
SUMS = 4
"""From sums over tiles to the weight gradient: WEIGHTS' matrix transposed."""


def _common_scale(coefficients: list[float]) -> float:
    """The coefficient whose quotients with the others are exact in binary, if any is: they add no rounding errors."""

    def exact(scale: float) -> bool:
        quotients = [Fraction(c) / Fraction(scale) for c in coefficients]
        return all(quotient.denominator.bit_count() == 1 for quotient in quotients)

    return next((scale for scale in reversed(coefficients) if exact(scale)), coefficients[-1])


class Combiner:
    """Emits the product of a constant matrix with a column of vectors, using its symmetries.

    Points come in pairs +-p, so rows of G and B come in pairs that differ in the sign of every other coefficient, and
    columns of A do. Each pair shares its even and its odd part, which halves the operations.
    """

    def __init__(self, emit: Emitter, matrix: Matrix, step: int = 1) -> None:
        """Values are those of `step` phases in turn, each with powers of its own."""
        self.emit = emit
        self.matrix = matrix
        self.step = step
        self.row_pairs = self._pairs(matrix)
        self.column_pairs = self._pairs(transposed(matrix))

    def _odd(self, k: int) -> bool:
        return k // self.step % 2 == 1

    def _pairs(self, rows: Any) -> dict[int, int]:
        """Index of each row's partner: the same coefficients, the odd ones negated, with at least one of each kind."""
        pairs = {}
        for p, row in enumerate(rows):
            kinds = {self._odd(k) for k, c in enumerate(row) if c != 0}
            for q in range(p + 1, len(rows)):
                mirrored = tuple(-c if self._odd(k) else c for k, c in enumerate(rows[q]))
                if row == mirrored and len(kinds) == 2:
                    pairs[p] = q
        return pairs

    def _sum(self, terms: list[tuple[float, Any]]) -> Any:
        """The sum of coefficient * value; the coefficients of 1 come first, as they need no multiplication."""
        builder, emit = self.emit.builder, self.emit
        terms = sorted((t for t in terms if t[0] != 0), key=lambda t: t[0] != 1)
        first, value = terms[0]
        total = value if first == 1 else builder.fmul(value, emit.constant(first))
        for coefficient, value in terms[1:]:
            if coefficient == 1:
                total = builder.fadd(total, value)
            elif coefficient == -1:
                total = builder.fsub(total, value)
            else:
                total = emit.fma(value, emit.constant(coefficient), total)
        return total

    def __call__(self, values: list[Any]) -> list[Any]:
        """The rows of matrix @ values."""
        if self.column_pairs:
            return self._by_columns(values)
        results: dict[int, Any] = {}
        for p, row in enumerate(self.matrix):
            if p in results:
                continue
            if p not in self.row_pairs:
                results[p] = self._sum(list(zip(row, values, strict=True)))
                continue
            terms = list(enumerate(zip(row, values, strict=True)))
            even = self._sum([term for k, term in terms if not self._odd(k)])
            odd = [term for k, term in terms if self._odd(k) and term[0] != 0]
            scale = _common_scale([c for c, _ in odd])
            part = self._sum([(c / scale, v) for c, v in odd])
            results[p] = self._sum([(1.0, even), (scale, part)])
            results[self.row_pairs[p]] = self._sum([(1.0, even), (-scale, part)])
        return [results[p] for p in range(len(self.matrix))]

    def _by_columns(self, values: list[Any]) -> list[Any]:
        builder = self.emit.builder
        paired = set(self.column_pairs) | set(self.column_pairs.values())
        sums = {j: builder.fadd(values[j], values[k]) for j, k in self.column_pairs.items()}
        differences = {j: builder.fsub(values[j], values[k]) for j, k in self.column_pairs.items()}
        results = []
        for i, row in enumerate(self.matrix):
            shared = differences if self._odd(i) else sums
            terms = [(row[j], shared[j]) for j in self.column_pairs]
            terms += [(row[j], values[j]) for j in range(len(row)) if j not in paired]
            results.append(self._sum(terms))
        return results


def _matrix(kind: int, m: int, r: int, stride: int) -> Matrix:
    """The matrix of a kind of transform of F(m, r)."""
    matrices = transforms(m, r, stride)
    return {
        INPUT: matrices.input,
        WEIGHTS: matrices.weights,
        OUTPUT: matrices.output,
        GRADIENT: transposed(matrices.output),
        SUMS: transposed(matrices.weights),
    }[kind]


@intrinsic(prefer_literal=True)
def transform_tile(
    typingctx: Any, REAL: Any, VL: Any, KIND: Any, M0: Any, R0: Any, S0: Any, M1: Any, R1: Any, S1: Any,
    sources: Any, source_offset: Any, targets: Any, target_offset: Any, start: Any, floor: Any,
) -> Any:  # fmt: skip
    """Transform VL tiles at once, one in each lane: ``target = T0 source T1'``.

    T0 and T1 are KIND's matrices of F(M0, R0) with stride S0, for the rows, and of F(M1, R1) with stride S1.

    `sources` and `targets` are the addresses of tables with the address of each value of a tile, row by row; the
    offsets are added to all of them. The output transform adds the vector at `start` and does not go below `floor`.
    """
    lanes, kind = literal(VL), literal(KIND)
    along_rows, along_columns = (Filtering(*map(literal, sizes)) for sizes in ((M0, R0, S0), (M1, R1, S1)))
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sources, source_offset, targets, target_offset, start, floor = args[9:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        matrix0, matrix1 = _matrix(kind, *along_rows), _matrix(kind, *along_columns)
        # Taps come in phases of the stride, and what is as dense as they are: inputs, or outputs of a negative stride.
        dense = -1 if kind in (OUTPUT, GRADIENT) else 1
        step0, step1 = (
            abs(axis.stride) if kind in (WEIGHTS, SUMS) else max(1, axis.stride * dense)
            for axis in (along_rows, along_columns)
        )
        combine0, combine1 = Combiner(emit, matrix0, step0), Combiner(emit, matrix1, step1)
        height, width, columns_out = len(matrix0[0]), len(matrix1[0]), len(matrix1)

        def address(table: Any, index: int, offset: Any) -> Any:
            return emit.add(emit.load_int(emit.add(table, emit.const(8 * index))), offset)

        columns = []
        for j in range(width):
            column = [emit.load(address(sources, i * width + j, source_offset)) for i in range(height)]
            columns.append(combine0(column))
        if kind == OUTPUT:
            first, lowest = emit.load(start), emit.broadcast(floor)
        for i in range(len(matrix0)):
            for j, result in enumerate(combine1([column[i] for column in columns])):
                if kind == OUTPUT:
                    result = builder.fadd(result, first)
                    # An ordered "<" is false for NaN, which therefore passes.
                    result = builder.select(builder.fcmp_ordered("<", result, lowest), lowest, result)
                emit.store(result, address(targets, i * columns_out + j, target_offset))
        return context.get_dummy_value()

    return types.void(REAL, VL, KIND, M0, R0, S0, M1, R1, S1, *[types.intp] * 5, real), codegen
