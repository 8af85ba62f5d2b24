"""The loss of a classifier and its gradient, row by row: with NumPy ten passes through small arrays."""

from __future__ import annotations

import functools
import math
from typing import Any

import numba
import numpy as np
from numba import types

from fastconv.kernels import jit


@functools.cache
def cross_entropy(dtype: str) -> Any:
    """Return the mean loss and write its gradient; a label's share is 1 - smoothing, the rest is spread evenly."""
    REAL = np.dtype(dtype).type
    real = numba.from_dtype(np.dtype(dtype))

    def cross_entropy_rows(logits, labels, smoothing, grad):
        n, classes = logits.shape
        spread, loss = smoothing / classes, 0.0
        for i in range(n):
            largest = logits[i, 0]
            for c in range(1, classes):
                largest = max(largest, logits[i, c])
            total, below = 0.0, 0.0
            for c in range(classes):
                grad[i, c] = math.exp(logits[i, c] - largest)
                total += grad[i, c]
                below += logits[i, c] - largest
            label = labels[i]
            loss += math.log(total) - (1.0 - smoothing) * (logits[i, label] - largest)
            if smoothing > 0.0:  # or infinite distances would count as 0 times infinity
                loss -= spread * below
            for c in range(classes):
                grad[i, c] = REAL((grad[i, c] / total - spread) / n)
            grad[i, label] -= REAL((1.0 - smoothing) / n)
        return loss / n

    rows, indices = types.Array(real, 2, "C", readonly=True), types.Array(types.int64, 1, "C", readonly=True)
    return jit.native(types.float64(rows, indices, types.float64, types.Array(real, 2, "C")))(cross_entropy_rows)
