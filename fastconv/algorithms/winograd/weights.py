"""Weight gradient by Winograd's tiles: `fastconv.kernels.winograd_weights`, planned."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.algorithms.base import (
    PLAIN,
    Epilogue,
    Estimate,
    Operation,
    canonical_strides,
    canonical_weight_strides,
)
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.grids import workspace_offsets
from fastconv.algorithms.slabs import SLABS_BYTES, Slabs, slabs_up_to
from fastconv.algorithms.winograd.forms import form_for, tiles_along
from fastconv.cost import far_bytes, traffic_seconds
from fastconv.kernels import winograd, winograd_weights
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import address, fill, odd_lines
from fastconv.kernels.target import correlate_tile, vector_bytes
from fastconv.kernels.tiles import RUN_FIELDS
from fastconv.kernels.transforms import GRADIENT, INPUT
from fastconv.problem import ConvProblem

if TYPE_CHECKING:
    from fastconv.machine import Machine

_BLOCK_BYTES = 256
"""Input channels, and output channels, whose sums a task owns."""
_GRADIENT_BYTES = 9 << 17
"""Its sums and transformed tiles: they stay in the second cache level."""
_SLAB_TILES = 48
"""Least tiles of a slab: each slab transforms its sums back."""
_TASKS = 16
"""Tasks that are enough for slabs not to be cut further."""
_ADD_SECONDS = 0.025e-9
"""Adding a byte of the partial gradients, which the caches still hold."""
_PRODUCT_SHARE = 0.98
"""Share of the peak that its products reach, each of their sums read and written for every block of tiles."""


def _even_block(channels: int, most: int, lanes: int) -> int:
    """Channels of a block: whole vectors, at most `most` channels, blocks about as large as each other."""
    blocks = -(-channels // most)
    return -(-channels // (blocks * lanes)) * lanes


class WeightGradientOperation(Operation):
    """Weight gradient by tiles: slabs of them, each summed on its own for every block of channels."""

    def __init__(self, problem: ConvProblem, threads: int) -> None:
        self.problem = problem
        self.form = form = form_for(problem, "grad_weight")
        item, lanes = problem.itemsize, vector_bytes() // problem.itemsize
        most = _BLOCK_BYTES // item
        self._inputs = _even_block(problem.ic_per_group, most, lanes)
        self._outputs = _even_block(problem.oc_per_group, most, lanes)
        self._blocks = -(-problem.ic_per_group // self._inputs) * -(-problem.oc_per_group // self._outputs)
        self.tile = correlate_tile(problem.dtype, self._inputs, self._outputs)
        self._tile_rows, self._tile_columns = map(
            tiles_along, (form.rows, form.columns), problem.output_size, problem.dilation
        )
        self._tiles = problem.n * self._tile_rows * self._tile_columns
        self._slabs = self._slab_count()
        self._zeros = np.zeros(max(problem.ic_per_group, problem.oc_per_group), problem.dtype)
        # One thread adds its slabs to the gradient as it comes to them, which gives the same bits.
        self.slabs = Slabs(problem, self._slabs, threads, apart=threads > 1)
        plan, workspace = self._record(self.slabs.bytes_each)
        tasks = self._slabs * problem.groups * form.piece_count * self._blocks

        def compiled() -> CFunc:
            plan["trace_inputs"] = winograd.trace(form.rows.inputs, form.columns.inputs).address
            plan["trace_gradients"] = winograd.trace(form.rows.m, form.columns.m).address
            for name, kind in (("transform_inputs", INPUT), ("transform_gradients", GRADIENT)):
                plan[name] = winograd.transform_pixels(problem.dtype, kind, form.rows, form.columns).address
            plan["transform_sums"] = winograd_weights.transform_sums(problem.dtype, form.rows, form.columns).address
            plan["multiply"] = winograd_weights.multiply(problem.dtype, self.tile).address
            return winograd_weights.winograd_weights()

        self.launch = Launch(compiled, problem.dtype, plan, tasks, threads, workspace)
        self.workspace_bytes = self.launch.workspace_bytes + self.slabs.workspace_bytes

    def _slab_count(self) -> int:
        """Slabs to add up: a function of the problem alone, because the result's bits depend on it."""
        bytes_each = math.prod(self.problem.w_shape) * self.problem.itemsize
        tasks = self.problem.groups * self.form.piece_count * self._blocks
        return slabs_up_to(min(self._tiles // _SLAB_TILES, SLABS_BYTES // bytes_each, _TASKS // tasks))

    def _record(self, slab_bytes: int) -> tuple[np.ndarray, int]:
        problem, shape, item, form = self.problem, self.tile, self.problem.itemsize, self.form
        matrices, (apart_r, apart_c) = form.matrices, form.taps_apart(problem.stride)
        x = canonical_strides(problem.x_shape, item, problem.layout)
        y = canonical_strides(problem.y_shape, item, problem.layout)
        w = canonical_weight_strides(problem.w_shape, item, problem.layout)
        input_pitch = -(-self._inputs // shape.VL) * shape.VL * item
        output_pitch = -(-self._outputs // shape.NR) * shape.NR * item
        product_step = odd_lines(-(-self._inputs // shape.MR) * shape.MR * output_pitch)
        # The last rows of a register tile may read scalars past those of the last transformed tile.
        beyond = shape.MR * item
        room = (_GRADIENT_BYTES - matrices * product_step) // matrices
        each = -(-self._tiles // self._slabs)
        block = max(1, min(each, (room - beyond) // (input_pitch + output_pitch)))
        block = -(-each // -(-each // block))
        value_step, gradient_step = odd_lines(block * input_pitch + beyond), odd_lines(block * output_pitch)
        table = matrices * 8
        (
            values, gradients, products, value_table, gradient_table, product_table, target_table, pixels, met,
            spare_table, spare, run, total,
        ) = workspace_offsets(
            matrices * value_step, matrices * gradient_step, matrices * product_step, table, table, table, table,
            block * form.rows.inputs * form.columns.inputs * 8, block * form.outputs * 8, table,
            matrices * shape.VL * item, (1 + RUN_FIELDS) * 8,
        )  # fmt: skip
        (rows, columns), ((top, _), (left, _)) = problem.output_size, problem.padding
        record = fill(
            winograd_weights.WINOGRAD_WEIGHTS, **form.fields(shape.VL, item),
            source_n=x[0], source_r=x[1], source_c=x[2], source_group=problem.ic_per_group * x[3],
            source_rows=problem.input_size[0], source_columns=problem.input_size[1], first_row=-top, first_column=-left,
            dilation_r=problem.dilation[0], dilation_c=problem.dilation[1],
            gradient_n=y[0], gradient_r=y[1], gradient_c=y[2], gradient_group=problem.oc_per_group * y[3],
            rows=rows, columns=columns,
            target_r=w[0], target_c=w[1], target_k=w[2], target_group=problem.oc_per_group * w[3],
            stride_r=problem.stride[0], stride_c=problem.stride[1], apart_r=apart_r, apart_c=apart_c,
            read_r=apart_r * problem.dilation[0], read_c=apart_c * problem.dilation[1],
            pieces_r=form.pieces[0], pieces_c=form.pieces[1],
            phases_r=form.phases[0], phases_c=form.phases[1],
            taps_r=problem.kernel_size[0], taps_c=problem.kernel_size[1],
            slab_bytes=slab_bytes, tile_rows=self._tile_rows, tile_columns=self._tile_columns, tiles=self._tiles,
            block=block, slabs=self._slabs, groups=problem.groups,
            inputs=problem.ic_per_group, outputs=problem.oc_per_group,
            input_block=self._inputs, output_block=self._outputs,
            input_blocks=-(-problem.ic_per_group // self._inputs),
            output_blocks=-(-problem.oc_per_group // self._outputs),
            input_pitch=input_pitch, output_pitch=output_pitch,
            value_step=value_step, gradient_step=gradient_step, product_step=product_step,
            zeros=address(self._zeros), asks=far_bytes(problem) > 0, trace_inputs=0, trace_gradients=0,
            transform_inputs=0, transform_gradients=0, multiply=0, transform_sums=0,
            workspace_bytes=total, values=values, gradients=gradients, products=products,
            value_table=value_table, gradient_table=gradient_table, product_table=product_table,
            target_table=target_table, pixels=pixels, met=met, spare_table=spare_table, spare=spare, run=run,
        )  # fmt: skip
        return record, total

    def describe(self) -> str:
        """The form in words."""
        outputs = self.problem.n * math.prod(self.problem.output_size)
        return self.form.describe(self._tiles, outputs, math.prod(self.problem.kernel_size))

    def seconds(self, rate: float) -> float:
        """Predicted time with `rate` slots a second on each thread."""
        problem, shape, form, threads = self.problem, self.tile, self.form, self.launch.threads
        inputs, outputs = (-(-count // shape.VL) for count in (self._inputs, self._outputs))
        transforms = self._tiles * (inputs * form.input_slots + outputs * form.gradient_slots)
        multiply = form.matrices * self._tiles * model.tile_slots(self._outputs, shape) / shape.MR / _PRODUCT_SHARE
        multiply *= -(-self._inputs // shape.MR) * shape.MR
        write = self._slabs * self._inputs * outputs * form.sums_slots
        work = problem.groups * form.piece_count * self._blocks * (transforms + multiply + write) / rate
        seconds = work / threads * model.balance(self.launch.tasks, threads)
        launches = 2 if self.slabs.workspace_bytes else 1
        add = self.slabs.workspace_bytes * _ADD_SECONDS / threads
        far = far_bytes(problem) * model.PLANE_SECONDS
        return seconds + launches * model.launch_seconds(threads) + add + far

    def estimate(self, machine: Machine) -> Estimate:
        seconds = self.seconds(model.slot_rate(machine, self.tile.VL))
        traffic = traffic_seconds(self.problem, "grad_weight", machine)
        return Estimate(max(seconds, traffic), self.describe())

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: Any = None,
    ) -> None:  # fmt: skip
        self.slabs.run(self.launch, second, first, self._zeros, result)
