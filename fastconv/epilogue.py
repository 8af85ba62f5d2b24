"""What surrounds the sums of a convolution: activations, and the bias gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core.dispatcher import Dispatcher

from fastconv.algorithms.base import PLAIN, Epilogue
from fastconv.arrays import ready
from fastconv.kernels import dense as kernels
from fastconv.kernels import launch
from fastconv.kernels.activation import compile_activation
from fastconv.kernels.params import LINE, address, fill

_SUM_BLOCK = 1 << 13
"""Values of one partial sum: fixed, so that the sum has the same bits for any number of threads."""
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


def channel_sums(values: np.ndarray, layout: str) -> np.ndarray:
    """Sum an image over everything but its channels, in float64."""
    dtype = "float32" if values.dtype.name == "float16" else values.dtype.name
    values = ready(values, dtype)
    n, channels = values.shape[0], values.shape[3 if layout == "NHWC" else 1]
    if values.size == 0:
        return np.zeros(channels)
    pixels = values[0].size // channels
    block = max(1, _SUM_BLOCK // channels)
    blocks = -(-n * pixels // block)
    threads, shared = launch.threads_for(values.size), max(1, _SUM_WIDTH // channels)
    # Whole vectors of sums, whatever their width.
    sums, workspace = np.empty((blocks, channels)), np.empty((threads, -(-shared * channels // LINE) * LINE))
    params = fill(
        kernels.CHANNEL_SUM, values=address(values), sums=address(sums), block=block, n=n, pixels=pixels,
        channels=channels, shared=shared, workspace=address(workspace), workspace_bytes=workspace.strides[0],
    )  # fmt: skip
    kernel = kernels.channel_sum(dtype, layout == "NHWC")
    launch.run(kernel, params, blocks, threads=threads)
    return sums.sum(axis=0)
