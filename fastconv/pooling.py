"""Pooling and its gradients: check, allocate, run. The public names are those of `fastconv.nn`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastconv.arrays import image
from fastconv.kernels import launch
from fastconv.kernels import pool as kernels
from fastconv.kernels.params import fill
from fastconv.operands import ArrayLike, allocate, array_argument, expect_shape, same_dtype
from fastconv.problem import IntPair, check_image_rank, check_layout, check_pair, check_sizes, compute_dtype

_TASK_VALUES = 1 << 14
"""Values that a thread takes at a time: enough to pay for the taking, few enough for a second cache level."""
_PLANES_MOST_TAPS = 64
"""Largest window for which panels of single values are kept."""


def max_pool2d(
    x: ArrayLike,
    size: int | Sequence[int] = 2,
    *,
    stride: int | Sequence[int] | None = None,
    layout: str = "NHWC",
    activation: str | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Take the largest value of each window.

    Parameters
    ----------
    x : array of shape (n, ih, iw, c), or (n, c, ih, iw) for layout "NCHW"
        Images of float16, float32 or float64. The batch axis may be missing.
    size : int or (rows, columns), default 2
        Size of the window.
    stride : int or (rows, columns), optional
        Step of the window, by default its size. Rows and columns that no whole window reaches are left out.
    layout : {"NHWC", "NCHW"}
        Order of the axes.
    activation : None or "relu"
        Replaces negative results by 0.
    out : array of the result's shape and dtype, optional
        Receives the result; it must not overlap with x.

    Returns
    -------
    array of shape (n, oh, ow, c), or (n, c, oh, ow) for layout "NCHW"
        With oh = (ih - rows) // stride + 1. A window with NaN gives NaN.

    Raises
    ------
    ValueError, TypeError
        If the window does not fit into the image, or an argument is not of its kind.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x = np.arange(16, dtype=np.float32).reshape(4, 4, 1)
    >>> fastconv.nn.max_pool2d(x)[:, :, 0]
    array([[ 5.,  7.],
           [13., 15.]], dtype=float32)
    """
    return _forward(x, size, stride, layout, out, _check_activation(activation), largest=True)


