"""What surrounds the sums of a convolution: activations, and the bias gradient."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba.core.dispatcher import Dispatcher

from fastconv.algorithms.base import PLAIN, Epilogue
from fastconv.arrays import ready
from fastconv.kernels import dense as kernels
from fastconv.kernels import launch
from fastconv.kernels.activation import compile_activation
from fastconv.kernels.params import LINE, address, fill
from fastconv.problem import COMPUTED

_SUM_BLOCK = 1 << 13
"""Values of one partial sum: fixed, so that the sum has the same bits for any number of threads."""
_FAILURE = "activation raised an exception for some output value"
_SUM_WIDTH = 64
"""Sums that are kept at least where channels lie side by side."""


def check_activation(activation: Any) -> None:
    """Raise unless it is None, "relu" or a function compiled with numba.njit."""
    if activation is None or isinstance(activation, Dispatcher):
        return
    if isinstance(activation, str):
        if activation != "relu":
            raise ValueError(f"activation must be None, 'relu' or a numba.njit function, got {activation!r}")
        return
    hint = ": decorate it with numba.njit" if callable(activation) else ""
    raise TypeError(f"activation must be None, 'relu' or a numba.njit function, got {activation!r}{hint}")


def epilogue_for(bias: np.ndarray | None, activation: Any, dtype: str) -> Epilogue:
    """What a checked bias and activation do to the sums; a user's activation is compiled for the dtype."""
    if bias is None and activation is None:
        return PLAIN
    function = compile_activation(activation, dtype) if isinstance(activation, Dispatcher) else None
    return Epilogue(None if bias is None else ready(bias, dtype), activation == "relu", function)


def expect_no_failure(epilogue: Epilogue) -> None:
    """RuntimeError if a user's activation raised an exception in a kernel."""
    if epilogue.failed is not None and epilogue.failed[0]:
        raise RuntimeError(_FAILURE)


def apply_activation(activation: Any, y: np.ndarray) -> None:
    """Apply a checked activation in place to a contiguous result that no kernel applied it to."""
    if activation == "relu":
        np.maximum(y, y.dtype.type(0), out=y)
    elif activation is not None:
        epilogue = epilogue_for(None, activation, y.dtype.name)
        epilogue.function.ctypes(address(y), y.size, address(epilogue.failed))
        expect_no_failure(epilogue)


def channel_sums(values: np.ndarray, layout: str) -> np.ndarray:
    """Sum an image over everything but its channels, in float64."""
    dtype = COMPUTED[values.dtype]
    values = ready(values, dtype)
    n, channels = values.shape[0], values.shape[3 if layout == "NHWC" else 1]
    if values.size == 0:
        return np.zeros(channels)
    plan = _planned_sums(dtype, layout == "NHWC", n, values[0].size // channels, channels, launch.max_threads())
    sums = np.empty((1, 1, plan.tasks, channels))
    plan(values, values, _unused(dtype), sums.view(dtype))
    return sums[0, 0].sum(axis=0)


@functools.lru_cache(maxsize=256)
def _planned_sums(dtype: str, last: bool, n: int, pixels: int, channels: int, threads: int) -> launch.Launch:
    """The planned sums of blocks of pixels, for channels that come last or before the pixels."""
    block = max(1, _SUM_BLOCK // channels)
    shared = max(1, _SUM_WIDTH // channels)
    # Whole vectors of sums, whatever their width; they have 8 bytes where the values have 4.
    workspace_bytes = -(-shared * channels // LINE) * LINE * 8
    params = fill(
        kernels.CHANNEL_SUM, block=block, n=n, pixels=pixels, channels=channels, shared=shared,
        workspace_bytes=workspace_bytes,
    )  # fmt: skip
    threads = min(threads, launch.threads_for_bytes(n * pixels * channels * np.dtype(dtype).itemsize))
    return launch.Launch(
        lambda: kernels.channel_sum(dtype, last), dtype, params, -(-n * pixels // block), threads, workspace_bytes
    )


@functools.cache
def _unused(dtype: str) -> np.ndarray:
    """What a launch takes in place of a bias."""
    return np.zeros(1, dtype)
