"""im2col: copy every window into a row of a matrix, then one matrix product does the rest.

Chellapilla, Puri and Simard, "High performance convolutional neural networks for document processing", 2006. The
matrix is built and used block by block, so the workspace stays bounded; the product is NumPy's BLAS.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from fastconv.algorithms.base import PLAIN, Algorithm, Epilogue, Estimate, Operation, canonical_strides
from fastconv.arrays import QUIET
from fastconv.cost import conv_bytes, conv_flops, im2col_bytes
from fastconv.kernels import launch, patches
from fastconv.kernels.params import address, fill
from fastconv.problem import ConvProblem

if TYPE_CHECKING:
    from fastconv.machine import Machine

_BLOCK_BYTES = 8 << 20
"""Size of a block of the patch matrix: large enough for a fast product, small enough for the last cache level."""
_PRODUCT_SHARE = 0.8
"""Share of the peak that the matrix product reaches where both of its inner sizes fill vectors."""
_ROW_SECONDS = 15e-9
"""Beginning a row of the patch matrix, by one thread."""
_RUN_SECONDS = 6e-9
"""Beginning one piece of it that lies side by side in the image."""
_VALUE_SECONDS = 0.25e-9
"""Copying one value of a piece."""
_CALL_SECONDS = 20e-6
"""Calls of the copying kernel and of the matrix product for one block."""
_ADD_SECONDS = 0.4e-9
"""Adding a byte of a block's weight gradient, which comes in an array of its own, to that of the blocks before."""
_SWITCH_SECONDS = 8e-3
"""What a block takes besides on several threads: BLAS's threads spin for some 25 ms after a product, and Numba's get a
core only when the scheduler takes it from them (measured on two cores, where every call took a multiple of 8 ms)."""


class Im2col(Algorithm):
    """A patch matrix, block by block, and a matrix product."""

    name = "im2col"

    def plan(self, problem: ConvProblem, direction: str, threads: int) -> Operation:
        return Im2colOperation(problem, direction, threads)