def avg_pool2d(
    x: ArrayLike,
    size: int | Sequence[int] = 2,
    *,
    stride: int | Sequence[int] | None = None,
    layout: str = "NHWC",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Take the mean of each window.

    Parameters, result and errors are those of `max_pool2d`, which alone has an activation.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x = np.arange(16, dtype=np.float32).reshape(4, 4, 1)
    >>> fastconv.nn.avg_pool2d(x)[:, :, 0]
    array([[ 2.5,  4.5],
           [10.5, 12.5]], dtype=float32)
    """
    return _forward(x, size, stride, layout, out, 0, largest=False)


def max_pool2d_grad_input(
    grad_y: ArrayLike,
    x: ArrayLike,
    size: int | Sequence[int] = 2,
    *,
    stride: int | Sequence[int] | None = None,
    layout: str = "NHWC",
    activation: str | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Gradient of `max_pool2d` for its input: each window's goes to its first largest value, row by row.

    Parameters
    ----------
    grad_y : array of the shape of the result of `max_pool2d`
        Gradient for the output.
    x : array
        The input, as given to `max_pool2d`.
    size, stride, layout, activation
        As for `max_pool2d`.
    out : array of the shape of x, optional
        Receives the result.

    Returns
    -------
    array of the shape of x

    Raises
    ------
    ValueError, TypeError
        As `max_pool2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x = np.array([[1, 5], [5, 2]], np.float32).reshape(2, 2, 1)
    >>> fastconv.nn.max_pool2d_grad_input(np.full((1, 1, 1), 3, np.float32), x)[:, :, 0]
    array([[0., 3.],
           [0., 0.]], dtype=float32)
    """
    x, grad_y = array_argument("x", x), array_argument("grad_y", grad_y)
    same_dtype("grad_y", grad_y, "x", x)
    window = _window("x", x.shape, size, stride, layout)
    return _backward(window, grad_y, x, out, _check_activation(activation), {"x": x, "grad_y": grad_y})


def avg_pool2d_grad_input(
    grad_y: ArrayLike,
    input_shape: Sequence[int],
    size: int | Sequence[int] = 2,
    *,
    stride: int | Sequence[int] | None = None,
    layout: str = "NHWC",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Gradient of `avg_pool2d` for its input: each window's is shared equally by its values.

    Parameters
    ----------
    grad_y : array of the shape of the result of `avg_pool2d`
        Gradient for the output.
    input_shape : tuple of int
        Shape of the input; a remainder leaves several possible.
    size, stride, layout
        As for `avg_pool2d`.
    out : array of shape `input_shape`, optional
        Receives the result.

    Returns
    -------
    array of shape `input_shape`

    Raises
    ------
    ValueError, TypeError
        As `avg_pool2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.nn.avg_pool2d_grad_input(np.full((1, 1, 1), 8, np.float32), (2, 3, 1))[:, :, 0]
    array([[2., 2., 0.],
           [2., 2., 0.]], dtype=float32)
    """
    grad_y = array_argument("grad_y", grad_y)
    window = _window("input_shape", check_sizes("input_shape", input_shape), size, stride, layout)
    return _backward(window, grad_y, None, out, 0, {"grad_y": grad_y})


class _Window:
    """The checked geometry of a pooling: shapes with and without the batch axis, and how kernels see the image."""

    def __init__(self, name: str, shape: tuple[int, ...], size: IntPair, stride: IntPair, layout: str) -> None:
        full, self.batchless = check_image_rank(name, shape, layout)
        self.size, self.stride = size, stride
        n, c = full[0], full[3 if layout == "NHWC" else 1]
        self.input_size: IntPair = full[1:3] if layout == "NHWC" else full[2:]
        if c < 1 or any(k > extent for k, extent in zip(self.size, self.input_size, strict=True)):
            raise ValueError(f"{name} must have channels and room for a window of size={self.size}, got {shape}")
        self.output_size = tuple(
            (extent - k) // step + 1
            for extent, k, step in zip(self.input_size, self.size, self.stride, strict=True)
        )  # fmt: skip
        self.x_shape = full
        self.y_shape = (n, *self.output_size, c) if layout == "NHWC" else (n, c, *self.output_size)
        self.images: int = n if layout == "NHWC" else n * c
        self.lanes: int = c if layout == "NHWC" else 1
        self._launches: dict[tuple[Any, ...], launch.Launch] = {}

    def planned(self, direction: str, dtype: str, largest: bool) -> launch.Launch:
        """The planned pass, made once for each number of threads."""
        key = (direction, dtype, largest, launch.max_threads())
        if key not in self._launches:
            self._launches[key] = getattr(self, f"_{direction}")(dtype, largest)
        return self._launches[key]

    def _forward(self, dtype: str, largest: bool) -> launch.Launch:
        make = kernels.forward_planes if self.lanes == 1 else kernels.forward_lanes
        return self._launch(make, dtype, largest, 1, 0)

    def _backward(self, dtype: str, largest: bool) -> launch.Launch:
        (kh, kw), (oh, ow) = self.size, self.output_size
        make, workspace = kernels.backward_lanes, 0
        if self.lanes == 1 and kh * kw <= _PLANES_MOST_TAPS:
            make, workspace = kernels.backward_planes, kh * kw * kernels.PANEL * np.dtype(dtype).itemsize
        # Windows that overlap add to the same rows: then one task has the whole image.
        rows = oh if self.stride[0] < kh else min(oh, max(1, _TASK_VALUES // (kh * kw * ow * self.lanes)))
        return self._launch(make, dtype, largest, rows, workspace)

    def _launch(self, make: Any, dtype: str, largest: bool, rows: int, workspace_bytes: int) -> launch.Launch:
        """A launch whose tasks are blocks of `rows` output rows."""
        (ih, iw), (oh, ow) = self.input_size, self.output_size
        tasks, values = self.images * -(-oh // rows), self.images * ih * iw * self.lanes
        params = fill(
            kernels.POOL, ih=ih, iw=iw, oh=oh, ow=ow, lanes=self.lanes, block=rows, workspace_bytes=workspace_bytes
        )
        threads = launch.threads_for_bytes(values * np.dtype(dtype).itemsize)
        return launch.Launch(
            lambda: make(dtype, *self.size, *self.stride, largest), dtype, params, tasks, threads, workspace_bytes,
            max(1, tasks * _TASK_VALUES // max(values, 1)),
        )  # fmt: skip


_planned = functools.lru_cache(maxsize=1024)(_Window)


def _window(name: str, shape: tuple[int, ...], size: Any, stride: Any, layout: str) -> _Window:
    """The geometry of a pooling, remembered with its plans, which take longer to make than a small pooling to run."""
    pair = check_pair("size", size)
    return _planned(name, shape, pair, pair if stride is None else check_pair("stride", stride), check_layout(layout))


def _check_activation(activation: Any) -> int:
    """1 for ReLU, 0 for none."""
    if activation not in (None, "relu"):
        raise ValueError(f"activation must be None or 'relu', got {activation!r}")
    return int(activation == "relu")


def _forward(x: Any, size: Any, stride: Any, layout: str, out: Any, relu: int, *, largest: bool) -> np.ndarray:
    x = array_argument("x", x)
    window = _window("x", x.shape, size, stride, layout)
    dtype = compute_dtype("x", x.dtype)
    y = allocate(window.y_shape, dtype, x.dtype, out, {"x": x}, window.batchless)
    if window.images:
        source = image(x, dtype)
        window.planned("forward", dtype, largest)(source, source, _start(dtype), y.array, (relu, 0, 0))
    return y.deliver()


def _backward(
    window: _Window, grad_y: np.ndarray, x: np.ndarray | None, out: Any, relu: int,
    inputs: dict[str, np.ndarray | None],
) -> np.ndarray:  # fmt: skip
    shape = window.y_shape[1:] if window.batchless else window.y_shape
    expect_shape("grad_y", grad_y, shape, "the shape of the pooled image")
    dtype = compute_dtype("grad_y", grad_y.dtype)
    grad_x = allocate(window.x_shape, dtype, grad_y.dtype, out, inputs, window.batchless)
    if window.images:
        gradient = image(grad_y, dtype)
        source = gradient if x is None else image(x, dtype)
        window.planned("backward", dtype, x is not None)(source, gradient, _start(dtype), grad_x.array, (relu, 0, 0))
    return grad_x.deliver()


@functools.cache
def _start(dtype: str) -> np.ndarray:
    """What a launch takes in place of a bias."""
    return np.zeros(1, dtype)
