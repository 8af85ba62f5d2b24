"""The records that describe a kernel's work: named int64 fields, read in compiled code as ``p.name``."""

from __future__ import annotations

import math

import numpy as np

LINE = 64
"""Bytes of a cache line, and of the widest vector."""


def record(fields: str) -> np.dtype:
    """A record type of int64 fields, from their names."""
    return np.dtype([(name, np.int64) for name in fields.split()])


def odd_lines(size: int) -> int:
    """Bytes of the least odd number of cache lines that hold `size` bytes.

    Places that many bytes apart spread over all sets of the first cache level; a multiple of 4 KiB apart, they share.
    """
    return (-(-size // LINE) | 1) * LINE


CALL = record("plan source other start target relu activation failed workspace")
"""What a planned kernel gets: the address of its plan's record, then what belongs to this one call."""


FLAT = record("first second third fourth settings count block")
"""What a kernel gets that goes once through up to four arrays of `count` values: their addresses, and how many values a
task has. `settings` is the address of an array of float64 in the kernel's order."""


def fill(dtype: np.dtype, **values: int) -> np.ndarray:
    """One record; every field must be given."""
    names = dtype.names or ()
    if values.keys() != set(names):
        raise KeyError(f"fields {sorted(values.keys() ^ set(names))} of the record")
    return np.array([values[name] for name in names], np.int64).view(dtype)


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
"""Largest buffer that is kept for a later call."""
_MOST_KEPT = 16
_kept: list[np.ndarray] = []


def lend(size: int) -> np.ndarray:
    """At least `size` uninitialised bytes on a cache line, for `take_back`: see `Buffer`."""
    try:
        buffer = _kept.pop()
    except IndexError:
        buffer = None
    return aligned((size,), "uint8") if buffer is None or buffer.size < size else buffer


def take_back(buffer: np.ndarray) -> None:
    """Keep a lent buffer for the next borrower."""
    if buffer.size <= _KEPT_BYTES and len(_kept) < _MOST_KEPT:
        _kept.append(buffer)


class Buffer:
    """Lends uninitialised bytes on a cache line, kept between calls: fresh pages can cost more than the arithmetic.

    A buffer has one borrower at a time, so threads, signal handlers and finalisers that convolve get their own.
    """

    __slots__ = ("_bytes", "_size")

    def __init__(self, size: int) -> None:
        self._size = size

    def __enter__(self) -> np.ndarray:
        self._bytes = lend(self._size)
        return self._bytes

    def __exit__(self, *_: object) -> None:
        take_back(self._bytes)