class Im2colOperation(Operation):
    """One direction by patch matrices."""

    def __init__(self, problem: ConvProblem, direction: str, threads: int) -> None:
        self.problem = problem
        self.direction = direction
        self.threads = threads
        self._depth = math.prod(problem.kernel_size) * problem.ic_per_group
        block = _BLOCK_BYTES // (self._depth * problem.itemsize)
        self._rows = max(1, min(block, math.prod(problem.output_size)))
        self.workspace_bytes = self._rows * self._depth * problem.itemsize

    def estimate(self, machine: Machine) -> Estimate:
        problem, direction = self.problem, self.direction
        kh, kw = problem.kernel_size
        outer, inner = (1, problem.ic_per_group) if problem.layout == "NHWC" else (problem.ic_per_group, 1)
        # The forward copy joins taps that touch; the gradient adds tap by tap.
        joined = kw if problem.dilation[1] == 1 and problem.groups == 1 and direction != "grad_input" else 1
        pieces = outer * kh * kw // joined
        row = _ROW_SECONDS + pieces * (_RUN_SECONDS + joined * inner * _VALUE_SECONDS)
        copy = problem.n * math.prod(problem.output_size) * problem.groups * row / machine.threads
        fill_share = min(1.0, problem.oc_per_group * problem.itemsize / machine.vector_bytes)
        product = conv_flops(problem) / (machine.peak_flops * _PRODUCT_SHARE * fill_share)
        traffic = (conv_bytes(problem, direction) + im2col_bytes(problem)) / (4 * machine.bandwidth)
        blocks = problem.groups * problem.n * -(-math.prod(problem.output_size) // self._rows)
        reason = f"patch matrix of {im2col_bytes(problem) / 2**20:.1f} MiB in {blocks} blocks"
        each = _CALL_SECONDS if machine.threads == 1 else _SWITCH_SECONDS
        if direction == "grad_weight":
            each += math.prod(problem.w_shape) // problem.groups * problem.itemsize * _ADD_SECONDS
        return Estimate(copy + max(product, traffic) + blocks * each, reason)

    @QUIET
    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: Any = None,
    ) -> None:  # fmt: skip
        matrix = np.empty((self._rows, self._depth), self.problem.dtype)
        if self.direction == "forward":
            self._forward(first, second, epilogue, result, matrix)
        elif self.direction == "grad_input":
            self._grad_input(first, second, result, matrix)
        else:
            self._grad_weight(first, second, result, matrix)

    def _forward(self, x: np.ndarray, w: np.ndarray, epilogue: Epilogue, y: np.ndarray, matrix: np.ndarray) -> None:
        for piece in self._pieces():
            rows = self._unfold(x, matrix, piece)
            block = self._outputs(y, *piece)
            np.matmul(rows, self._weights(w, piece[0]), out=block)
            if epilogue.bias is not None:
                block += epilogue.bias[self._channels(piece[0])]
            if epilogue.relu:
                np.maximum(block, 0, out=block)
        if epilogue.function is not None:
            epilogue.function.ctypes(address(y), y.size, epilogue.failed_address)

    def _grad_input(self, grad_y: np.ndarray, w: np.ndarray, grad_x: np.ndarray, matrix: np.ndarray) -> None:
        grad_x[...] = 0
        for piece in self._pieces():
            rows = matrix[: piece[3] - piece[2]]
            np.matmul(self._outputs(grad_y, *piece), self._weights(w, piece[0]).T, out=rows)
            params = self._params(grad_x, matrix, piece)
            launch.run(patches.fold(self.problem.dtype), params, self.problem.input_size[0], threads=self.threads)

    def _grad_weight(self, grad_y: np.ndarray, x: np.ndarray, grad_w: np.ndarray, matrix: np.ndarray) -> None:
        grad_w[...] = 0
        for piece in self._pieces():
            rows = self._unfold(x, matrix, piece)
            part = self._weights(grad_w, piece[0])
            part += rows.T @ self._outputs(grad_y, *piece)

    def _pieces(self) -> Iterator[tuple[int, int, int, int]]:
        """(group, image, first and last output pixel of the image) of each block."""
        pixels = math.prod(self.problem.output_size)
        for group in range(self.problem.groups):
            for image in range(self.problem.n):
                for first in range(0, pixels, self._rows):
                    yield group, image, first, min(first + self._rows, pixels)

    def _params(self, x: np.ndarray, matrix: np.ndarray, piece: tuple[int, int, int, int]) -> np.ndarray:
        problem, (group, image, first, last) = self.problem, piece
        channels = problem.ic_per_group
        x_n, x_i, x_j, x_c = canonical_strides(problem.x_shape, problem.itemsize, problem.layout)
        (ih, iw), (oh, ow), (kh, kw) = problem.input_size, problem.output_size, problem.kernel_size
        outer, inner = (1, channels) if problem.layout == "NHWC" else (channels, 1)
        return fill(
            patches.PATCHES,
            x=address(x) + image * x_n + group * channels * x_c, x_outer=x_c, x_i=x_i, x_j=x_j,
            patches=address(matrix), first=first, last=last, ih=ih, iw=iw, oh=oh, ow=ow, kh=kh, kw=kw,
            outer=outer, inner=inner,
            stride_i=problem.stride[0], stride_j=problem.stride[1],
            pad_i=problem.padding[0][0], pad_j=problem.padding[1][0],
            dilation_i=problem.dilation[0], dilation_j=problem.dilation[1],
        )  # fmt: skip

    def _channels(self, group: int) -> slice:
        """The output channels of a group."""
        return slice(group * self.problem.oc_per_group, (group + 1) * self.problem.oc_per_group)

    def _weights(self, w: np.ndarray, group: int) -> np.ndarray:
        """View the weights of a group as a matrix (patch, output channel)."""
        if self.problem.layout == "NHWC":
            return w.reshape(-1, self.problem.oc)[:, self._channels(group)]
        return w.reshape(self.problem.oc, -1)[self._channels(group)].T

    def _outputs(self, y: np.ndarray, group: int, image: int, first: int, last: int) -> np.ndarray:
        """View a block of the output as a matrix (pixel, output channel)."""
        if self.problem.layout == "NHWC":
            return y[image].reshape(-1, self.problem.oc)[first:last, self._channels(group)]
        return y[image].reshape(self.problem.oc, -1)[self._channels(group), first:last].T

    def _unfold(self, x: np.ndarray, matrix: np.ndarray, piece: tuple[int, int, int, int]) -> np.ndarray:
        rows = matrix[: piece[3] - piece[2]]
        params = self._params(x, matrix, piece)
        launch.run(patches.unfold(self.problem.dtype), params, len(rows), threads=self.threads, grain=64)
        return rows
