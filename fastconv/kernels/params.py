"""The records that describe a kernel's work: named int64 fields, read in compiled code as ``p.name``."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

LINE = 64
"""Bytes of a cache line, and of the widest vector."""


def record(fields: str) -> np.dtype:
    """A record type of int64 fields, from their names."""
    return np.dtype([(name, np.int64) for name in fields.split()])


def fill(dtype: np.dtype, **values: int) -> np.ndarray:
    """One record; every field must be given."""
    missing = set(dtype.names or ()) ^ set(values)
    if missing:
        raise KeyError(f"fields {sorted(missing)} of the record")
    params = np.empty(1, dtype)
    for name, value in values.items():
        params[name] = value
    return params


def address(array: np.ndarray | None) -> int:
    """The address of an array's first element, 0 for no array."""
    # Twice as fast as array.ctypes.data (but not for records), and a call asks for some ten addresses.
    return 0 if array is None else array.__array_interface__["data"][0]


def aligned(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Uninitialised array that begins on a cache line, so that no vector of a panel straddles two."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    buffer = np.empty(size + LINE, np.uint8)
    first = -address(buffer) % LINE
    return buffer[first : first + size].view(dtype).reshape(shape)


_KEPT_BYTES = 8 << 20
"""Largest buffer that a Python thread keeps for its next call."""


class _Kept(threading.local):
    def __init__(self) -> None:
        self.buffers: dict[str, np.ndarray] = {}


_kept = _Kept()


@contextmanager
def scratch(use: str, shape: tuple[int, ...], dtype: str) -> Iterator[np.ndarray]:
    """Lend an uninitialised array on a cache line, kept between calls: fresh pages can cost more than the arithmetic.

    A buffer is lent to one borrower at a time, so a signal handler or finaliser that convolves gets another.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    buffer = _kept.buffers.pop(use, None)
    if buffer is None or buffer.size < size:
        buffer = aligned((size,), "uint8")
    try:
        yield buffer[:size].view(dtype).reshape(shape)
    finally:
        if buffer.size <= _KEPT_BYTES:
            _kept.buffers[use] = buffer
