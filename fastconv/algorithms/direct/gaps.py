"""Input gradients of which no window reads some pixels: they are filled with zeros before the others are computed."""

from __future__ import annotations

import math

from fastconv.algorithms.direct.grids import sub_problems
from fastconv.kernels import zeros
from fastconv.kernels.launch import Launch, threads_for_bytes
from fastconv.kernels.params import fill
from fastconv.problem import ConvProblem

_TASK_BYTES = 64 << 10
_BYTE_SECONDS = 0.05e-9
"""Filling a byte, most of which the caches do not hold."""


def leaves_gaps(problem: ConvProblem, direction: str) -> bool:
    """Whether an input gradient has pixels that no window reads."""
    phases = math.prod(min(*pair) for pair in zip(problem.stride, problem.input_size))
    return direction == "grad_input" and len(sub_problems(problem, direction)) < phases


def plan_zeros(problem: ConvProblem, threads: int) -> Launch:
    """Plan the launch that fills an input gradient with zeros."""
    count, item = math.prod(problem.x_shape), problem.itemsize
    block = _TASK_BYTES // item
    plan, threads = fill(zeros.ZEROS, count=count, block=block), min(threads, threads_for_bytes(count * item))
    return Launch(lambda: zeros.zeros(problem.dtype), problem.dtype, plan, -(-count // block), threads)


def zeros_seconds(problem: ConvProblem, launch: Launch) -> float:
    """Predicted time of that launch, beside others of the same call."""
    return math.prod(problem.x_shape) * problem.itemsize * _BYTE_SECONDS / launch.threads
