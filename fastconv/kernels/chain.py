"""Several launches as one: threads that are done with the tasks of one go on with those of the next."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numba
import numpy as np
from numba import types
from numba.core.ccallback import CFunc

from fastconv.kernels import jit, launch
from fastconv.kernels.launch import HEAD, Launch
from fastconv.kernels.params import CALL, LINE, Buffer, address, record
from fastconv.kernels.simd import array_at, call_kernel, call_part, record_at

LINK = record("entry plan start other target first end")
"""One launch of a chain: the addresses of its kernel, plan and of what sums begin with; where in the lent memory its
other operand and its target lie, or -1 for the arrays of the call; and the range of its tasks among all."""
CHAIN = record("links calls in_turn workspace apart")
"""The addresses of the first `LINK`, and of the first `CALL`, which are `_CALL_BYTES` apart. Where `in_turn` is not 0
it is the number of links, which take turns with their tasks; otherwise the tasks of one follow those of another. The
workspaces of all threads begin at `workspace`, `apart` bytes from one to the next."""

_CALL_BYTES = -(-CALL.itemsize // LINE) * LINE
_LINK_BYTES = LINK.itemsize


@dataclass(frozen=True)
class Link:
    """A launch of a chain, with what its sums begin with, and where operands in lent memory begin there."""

    launch: Launch
    start: np.ndarray
    other: int = -1
    target: int = -1


@functools.cache
def linked() -> CFunc:
    """The kernel that runs the tasks of all links."""
    NEXT, CALL_BYTES = _LINK_BYTES, _CALL_BYTES

    def run_links(address, begin, end, thread):
        chain = record_at(address, CHAIN)
        at, call, task = chain.links, chain.calls, begin
        notes = array_at(chain.workspace + thread * chain.apart - LINE, 1, np.int64)
        while chain.in_turn != 0 and task < end:
            turn, own = task % chain.in_turn, task // chain.in_turn
            link = record_at(at + turn * NEXT, LINK)
            call_part(link.entry, (call + turn * CALL_BYTES, own, own + 1, thread))
            task += 1
        while task < end:
            link = record_at(at, LINK)
            if task < link.end:
                last = min(end, link.end)
                if notes[0] != call:  # what another launch kept here is gone
                    notes[0] = 0
                call_part(link.entry, (call, task - link.first, last - link.first, thread))
                task = last
            at, call = at + NEXT, call + CALL_BYTES

    return jit.kernel(run_links)


def _call(entry, links, count, in_turn, tasks, threads, apart, source, other, target, lent, buffer):
    own = buffer.ctypes.data
    chain = record_at(own, CHAIN)
    chain.links, chain.calls, chain.in_turn = links, own + HEAD, count if in_turn else 0
    chain.workspace, chain.apart = own + HEAD + count * _CALL_BYTES + LINE, apart
    launch.forget(chain.workspace, threads, apart)
    for i in range(count):
        link, call = record_at(links + i * _LINK_BYTES, LINK), record_at(own + HEAD + i * _CALL_BYTES, CALL)
        call.plan, call.relu, call.activation, call.failed = link.plan, 0, 0, 0
        call.source, call.start = source.ctypes.data, link.start
        call.other = other.ctypes.data if link.other < 0 else lent.ctypes.data + link.other
        call.target = target.ctypes.data if link.target < 0 else lent.ctypes.data + link.target
        call.workspace = chain.workspace
    call_kernel(entry, own, 0, tasks, 0)
    return own


@functools.cache
def _caller(dtype: str) -> Any:
    """The compiled `_call` for arrays of one dtype, whatever their strides."""
    image = types.Array(numba.from_dtype(np.dtype(dtype)), 4, "A", readonly=True)
    memory = types.Array(types.uint8, 1, "C")
    return jit.native(types.intp(*[types.intp] * 7, image, image, image, memory, memory))(_call)()


def _share(launches: Sequence[Launch]) -> tuple[int, int]:
    """The threads of a chain and the bytes of a thread's workspace: that of any launch, and the next thread's notes."""
    threads = max((each.threads for each in launches), default=1)
    room = max((each.workspace_bytes // each.threads for each in launches), default=0)
    return threads, room + LINE if room else 0


def workspace_bytes(launches: Sequence[Launch]) -> int:
    """Bytes of the workspaces that a chain of launches would have."""
    return math.prod(_share(launches))


class Chain:
    """Launches that do not wait for each other, called as one and no longer on their own.

    Their threads have one workspace each: the chain writes to the launches' plans how far apart these lie. Launches of
    equally many tasks take turns with them, so that what the first tasks of all read and write is near them, unless
    they keep something from task to task.
    """

    def __init__(self, links: Sequence[Link], dtype: str) -> None:
        self._links = links
        self._dtype = dtype
        launches = [link.launch for link in links]
        self.threads, workspace = _share(launches)
        alike = len({each.tasks for each in launches}) == 1
        self._in_turn = int(alike and not any(each.keeps for each in launches))
        ends = np.cumsum([each.tasks for each in launches], dtype=np.int64)
        self._tasks = int(ends[-1])
        self._records = np.zeros(len(links), LINK)
        for link, to, end in zip(links, self._records, ends, strict=True):
            if link.launch.workspace_bytes:
                link.launch.plan["workspace_bytes"] = workspace
            to["plan"], to["start"] = link.launch.plan.ctypes.data, address(link.start)
            to["other"], to["target"], to["first"], to["end"] = link.other, link.target, end - link.launch.tasks, end
        self._address = self._records.ctypes.data
        self._entry = 0
        self._apart = workspace
        self._bytes = HEAD + len(links) * _CALL_BYTES + LINE + self.threads * workspace

    def _compile(self) -> int:
        self._records["entry"] = [link.launch.entry for link in self._links]
        return cast(int, linked().address)

    def __call__(self, source: np.ndarray, other: np.ndarray, target: np.ndarray, lent: np.ndarray) -> None:
        """Run all tasks; `lent` is the memory that holds what the links name a place for."""
        entry = self._entry = self._entry or self._compile()
        serial = self.threads == 1
        with Buffer(self._bytes) as buffer:
            own = _caller(self._dtype)(
                entry,
                self._address,
                len(self._links),
                self._in_turn,
                self._tasks if serial else 0,
                self.threads,
                self._apart,
                source,
                other,
                target,
                lent,
                buffer,
            )
            if not serial:
                launch.spread(entry, own, self._tasks, self.threads)
