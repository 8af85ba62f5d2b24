"""NCHW layers whose windows lie side by side, as patch embeddings and downsampling ones, computed as pointwise layers.

What a window reads becomes the channels of one pixel (`fastconv.kernels.disjoint`), in the order of the weights, which
are then those of a pointwise layer as they lie. Each value is in one window only, so nothing is copied twice.

Input gradients are computed so also where windows overlap or lie apart: what all windows give to a pixel is added up
(`fastconv.kernels.fold`). That pays where pixels are few and weights many, which are then read as they lie, and once
instead of for each phase of a stride.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastconv.algorithms.base import PLAIN, Epilogue, Operation, canonical_strides, scratch_limit
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.gaps import plan_zeros
from fastconv.algorithms.direct.grids import workspace_offsets
from fastconv.algorithms.transposed import MovingOperation
from fastconv.algorithms.turning import Images
from fastconv.kernels import disjoint as kernels
from fastconv.kernels import fold
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import Buffer, fill
from fastconv.kernels.target import vector_bytes
from fastconv.problem import CHANNELS_LAST, IMAGES_LAST, ConvProblem

_RUN_SECONDS = 0.8e-9
"""Copying the columns of a kernel's row."""
_WIDEST = 64
"""Columns of a kernel up to which they are copied in one piece."""
_FOLD_SECONDS = 0.25e-9
"""Turning and adding one value of a patch, and turning one of the image back."""
_FOLDED_BYTES = 1 << 18
"""A vector of channels of an image that patches are added to: it stays in the second cache level."""

Planner = Callable[[ConvProblem, str, int], Operation]


def _pointwise(problem: ConvProblem, direction: str) -> ConvProblem:
    """The pointwise problem on patches; that of the weight gradient has input and output exchanged."""
    depth = problem.ic * math.prod(problem.kernel_size)
    layer = replace(
        problem, ic=depth, input_size=problem.output_size, kernel_size=(1, 1), stride=(1, 1), dilation=(1, 1),
        padding=((0, 0), (0, 0)), layout=IMAGES_LAST,
    )  # fmt: skip
    return replace(layer, ic=problem.oc, oc=depth, layout=CHANNELS_LAST) if direction == "grad_weight" else layer


@dataclass(frozen=True)
class _Round:
    """The images from `first` to `last`, and what they have in common with other rounds of as many."""

    first: int
    last: int
    operation: Operation
    move: Launch
    y: Images
    patches: tuple[int, ...]
    """The shape of the images' patches."""


