"""JAX, compiled by XLA for the CPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.contenders import Prepared, Task
from bench.libraries.base import Peer


class Jax(Peer):
    """JAX in NHWC, which its CPU kernels take as it is."""

    name = "JAX"
    packages = ("jax", "jaxlib")

    def __init__(self, threads: int, packed: bool = False) -> None:
        super().__init__(threads, packed)
        os.environ["NPROC"] = str(threads)  # the size of XLA's pool; read when its client is made
        import jax

        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_enable_x64", True)
        self.jax = jax

    def prepare(self, task: Task) -> Prepared:
        jax = self.jax
        compute = jax.jit(self._function(task))
        first, second = jax.numpy.asarray(task.first), jax.numpy.asarray(task.second)
        return Prepared(lambda: compute(first, second).block_until_ready(), np.asarray)

    def _function(self, task: Task) -> Callable[[Any, Any], Any]:
        jax, case = self.jax, task.case

        def forward(x: Any, w: Any) -> Any:
            return jax.lax.conv_general_dilated(
                x,
                w,
                case.stride,
                [(p, p) for p in case.padding],
                rhs_dilation=case.dilation,
                feature_group_count=case.groups,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )

        unknown = jax.ShapeDtypeStruct(task.result_shape, task.dtype)
        return {
            "forward": forward,
            "grad_input": lambda grad_y, w: jax.linear_transpose(lambda x: forward(x, w), unknown)(grad_y)[0],
            "grad_weight": lambda grad_y, x: jax.linear_transpose(lambda w: forward(x, w), unknown)(grad_y)[0],
        }[task.direction]
