"""What an algorithm is: the problems it takes, what it costs, its forward pass and its gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fastconv.problem import ConvProblem

if TYPE_CHECKING:
    from fastconv.machine import Machine


@dataclass(frozen=True)
class Estimate:
    """What an algorithm expects to need for one problem in one direction."""

    seconds: float
    workspace_bytes: int
    reason: str


@dataclass
class Epilogue:
    """What happens to an output value before it is stored: the bias is added, then the activation applied."""

    bias: np.ndarray | None = None
    relu: bool = False
    function: Any = None
    """A compiled activation (`fastconv.kernels.activation`), or None."""
    failed: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    """Set by a kernel whose activation raised."""

    @property
    def address(self) -> int:
        return 0 if self.function is None else self.function.address

    def start(self, groups: int, padded: int, dtype: str) -> np.ndarray:
        """What the sums begin with: the bias or zeros, as one row of `padded` values for each group.

        The row ends with repetitions of the last channel's, because the tile rows there repeat that channel.
        """
        row = np.zeros((groups, padded), dtype)
        if self.bias is not None:
            by_group = self.bias.reshape(groups, -1)
            row[:, : by_group.shape[1]] = by_group
            row[:, by_group.shape[1] :] = by_group[:, -1:]
        return row


class Algorithm(ABC):
    """One way to compute a convolution and its gradients.

    Arrays come checked: contiguous, aligned, of the problem's layout and dtype, with at least one image; the caller
    owns them all.
    """

    name: ClassVar[str]
    exact: ClassVar[bool] = True
    """Whether it sums the plain products only, so that integer-valued data give exact results."""

    def declines(self, problem: ConvProblem, direction: str) -> str | None:
        """Why this algorithm is not for the problem; None if it is."""
        return None

    @abstractmethod
    def estimate(self, problem: ConvProblem, direction: str, machine: Machine) -> Estimate:
        """Predict time and workspace from the machine's limits."""

    def prepared_key(self, problem: ConvProblem) -> Any:
        """What `prepare` depends on besides the weights."""
        return None

    def prepare(self, problem: ConvProblem, w: np.ndarray) -> Any:
        """What can be computed from the weights alone, once for many forward passes."""
        return None

    @abstractmethod
    def forward(
        self,
        problem: ConvProblem,
        x: np.ndarray,
        w: np.ndarray,
        epilogue: Epilogue,
        y: np.ndarray,
        prepared: Any,
    ) -> None:
        """Write the output to y; `prepared` is what `prepare` returned for these weights, or None."""

    @abstractmethod
    def grad_input(self, problem: ConvProblem, grad_y: np.ndarray, w: np.ndarray, grad_x: np.ndarray) -> None:
        """Write the gradient for the input to grad_x."""

    @abstractmethod
    def grad_weight(self, problem: ConvProblem, grad_y: np.ndarray, x: np.ndarray, grad_w: np.ndarray) -> None:
        """Write the gradient for the weights to grad_w."""


def canonical_strides(shape: tuple[int, ...], itemsize: int, layout: str) -> tuple[int, int, int, int]:
    """Strides in bytes along (n, row, column, channel) of a contiguous image of either layout."""
    a, b, c = (shape[1] * shape[2] * shape[3] * itemsize, shape[2] * shape[3] * itemsize, shape[3] * itemsize)
    return (a, b, c, itemsize) if layout == "NHWC" else (a, c, itemsize, b)


def canonical_weight_strides(shape: tuple[int, ...], itemsize: int, layout: str) -> tuple[int, int, int, int]:
    """Strides in bytes along (row, column, input channel, output channel) of contiguous weights of either layout."""
    a, b, c = (shape[1] * shape[2] * shape[3] * itemsize, shape[2] * shape[3] * itemsize, shape[3] * itemsize)
    return (a, b, c, itemsize) if layout == "NHWC" else (c, itemsize, b, a)