class DisjointOperation(MovingOperation):
    """The pointwise layer's operation between copies, for as many images at a time as the scratch holds."""

    def __init__(self, problem: ConvProblem, direction: str, threads: int, together: int, plan: Planner) -> None:
        self.problem = problem
        self.direction = direction
        self._threads = threads
        self._w_shape = _pointwise(problem, direction).w_shape
        self._folds = not _side_by_side(problem)
        parts = functools.cache(lambda images: self._parts(replace(problem, n=images), plan))
        spans = [(first, min(first + together, problem.n)) for first in range(0, problem.n, together)]
        self._rounds = [_Round(first, last, *parts(last - first)) for first, last in spans]
        self._scratch = max(math.prod(step.patches) + step.y.size for step in self._rounds) * problem.itemsize
        beside = (max(step.operation.workspace_bytes, step.move.workspace_bytes) for step in self._rounds)
        self.workspace_bytes = self._scratch + max(beside)
        kernel, windows = problem.kernel_size, problem.output_size
        gaps = not self._folds and any(
            k * count < size for k, count, size in zip(kernel, windows, problem.input_size, strict=True)
        )
        self._zeros = plan_zeros(problem, threads) if gaps and direction == "grad_input" else None
        self.prepared_key = self

    def _parts(self, problem: ConvProblem, plan: Planner) -> tuple[Operation, Launch, Images, tuple[int, ...]]:
        oh, ow = problem.output_size
        y = Images(problem.n, problem.oc, problem.oc, oh, oh, ow, problem.dtype, self._threads)
        operation = plan(_pointwise(problem, self.direction), self.direction, self._threads)
        patches = problem.n, oh, ow, problem.ic * math.prod(problem.kernel_size)
        return operation, (self._folding if self._folds else self._copying)(problem), y, patches

    def _copying(self, problem: ConvProblem) -> Launch:
        """What copies between planes and patches."""
        (kh, kw), (oh, ow), item, dtype = problem.kernel_size, problem.output_size, problem.itemsize, problem.dtype
        depth = problem.ic * kh * kw
        x_n, x_i, _, x_c = canonical_strides(problem.x_shape, item, problem.layout)
        record = fill(
            kernels.DISJOINT, channels=problem.ic, kernel_rows=kh, rows=oh, columns=ow, image_n=x_n, image_c=x_c,
            image_r=x_i, patches_n=oh * ow * depth * item, patches_r=ow * depth * item, patch_bytes=depth * item,
        )  # fmt: skip
        gathers = self.direction != "grad_input"
        return Launch(lambda: kernels.move(dtype, kw, gathers), dtype, record, problem.n * oh, self._threads)

    def _folding(self, problem: ConvProblem) -> Launch:
        """What adds patches up to planes."""
        (oh, ow), (ih, iw), item = problem.output_size, problem.input_size, problem.itemsize
        taps, lanes = math.prod(problem.kernel_size), vector_bytes() // item
        pixels, turned, total = workspace_offsets(ih * iw * vector_bytes(), taps * vector_bytes())
        record = fill(
            fold.FOLD, channels=problem.ic, taps_r=problem.kernel_size[0], taps_c=problem.kernel_size[1],
            windows_r=oh, windows_c=ow, first_row=-problem.padding[0][0], first_column=-problem.padding[1][0],
            step_r=problem.stride[0], step_c=problem.stride[1],
            dilation_r=problem.dilation[0], dilation_c=problem.dilation[1], rows=ih, columns=iw,
            patches_n=oh * ow * problem.ic * taps * item, patch_bytes=problem.ic * taps * item,
            image_n=problem.ic * ih * iw * item, plane_bytes=ih * iw * item,
            workspace_bytes=total, pixels=pixels, taps=turned,
        )  # fmt: skip
        tasks = problem.n * -(-problem.ic // lanes)
        return Launch(lambda: fold.fold(problem.dtype), problem.dtype, record, tasks, self._threads, total)

    def _moving_seconds(self) -> float:
        problem = self.problem
        if self._folds:
            lanes = vector_bytes() // problem.itemsize
            vectors = problem.n * -(-problem.ic // lanes)
            values = math.prod(problem.input_size) + math.prod((*problem.output_size, *problem.kernel_size))
            moved = vectors * lanes * values * _FOLD_SECONDS * model.balance(vectors, self._threads)
        else:
            moved = math.prod(problem.x_shape) // problem.kernel_size[1] * _RUN_SECONDS
        turned = sum(step.y.seconds(self._threads) for step in self._rounds)
        launches = len(self._rounds) * model.launch_seconds(self._threads)
        return launches + moved / self._threads + turned

    @property
    def inner(self) -> list[Operation]:
        return [step.operation for step in self._rounds]

    def _how(self) -> str:
        return "patches that are added up" if self._folds else "windows side by side as pixels"

    def prepare(self, w: np.ndarray) -> Any:
        return {step.operation: step.operation.prepare(w.reshape(self._w_shape)) for step in self._rounds}

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: Any = None,
    ) -> None:  # fmt: skip
        if self._zeros:  # pixels behind the last windows
            self._move(self._zeros, first, result)
        w = (result if self.direction == "grad_weight" else second).reshape(self._w_shape)
        with Buffer(self._scratch) as buffer:
            for step in self._rounds:
                images = slice(step.first, step.last)
                patches = self._view(buffer, 0, step.patches)
                y = self._view(buffer, patches.size, step.y.shape)
                if self.direction == "forward":
                    self._move(step.move, first[images], patches)
                    step.operation.run(patches, w, y, epilogue, prepared and prepared[step.operation])
                    self._move(step.y.scatter, y, result[images])
                elif self.direction == "grad_input":
                    self._move(step.y.gather, first[images], y)
                    step.operation.run(y, w, patches)
                    self._move(step.move, patches, result[images])
                else:
                    self._move(step.move, second[images], patches)
                    self._move(step.y.gather, first[images], y)
                    step.operation.run(patches, y, w)


def _side_by_side(problem: ConvProblem) -> bool:
    """Whether windows neither overlap nor lie apart, and no padding cuts them."""
    plain = replace(
        problem, stride=problem.kernel_size, padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1, layout="NCHW"
    )
    return problem == plain and problem.kernel_size != (1, 1) and problem.kernel_size[1] <= _WIDEST


def _folds(problem: ConvProblem) -> bool:
    """Whether patches are made that can be added up: of planes, and a vector of channels stays near."""
    pointwise = problem.kernel_size == problem.stride == (1, 1)
    near = math.prod(problem.input_size) * vector_bytes() <= _FOLDED_BYTES
    return problem.layout == "NCHW" and problem.groups == 1 and not pointwise and near


def plan_disjoint(problem: ConvProblem, direction: str, threads: int, plan: Planner) -> DisjointOperation | None:
    """Plan it; None for windows that are not for this way, or where the scratch is too small."""
    if not (_side_by_side(problem) or (direction == "grad_input" and _folds(problem))):
        return None
    windows, depth = math.prod(problem.output_size), problem.ic * math.prod(problem.kernel_size)
    each = windows * (depth + problem.oc) * problem.itemsize
    together = min(problem.n, int(scratch_limit(replace(problem, n=1), 2)) // max(each, 1))
    if windows == 0 or together == 0 or (direction == "grad_weight" and together < problem.n):
        return None
    return DisjointOperation(problem, direction, threads, together, plan)
