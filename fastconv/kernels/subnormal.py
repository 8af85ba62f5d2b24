"""Subnormal numbers count as zeros inside kernels, on the CPUs that take a hundred times as long for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils
from numba.core.registry import cpu_target

from fastconv.kernels.emit import I32

_FLUSH = 0x8040
"""MXCSR's bits "flush to zero" and "denormals are zeros"."""


def is_x86() -> bool:
    """Whether the target CPU is an x86: others multiply subnormal numbers as fast as any."""
    return cpu_target.target_context.codegen().magic_tuple()[0].startswith(("x86_64", "i386", "i686"))


def without_subnormals(builder: Any, work: Callable[[], None]) -> None:
    """Emit work between a change of this thread's floating-point state and its return; it takes some 20 ns."""
    if not is_x86():
        work()
        return
    pointer = ir.IntType(8).as_pointer()
    access = ir.FunctionType(ir.VoidType(), [pointer])
    save, load = (
        cgutils.get_or_insert_function(builder.module, access, f"llvm.x86.sse.{name}mxcsr") for name in ("st", "ld")
    )
    before, during = (cgutils.alloca_once(builder, I32) for _ in range(2))
    builder.call(save, [builder.bitcast(before, pointer)])
    builder.store(builder.or_(builder.load(before), ir.Constant(I32, _FLUSH)), during)
    builder.call(load, [builder.bitcast(during, pointer)])
    work()
    builder.call(load, [builder.bitcast(before, pointer)])
