"""Bands of images, each done by one thread from end to end: turned, computed by other kernels, and turned back.

What one step of a band writes the next one reads from the same core's cache, and no thread waits between them.
"""

from __future__ import annotations

import functools

from numba.core.ccallback import CFunc

from fastconv.kernels import jit
from fastconv.kernels.params import CALL, record
from fastconv.kernels.simd import call_part, record_at

STEP = record("entry plan tasks source other start target")
"""One kernel that a band goes through: its address, its plan's and the number of its tasks. `source` and `target` are
offsets into the thread's own memory, or FIRST, SECOND or TARGET for the call's operands and result, from the band's
place on. `other` is an offset into the second operand, SECOND, or the negative of one into the thread's memory. `start`
is the address of what sums begin with, 0 for what the call's begin with."""
FIRST, SECOND, TARGET = -1, -2, -3
BAND = record("first count source other start target")
"""The `count` steps from `first` on, and where the band begins in the call's arrays."""
BANDS = record("steps bands inner workspace_bytes")
"""The addresses of the first `STEP` and of the first `BAND`. Each thread's workspace begins with the `CALL` of its
steps; theirs lies at `inner`."""

_STEP_BYTES, _BAND_BYTES = STEP.itemsize, BAND.itemsize


@functools.cache
def bands() -> CFunc:
    """The kernel for all dtypes and steps; a task is a band."""
    NEXT_STEP, NEXT_BAND = _STEP_BYTES, _BAND_BYTES

    def run_bands(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, BANDS)
        own = call.workspace + thread * p.workspace_bytes
        inner = record_at(own, CALL)
        inner.relu, inner.activation, inner.failed = call.relu, call.activation, call.failed
        inner.workspace = own + p.inner
        for task in range(begin, end):
            band = record_at(p.bands + task * NEXT_BAND, BAND)
            for number in range(band.first, band.first + band.count):
                step = record_at(p.steps + number * NEXT_STEP, STEP)
                inner.plan = step.plan
                inner.source, inner.target = own + step.source, own + step.target
                if step.source == FIRST:
                    inner.source = call.source + band.source
                elif step.source == SECOND:
                    inner.source = call.other + band.other
                if step.target == TARGET:
                    inner.target = call.target + band.target
                if step.other == SECOND:
                    inner.other = call.other + band.other
                else:
                    inner.other = call.other + step.other if step.other >= 0 else own - step.other
                inner.start = step.start if step.start != 0 else call.start + band.start
                call_part(step.entry, (own, 0, step.tasks, 0))

    return jit.kernel(run_bands)
