"""Layers whose one window is the whole image: fully connected ones, computed as a pointwise layer on one pixel.

Taps and channels lie side by side in the image and in the weights alike, so their arrays are those of a layer with as
many channels, seen with other shapes.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fastconv.algorithms.base import PLAIN, Epilogue, Estimate, Operation
from fastconv.kernels.launch import Bound
from fastconv.problem import ConvProblem

if TYPE_CHECKING:
    from fastconv.machine import Machine


def as_one_pixel(problem: ConvProblem) -> ConvProblem | None:
    """Return the same sums as a pointwise layer on one pixel; None where windows are not the whole image."""
    size = problem.input_size
    if problem.kernel_size != size or size == (1, 1) or problem.groups > 1 or problem.dilation != (1, 1):
        return None
    if problem.padding != ((0, 0), (0, 0)) or problem.layout not in ("NHWC", "NCHW"):  # or the orders differ
        return None
    return replace(problem, ic=problem.ic * math.prod(size), input_size=(1, 1), kernel_size=(1, 1), stride=(1, 1))


class WholeWindowOperation(Operation):
    """The pointwise layer's operation on arrays of the shapes that it knows."""

    def __init__(self, operation: Operation, pixel: ConvProblem, direction: str) -> None:
        self._operation = operation
        self._w_shape = pixel.w_shape
        operands = {"forward": (pixel.x_shape, pixel.w_shape, pixel.y_shape)}
        operands["grad_input"] = (pixel.y_shape, pixel.w_shape, pixel.x_shape)
        operands["grad_weight"] = (pixel.y_shape, pixel.x_shape, pixel.w_shape)
        self._shapes = operands[direction]
        self.workspace_bytes = operation.workspace_bytes
        self.prepared_key = operation.prepared_key

    def estimate(self, machine: Machine) -> Estimate:
        return self._operation.estimate(machine)

    def prepare(self, w: np.ndarray) -> Any:
        return self._operation.prepare(w.reshape(self._w_shape))

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: Any = None,
    ) -> None:  # fmt: skip
        self.bound(epilogue, prepared)(first, second, result)

    def bound(self, epilogue: Epilogue = PLAIN, prepared: Any = None) -> Bound:
        run, (one, other, to) = self._operation.bound(epilogue, prepared), self._shapes
        return lambda first, second, result: run(first.reshape(one), second.reshape(other), result.reshape(to))
