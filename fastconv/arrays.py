"""Arrays on their way into the kernels and out of them."""

from __future__ import annotations

import numpy as np

QUIET = np.errstate(invalid="ignore", over="ignore", under="ignore")
"""Decorator of what computes with NumPy: NaN and infinities pass without warnings, as they do in the kernels."""


def ready(array: np.ndarray, dtype: str) -> np.ndarray:
    """The array itself where kernels can read it as it lies, else a contiguous, aligned, native copy."""
    flags = array.flags
    if array.dtype == dtype and flags.c_contiguous and flags.aligned:
        return array
    return np.require(array, dtype, ["C", "A"])


class Result:
    """Where a result is computed, and what the caller gets: the given `out`, or a new array of the inputs' dtype.

    `array` has the shape that the computation works in and the dtype that it computes in.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: str,
        given: np.dtype,
        out: np.ndarray | None,
        own_shape: tuple[int, ...],
    ) -> None:
        """`given` is the inputs' dtype, `own_shape` the result's shape as the caller sees it."""
        self._given = given.newbyteorder("=")
        self._out = out
        in_place = out is not None and out.dtype == dtype and out.flags.c_contiguous and out.flags.aligned
        self._computed = out if in_place and out is not None else np.empty(own_shape, dtype)
        self.array = self._computed.reshape(shape)

    def deliver(self) -> np.ndarray:
        """What the caller gets, converted and copied where it was not computed in place."""
        if self._out is None:
            return self._computed.astype(self._given, copy=False)
        if self._out is not self._computed:
            self._out[...] = self._computed
        return self._out
