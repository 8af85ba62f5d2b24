"""winograd: 3x3 convolutions of stride 1 with a quarter of the multiplications (`fastconv.kernels.winograd`).

Forward pass, and input gradient as the same kernel on the flipped weights. Its rounding error is about twice that of
the plain sum (`fastconv.kernels.toomcook`), and a NaN or infinity reaches all outputs of the tiles that read it.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from fastconv.algorithms.base import PLAIN, Algorithm, Epilogue, Estimate, Operation
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.grids import Axis, roles, sub_problems, workspace_offsets
from fastconv.algorithms.transposed import TransposedOperation, bands_of
from fastconv.cost import conv_bytes
from fastconv.kernels import winograd as kernels
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import LINE, address, aligned, fill
from fastconv.kernels.simd import RUN_FIELDS
from fastconv.kernels.target import tile, vector_bytes
from fastconv.kernels.toomcook import TAPS
from fastconv.problem import CHANNELS_LAST, ConvProblem

if TYPE_CHECKING:
    from fastconv.machine import Machine

M = 4
"""Output rows and columns of a tile."""
_N = M + TAPS - 1
_CHUNK = 96
"""Source channels whose transformed weights a panel takes at once: they stay in the second cache level."""
_TASK_BYTES = 2 << 20
"""Workspace of a thread: the more tiles share the transformed weights the better, until they leave the caches."""
_NEAR_BYTES = 1 << 20
"""Transformed input that stays in the second cache level beside the weights."""
_FAR_SHARE = 0.85
"""Speed of the products where it does not."""
_KEPT_BYTES = 3 << 19
"""Transformed weights that are worth keeping: from a slower cache they come later than they are made."""
_INPUT_SLOTS = 600
"""Slots (`direct.model`) that transforming one vector of a tile takes, most of them for moving it between caches."""
_OUTPUT_SLOTS = 450
_WEIGHT_SLOTS = 400
_MULTIPLY_SHARE = 0.8
"""Share of the peak that the products reach, their operands coming from the second cache level."""


def _spread(size: int) -> int:
    """Bytes between the matrices of a transformed tensor: whole cache lines, an odd number of them.

    A transform writes to all matrices at once; with a multiple of 4 KiB between them all would meet in the same few
    lines of the first cache level, and each store would wait for the second.
    """
    lines = -(-size // LINE)
    return (lines + 1 - lines % 2) * LINE


class Winograd(Algorithm):
    """F(4 x 4, 3 x 3) on blocks of tiles that stay in the second cache level."""

    name = "winograd"
    exact = False

    def declines(self, problem: ConvProblem, direction: str) -> str | None:
        lanes = vector_bytes() // problem.itemsize
        if problem.kernel_size != (TAPS, TAPS):
            return f"winograd is for kernels of 3 x 3, not {problem.kernel_size}"
        if problem.stride != (1, 1) or problem.dilation != (1, 1):
            return f"winograd is for stride 1 and dilation 1, not {problem.stride} and {problem.dilation}"
        if direction == "grad_weight":
            return "winograd has no weight gradient"
        reduction = problem.ic_per_group if direction == "forward" else problem.oc_per_group
        if reduction < lanes:
            return f"winograd needs {lanes} channels in a group to read, not {reduction}"
        if problem.layout == "NCHW" and bands_of(problem, direction, CHANNELS_LAST) is None:
            return "winograd in layout 'NCHW' transposes images, and these are too large for that"
        return None

    def plan(self, problem: ConvProblem, direction: str, threads: int) -> Operation:
        if problem.layout == "NCHW":
            bands = bands_of(problem, direction, CHANNELS_LAST)
            assert bands is not None  # or it would have declined
            return TransposedOperation(problem, direction, bands, self, threads)
        return WinogradOperation(problem, direction, threads)


class WinogradOperation(Operation):
    """Forward pass or input gradient by tiles."""

    def __init__(self, problem: ConvProblem, direction: str, threads: int) -> None:
        self.problem = problem
        self.direction = direction
        self.threads = threads
        ((rows, columns),) = sub_problems(problem, direction)
        self._roles = roles(problem, direction)
        self.tile = tile(problem.dtype, 1 << 20, self._roles.channels)
        self._tiles = problem.n * -(-rows.count // M) * -(-columns.count // M)
        self._panels = -(-self._roles.channels // self.tile.NR)
        self._block, self._parts, self._slots = self._blocking()
        zeros = np.zeros(max(self._roles.reduction, self.tile.NR), problem.dtype)
        self._zeros = np.zeros(problem.groups * self._panels * self.tile.NR, problem.dtype)
        kernel = lambda: kernels.winograd(problem.dtype, self.tile, M)  # noqa: E731
        tasks = problem.groups * -(-self._tiles // self._block) * self._parts
        self._launches = []
        for transformed in (False, True):
            plan, workspace = self._record(rows, columns, zeros, transformed)
            self._launches.append(Launch(kernel, problem.dtype, plan, tasks, threads, workspace))
        pack, workspace = self._record(rows, columns, zeros, False)
        self._pack = Launch(
            lambda: kernels.pack(problem.dtype, self.tile, M), problem.dtype, pack, problem.groups * self._panels,
            threads, workspace,
        )  # fmt: skip
        self._kept = zeros  # the records hold its address
        self.workspace_bytes = self._launches[0].workspace_bytes
        size = problem.groups * self._panels * int(pack["weight_panel"][0])
        self._keeps_weights = size <= _KEPT_BYTES
        self.prepared_key = (self.tile, self._panels) if self._keeps_weights else None

    def _blocking(self) -> tuple[int, int, float]:
        """Tiles of a block, parts of the panels, and the slots of the thread that works longest."""
        problem, height = self.problem, self.tile.MR
        reduction = self._roles.reduction
        beside = _N * _N * min(reduction, _CHUNK) * self.tile.NR * problem.itemsize
        # A tile takes its transformed input, its products with a panel, and the addresses of its targets.
        each = _N * _N * (reduction + self.tile.NR) * problem.itemsize + M * M * 8
        most = max(1, (_TASK_BYTES - beside) // (each * height))
        blocks = sorted({min(self._tiles, height * count) for count in range(1, most + 1)})
        parts = [parts for parts in (1, 2, 4, 8, 16, 32) if parts <= self._panels]
        best = min(
            ((self._thread_slots(block, part), -block, part) for block, part in itertools.product(blocks, parts)),
        )
        return -best[1], best[2], best[0]

    def _thread_slots(self, block: int, parts: int) -> float:
        shape, reduction = self.tile, self._roles.reduction
        blocks = -(-self._tiles // block)
        height = -(-block // shape.MR) * shape.MR
        panels = -(-self._panels // parts)
        vectors = panels * shape.NV
        inputs = block * -(-reduction // shape.VL) * _INPUT_SLOTS
        weights = reduction * vectors * _WEIGHT_SLOTS
        multiply = _N * _N * height * vectors * (reduction + 8) / _MULTIPLY_SHARE
        if _N * _N * block * reduction * self.problem.itemsize > _NEAR_BYTES:
            multiply /= _FAR_SHARE
        outputs = block * vectors * _OUTPUT_SLOTS
        tasks = self.problem.groups * blocks * parts
        share = min(1.0, self._tiles / (blocks * block)) if tasks > self.threads else 1.0
        return -(-tasks // self.threads) * share * (inputs + weights + multiply + outputs)

    def _record(
        self, rows: Axis, columns: Axis, zeros: np.ndarray, transformed: bool
    ) -> tuple[np.ndarray, int]:  # fmt: skip
        problem, part, shape = self.problem, self._roles, self.tile
        item, reduction = problem.itemsize, part.reduction
        w_r, w_c, w_k, w_d = part.weights
        flipped_r, flipped_c = (axis.offsets[0] > axis.offsets[-1] for axis in (rows, columns))
        offset = 0 if transformed else (TAPS - 1) * (w_r * flipped_r + w_c * flipped_c)
        height = -(-self._block // shape.MR) * shape.MR
        chunk = -(-reduction // -(-reduction // _CHUNK))
        value_step, weight_step, product_step = (
            _spread(size * item) for size in (self._block * reduction, chunk * shape.NR, height * shape.NR)
        )
        chunk_bytes = _N * _N * weight_step
        panel_bytes = -(-reduction // chunk) * chunk_bytes
        sizes = (
            self._block * M * M * 8, height * 8, _N * _N * value_step, chunk_bytes,
            _N * _N * product_step, _N * _N * 8, _N * _N * 8, _N * _N * 8, TAPS * TAPS * 8,
            max(reduction, part.channels, shape.NR) * item, max(_N * _N, shape.MR + RUN_FIELDS) * 8, shape.MR * 8,
            M * M * 8,
            M * M * shape.NR * item,
        )  # fmt: skip
        (
            sources, targets, values, weights, products, value_table, weight_table, product_table, weight_source,
            unused, tile_table, starts, panel_targets, buffer, total,
        ) = workspace_offsets(*sizes)  # fmt: skip
        tile_rows, tile_columns = -(-rows.count // M), -(-columns.count // M)
        record = fill(
            kernels.WINOGRAD,
            source_n=part.source[0], source_r=part.source[1], source_c=part.source[2],
            source_group=reduction * part.source[3],
            source_rows=part.source_size[0], source_columns=part.source_size[1],
            target_offset=0, target_n=part.target[0], target_r=part.target[1], target_c=part.target[2],
            target_group=part.channels * part.target[3],
            rows=rows.count, columns=columns.count, first_row=min(rows.offsets), first_column=min(columns.offsets),
            tile_rows=tile_rows, tile_columns=tile_columns, tiles=self._tiles,
            block=self._block, blocks=-(-self._tiles // self._block), parts=self._parts,
            reduction=reduction, channels=part.channels, panels=self._panels, chunk=chunk,
            transformed=transformed, weight_offset=offset,
            weight_r=-w_r if flipped_r else w_r, weight_c=-w_c if flipped_c else w_c, weight_k=w_k, weight_d=w_d,
            weight_group=self._panels * panel_bytes if transformed else part.weight_group, weight_panel=panel_bytes,
            weight_chunk=chunk_bytes,
            start_group=self._panels * shape.NR * item,
            value_step=value_step, weight_step=weight_step, product_step=product_step, zeros=address(zeros),
            workspace_bytes=total, sources=sources, targets=targets, values=values, weights=weights,
            products=products, value_table=value_table, weight_table=weight_table, product_table=product_table,
            weight_source=weight_source, unused=unused, tile_table=tile_table, starts=starts,
            panel_targets=panel_targets, buffer=buffer,
        )  # fmt: skip
        return record, total

    def estimate(self, machine: Machine) -> Estimate:
        rate = model.slot_rate(machine, self.tile.VL)
        seconds = model.LAUNCH_SECONDS + self._slots / rate
        traffic = conv_bytes(self.problem, self.direction) / machine.bandwidth
        share = M * M * TAPS * TAPS / (_N * _N)
        return Estimate(max(seconds, traffic), f"F({M} x {M}, 3 x 3), 1/{share:.1f} of the multiplications")

    def prepare(self, w: np.ndarray) -> np.ndarray:
        if not self._keeps_weights:
            return w
        size = self.problem.groups * self._panels * int(self._pack.plan["weight_panel"][0])
        packed = aligned((1, 1, 1, size // self.problem.itemsize), self.problem.dtype)
        self._pack(w, w, self._zeros, packed)
        return packed

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: Any = None,
    ) -> None:  # fmt: skip
        start = self._zeros
        if epilogue.bias is not None:
            groups = self.problem.groups
            start = epilogue.start(groups, self._zeros.size // groups, self.problem.dtype)
        launch = self._launches[prepared is not None and self._keeps_weights]
        other = second if prepared is None else prepared
        launch(first, other, start, result, epilogue.relu, epilogue.activation, epilogue.failed_address)
