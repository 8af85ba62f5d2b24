"""Adds up runs of numbers that overlap: the input gradient of few channels, from what each output column gives it.

An output column's part of an input row is a run of the values of all taps of a kernel row, side by side; the next
column's run begins a stride further on. Lanes are the values of an input row, and rows beside each other share the
masks of the runs that reach a vector. A task is a block of rows.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import types
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

from fastconv.kernels import jit, target
from fastconv.kernels.emit import Emitter, literal, scalar_ir
from fastconv.kernels.params import CALL, record
from fastconv.kernels.simd import record_at

SPREAD = record("rows runs width step first count")
"""A row of the source has `runs` runs of `width` values one after another, one of the target `count` values. Run j is
added to the target from the value ``j * step + first`` on; what lies outside is left out."""

ROWS = 8
"""Rows of a task."""


@intrinsic(prefer_literal=True)
def add_runs(
    typingctx: Any, REAL: Any, VL: Any, MR: Any, source: Any, source_row: Any, runs: Any, width: Any, step: Any,
    first: Any, target: Any, target_row: Any, count: Any, rows: Any,
) -> Any:  # fmt: skip
    """Write `rows` rows of the target, at most MR, as `SPREAD` says; rows lie as many bytes apart as told."""
    lanes, height, real = literal(VL), literal(MR), REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, source_row, runs, width, step, first, target, target_row, count, rows = args[3:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        const, add, sub, multiply = emit.const, emit.add, builder.sub, builder.mul

        def larger(a: Any, b: Any) -> Any:
            return builder.select(builder.icmp_signed(">", a, b), a, b)

        def smaller(a: Any, b: Any) -> Any:
            return builder.select(builder.icmp_signed("<", a, b), a, b)

        # Rows past the last repeat it: they write the same values to the same places.
        last = sub(rows, const(1))
        numbers = [smaller(const(m), last) for m in range(height)]

        def vector(v: Any, _: list[Any]) -> list[Any]:
            at = multiply(v, const(lanes))
            ahead = sub(at, first)
            # The runs that reach these lanes; both numerators are made positive before they are divided.
            begin = builder.sdiv(add(larger(sub(ahead, width), const(-1)), step), step)
            end = smaller(runs, builder.sdiv(larger(add(ahead, add(step, const(lanes - 1))), const(0)), step))

            def run(k: Any, sums: list[Any]) -> list[Any]:
                j = add(begin, k)
                offset = sub(ahead, multiply(j, step))
                reached = emit.between(sub(const(0), offset), sub(width, offset))
                place = add(source, multiply(add(multiply(j, width), offset), const(emit.item)))
                parts = [
                    emit.load_masked(add(place, multiply(source_row, number)), reached) for number in numbers
                ]  # fmt: skip
                return [builder.fadd(total, part) for total, part in zip(sums, parts, strict=True)]

            sums = emit.loop(sub(end, begin), run, [emit.constant(0.0)] * height)
            there = emit.below(smaller(sub(count, at), const(lanes)), 0)
            place = add(target, multiply(at, const(emit.item)))
            for number, total in zip(numbers, sums, strict=True):
                emit.store_masked(total, add(place, multiply(target_row, number)), there)
            return []

        emit.loop(builder.sdiv(add(count, const(lanes - 1)), const(lanes)), vector, [])
        return context.get_dummy_value()

    return types.void(REAL, VL, MR, *[types.intp] * 10), codegen


@functools.cache
def spread(dtype: str) -> CFunc:
    """The kernel for one dtype; a task is a block of `ROWS` rows."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, MR = target.vector_bytes() // ITEM, ROWS

    def spread_rows(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, SPREAD)
        source_row, target_row = p.runs * p.width * ITEM, p.count * ITEM
        for task in range(begin, end):
            row = task * MR
            add_runs(
                REAL, VL, MR, call.source + row * source_row, source_row, p.runs, p.width, p.step, p.first,
                call.target + row * target_row, target_row, p.count, min(MR, p.rows - row),
            )  # fmt: skip

    return jit.kernel(spread_rows)
