"""What two signals and a mode ask for: which results, what lies outside, in which dtype; and every error about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastconv.kernels.signal import FILL, SYMM, WRAP

MODES = ("full", "same", "valid")
METHODS = ("auto", "direct", "fft")
BOUNDARIES = {"fill": FILL, "pad": FILL, "wrap": WRAP, "circular": WRAP, "symm": SYMM, "symmetric": SYMM}


@dataclass(frozen=True)
class Axis:
    """One axis: the two sizes, and which part of the full convolution is asked for."""

    in1: int
    in2: int
    first: int
    size: int


@dataclass(frozen=True)
class SignalProblem:
    """A convolution of two signals. A correlation is one with the second reversed, and one of the two conjugated.

    Attributes
    ----------
    axes : tuple of Axis
        One or two.
    dtype : numpy.dtype
        Of the result.
    valid : bool
        Whether only results are asked for that need nothing outside of the larger input.
    correlates : bool
        Whether in2 is taken in reverse order.
    conjugated : int
        Which input is conjugated: 1, 2, or 0 for none.
    boundary : int
        What lies outside in1.
    fill : complex or int
        The value there, for the boundary "fill".
    """

    axes: tuple[Axis, ...]
    dtype: np.dtype
    valid: bool
    correlates: bool = False
    conjugated: int = 0
    boundary: int = FILL
    fill: Any = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return tuple(axis.size for axis in self.axes)

    @property
    def computed(self) -> np.dtype:
        """What is computed in: the result's dtype, but float32 for float16 and for counting what is true."""
        return np.dtype(np.float32) if self.dtype.char in "?e" else self.dtype

    @property
    def parts(self) -> int:
        """Real numbers in one of the result's."""
        return 2 if self.dtype.kind == "c" else 1

    @property
    def commutes(self) -> bool:
        """Whether the inputs may change roles: nothing but zeros is read outside of either."""
        return self.valid or (self.boundary == FILL and self.fill == 0)


def operand(name: str, value: Any) -> np.ndarray:
    """An input as an array of numbers that are computed with, or TypeError."""
    array = np.asarray(value)
    if array.dtype.kind not in "biufc" or array.dtype.char in "gG":
        raise TypeError(
            f"{name} must hold booleans, integers, or floating-point or complex numbers of at most 64 bits a part; "
            f"got {array.dtype}"
        )
    return np.require(array, requirements="A")


def choice(name: str, value: Any, choices: Any) -> Any:
    """The value itself if it is one of the choices, or ValueError."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")
    return value


def _check_shapes(in1: np.ndarray, in2: np.ndarray, ranks: tuple[int, ...]) -> None:
    for name, array in (("in1", in1), ("in2", in2)):
        if array.ndim not in ranks:
            axes = " or ".join(map(str, ranks))
            raise ValueError(f"{name} must have {axes} axes, got shape {array.shape}")
        if not array.size:
            raise ValueError(f"{name} must not be empty, got shape {array.shape}")
    if in1.ndim != in2.ndim:
        raise ValueError(f"in1 and in2 must have as many axes as each other, got shapes {in1.shape} and {in2.shape}")


def _contained(in1: np.ndarray, in2: np.ndarray) -> bool:
    """Whether in1 is the smaller one, for mode "valid"; ValueError if neither fits into the other."""
    if all(a >= b for a, b in zip(in1.shape, in2.shape, strict=True)):
        return False
    if all(a <= b for a, b in zip(in1.shape, in2.shape, strict=True)):
        return True
    raise ValueError(
        "for mode 'valid' one of in1 and in2 must be at least as large as the other along every axis; "
        f"got shapes {in1.shape} and {in2.shape}"
    )


def _axis(in1: int, in2: int, mode: str, centre: int) -> Axis:
    if mode == "full":
        return Axis(in1, in2, 0, in1 + in2 - 1)
    if mode == "same":
        return Axis(in1, in2, centre, in1)
    return Axis(in1, in2, min(in1, in2) - 1, abs(in1 - in2) + 1)


def filter_problem(in1: np.ndarray, in2: np.ndarray, mode: Any, correlates: bool) -> SignalProblem:
    """What `convolve` and `correlate` compute."""
    _check_shapes(in1, in2, (1, 2))
    if choice("mode", mode, MODES) == "valid":
        _contained(in1, in2)
    axes = tuple(_axis(a, b, mode, (b - 1) // 2) for a, b in zip(in1.shape, in2.shape, strict=True))
    dtype = np.result_type(in1.dtype, in2.dtype).newbyteorder("=")
    return SignalProblem(axes, dtype, mode == "valid", correlates, 2 if correlates and dtype.kind == "c" else 0)


def image_problem(
    in1: np.ndarray, in2: np.ndarray, mode: Any, boundary: Any, fillvalue: Any, correlates: bool
) -> SignalProblem:
    """What `convolve2d` and `correlate2d` compute."""
    _check_shapes(in1, in2, (2,))
    swaps = choice("mode", mode, MODES) == "valid" and _contained(in1, in2)
    axes = tuple(
        _axis(a, b, mode, b // 2 if correlates else (b - 1) // 2) for a, b in zip(in1.shape, in2.shape, strict=True)
    )
    dtype = np.result_type(in1.dtype, in2.dtype).newbyteorder("=")
    conjugated = (1 if swaps else 2) if correlates and dtype.kind == "c" else 0
    code = BOUNDARIES[choice("boundary", boundary, BOUNDARIES)]
    return SignalProblem(axes, dtype, mode == "valid", correlates, conjugated, code, _fill(fillvalue, dtype))


def _fill(fillvalue: Any, dtype: np.dtype) -> Any:
    """The fill value in the result's dtype, or ValueError."""
    value = np.asarray(fillvalue)
    if value.size != 1 or value.dtype.kind not in "biufc":
        raise ValueError(f"fillvalue must be one number, got {fillvalue!r}")
    number = value.reshape(())[()]
    if dtype.kind != "c" and value.dtype.kind == "c":
        raise ValueError(f"fillvalue must be real where the result is {dtype}, got {fillvalue!r}")
    if dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        if not bounds.min <= number <= bounds.max:
            raise ValueError(f"fillvalue must be a number of {dtype}, got {fillvalue!r}")
        return int(number)
    return complex(number) if dtype.kind == "c" else float(number)
