"""The convolution problem: its validated geometry. Every error about an argument of a convolution is raised here."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DIRECTIONS = ("forward", "grad_input", "grad_weight")
LAYOUTS = ("NHWC", "NCHW")
CHANNELS_LAST = "NHWC, IHWO"
"""Layout of transposed NCHW problems: weights (ic/groups, kh, kw, oc). Callers cannot ask for it."""
IMAGES_LAST = "NHWC, OIHW"
"""The same with weights as NCHW problems have them."""
COMPUTED = {
    np.dtype(order + given): computed
    for given, computed in (("f2", "float32"), ("f4", "float32"), ("f8", "float64"))
    for order in "<>"
}
"""What operands of each dtype are computed in."""
PADDINGS = ("valid", "same", "same_lower", "full")
MAX_SIZE = 2**40
"""Largest size, stride, padding or dilation: products of two still fit the kernels' int64 addresses."""

MAX_BYTES = 2**47
"""Size that no array reaches: the address space of the CPUs in use."""

_MAX_OFFSET = 2**62
"""Bytes between a pixel and one that a padding or a stride away would be: kernels compute them as int64."""

IntPair = tuple[int, int]


@dataclass(frozen=True)
class ConvProblem:
    """Geometry of one multi-channel convolution, the same for its forward pass and its gradients.

    Spatial parameters are tuples with one entry per spatial axis. `dtype` is what the kernels compute in: float32 or
    float64.
    """

    n: int
    ic: int
    oc: int
    input_size: IntPair
    kernel_size: IntPair
    stride: IntPair
    padding: tuple[IntPair, IntPair]
    dilation: IntPair
    groups: int
    layout: str
    dtype: str

    @functools.cached_property
    def output_size(self) -> IntPair:
        """(oh, ow)."""
        return tuple(
            (size + sum(pad) - (k - 1) * dilation - 1) // stride + 1
            for size, k, stride, pad, dilation in zip(
                self.input_size, self.kernel_size, self.stride, self.padding, self.dilation, strict=True
            )
        )  # type: ignore[return-value]

    @property
    def ic_per_group(self) -> int:
        """Input channels of one group."""
        return self.ic // self.groups

    @property
    def oc_per_group(self) -> int:
        """Output channels of one group."""
        return self.oc // self.groups

    @property
    def in_planes(self) -> bool:
        """Whether the pixels of a channel lie side by side, in the input and in the output."""
        return self.layout == "NCHW" or self.ic == self.oc == 1

    @functools.cached_property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return np.dtype(self.dtype).itemsize

    @functools.cached_property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of the input in the layout."""
        return self._image_shape(self.ic, self.input_size)

    @functools.cached_property
    def y_shape(self) -> tuple[int, ...]:
        """Shape of the output in the layout."""
        return self._image_shape(self.oc, self.output_size)

    @functools.cached_property
    def w_shape(self) -> tuple[int, ...]:
        """Shape of the weights in the layout."""
        if self.layout == "NHWC":
            return (*self.kernel_size, self.ic_per_group, self.oc)
        if self.layout == CHANNELS_LAST:
            return (self.ic_per_group, *self.kernel_size, self.oc)
        return (self.oc, self.ic_per_group, *self.kernel_size)

    def _image_shape(self, channels: int, size: IntPair) -> tuple[int, ...]:
        return (self.n, channels, *size) if self.layout == "NCHW" else (self.n, *size, channels)


def canonical(array: np.ndarray, layout: str) -> np.ndarray:
    """View an image in the order (n, row, column, channel), whatever its layout."""
    return array if layout == "NHWC" else array.transpose(0, 2, 3, 1)


def canonical_weights(w: np.ndarray, layout: str) -> np.ndarray:
    """View weights in the order (row, column, input channel, output channel), whatever their layout."""
    if layout == CHANNELS_LAST:
        return w.transpose(1, 2, 0, 3)
    return w if layout == "NHWC" else w.transpose(2, 3, 1, 0)


def _whole(name: str, value: Any, low: int) -> int:
    if type(value) is int and low <= value <= MAX_SIZE:
        return value
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}") from None
    if not low <= number <= MAX_SIZE:
        raise ValueError(f"{name} must be between {low} and {MAX_SIZE}, got {number}")
    return number


def _is_sequence(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    # Asking an abstract class takes 0.3 us.
    return type(value) is tuple or (isinstance(value, Sequence) and not isinstance(value, (str, bytes)))


def _pair(name: str, value: Any, low: int) -> IntPair:
    """An integer for both spatial axes, or one for each."""
    if not _is_sequence(value):
        number = _whole(name, value, low)
        return number, number
    if len(value) != 2:
        raise ValueError(f"{name} must be an integer or two of them (rows, columns), got {value!r}")
    return _whole(name, value[0], low), _whole(name, value[1], low)


def _padding(value: Any, size: IntPair, kernel: IntPair, stride: IntPair, dilation: IntPair) -> tuple[IntPair, IntPair]:
    """Padding in any of its forms as ((top, bottom), (left, right))."""
    forms = f"an integer, (rows, columns), ((top, bottom), (left, right)) or one of {', '.join(map(repr, PADDINGS))}"
    if isinstance(value, str):
        if value not in PADDINGS:
            raise ValueError(f"padding must be {forms}, got {value!r}")
        return tuple(_named_padding(value, *axis) for axis in zip(size, kernel, stride, dilation, strict=True))  # type: ignore[return-value]
    if not _is_sequence(value):
        number = _whole("padding", value, 0)
        return (number, number), (number, number)
    if len(value) != 2:
        raise ValueError(f"padding must be {forms}, got {value!r}")
    if any(_is_sequence(axis) for axis in value):
        if not all(_is_sequence(axis) and len(axis) == 2 for axis in value):
            raise ValueError(f"padding must be {forms}, got {value!r}")
        return tuple((_whole("padding", low, 0), _whole("padding", high, 0)) for low, high in value)  # type: ignore[return-value]
    rows, columns = (_whole("padding", number, 0) for number in value)
    return (rows, rows), (columns, columns)


def _named_padding(name: str, size: int, kernel: int, stride: int, dilation: int) -> IntPair:
    reach = (kernel - 1) * dilation
    if name == "valid":
        return 0, 0
    if name == "full":
        return reach, reach
    total = max((-(-size // stride) - 1) * stride + reach + 1 - size, 0)
    less = total // 2
    return (less, total - less) if name == "same" else (total - less, less)


def check_pair(name: str, value: Any) -> IntPair:
    """(rows, columns) from a positive integer or a pair of them."""
    return _pair(name, value, 1)


def check_whole(name: str, value: Any, low: int) -> int:
    """An integer that is not below `low`."""
    return _whole(name, value, low)


def check_groups(value: Any) -> int:
    """A positive integer."""
    return _whole("groups", value, 1)


def check_sizes(name: str, shape: Any) -> tuple[int, ...]:
    """A tuple of integers that are not negative."""
    if not _is_sequence(shape):
        raise TypeError(f"{name} must be a tuple of integers, got {shape!r}")
    return tuple([_whole(name, size, 0) for size in shape])


def check_image_rank(name: str, shape: Any, layout: str) -> tuple[Any, bool]:
    """The shape of an image with its batch axis, and whether it came without one."""
    if not _is_sequence(shape):
        raise TypeError(f"{name} must be a tuple of integers, got {shape!r}")
    if len(shape) not in (3, 4):
        axes = "n, rows, columns, channels" if layout == "NHWC" else "n, channels, rows, columns"
        raise ValueError(
            f"{name} must have 4 axes ({axes}), or 3 without n, for layout {layout!r}; got shape {tuple(shape)}"
        )
    return (tuple(shape), False) if len(shape) == 4 else ((1, *shape), True)


def _shape(name: str, shape: Any, rank: int, meaning: str) -> tuple[int, ...]:
    if not _is_sequence(shape):
        raise TypeError(f"{name} must be a tuple of integers, got {shape!r}")
    if len(shape) != rank:
        raise ValueError(f"{name} must be {meaning}, got {tuple(shape)} with {len(shape)} axes")
    return tuple(_whole(name, size, 0) for size in shape)


def _choice(name: str, value: Any, options: Sequence[str]) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {value!r} of type {type(value).__name__}")
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")
    return value


def compute_dtype(name: str, dtype: Any) -> str:
    """What to compute in for operands of a dtype; TypeError if they are none of the three. `name` is the operand's."""
    computed = COMPUTED.get(np.dtype(dtype))
    if computed is None:
        given = np.dtype(dtype).name
        raise TypeError(f"{name} must be float16, float32 or float64, got {given}: convert it with .astype('float32')")
    return computed


