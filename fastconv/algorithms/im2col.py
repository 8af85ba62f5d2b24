"""im2col: copy every window into a row of a matrix, then one matrix product does the rest.

Chellapilla, Puri and Simard, "High performance convolutional neural networks for document processing", 2006. The
matrix is built and used block by block, so the workspace stays bounded; the product is NumPy's BLAS.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from fastconv.algorithms.base import Algorithm, Epilogue, Estimate, canonical_strides
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
_SWITCH_SECONDS = 8e-3
"""What a block takes besides on several threads: BLAS's threads spin for some 25 ms after a product, and Numba's get a
core only when the scheduler takes it from them (measured on two cores, where every call took a multiple of 8 ms)."""


class Im2col(Algorithm):
    """A patch matrix, block by block, and a matrix product."""

    name = "im2col"

    def estimate(self, problem: ConvProblem, direction: str, machine: Machine) -> Estimate:
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
        blocks = self._blocks(problem)
        reason = f"patch matrix of {im2col_bytes(problem) / 2**20:.1f} MiB in {blocks * problem.groups} blocks"
        seconds = (
            copy
            + max(product, traffic)
            + blocks * problem.groups * (_CALL_SECONDS if machine.threads == 1 else _SWITCH_SECONDS)
        )
        return Estimate(seconds, self._workspace(problem), reason)

    def _rows_per_block(self, problem: ConvProblem) -> int:
        depth = math.prod(problem.kernel_size) * problem.ic_per_group
        return max(1, min(_BLOCK_BYTES // (depth * problem.itemsize), math.prod(problem.output_size)))

    def _blocks(self, problem: ConvProblem) -> int:
        return problem.n * -(-math.prod(problem.output_size) // self._rows_per_block(problem))

    def _workspace(self, problem: ConvProblem) -> int:
        depth = math.prod(problem.kernel_size) * problem.ic_per_group
        return self._rows_per_block(problem) * depth * problem.itemsize

    def _pieces(self, problem: ConvProblem) -> Iterator[tuple[int, int, int, int]]:
        """(group, image, first and last output pixel of the image) of each block."""
        pixels, block = math.prod(problem.output_size), self._rows_per_block(problem)
        for group in range(problem.groups):
            for image in range(problem.n):
                for first in range(0, pixels, block):
                    yield group, image, first, min(first + block, pixels)

    def _params(
        self, problem: ConvProblem, x: np.ndarray, matrix: np.ndarray, piece: tuple[int, int, int, int]
    ) -> np.ndarray:
        group, image, first, last = piece
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

    def _matrix(self, problem: ConvProblem) -> np.ndarray:
        depth = math.prod(problem.kernel_size) * problem.ic_per_group
        return np.empty((self._rows_per_block(problem), depth), problem.dtype)

    def _weights(self, problem: ConvProblem, w: np.ndarray, group: int) -> np.ndarray:
        """View the weights of a group as a matrix (patch, output channel)."""
        outputs = slice(group * problem.oc_per_group, (group + 1) * problem.oc_per_group)
        if problem.layout == "NHWC":
            return w.reshape(-1, problem.oc)[:, outputs]
        return w.reshape(problem.oc, -1)[outputs].T

    def _outputs(
        self, problem: ConvProblem, y: np.ndarray, group: int, image: int, first: int, last: int
    ) -> np.ndarray:
        """View a block of the output as a matrix (pixel, output channel)."""
        outputs = slice(group * problem.oc_per_group, (group + 1) * problem.oc_per_group)
        if problem.layout == "NHWC":
            return y[image].reshape(-1, problem.oc)[first:last, outputs]
        return y[image].reshape(problem.oc, -1)[outputs, first:last].T

    def _unfold(
        self, problem: ConvProblem, x: np.ndarray, matrix: np.ndarray, piece: tuple[int, int, int, int]
    ) -> np.ndarray:
        rows = matrix[: piece[3] - piece[2]]
        kernel = patches.unfold(problem.dtype)
        params = self._params(problem, x, matrix, piece)
        launch.run(kernel, params, len(rows), threads=launch.max_threads(), grain=64)
        return rows

    @QUIET
    def forward(
        self,
        problem: ConvProblem,
        x: np.ndarray,
        w: np.ndarray,
        epilogue: Epilogue,
        y: np.ndarray,
        prepared: Any,
    ) -> None:
        matrix = self._matrix(problem)
        for piece in self._pieces(problem):
            group, _, _, _ = piece
            rows = self._unfold(problem, x, matrix, piece)
            block = self._outputs(problem, y, *piece)
            np.matmul(rows, self._weights(problem, w, group), out=block)
            outputs = slice(group * problem.oc_per_group, (group + 1) * problem.oc_per_group)
            if epilogue.bias is not None:
                block += epilogue.bias[outputs]
            if epilogue.relu:
                np.maximum(block, 0, out=block)
        if epilogue.function is not None:
            epilogue.failed[0] = epilogue.function.ctypes(address(y), y.size)

    @QUIET
    def grad_input(self, problem: ConvProblem, grad_y: np.ndarray, w: np.ndarray, grad_x: np.ndarray) -> None:
        matrix = self._matrix(problem)
        grad_x[...] = 0
        for piece in self._pieces(problem):
            rows = matrix[: piece[3] - piece[2]]
            np.matmul(self._outputs(problem, grad_y, *piece), self._weights(problem, w, piece[0]).T, out=rows)
            kernel = patches.fold(problem.dtype)
            params = self._params(problem, grad_x, matrix, piece)
            launch.run(kernel, params, problem.input_size[0], threads=launch.max_threads())

    @QUIET
    def grad_weight(self, problem: ConvProblem, grad_y: np.ndarray, x: np.ndarray, grad_w: np.ndarray) -> None:
        matrix = self._matrix(problem)
        grad_w[...] = 0
        for piece in self._pieces(problem):
            rows = self._unfold(problem, x, matrix, piece)
            part = self._weights(problem, grad_w, piece[0])
            part += rows.T @ self._outputs(problem, grad_y, *piece)
