"""What a pass is: one launch of a kernel on one dense sub-problem, planned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastconv.algorithms.base import PLAIN, Epilogue
from fastconv.algorithms.slabs import Slabs
from fastconv.kernels.launch import Bound, Launch
from fastconv.problem import ConvProblem


@dataclass(frozen=True, eq=False)
class Pass(ABC):
    """A planned launch; its record lacks only what belongs to one call."""

    problem: ConvProblem
    threads: int
    tile: Any
    launch: Launch

    @property
    def workspace_bytes(self) -> int:
        """Extra memory of a call."""
        return self.launch.workspace_bytes

    @property
    def prepared_key(self) -> Any:
        """What the prepared weights depend on besides the weights; None where they are the weights as they lie."""
        return None

    @abstractmethod
    def describe(self) -> str:
        """The tile in words."""

    @abstractmethod
    def seconds(self, rate: float) -> float:
        """Predicted time of a call, with `rate` slots a second on each thread."""

    def prepare(self, w: np.ndarray) -> np.ndarray:
        """The weights as the kernel reads them."""
        return w

    def bound(self, epilogue: Epilogue, prepared: np.ndarray | None) -> Bound:
        """What does `run(first, second, result, epilogue, prepared)` for three arrays at a time."""
        return lambda first, second, result: self.run(first, second, result, epilogue, prepared)

    @abstractmethod
    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """Compute the pass's part of the result, as `Operation.run` does the whole."""


@dataclass(frozen=True, eq=False)
class BoundPass(Pass):
    """A pass that has little to do besides its launch once its epilogue and prepared weights are known."""

    @abstractmethod
    def bound(self, epilogue: Epilogue, prepared: np.ndarray | None) -> Bound:
        """What runs the pass, for three arrays at a time."""

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        self.bound(epilogue, prepared)(first, second, result)


@dataclass(frozen=True, eq=False)
class ZerosPass(BoundPass):
    """A pass whose sums begin with the bias, or with as many zeros."""

    zeros: np.ndarray
    """What sums begin with where there is no bias."""

    def bound(self, epilogue: Epilogue, prepared: np.ndarray | None) -> Bound:
        return self.launch.bound(self.zeros if epilogue.bias is None else epilogue.bias, epilogue.end)


@dataclass(frozen=True, eq=False)
class SlabPass(Pass):
    """A weight gradient whose slabs are summed apart, and added up in order."""

    slabs: Slabs
    unused: np.ndarray
    """Stands for what sums begin with, which is nothing."""

    @property
    def workspace_bytes(self) -> int:
        return self.launch.workspace_bytes + self.slabs.workspace_bytes

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        self.slabs.run(self.launch, second, first, self.unused, result)
