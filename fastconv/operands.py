"""Array arguments: every error about an array is raised here, before any kernel runs."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.arrays import Result
from fastconv.problem import COMPUTED, ConvProblem, compute_dtype

ArrayLike = Any


def array_argument(name: str, value: Any) -> np.ndarray:
    """An argument as an array of real floating-point numbers, or a TypeError that says what to do."""
    array = value if type(value) is np.ndarray else _converted(name, value)
    if array.dtype not in COMPUTED:
        compute_dtype(name, array.dtype)
    return array


def _converted(name: str, value: Any) -> np.ndarray:
    """What NumPy makes of a value: subclasses lose their class, and other libraries' arrays come by `__array__`."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be a masked array, whose mask would be lost: fill it with .filled(0)")
    try:
        return np.asarray(value)
    except MemoryError:
        raise
    except Exception as error:  # __array__ may raise anything
        kind = type(value).__name__
        raise TypeError(
            f"{name} must be an array of floating-point numbers, and NumPy makes none of this {kind}: {error}"
        ) from error


def same_dtype(name: str, array: np.ndarray, other_name: str, other: np.ndarray) -> None:
    """TypeError unless two operands have one dtype (byte order aside)."""
    if array.dtype != other.dtype and array.dtype.name != other.dtype.name:
        raise TypeError(
            f"{name} and {other_name} must have one dtype, got {array.dtype.name} and {other.dtype.name}: "
            f"convert one, for example {name}.astype({other_name}.dtype)"
        )


def expect_shape(name: str, array: np.ndarray, shape: tuple[int, ...], why: str) -> None:
    """ValueError unless an array has the shape that the other arguments ask for."""
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape} ({why}), got {array.shape}")


def _owner(array: np.ndarray) -> Any:
    """What holds an array's memory: itself, or what it is a view of."""
    return array if array.flags.owndata else array.base


def _plainly_apart(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays are memory of two arrays: known in a fifth of the time that NumPy takes to compare bounds."""
    one, other = _owner(a), _owner(b)
    arrays = type(one) is np.ndarray and type(other) is np.ndarray
    return arrays and one is not other and one.flags.owndata and other.flags.owndata


def _overlap(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays share an element; yes where that is too hard to find out."""
    if _plainly_apart(a, b):
        return False
    try:
        return np.may_share_memory(a, b) and np.shares_memory(a, b, max_work=10_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype, inputs: dict[str, np.ndarray | None]) -> None:
    """Refuse an `out` that cannot take the result, or that shares memory with an input."""
    if type(out) is not np.ndarray and (not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray)):
        raise TypeError(f"out must be a numpy array without a mask or None, got {type(out).__name__}")
    if out.dtype != dtype and out.dtype.name != dtype.name:  # asking for a name takes 2 us
        raise TypeError(f"out must have dtype {dtype.name} like the inputs, got {out.dtype}")
    expect_shape("out", out, shape, "the shape of the result")
    flags = out.flags
    if not flags.writeable:
        raise ValueError("out must be writeable, got a read-only array")
    apart = not flags.c_contiguous and out.size
    if apart and any(step == 0 and size > 1 for step, size in zip(out.strides, out.shape, strict=True)):
        raise ValueError(f"out must have an address for each element, got strides {out.strides} for shape {out.shape}")
    for name, array in inputs.items():
        if array is not None and _overlap(out, array):
            raise ValueError(f"out must not overlap with {name}: the result would overwrite it while it is read")


def takes_result(out: Any, shape: tuple[int, ...], dtype: np.dtype, first: np.ndarray, second: np.ndarray) -> bool:
    """Whether an `out` is plainly fit: a look in half the time of asking for each way in which it might not be."""
    if type(out) is not np.ndarray or out.dtype is not dtype or out.shape != shape:
        return False
    flags = out.flags
    if flags.owndata and first.flags.owndata and second.flags.owndata:
        return flags.carray and out is not first and out is not second
    return flags.carray and _plainly_apart(out, first) and _plainly_apart(out, second)


def weights_argument(w: ArrayLike) -> np.ndarray:
    """W as an array with the four axes of weights."""
    array = array_argument("w", w)
    if array.ndim != 4:
        raise ValueError(
            f"w must have 4 axes, (kh, kw, ic/groups, oc) for layout 'NHWC' or (oc, ic/groups, kh, kw) for 'NCHW'; "
            f"got shape {array.shape}"
        )
    return array


def bias_argument(bias: ArrayLike | None, w: np.ndarray, problem: ConvProblem) -> np.ndarray | None:
    """Bias as an array with a value for each output channel, or None."""
    if bias is None:
        return None
    array = array_argument("bias", bias)
    same_dtype("bias", array, "w", w)
    expect_shape("bias", array, (problem.oc,), "one value for each output channel")
    return array


def allocate(
    shape: tuple[int, ...], dtype: str, given: np.dtype, out: Any, inputs: dict[str, np.ndarray | None],
    batchless: bool = False,
) -> Result:  # fmt: skip
    """Check `out` against the result's shape, the inputs' dtype `given` and the inputs, or make a new result.

    `batchless` drops the first axis from what the caller gives and gets; `dtype` is what is computed in.
    """
    if out is not None:
        check_out(out, shape[1:] if batchless else shape, given, inputs)
    return Result(shape, dtype, given, out, batchless)


def expect_grad_y(grad_y: np.ndarray, problem: ConvProblem, batchless: bool) -> None:
    """ValueError unless grad_y has the shape of the convolution's output."""
    shape = problem.y_shape[1:] if batchless else problem.y_shape
    expect_shape("grad_y", grad_y, shape, "the shape of the convolution's output")
