"""im2col: copy every window into a row of a matrix, then one matrix product does the rest.

Chellapilla, Puri and Simard, "High performance convolutional neural networks for document processing", 2006. The
matrix is built and used block by block, so the workspace stays bounded; the product is NumPy's BLAS.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastconv.algorithms.base import PLAIN, Algorithm, Epilogue, Estimate, Operation, canonical_strides
from fastconv.arrays import QUIET
from fastconv.cost import conv_flops, im2col_bytes, traffic_seconds
from fastconv.kernels import launch, patches
from fastconv.kernels.params import address, fill
from fastconv.problem import ConvProblem

if TYPE_CHECKING:
    from fastconv.machine import Machine

_BLOCK_BYTES = 8 << 20
"""Size of a block of the patch matrix: large enough for a fast product, small enough for the last cache level."""
_PRODUCT_SHARE = 0.43
"""Share of the peak that the matrix product reaches where its inner sizes fill vectors: BLAS's are half as long here as
Numba's."""


class _Copy(NamedTuple):
    """Seconds of one thread: beginning a row of the patch matrix, a piece of it that lies side by side, each value."""

    row: float
    piece: float
    value: float


_UNFOLD = _Copy(20e-9, 1e-9, 0.58e-9)
"""From the image into the matrix."""
_FOLD = _Copy(7e-9, 1.6e-9, 0.1e-9)
"""Added from the matrix to the image, piece by piece."""
_CALL_SECONDS = 10e-6
"""Calls of the copying kernel and of the matrix product for one block."""
_ADD_SECONDS = 0.07e-9
"""Adding a byte of a block's weight gradient, which comes in an array of its own, to that of the blocks before."""
_TURNED_ADD_SECONDS = 0.9e-9
"""The same in layout NCHW, where the two lie differently."""
_SWITCH_SECONDS = 8e-3
"""What a block takes at least that is copied and multiplied on several threads: BLAS's spin for some 25 ms after a
product, and Numba's get a core only when the scheduler takes it from them (measured on two cores, where every such call
took a multiple of 8 ms)."""
_THREADED_PRODUCTS = 1 << 20
"""Products of a matrix product from which on BLAS takes several threads."""
_COPIED_ROWS = 64
"""Rows of the patch matrix that are one task."""


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
        problem, direction, threads = self.problem, self.direction, machine.threads
        pixels = math.prod(problem.output_size)
        blocks = problem.groups * problem.n * -(-pixels // self._rows)
        copies = threads > 1 and self._rows > _COPIED_ROWS
        multiplies = threads > 1 and self._rows * self._depth * problem.oc_per_group >= _THREADED_PRODUCTS
        copy = problem.n * pixels * problem.groups * self._row_seconds() / (threads if copies else 1)
        if problem.oc_per_group == 1:
            product = im2col_bytes(problem) / machine.cache_bandwidth
        else:
            fill_share = min(1.0, problem.oc_per_group * problem.itemsize / machine.vector_bytes)
            product = conv_flops(problem) / (machine.peak_flops * _PRODUCT_SHARE * fill_share)
            product *= 1 if multiplies else threads
        each = _CALL_SECONDS
        if direction == "grad_weight":
            weights = math.prod(problem.w_shape) // problem.groups * problem.itemsize
            each += weights * (_ADD_SECONDS if problem.layout == "NHWC" else _TURNED_ADD_SECONDS)
        seconds = copy + product + blocks * each + traffic_seconds(problem, direction, machine)
        if copies and multiplies:
            seconds = max(seconds, blocks * _SWITCH_SECONDS)
        return Estimate(seconds, f"patch matrix of {im2col_bytes(problem) / 2**20:.1f} MiB in {blocks} blocks")

    def _row_seconds(self) -> float:
        """Copying a row of the patch matrix, or adding it to the image."""
        problem, (kh, kw) = self.problem, self.problem.kernel_size
        copy = _FOLD if self.direction == "grad_input" else _UNFOLD
        outer, inner = (1, problem.ic_per_group) if problem.layout == "NHWC" else (problem.ic_per_group, 1)
        # Taps of a row that touch are copied together, but added one by one.
        joins = problem.dilation[1] == 1 and problem.groups == 1 and copy is _UNFOLD
        pieces = outer * kh * (1 if joins else kw)
        return copy.row + pieces * copy.piece + outer * kh * kw * inner * copy.value

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
            epilogue.function.ctypes(address(y), y.size, address(epilogue.failed))

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
        launch.run(patches.unfold(self.problem.dtype), params, len(rows), threads=self.threads, grain=_COPIED_ROWS)
        return rows
