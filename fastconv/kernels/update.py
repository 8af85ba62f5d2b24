"""Updates of weights from their gradient, each in one pass through all arrays; a task is a block of values.

The arrays are the weights, their gradient, and one or two that the update remembers.

With NumPy an update of Adam goes through memory some 15 times.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.kernels import jit
from fastconv.kernels.params import FLAT
from fastconv.kernels.simd import array_at, record_at


@functools.cache
def sgd(dtype: str) -> CFunc:
    """Stochastic gradient descent with momentum: settings are (rate, momentum)."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize

    def update_sgd(address, begin, end, thread):
        p = record_at(address, FLAT)
        settings = array_at(p.settings, 2, np.float64)
        rate, momentum = REAL(settings[0]), REAL(settings[1])
        for task in range(begin, end):
            offset, count = task * p.block * ITEM, min(p.block, p.count - task * p.block)
            w, grad = array_at(p.first + offset, count, REAL), array_at(p.second + offset, count, REAL)
            velocity = array_at(p.third + offset, count, REAL)
            for k in range(count):
                velocity[k] = momentum * velocity[k] + grad[k]
                w[k] -= rate * velocity[k]

    return jit.kernel(update_sgd)


@functools.cache
def adam(dtype: str) -> CFunc:
    """Adam: settings are (step, 1 - decay 1, 1 - decay 2, correction of the second moment, epsilon, shrinking)."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize

    def update_adam(address, begin, end, thread):
        p = record_at(address, FLAT)
        settings = array_at(p.settings, 6, np.float64)
        step, new1, new2 = REAL(settings[0]), REAL(settings[1]), REAL(settings[2])
        correction, epsilon, shrink = REAL(settings[3]), REAL(settings[4]), REAL(settings[5])
        for task in range(begin, end):
            offset, count = task * p.block * ITEM, min(p.block, p.count - task * p.block)
            w, grad = array_at(p.first + offset, count, REAL), array_at(p.second + offset, count, REAL)
            first = array_at(p.third + offset, count, REAL)
            second = array_at(p.fourth + offset, count, REAL)
            for k in range(count):
                g = grad[k]
                m = first[k] + new1 * (g - first[k])
                v = second[k] + new2 * (g * g - second[k])
                first[k], second[k] = m, v
                w[k] -= shrink * w[k] + step * m / (math.sqrt(v * correction) + epsilon)

    return jit.kernel(update_adam)
