"""What a layer costs by counting: parameters, operations, bytes, and the time that the machine's limits allow."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fastconv.kernels.target import of_this_cpu
from fastconv.problem import ConvProblem

if TYPE_CHECKING:
    from fastconv.machine import Machine


def conv_parameters(problem: ConvProblem, bias: bool = False) -> int:
    """Trainable numbers of the convolution: one weight for each tap, input channel of the group and output channel."""
    return math.prod(problem.w_shape) + (problem.oc if bias else 0)


def conv_flops(problem: ConvProblem) -> int:
    """Floating-point operations of the plain sum, a multiplication and an addition for each product.

    Products with padding count, as they do in the field's usual figures. The three directions have the same count.
    """
    return 2 * problem.n * math.prod(problem.output_size) * math.prod(problem.w_shape)


def conv_bytes(problem: ConvProblem, direction: str = "forward") -> int:
    """Bytes that must move at least: every array of that direction once.

    All three directions touch an input, weights and an output; which of them is written does not change the sum.
    """
    elements = math.prod(problem.x_shape) + math.prod(problem.w_shape) + math.prod(problem.y_shape)
    return elements * problem.itemsize


def im2col_bytes(problem: ConvProblem) -> int:
    """Bytes of the whole patch matrix, which im2col would hold if it did not work block by block."""
    taps = math.prod(problem.kernel_size)
    return problem.n * math.prod(problem.output_size) * taps * problem.ic * problem.itemsize


def dense_parameters(features: int, units: int, bias: bool = False) -> int:
    """Trainable numbers of a fully connected layer."""
    return features * units + (units if bias else 0)


def dense_flops(n: int, features: int, units: int) -> int:
    """Floating-point operations of a fully connected layer on n inputs."""
    return 2 * n * features * units


def dense_bytes(n: int, features: int, units: int, itemsize: int) -> int:
    """Bytes that a fully connected layer moves at least: x, w and y once."""
    return (n * features + features * units + n * units) * itemsize


_COUNTED, _COUNTED_OF_WEIGHTS, _COUNTED_OF_SHORT_SUMS = (1.0, 1.0, 0.84), (1.0, 1.0, 0.76), (1.0, 1.0, 0.68)
"""Share of a call's time that the models count, by `of_this_cpu`; the same of a weight gradient, and of a depthwise
layer. They were fitted to the best of many calls; with narrow vectors, on a machine whose caches others use, data is
seldom where it was then."""


def usual_seconds(seconds: float, problem: ConvProblem, direction: str, machine: Machine) -> float:
    """What a call usually takes whose model says `seconds`: half of many calls should take less."""
    counted = _COUNTED_OF_WEIGHTS if direction == "grad_weight" else _COUNTED
    if problem.ic_per_group == problem.oc_per_group == 1 < problem.groups:
        counted = _COUNTED_OF_SHORT_SUMS
    return seconds / (machine.usual_share * of_this_cpu(*counted))


LAST_CACHE_BYTES = 24 << 20
"""What the last cache level keeps from one call to the next: most of the 16 to 32 MB that processors share."""


def traffic_seconds(problem: ConvProblem, direction: str, machine: Machine) -> float:
    """The time of moving every array once in a call like the one before: what the last cache level kept is there."""
    moved = conv_bytes(problem, direction)
    kept = min(1.0, LAST_CACHE_BYTES / moved)
    return moved * (kept / machine.cache_bandwidth + (1 - kept) / machine.bandwidth)


NEAR_IMAGES_BYTES = 8 << 20
"""What the caches keep of both images from one pass over them to the next."""


def images_bytes(problem: ConvProblem) -> int:
    """Bytes of both images."""
    return (math.prod(problem.x_shape) + math.prod(problem.y_shape)) * problem.itemsize


def far_bytes(problem: ConvProblem) -> int:
    """Bytes of both images that come from beyond the caches in each pass over them."""
    return max(0, images_bytes(problem) - NEAR_IMAGES_BYTES)


LEAVING_BYTES = 15 << 20
"""Both images of a problem, if they stay in no cache between two calls, or hardly."""


def leaves_caches(problem: ConvProblem) -> bool:
    """Whether images come from memory: lines that lie a pixel apart then come one by one unless they are asked for."""
    return images_bytes(problem) > LEAVING_BYTES


def roofline_seconds(flops: float, bytes_: float, machine: Machine) -> float:
    """The machine's limit: the longer of computing at the peak and moving the bytes at full bandwidth.

    Williams, Waterman and Patterson, "Roofline: an insightful visual performance model", 2009.
    """
    return max(flops / machine.peak_flops, bytes_ / machine.bandwidth)
