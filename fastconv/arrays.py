"""Arrays on their way into the kernels and out of them."""

from __future__ import annotations

import numpy as np

QUIET = np.errstate(invalid="ignore", over="ignore", under="ignore")
"""Decorator of what computes with NumPy: NaN and infinities pass without warnings, as they do in the kernels."""
NATIVE = {name: np.dtype(name) for name in ("float16", "float32", "float64", "int64")}
"""Dtypes by their names. They are compared with dtypes: with a name it takes three times as long."""


def _lies_well(array: np.ndarray, dtype: str) -> bool:
    """Whether kernels can read and write an array as it lies."""
    native, flags = NATIVE[dtype], array.flags
    if array.dtype is native and flags.carray:  # mostly, and two attributes fewer to ask for
        return True
    return array.dtype == native and flags.c_contiguous and flags.aligned


def ready(array: np.ndarray, dtype: str) -> np.ndarray:
    """The array itself where kernels can read it as it lies, else a contiguous, aligned, native copy."""
    if _lies_well(array, dtype):
        return array
    return np.require(array, dtype, ["C", "A"])


def image(array: np.ndarray, dtype: str) -> np.ndarray:
    """An image as kernels read it, with a batch axis."""
    array = ready(array, dtype)
    return array if array.ndim == 4 else array[None]


class Result:
    """Where a result is computed, and what the caller gets: the given `out`, or a new array of the inputs' dtype.

    `array` has the shape that the computation works in and the dtype that it computes in.
    """

    __slots__ = ("_computed", "_given", "_out", "array")

    def __init__(
        self, shape: tuple[int, ...], dtype: str, given: np.dtype, out: np.ndarray | None, batchless: bool
    ) -> None:
        """`given` is the inputs' dtype; without a batch axis the caller sees `shape` less its first axis."""
        self._given = given
        self._out = out
        if out is not None and _lies_well(out, dtype):
            computed = out
        else:
            computed = np.empty(shape[1:] if batchless else shape, NATIVE[dtype])
        self._computed = computed
        self.array = computed[None] if batchless else computed

    def deliver(self) -> np.ndarray:
        """What the caller gets, converted and copied where it was not computed in place."""
        computed, out = self._computed, self._out
        if out is None:
            if computed.dtype is self._given:
                return computed
            return computed.astype(self._given.newbyteorder("="), copy=False)
        if out is not computed:
            out[...] = computed
        return out
