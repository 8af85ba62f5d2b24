"""What a pass is: one launch of a kernel on one dense sub-problem, planned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastconv.algorithms.base import PLAIN, Epilogue
from fastconv.kernels.launch import Launch
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

    @abstractmethod
    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """Compute the pass's part of the result, as `Operation.run` does the whole."""
