"""The last pixel of planes whose others fill whole vectors, as planes of odd size have one.

With pixels in the lanes it would take as long as a vector of them. With channels in the lanes its values are dot
products of the weights' rows, as they lie, with the channels of that pixel, which a task copies side by side.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

from fastconv.kernels import jit
from fastconv.kernels.activation import activate
from fastconv.kernels.emit import Emitter, literal, scalar_ir
from fastconv.kernels.gather import GATHER
from fastconv.kernels.params import CALL
from fastconv.kernels.simd import array_at, record_at
from fastconv.kernels.target import IN_FLIGHT, vector_bytes


@intrinsic(prefer_literal=True)
def row_dots(
    typingctx: Any, REAL: Any, VL: Any, ROWS: Any,
    first: Any, pitch: Any, rows: Any, vector: Any, length: Any, sums: Any,
) -> Any:  # fmt: skip
    """Write the dot products of ROWS rows, `pitch` bytes apart from `first` on, with the `length` values at `vector`.

    There are `rows` of them, at least 1; those past the last repeat it. `sums` has room for VL values, of which the
    first ROWS are the products: at most VL.
    """
    real, lanes, most = REAL.dtype, literal(VL), literal(ROWS)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        first, pitch, rows, vector, length, sums = args[3:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        const, add, multiply = emit.const, emit.add, builder.mul
        last = builder.sub(rows, const(1))
        begins = [add(first, multiply(emit.limited(const(m), const(0), last), pitch)) for m in range(most)]

        def added(along: Any, load: Callable[[Any], Any], totals: list[Any]) -> list[Any]:
            x = load(add(vector, along))
            return [emit.fma(load(add(begin, along)), x, total) for begin, total in zip(begins, totals, strict=True)]

        rounds = builder.sdiv(length, const(lanes))
        totals = emit.loop(
            rounds,
            lambda k, totals: added(multiply(k, const(emit.vector_bytes)), emit.load, totals),
            [emit.constant(0.0)] * most,
        )
        rest = emit.below(builder.srem(length, const(lanes)), 0)
        behind = multiply(rounds, const(emit.vector_bytes))
        totals = added(behind, lambda place: emit.load_masked(place, rest), totals)
        emit.store(emit.sums_of_lanes(totals), sums)
        return context.get_dummy_value()

    return types.void(REAL, VL, ROWS, *[types.intp] * 6), codegen


@functools.cache
def last_pixel(dtype: str) -> CFunc:
    """The part of kernels that computes pixel `channels` of a plane for the rows of `tiles` tiles from `first` on."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL = vector_bytes() // ITEM
    ROWS = min(VL, IN_FLIGHT)

    def dot_rows(address, own, group, first, tiles):
        call = record_at(address, CALL)
        p = record_at(call.plan, GATHER)
        pixel = p.channels * ITEM
        source = call.other + group * p.weight_group + pixel
        column = array_at(own + p.column, p.reduction, REAL)
        for k in range(p.reduction):
            column[k] = array_at(source + k * p.weight_step, 1, REAL)[0]
        weights = call.source + group % p.groups * p.source_group
        start = array_at(call.start + group % p.groups * p.start_group, p.columns, REAL)
        target = call.target + group * p.target_group + pixel
        sums = array_at(own + p.buffer, VL, REAL)
        floor = REAL(0) if call.relu != 0 else REAL(-np.inf)
        end = min((first + tiles) * p.tile_pixels, p.columns)
        for d in range(first * p.tile_pixels, end, ROWS):
            rows = min(ROWS, end - d)
            row_dots(
                REAL, VL, ROWS, weights + d * p.source_c, p.source_c, rows, own + p.column, p.reduction, own + p.buffer
            )
            for m in range(rows):
                place, total = target + (d + m) * p.target_c, sums[m] + start[d + m]
                array_at(place, 1, REAL)[0] = floor if total < floor else total
                if call.activation != 0:
                    activate(call, place, 1)

    return jit.part(dot_rows)
