"""What a column of a kernel meets in a row of a plane: a vector of pixels, and which of its lanes lie inside."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from fastconv.kernels.emit import I32, Emitter


class PlaneTap:
    """The source values that a kernel column meets in a vector of targets, and which of its lanes meet any.

    Lane l meets the source column `column` + l `step`, of `size`; only the first `there` lanes are targets. Where not
    `masked`, all lanes are, and meet the image.
    """

    def __init__(
        self, emit: Emitter, column: Any, step: int, size: Any = None, there: Any = None, masked: bool = True
    ) -> None:
        builder, const, lanes = emit.builder, emit.const, emit.vector.count
        self._emit, self._step, self._offset = emit, step, builder.mul(column, const(emit.item))
        self._masks, self._inside = [None] * step, None
        if not masked:
            return
        before, behind = builder.neg(column), builder.sub(size, column)
        parts = [(builder.sub(before, const(h * lanes)), builder.sub(behind, const(h * lanes))) for h in range(step)]
        self._masks = [emit.between(*part) for part in parts]
        if step > 1:  # lane l stands for position 2 l: half of these, rounded up
            before, behind = (builder.ashr(emit.add(end, const(1)), const(1)) for end in (before, behind))
        end = builder.select(builder.icmp_signed("<", behind, there), behind, there)
        self._inside = emit.between(before, end)
        if step == 1:
            self._masks = [self._inside]

    def load(self, row: Any, exists: Any = None) -> Any:
        """The lanes' values in a source row; those outside the image are anything. Nothing is read if not `exists`."""
        emit, lanes = self._emit, self._emit.vector.count
        place = emit.add(row, self._offset)
        found = []
        for h, mask in enumerate(self._masks):
            here, mask = emit.add(place, emit.const(h * emit.vector_bytes)), self._if(exists, mask)
            found.append(emit.load(here) if mask is None else emit.load_masked(here, mask))
        if self._step == 1:
            return found[0]
        every = ir.Constant(ir.VectorType(I32, lanes), [2 * lane for lane in range(lanes)])
        return emit.builder.shuffle_vector(found[0], found[1], every)

    def add(self, value: Any, weight: Any, total: Any, meets: Any = None) -> Any:
        """Add products to the lanes that meet the image, and to no other, as zero times NaN is no zero.

        None is added where `meets` is given and false.
        """
        product, mask = self._emit.fma(value, weight, total), self._if(meets, self._inside)
        return product if mask is None else self._emit.builder.select(mask, product, total)

    def _if(self, condition: Any, mask: Any) -> Any:
        """A mask that is empty unless a condition holds, where one is given."""
        if condition is None:
            return mask
        kind = ir.VectorType(ir.IntType(1), self._emit.vector.count)
        whole = ir.Constant(kind, [1] * kind.count) if mask is None else mask
        return self._emit.builder.select(condition, whole, ir.Constant(kind, [0] * kind.count))
