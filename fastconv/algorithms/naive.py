"""naive: the formula as loops, parallel over outputs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fastconv.algorithms.base import (
    PLAIN,
    Algorithm,
    Epilogue,
    Estimate,
    Operation,
    canonical_strides,
    canonical_weight_strides,
)
from fastconv.cost import conv_bytes, conv_flops, roofline_seconds
from fastconv.kernels import launch
from fastconv.kernels import naive as kernels
from fastconv.kernels.params import address, fill
from fastconv.problem import ConvProblem

if TYPE_CHECKING:
    from fastconv.machine import Machine

_CALL_SECONDS = 20e-6
"""Filling the record of a call, which no plan keeps."""
_TAP_SECONDS = 7e-9
"""Finding a tap of a pixel, by one thread."""
_CHANNEL_SECONDS = 2e-9
"""Taking up one input channel of a tap."""
_VECTOR_SECONDS = 0.9e-9
"""The products of one input value with a vector of output channels, or with one where these lie apart."""


class Naive(Algorithm):
    """Plain loops in the order of the formula."""

    name = "naive"

    def plan(self, problem: ConvProblem, direction: str, threads: int) -> Operation:
        return NaiveOperation(problem, direction, threads)


class NaiveOperation(Operation):
    """One direction as plain loops."""

    def __init__(self, problem: ConvProblem, direction: str, threads: int) -> None:
        self.problem = problem
        self.direction = direction
        self.threads = threads
        self.workspace_bytes = threads * problem.oc * problem.itemsize if direction == "grad_weight" else 0

    def estimate(self, machine: Machine) -> Estimate:
        problem, side_by_side = self.problem, self.problem.layout == "NHWC"
        vector = machine.vector_bytes // problem.itemsize if side_by_side else 1
        per_channel = _CHANNEL_SECONDS + -(-problem.oc_per_group // vector) * _VECTOR_SECONDS
        taps = problem.n * math.prod(problem.output_size) * math.prod(problem.kernel_size)
        compute = taps * (_TAP_SECONDS + problem.ic * per_channel) / machine.threads
        limit = roofline_seconds(conv_flops(problem), conv_bytes(problem, self.direction), machine)
        reason = "plain loops" + ("" if side_by_side else ", one product at a time")
        return Estimate(_CALL_SECONDS + max(compute, limit), reason)

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: Any = None,
    ) -> None:  # fmt: skip
        problem = self.problem
        (ih, iw), (oh, ow), (kh, kw) = problem.input_size, problem.output_size, problem.kernel_size
        if self.direction == "forward":
            start = epilogue.start(np.zeros(problem.oc, problem.dtype), 1)
            self._launch(kernels.forward, problem.n * oh * ow, ow, first, second, result, start, epilogue)
        elif self.direction == "grad_input":
            unused = np.empty(0)
            self._launch(kernels.grad_input, problem.n * ih * iw, iw, result, second, first, unused, epilogue)
        else:
            sums = np.empty((self.threads, problem.oc), problem.dtype)
            tasks = kh * kw * problem.ic_per_group
            self._launch(kernels.grad_weight, tasks, 1, second, result, first, sums, epilogue)

    def _launch(
        self, kernel: Any, tasks: int, grain: int, x: np.ndarray, w: np.ndarray, y: np.ndarray, u: np.ndarray,
        epilogue: Epilogue,
    ) -> None:  # fmt: skip
        problem, item = self.problem, self.problem.itemsize
        x_n, x_i, x_j, x_c = canonical_strides(problem.x_shape, item, problem.layout)
        h_n, h_i, h_j, h_d = canonical_strides(problem.y_shape, item, problem.layout)
        v_a, v_b, v_c, v_d = canonical_weight_strides(problem.w_shape, item, problem.layout)
        (ih, iw), (oh, ow), (kh, kw) = problem.input_size, problem.output_size, problem.kernel_size
        relu, activation, failed = epilogue.end
        params = fill(
            kernels.NAIVE,
            x=address(x), x_n=x_n, x_i=x_i, x_j=x_j, x_c=x_c,
            v=address(w), v_a=v_a, v_b=v_b, v_c=v_c, v_d=v_d,
            h=address(y), h_n=h_n, h_i=h_i, h_j=h_j, h_d=h_d,
            u=address(u), relu=relu, activation=activation, failed=failed,
            n=problem.n, ih=ih, iw=iw, oh=oh, ow=ow, kh=kh, kw=kw,
            groups=problem.groups, ic_per_group=problem.ic_per_group, oc_per_group=problem.oc_per_group,
            stride_i=problem.stride[0], stride_j=problem.stride[1],
            pad_i=problem.padding[0][0], pad_j=problem.padding[1][0],
            dilation_i=problem.dilation[0], dilation_j=problem.dilation[1],
        )  # fmt: skip
        compiled = kernel(problem.dtype, problem.layout == "NHWC")
        launch.run(compiled, params, tasks, threads=self.threads, grain=grain)
