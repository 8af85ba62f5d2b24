"""Activations that are applied while an output tile is still in the first cache level, and the gradient of ReLU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cfunc, types
from numba.core.errors import NumbaError

from fastconv.kernels import jit
from fastconv.kernels.params import FLAT
from fastconv.kernels.simd import array_at, call_part, record_at


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


@functools.cache
def relu_gradient(dtype: str, in_place: bool) -> Any:
    """The gradient where y is not closed, else 0; a task is a block. NumPy's masked copy takes 10 times longer.

    The arrays are the output's gradient, the output and the input's gradient.
    In place is a kernel of its own: LLVM's vectors need arrays that do not overlap, or are one.
    """
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    IN_PLACE, ZERO = int(in_place), REAL(0)

    def pass_open(address, begin, end, thread):
        p = record_at(address, FLAT)
        for task in range(begin, end):
            first = task * p.block * ITEM
            count = min(p.block, p.count - task * p.block)
            y = array_at(p.second + first, count, REAL)
            grad_x = array_at(p.third + first, count, REAL)
            grad_y = grad_x if IN_PLACE else array_at(p.first + first, count, REAL)
            for k in range(count):
                value = grad_y[k]
                grad_x[k] = ZERO if y[k] <= ZERO else value

    return jit.kernel(pass_open)
