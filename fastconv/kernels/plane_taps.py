"""What a column of a kernel meets in a row of a plane: a vector of pixels, and which of its lanes lie inside."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from llvmlite import ir

from fastconv.kernels.emit import I32, Emitter
from fastconv.kernels.target import masks_have_registers


class PlaneTap:
    """The source values that a kernel column meets in a vector of targets, and which of its lanes meet any.

    Lane l meets the source column `column` + l `step`, of `size`; only the first `there` lanes are targets. Where not
    `masked`, all lanes are, and meet the image. With weights that are `finite`, lanes outside may add zeros.
    """

    def __init__(
        self, emit: Emitter, column: Any, step: int, size: Any = None, there: Any = None, masked: bool = True,
        finite: bool = False,
    ) -> None:  # fmt: skip
        builder, const, lanes = emit.builder, emit.const, emit.vector.count
        self._emit, self._step, self._offset = emit, step, builder.mul(column, const(emit.item))
        self._masks, self._adds, self._finite = [None] * step, None, finite
        if not masked:
            return
        before, behind = builder.neg(column), builder.sub(size, column)
        parts = [(builder.sub(before, const(h * lanes)), builder.sub(behind, const(h * lanes))) for h in range(step)]
        self._masks = [emit.between(*part) for part in parts]
        if step > 1:  # lane l stands for position 2 l: half of these, rounded up
            before, behind = (builder.ashr(emit.add(end, const(1)), const(1)) for end in (before, behind))
        end = builder.select(builder.icmp_signed("<", behind, there), behind, there)
        inside = emit.between(before, end)
        if step == 1:
            self._masks = [inside]
        # LLVM 22 folds a load into a multiply-add of the same mask, and where it takes them apart again, the load has
        # lost its mask and reads beyond the image: it must not see that they are the same.
        self._adds = emit.distinct(inside)

    def load(self, row: Any, exists: Any = None) -> Any:
        """The lanes' values in a source row; those outside the image are anything. Nothing is read if not `exists`."""
        emit, lanes = self._emit, self._emit.vector.count
        place = emit.add(row, self._offset)
        found = []
        for h, mask in enumerate(self._masks):
            here, mask = emit.add(place, emit.const(h * emit.vector_bytes)), self._if(exists, mask)
            found.append(emit.load(here) if mask is None else emit.load_masked(here, mask))
        return found[0] if self._step == 1 else _picked(emit, found, [2 * lane for lane in range(lanes)])

    def add(self, value: Any, weight: Any, total: Any, meets: Any = None) -> Any:
        """Add products to the lanes that meet the image, and to no other, as zero times NaN is no zero.

        None is added where `meets` is given and false.
        """
        product = self._emit.fma(value, weight, total)
        mask = None if self._finite else self._if(meets, self._adds)
        return product if mask is None else self._emit.builder.select(mask, product, total)

    def _if(self, condition: Any, mask: Any) -> Any:
        return mask_if(self._emit, condition, mask)


def mask_if(emit: Emitter, condition: Any, mask: Any) -> Any:
    """A mask that is empty unless a condition holds, where one is given."""
    if condition is None:
        return mask
    kind = ir.VectorType(ir.IntType(1), emit.vector.count)
    whole = ir.Constant(kind, [1] * kind.count) if mask is None else mask
    return emit.builder.select(condition, whole, ir.Constant(kind, [0] * kind.count))


def _picked(emit: Emitter, pair: list[Any], lanes: list[int]) -> Any:
    """These lanes of two vectors, one behind the other."""
    return emit.builder.shuffle_vector(*pair, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


class StridedTaps:
    """What neighbouring kernel columns meet where targets lie two source columns apart, loading each value once.

    The first column meets the source column `column` in the first lane, of `size`. Only those of `width` vectors that
    are at `edges` meet anything outside the image.
    """

    def __init__(self, emit: Emitter, column: Any, taps: int, width: int, size: Any, edges: set[int]) -> None:
        builder, lanes = emit.builder, emit.vector.count
        self._emit, self._offset = emit, builder.mul(column, emit.const(emit.item))
        self._loads = 2 * width + (taps > 2)
        self._masks = []
        for h in range(self._loads):
            begin = emit.add(column, emit.const(h * lanes))
            edge = min(h // 2, width - 1) in edges
            self._masks.append(emit.between(builder.neg(begin), builder.sub(size, begin)) if edge else None)

    def in_row(self, row: Any, exists: Any = None) -> Callable[[int, int], Any]:
        """What vector v meets by kernel column b of a source row, as a function of both; as `PlaneTap.load`."""
        emit, lanes = self._emit, self._emit.vector.count
        place = emit.add(row, self._offset)

        @functools.cache
        def loaded(h: int) -> Any:
            here, mask = emit.add(place, emit.const(h * emit.vector_bytes)), mask_if(emit, exists, self._masks[h])
            return emit.load(here) if mask is None else emit.load_masked(here, mask)

        @functools.cache
        def stream(v: int, odd: int) -> Any:
            pair = [loaded(2 * v), loaded(min(2 * v + 1, self._loads - 1))]
            return _picked(emit, pair, [2 * lane + odd for lane in range(lanes)])

        def value(v: int, b: int) -> Any:
            later, odd = divmod(b, 2)
            if later == 0:
                return stream(v, odd)
            return _picked(emit, [stream(v, odd), stream(v + 1, odd)], [later + lane for lane in range(lanes)])

        return value


def by_finiteness(emit: Emitter, weights: list[Any], body: Callable[[bool], None]) -> None:
    """Emit a loop over rows, `body`, and where masks take registers a second one for weights that are all finite.

    What such weights meet outside the image is a zero that was loaded, and its product may be added: a mask for each
    product took two thirds of the time (Zen 3).
    """
    if masks_have_registers():
        body(False)
        return
    zeros = functools.reduce(emit.builder.fadd, (emit.builder.fmul(weight, emit.constant(0.0)) for weight in weights))
    first = emit.builder.extract_element(zeros, ir.Constant(I32, 0))
    finite = emit.builder.fcmp_ordered("==", first, ir.Constant(emit.scalar, 0.0))
    with emit.builder.if_else(finite) as (all_finite, some_not):
        with all_finite:
            body(True)
        with some_not:
            body(False)
