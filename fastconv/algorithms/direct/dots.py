"""The weight gradient with pixels in the lanes: `fastconv.kernels.dots`, planned."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fastconv.algorithms.base import PLAIN, Epilogue, canonical_strides
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.base import Pass
from fastconv.algorithms.direct.grids import forward_axis, workspace_offsets
from fastconv.kernels import dots
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import LINE, address, fill
from fastconv.kernels.target import dot_tile_shape
from fastconv.problem import ConvProblem, canonical_weights

_STRIP_BYTES = 256 << 10
"""Strips of a block of pixels: they stay in the second cache level for all weights."""
_PARTIAL_BYTES = 4 << 20
"""Partial gradients of all blocks."""
_BLOCKS = 32
"""Blocks to cut a problem into at least: a number that does not depend on the threads, as the result must not."""


@dataclass(frozen=True, eq=False)
class DotPass(Pass):
    """The launch of the weight gradient, planned: its record but for the addresses of a call's arrays."""

    blocks: int
    tables: tuple[np.ndarray, ...]
    """Offsets whose addresses the record holds, and which it keeps alive."""

    @property
    def _weights(self) -> int:
        return math.prod(self.problem.w_shape)

    @property
    def workspace_bytes(self) -> int:
        """Bytes of all threads' strips and of the partial gradients."""
        partial = self.blocks * self._weights * self.problem.itemsize
        return self.launch.workspace_bytes + partial

    def _lanes_share(self) -> float:
        return model.filled(int(self.launch.plan["columns"][0]), self.tile.VL)

    def describe(self) -> str:
        tile = f"register tiles of {self.tile.MR} x {self.tile.NV} dot products over pixels"
        return f"{tile}, {self._lanes_share():.0%} of the lanes in use"

    def seconds(self, rate: float) -> float:
        p, shape, problem = self.launch.plan[0], self.tile, self.problem
        tasks = self.blocks * problem.groups
        pixels = problem.n * math.prod(problem.output_size) * problem.groups
        copies = 0.0
        for planes, rows, columns, step in (
            ("reduction", "strip_rows", int(p["strip_columns"] * p["column_step"]), int(p["source_c"])),
            ("channels", "row_block", int(p["gradient_columns"]), int(p["gradient_c"])),
        ):
            each = model.COPY_SECONDS if step == problem.itemsize else model.DOT_GATHER_SECONDS * min(step, LINE)
            if planes == "reduction" and p["column_step"] > 1:
                each = max(each, model.STEP_SECONDS)
            copies += tasks * int(p[planes]) * int(p[rows]) * (columns * each + model.COPY_ROW_SECONDS)
        tiles = -(-int(p["channels"]) // shape.NV) * -(
            -problem.ic_per_group * math.prod(problem.kernel_size) // shape.MR
        )
        step = shape.MR * shape.NV / (model.DOT_SHARE[shape.NV] * model.costs().line_dot_share)
        vectors = pixels / self._lanes_share() / shape.VL
        ends = tasks * tiles * shape.MR * shape.NV * model.DOT_SECONDS
        work = copies + vectors * tiles * step / rate + ends
        total = self.blocks * self._weights * model.ADD_SECONDS
        return model.launch_seconds(self.threads) + work * model.balance(tasks, self.threads) / self.threads + total

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        problem = self.problem
        kh, kw = problem.kernel_size
        partial = np.empty((self.blocks, problem.groups, problem.ic_per_group * kh * kw, problem.oc_per_group),
                           problem.dtype)  # fmt: skip
        self.launch(second, first, partial.reshape(-1), partial)
        total = partial.sum(axis=0, dtype=np.float64)
        total = total.reshape(problem.groups, problem.ic_per_group, kh, kw, problem.oc_per_group)
        weights = canonical_weights(result, problem.layout)
        weights.reshape(kh, kw, problem.ic_per_group, problem.groups, -1)[...] = total.transpose(2, 3, 1, 0, 4)


def plan_dots(problem: ConvProblem, threads: int) -> DotPass | None:
    """Plan the launch; None where a row's strips leave the cache, or there are too many weights."""
    item = problem.itemsize
    rows, columns = forward_axis(problem, 0), forward_axis(problem, 1)
    shape = dot_tile_shape(problem.dtype, problem.oc_per_group)
    x = canonical_strides(problem.x_shape, item, problem.layout)
    y = canonical_strides(problem.y_shape, item, problem.layout)
    first_row, first_column = min(rows.offsets), min(columns.offsets)
    reach_r, reach_c = max(rows.offsets) - first_row, max(columns.offsets) - first_column
    gradient_columns = -(-columns.count // shape.VL) * shape.VL
    strip_columns = gradient_columns + reach_c // columns.step + 1
    row_bytes = problem.ic_per_group * strip_columns * columns.step * item
    gradient_row_bytes = problem.oc_per_group * gradient_columns * item
    fitting = (_STRIP_BYTES - row_bytes * (reach_r + 1)) // (row_bytes * rows.step + gradient_row_bytes)
    wanted = max(1, problem.n * problem.groups * rows.count // _BLOCKS)
    row_block = max(1, min(rows.count, fitting, wanted))
    blocks = problem.n * -(-rows.count // row_block)
    if row_bytes * (reach_r + 1) + gradient_row_bytes > 2 * _STRIP_BYTES:
        return None
    if blocks * math.prod(problem.w_shape) * item > _PARTIAL_BYTES:
        return None
    strip_rows = (row_block - 1) * rows.step + reach_r + 1
    strip, planes, lefts, rights, total = workspace_offsets(
        strip_rows * row_bytes, row_block * gradient_row_bytes, shape.MR * 8, shape.NV * 8
    )
    row_offsets, column_offsets = np.array(rows.offsets, np.int64), np.array(columns.offsets, np.int64)
    template = fill(
        dots.DOTS,
        source_n=x[0], source_r=x[1], source_c=x[2], source_k=x[3],
        source_group=problem.ic_per_group * x[3],
        source_rows=problem.input_size[0], source_columns=problem.input_size[1],
        gradient_n=y[0], gradient_r=y[1], gradient_c=y[2], gradient_d=y[3],
        gradient_group=problem.oc_per_group * y[3],
        groups=problem.groups, rows=rows.count, columns=columns.count,
        row_step=rows.step, column_step=columns.step, taps_r=len(rows.taps), taps_c=len(columns.taps),
        row_offsets=address(row_offsets), column_offsets=address(column_offsets),
        first_row=first_row, first_column=first_column,
        reduction=problem.ic_per_group, channels=problem.oc_per_group,
        row_block=row_block, row_blocks=-(-rows.count // row_block),
        strip_rows=strip_rows, strip_columns=strip_columns, gradient_columns=gradient_columns,
        workspace_bytes=total, strip=strip, planes=planes, lefts=lefts, rights=rights,
    )  # fmt: skip
    launch = Launch(
        lambda: dots.dots(problem.dtype, shape), problem.dtype, template, blocks * problem.groups, threads, total
    )
    return DotPass(problem, threads, shape, launch, blocks, (row_offsets, column_offsets))