def check_layout(layout: Any) -> str:
    """One of `LAYOUTS`, or an error."""
    return _choice("layout", layout, LAYOUTS)


def check_choice(name: str, value: Any, options: Sequence[str]) -> str:
    """One of the options, or an error that lists them."""
    return _choice(name, value, options)


def problem_from(
    x_shape: Any, w_shape: Any, dtype: Any, stride: Any, padding: Any, dilation: Any, groups: Any, layout: Any,
    *, x_name: str = "x", w_name: str = "w",
) -> ConvProblem:  # fmt: skip
    """Build the problem from shapes and parameters; raise ValueError or TypeError, naming what does not fit.

    `x_name` and `w_name` are what the caller's own arguments are called, for the messages.
    """
    layout = check_layout(layout)
    dtype = compute_dtype(x_name, dtype)
    x_axes = "(n, ih, iw, ic)" if layout == "NHWC" else "(n, ic, ih, iw)"
    w_axes = "(kh, kw, ic/groups, oc)" if layout == "NHWC" else "(oc, ic/groups, kh, kw)"
    x_shape = _shape(x_name, x_shape, 4, f"{x_axes} for layout {layout!r}")
    w_shape = _shape(w_name, w_shape, 4, f"{w_axes} for layout {layout!r}")
    if layout == "NHWC":
        (n, *size, ic), (*kernel, ic_per_group, oc) = x_shape, w_shape
    else:
        (n, ic, *size), (oc, ic_per_group, *kernel) = x_shape, w_shape
    stride = _pair("stride", stride, 1)
    dilation = _pair("dilation", dilation, 1)
    groups = _whole("groups", groups, 1)
    for name, shape, extents in ((x_name, x_shape, (*size, ic)), (w_name, w_shape, w_shape)):
        if min(extents) == 0:
            raise ValueError(f"{name} must have at least one element along every axis but n, got shape {shape}")
    if ic != ic_per_group * groups:
        raise ValueError(
            f"{w_name} has {ic_per_group} input channels per group and groups={groups}, so {x_name} must have "
            f"{ic_per_group * groups} channels, got {ic} (shapes {x_shape} and {w_shape}, layout {layout!r})"
        )
    if oc % groups:
        raise ValueError(f"groups={groups} must divide the {oc} output channels of {w_name}, got shape {w_shape}")
    pads = _padding(padding, tuple(size), tuple(kernel), stride, dilation)
    for axis, extent, k, pad, spread in zip(("rows", "columns"), size, kernel, pads, dilation, strict=True):
        reach = (k - 1) * spread + 1
        if reach > extent + sum(pad):
            raise ValueError(
                f"{w_name} spans {reach} {axis} with dilation={spread}, more than the {extent} of {x_name} with "
                f"padding={pad} ({extent + sum(pad)}); got shapes {x_shape} and {w_shape}, layout {layout!r}"
            )
    problem = ConvProblem(n, ic, oc, tuple(size), tuple(kernel), stride, pads, dilation, groups, layout, dtype)
    for name, shape in (
        (x_name, problem.x_shape),
        (w_name, problem.w_shape),
        ("the result", problem.y_shape),
    ):
        if math.prod(shape) * problem.itemsize >= MAX_BYTES:
            raise ValueError(
                f"{name} with shape {shape} in {dtype} would take {MAX_BYTES} bytes or more; got {x_name} of shape "
                f"{x_shape}, {w_name} of shape {w_shape} and padding={padding!r}"
            )
    pixel_bytes = ic * problem.itemsize
    for extent, pad, step, apart in zip(size, pads, stride, (size[1] * pixel_bytes, pixel_bytes), strict=True):
        if (extent + sum(pad) + step) * apart >= _MAX_OFFSET:
            raise ValueError(
                f"padding={padding!r} and stride={stride} reach {_MAX_OFFSET} bytes or more beyond {x_name} of shape "
                f"{x_shape}: make them smaller"
            )
    return problem
