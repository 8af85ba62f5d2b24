"""What an algorithm is: the problems it takes, what it costs, its forward pass and its gradients."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fastconv.kernels.launch import Bound
from fastconv.kernels.params import address
from fastconv.problem import CHANNELS_LAST, ConvProblem

if TYPE_CHECKING:
    from fastconv.machine import Machine


@dataclass(frozen=True)
class Estimate:
    """What an operation expects to take, and a word on how it works."""

    seconds: float
    reason: str


class Epilogue:
    """What happens to an output value before it is stored: the bias is added, then the activation applied."""

    __slots__ = ("bias", "end", "failed", "function", "relu")

    def __init__(self, bias: np.ndarray | None = None, relu: bool = False, function: Any = None) -> None:
        """`function` is a compiled activation (`fastconv.kernels.activation`), or None."""
        self.bias = bias
        self.relu = relu
        self.function = function
        self.failed: np.ndarray | None = None  # set by a kernel whose activation raised
        if function is not None:
            self.failed = np.zeros(1, np.int64)
        self.end = int(relu), 0 if function is None else function.address, address(self.failed)
        """The activation as kernels take it (`fastconv.kernels.launch.NO_END`)."""

    def start(self, zeros: np.ndarray, groups: int) -> np.ndarray:
        """What the sums begin with: the given `zeros` without a bias, else that in as many values for each group.

        A group ends with repetitions of its last channel's, because the tile rows there repeat that channel.
        """
        if self.bias is None:
            return zeros
        size = self.bias.size
        if size == zeros.size:
            return self.bias
        if groups == 1:  # by itself, as it takes a microsecond less
            row = np.empty(zeros.size, zeros.dtype)
            row[:size] = self.bias
            row[size:] = self.bias[-1]
            return row
        row = np.empty((groups, zeros.size // groups), zeros.dtype)
        by_group = self.bias.reshape(groups, -1)
        row[:, : by_group.shape[1]] = by_group
        row[:, by_group.shape[1] :] = by_group[:, -1:]
        return row.reshape(-1)


PLAIN = Epilogue()
"""No bias and no activation."""
UNUSED = {dtype: np.zeros(1, dtype) for dtype in ("float32", "float64")}
"""Stands for what sums begin with in launches that add nothing up."""


class Operation(ABC):
    """One direction of a problem, planned by an algorithm for a number of threads."""

    workspace_bytes: int
    """Extra memory that a run takes."""

    prepared_key: Any = None
    """What `prepare` depends on besides the weights."""

    @abstractmethod
    def estimate(self, machine: Machine) -> Estimate:
        """Predict the time from the machine's limits."""

    def prepare(self, w: np.ndarray) -> Any:
        """What can be computed from the weights alone, once for many forward passes."""
        return None

    def bound(self, epilogue: Epilogue = PLAIN, prepared: Any = None) -> Bound:
        """What does `run(first, second, result, epilogue, prepared)` for three arrays at a time, while this lives."""
        return lambda first, second, result: self.run(first, second, result, epilogue, prepared)

    @abstractmethod
    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: Any = None,
    ) -> None:  # fmt: skip
        """Write the result, from (x, w) forward, from (grad_y, w) or (grad_y, x) for the gradients.

        Arrays come checked: contiguous, aligned, of the problem's layout and dtype, with at least one image; the
        caller owns them all. `prepared` is what `prepare` returned for these weights, or None.
        """


class Algorithm(ABC):
    """One way to compute a convolution and its gradients."""

    name: ClassVar[str]
    exact: ClassVar[bool] = True
    """Whether it sums the plain products only, so that integer-valued data give exact results."""

    def declines(self, problem: ConvProblem, direction: str) -> str | None:
        """Why this algorithm is not for the problem; None if it is."""
        return None

    def errs_more(self, problem: ConvProblem, direction: str) -> bool:
        """Whether its rounding errors are larger than those of the plain sums."""
        return not self.exact

    @abstractmethod
    def plan(self, problem: ConvProblem, direction: str, threads: int) -> Operation:
        """Plan one direction of a problem that the algorithm does not decline."""


def canonical_strides(shape: tuple[int, ...], itemsize: int, layout: str) -> tuple[int, int, int, int]:
    """Strides in bytes along (n, row, column, channel) of a contiguous image of either layout."""
    a, b, c = (shape[1] * shape[2] * shape[3] * itemsize, shape[2] * shape[3] * itemsize, shape[3] * itemsize)
    return (a, c, itemsize, b) if layout == "NCHW" else (a, b, c, itemsize)


def scratch_limit(problem: ConvProblem, threads: int) -> float:
    """Bytes that a call may need besides its arrays: a tenth of theirs, or 2 MB a thread if that is more."""
    arrays = (problem.x_shape, problem.w_shape, problem.y_shape)
    return max(0.1 * sum(math.prod(shape) for shape in arrays) * problem.itemsize, threads * (2 << 20))


def canonical_weight_strides(shape: tuple[int, ...], itemsize: int, layout: str) -> tuple[int, int, int, int]:
    """Strides in bytes along (row, column, input channel, output channel) of contiguous weights of either layout."""
    a, b, c = (shape[1] * shape[2] * shape[3] * itemsize, shape[2] * shape[3] * itemsize, shape[3] * itemsize)
    if layout == CHANNELS_LAST:
        return b, c, a, itemsize
    return (a, b, c, itemsize) if layout == "NHWC" else (c, itemsize, b, a)
