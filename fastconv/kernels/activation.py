"""Activations that are applied while an output tile is still in the first cache level, and the gradient of ReLU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cfunc, types
from numba.core.errors import NumbaError
from numba.extending import intrinsic

from fastconv.kernels import jit
from fastconv.kernels.emit import Emitter, literal, scalar_ir
from fastconv.kernels.params import FLAT
from fastconv.kernels.simd import array_at, call_part, record_at
from fastconv.kernels.target import vector_bytes


@jit.inline
def activate(call, address, count):
    """Apply the caller's activation in place to `count` values."""
    call_part(call.activation, (address, count, call.failed))


@functools.lru_cache(maxsize=256)
def compile_activation(function: Callable[[Any], Any], dtype: str) -> Any:
    """Compile a loop over the user's jitted scalar function; its `address` is what the kernels call.

    A kernel calls it by address, so a new activation costs the compilation of this loop alone. It writes 1 to the
    int64 at `failed` where the function raised. It is not cached on disk: a dispatcher's identity changes with every
    process.
    """
    REAL = np.dtype(dtype).type

    def apply(address, count, failed):
        values = array_at(address, count, REAL)
        try:
            for i in range(count):
                values[i] = function(values[i])
        except Exception:
            array_at(failed, 1, np.int64)[0] = 1

    try:
        return cfunc(types.void(types.intp, types.intp, types.intp))(apply)
    except NumbaError as error:
        raise TypeError(
            f"activation must take a {dtype} number and return one, but numba cannot compile {function!r} so: {error}"
        ) from error


@intrinsic(prefer_literal=True)
def pass_open(
    typingctx: Any, REAL: Any, VL: Any, gradient: Any, output: Any, target: Any, count: Any
) -> Any:  # fmt: skip
    """Write `count` values of a gradient, VL at once, and zeros for those whose output is not above 0 nor NaN."""
    real, lanes = REAL.dtype, literal(VL)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        gradient, output, target, count = args[2:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        zero, rest = emit.constant(0.0), builder.srem(count, emit.const(lanes))
        inside = emit.below(rest, 0)

        def opened(load: Callable[[Any], Any], place: Any) -> Any:
            closed = builder.fcmp_ordered("<=", load(emit.add(output, place)), zero)
            return builder.select(closed, zero, load(emit.add(gradient, place)))

        def move(k: Any, _: list[Any]) -> list[Any]:
            place = builder.mul(k, emit.const(emit.vector_bytes))
            emit.store(opened(emit.load, place), emit.add(target, place))
            return []

        whole = builder.sdiv(count, emit.const(lanes))
        emit.loop(whole, move, [])
        last = builder.mul(whole, emit.const(emit.vector_bytes))
        value = opened(lambda address: emit.load_masked(address, inside), last)
        emit.store_masked(value, emit.add(target, last), inside)
        return context.get_dummy_value()

    return types.void(REAL, VL, *[types.intp] * 4), codegen


@functools.cache
def relu_gradient(dtype: str) -> Any:
    """The gradient where y is not closed, else 0; a task is a block. NumPy's masked copy takes 10 times longer.

    The arrays are the output's gradient, the output and the input's gradient. Vectors are chosen explicitly: of a loop
    over numbers LLVM makes masked stores of zeros, which take Zen 3 a dozen cycles each.
    """
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL = vector_bytes() // ITEM

    def pass_blocks(address, begin, end, thread):
        p = record_at(address, FLAT)
        for task in range(begin, end):
            first = task * p.block * ITEM
            count = min(p.block, p.count - task * p.block)
            pass_open(REAL, VL, p.first + first, p.second + first, p.third + first, count)

    return jit.kernel(pass_blocks)
