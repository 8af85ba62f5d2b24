"""Weight gradients in slabs: parts of the pixels with partial gradients of their own, which are added in order."""

from __future__ import annotations

import math

import numpy as np

from fastconv.kernels import slabs as kernels
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import Buffer, fill
from fastconv.problem import ConvProblem

SLABS_BYTES = 5 << 18
"""All partial gradients, beside which a thread's blocks still find room in the workspace that it may take."""
MOST_SLABS = 16
_BLOCK_WEIGHTS = 1024


def slabs_up_to(most: int) -> int:
    """The largest power of two up to `most`, at least 1: numbers of threads are mostly powers of two, too."""
    return 1 << max(0, most.bit_length() - 1)


class Slabs:
    """Partial gradients of `count` slabs; with one, or where they are not kept `apart`, the gradient itself."""

    def __init__(self, problem: ConvProblem, count: int, threads: int, apart: bool = True) -> None:
        self.count = count
        self._dtype = problem.dtype
        weights = math.prod(problem.w_shape)
        apart = apart and count > 1
        self.bytes_each = weights * problem.itemsize if apart else 0
        """From one partial gradient to the next."""
        self.workspace_bytes = count * self.bytes_each
        block = max(_BLOCK_WEIGHTS, -(-weights // (4 * threads)))
        plan = fill(kernels.SLABS, slabs=count, weights=weights, block=block)
        self.add = Launch(lambda: kernels.add_slabs(problem.dtype), problem.dtype, plan, -(-weights // block), threads)

    def run(self, launch: Launch, source: np.ndarray, other: np.ndarray, start: np.ndarray, result: np.ndarray) -> None:
        """Run a launch whose slabs write `bytes_each` apart, and add what they wrote into the result."""
        if not self.workspace_bytes:
            launch(source, other, start, result)
            return
        with Buffer(self.workspace_bytes) as buffer:
            partial = buffer[: self.workspace_bytes].view(self._dtype).reshape(1, 1, self.count, -1)
            launch(source, other, start, partial)
            self.add(partial, partial, start, result)
