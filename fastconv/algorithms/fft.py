"""fft: products of spectra, for large kernels of stride 1 on planes and few channels; all three directions.

The kernels are in `fastconv.kernels.overlap_save`. The rounding error follows the largest values of a pair of blocks,
not those that a result sums, and a NaN or infinity reaches all results of the pair: in the weight gradient all weights
of its channel. Sums over whole blocks overflow earlier than the plain ones.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.algorithms.base import (
    PLAIN,
    Algorithm,
    Epilogue,
    Estimate,
    Operation,
    canonical_strides,
    canonical_weight_strides,
    scratch_limit,
)
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.grids import roles, sub_problems, workspace_offsets
from fastconv.algorithms.planar import plan_planar
from fastconv.algorithms.slabs import MOST_SLABS, SLABS_BYTES, Slabs, slabs_up_to
from fastconv.cost import far_bytes, traffic_seconds
from fastconv.kernels import fft, overlap_save
from fastconv.kernels.launch import GAP_BYTES, Launch
from fastconv.kernels.params import Buffer, aligned, fill
from fastconv.kernels.target import of_this_cpu, vector_bytes
from fastconv.problem import ConvProblem

if TYPE_CHECKING:
    from fastconv.machine import Machine


class _Slots(NamedTuple):
    """What the parts of the work take, in slots of `direct.model`."""

    octave: float
    """One octave of a transform in one direction, for each complex vector."""
    load: float
    """Loading one into panels."""
    store: float
    """Storing one vector of results."""
    apart: float
    """Loading or storing the values of one vector of an image whose pixels lie apart."""
    product: float
    """Multiplying one by another from the second cache level."""


_WHOLE_SLOTS = _Slots(octave=4.0, load=35.0, store=20.0, apart=69.0, product=10.0)
_HALVED_SLOTS = _Slots(octave=4.5, load=2.0, store=8.0, apart=35.0, product=8.0)
"""The same where the CPU multiplies halves of vectors: a slot is twice as long there, but not a load or a sum."""
_NARROW_SLOTS = _Slots(octave=8.0, load=11.0, store=17.0, apart=45.0, product=4.5)
"""And where vectors of 32 bytes find 16 registers (Zen 3)."""
_NEAR_BYTES = 1 << 20
"""Panels and spectra that stay in the second cache level."""
_FAR_SHARE = 0.8
"""Speed where they do not."""
_KEPT_BYTES = 8 << 20
"""Spectra that a prepared layer keeps."""
_SLAB_PAIRS = 4
"""Least pairs of blocks of a slab of the weight gradient: each slab transforms its sums back."""


@dataclass(frozen=True)
class Blocks:
    """The blocks of an image: n0 x n1 points, of which the first step_r x step_c become results."""

    n0: int
    n1: int
    step_r: int
    step_c: int
    blocks_c: int
    count: int

    @property
    def points(self) -> int:
        """Of a block."""
        return self.n0 * self.n1


class Sizes:
    """Bytes of what the kernels keep for a block, in a thread's workspace and beside."""

    def __init__(self, blocks: Blocks, problem: ConvProblem, spectra: int, sums: int) -> None:
        """`spectra` and `sums` are how many spectra of each kind a thread holds."""
        row = 2 * vector_bytes()
        lanes = vector_bytes() // problem.itemsize
        self.panel = row * (blocks.n0 + 1)  # a row more: panels a power of two apart would share cache sets
        self.spectrum = blocks.points * 2 * problem.itemsize
        self.spectra, self.scratch, self.sums, self.workspace = workspace_offsets(
            blocks.n1 // lanes * self.panel, spectra * self.spectrum, blocks.n1 * row, sums * self.spectrum
        )[1:]


def _slots() -> _Slots:
    return of_this_cpu(_WHOLE_SLOTS, _HALVED_SLOTS, _NARROW_SLOTS)


def _held(problem: ConvProblem, direction: str) -> tuple[int, int]:
    """Spectra of sources that a thread holds, and of sums."""
    ic, oc = problem.ic_per_group, problem.oc_per_group
    if direction == "grad_weight":
        return ic, ic * oc
    reduction = ic if direction == "forward" else oc
    return (0 if ic == oc == 1 else reduction), 0


def _targets(problem: ConvProblem, direction: str) -> tuple[int, int]:
    """Rows and columns that blocks are cut from."""
    return problem.input_size if direction == "grad_input" else problem.output_size


def _pair_slots(problem: ConvProblem, direction: str, blocks: Blocks, sizes: Sizes) -> float:
    """Slots that one pair of blocks of one group takes."""
    ic, oc = problem.ic_per_group, problem.oc_per_group
    if direction == "grad_weight":  # both are transformed; what is transformed back counts once a slab
        rows, columns = problem.output_size
        gradients = min(blocks.step_r, rows), min(blocks.step_c, columns)
        slots = ic * _loaded_slots(problem, blocks, problem.input_size) + oc * _loaded_slots(problem, blocks, gradients)
        slots += 2 * ic * oc * _slots().product
    else:
        read, written = (ic, oc) if direction == "forward" else (oc, ic)
        source = problem.input_size if direction == "forward" else problem.output_size
        results = 2 * blocks.step_r * blocks.step_c / blocks.points * (_slots().store + _apart_slots(problem))
        slots = read * _loaded_slots(problem, blocks, source) + read * written * _slots().product
        slots += written * (_transform_slots(problem, blocks, blocks.step_c) + results)
    far = sizes.workspace + ic * oc * sizes.spectrum > _NEAR_BYTES
    return _vectors(problem, blocks) * slots / (_FAR_SHARE if far else 1.0)


def _spectrum_slots(problem: ConvProblem, blocks: Blocks) -> float:
    """Slots of transforming one kernel's weights, or a sum of spectra back."""
    return _vectors(problem, blocks) * _loaded_slots(problem, blocks, problem.kernel_size)


def _loaded_slots(problem: ConvProblem, blocks: Blocks, size: tuple[int, int]) -> float:
    """Slots, for each complex vector, of transforming two blocks of an image or kernel of that size."""
    apart = 2 * _apart_slots(problem) * min(size[0], blocks.n0) * min(size[1], blocks.n1) / blocks.points
    return _slots().load + apart + _transform_slots(problem, blocks, size[1])


def _apart_slots(problem: ConvProblem) -> float:
    return 0.0 if problem.in_planes else _slots().apart


def _transform_slots(problem: ConvProblem, blocks: Blocks, columns: int) -> float:
    """The same of a transform or its inverse: along the rows only panels that have some of `columns` columns."""
    lanes = vector_bytes() // problem.itemsize
    met = min(1.0, -(-columns // lanes) * lanes / blocks.n1)
    return (math.log2(blocks.n0) * met + math.log2(blocks.n1)) * _slots().octave


def _vectors(problem: ConvProblem, blocks: Blocks) -> float:
    """Complex vectors of a block."""
    return blocks.points * problem.itemsize / vector_bytes()


def _steps(targets: int, taps: int, lanes: int) -> list[tuple[int, int, int]]:
    """Sizes of blocks along an axis: points, results of a block, blocks; for each number of blocks the smallest."""
    found: dict[int, tuple[int, int, int]] = {}
    for points in fft.good_sizes(lanes):
        if points >= taps:
            step = min(targets, points - taps + 1)
            count = -(-targets // step)
            if count not in found or points < found[count][0]:
                found[count] = points, step, count
    return list(found.values())


@functools.lru_cache(maxsize=1024)
def _blocks(problem: ConvProblem, direction: str) -> Blocks | None:
    """The quickest blocks, for one thread; None where none fit the scratch that a call may take."""
    item, (kh, kw), lanes = problem.itemsize, problem.kernel_size, vector_bytes() // problem.itemsize
    rows, columns = _targets(problem, direction)
    limit = scratch_limit(problem, 1)
    kernels = problem.ic_per_group * problem.oc_per_group
    best, quickest = None, math.inf
    for n0, step_r, blocks_r in _steps(rows, kh, lanes):
        for n1, step_c, blocks_c in _steps(columns, kw, lanes):
            spectra = 2 * kernels * n0 * n1 * item  # of the weights, or the sums of the weight gradient
            if spectra > limit:
                continue
            blocks = Blocks(n0, n1, step_r, step_c, blocks_c, blocks_r * blocks_c)
            sizes = Sizes(blocks, problem, *_held(problem, direction))
            if sizes.workspace + (0 if direction == "grad_weight" else spectra) > limit:
                continue
            slots = -(-blocks.count // 2) * _pair_slots(problem, direction, blocks, sizes)
            slots += kernels * _spectrum_slots(problem, blocks)
            if slots < quickest:
                best, quickest = blocks, slots
    return best


def _typical(problem: ConvProblem) -> ConvProblem:
    """The problem that decides on the blocks: an image's result must not depend on its neighbours."""
    return replace(problem, n=1)


class Fft(Algorithm):
    """Overlap-save in blocks, two of them in each complex transform."""

    name = "fft"
    exact = False

    def declines(self, problem: ConvProblem, direction: str) -> str | None:
        if problem.stride != (1, 1):
            return f"fft is for stride 1, not {problem.stride}"
        if problem.dilation != (1, 1):
            return f"fft is for dilation 1, not {problem.dilation}"
        if _blocks(_typical(problem), direction) is None:
            channels = f"{problem.ic_per_group} to {problem.oc_per_group} channels"
            return f"fft would keep more spectra of {channels} and {problem.kernel_size} weights than a call may"
        return None

    def plan(self, problem: ConvProblem, direction: str, threads: int) -> Operation:
        blocks = _blocks(_typical(problem), direction)
        assert blocks is not None  # or it would have declined

        def on(layer: ConvProblem, direction: str, threads: int) -> Operation:
            if direction == "grad_weight":
                return WeightGradientOperation(layer, blocks, threads)
            return FftOperation(layer, direction, blocks, threads)

        return plan_planar(problem, direction, threads, on) or on(problem, direction, threads)


def _transforms(problem: ConvProblem, blocks: Blocks, sizes: Sizes) -> dict[str, int]:
    """The fields that all records have in common; `_launch` fills the one that is left out."""
    tables = [fft.table(n, problem.dtype)[0] for n in (blocks.n0, blocks.n1)]  # they are kept for good
    return {
        "n0": blocks.n0, "n1": blocks.n1, "transform": 0,
        "tables_0": tables[0].ctypes.data, "tables_1": tables[1].ctypes.data,
        "panel_bytes": sizes.panel, "spectrum_bytes": sizes.spectrum,
    }  # fmt: skip


def _launch(
    kernel: Callable[[str], CFunc], problem: ConvProblem, plan: np.ndarray, tasks: int, threads: int, sizes: Sizes
) -> Launch:
    """A launch whose kernel, and the transform that it calls, are compiled at the first call."""

    def compiled() -> CFunc:
        plan["transform"] = fft.transform(problem.dtype, vector_bytes() // problem.itemsize).address
        return kernel(problem.dtype)

    return Launch(compiled, problem.dtype, plan, tasks, threads, sizes.workspace)


class FftOperation(Operation):
    """Forward pass or input gradient: the spectra of some groups' weights, then their results, and so on."""

    def __init__(self, problem: ConvProblem, direction: str, blocks: Blocks, threads: int) -> None:
        self.problem = problem
        self.direction = direction
        self.blocks = blocks
        self._pairs = -(-blocks.count // 2)
        self._sizes = sizes = Sizes(blocks, problem, *_held(problem, direction))
        self._group_bytes = problem.ic_per_group * problem.oc_per_group * sizes.spectrum
        limit, each = scratch_limit(problem, threads), sizes.workspace + GAP_BYTES
        self._threads = max(1, min(threads, int((limit - self._group_bytes) // each)))
        room = int((limit - self._threads * each) // self._group_bytes)
        self._groups = max(1, min(problem.groups, room))
        part = roles(problem, direction)
        self._zeros = np.zeros(problem.groups * part.channels, problem.dtype)
        self._steps = [
            (self._spectra(first, count), self._results(first, count))
            for first in range(0, problem.groups, self._groups)
            for count in (min(self._groups, problem.groups - first),)
        ]
        self._all = problem.groups * self._group_bytes
        self._keeps_weights = self._all <= _KEPT_BYTES
        self.prepared_key = (blocks.n0, blocks.n1) if self._keeps_weights else None
        inner = max(launch.workspace_bytes for step in self._steps for launch in step)
        self.workspace_bytes = inner + self._groups * self._group_bytes

    def _spectra(self, first: int, groups: int) -> Launch:
        """The launch that transforms the weights of some groups."""
        problem, sizes = self.problem, Sizes(self.blocks, self.problem, 0, 0)
        part = roles(problem, self.direction)
        ((rows, columns),) = sub_problems(problem, self.direction)
        w_r, w_c, w_k, w_d = part.weights
        flipped_r, flipped_c = (axis.offsets[0] > axis.offsets[-1] for axis in (rows, columns))
        kh, kw = problem.kernel_size
        plan = fill(
            overlap_save.SPECTRA, **_transforms(problem, self.blocks, sizes),
            weight_offset=(kh - 1) * w_r * flipped_r + (kw - 1) * w_c * flipped_c,
            weight_r=-w_r if flipped_r else w_r, weight_c=-w_c if flipped_c else w_c, weight_k=w_k, weight_d=w_d,
            weight_group=part.weight_group, taps_r=kh, taps_c=kw, first_group=first,
            reduction=part.reduction, channels=part.channels, workspace_bytes=sizes.workspace,
        )  # fmt: skip
        tasks = groups * part.reduction * part.channels
        return _launch(overlap_save.weight_spectra, problem, plan, tasks, self._threads, sizes)

    def _results(self, first: int, groups: int) -> Launch:
        """The launch that computes the results of some groups."""
        problem, sizes, blocks = self.problem, self._sizes, self.blocks
        part = roles(problem, self.direction)
        ((rows, columns),) = sub_problems(problem, self.direction)
        plan = fill(
            overlap_save.OVERLAP_SAVE, **_transforms(problem, blocks, sizes),
            source_n=part.source[0], source_r=part.source[1], source_c=part.source[2], source_k=part.source[3],
            source_group=part.reduction * part.source[3],
            source_rows=part.source_size[0], source_columns=part.source_size[1],
            first_row=min(rows.offsets), first_column=min(columns.offsets),
            target_n=part.target[0], target_r=part.target[1], target_c=part.target[2], target_d=part.target[3],
            target_group=part.channels * part.target[3], rows=rows.count, columns=columns.count,
            start_group=part.channels * problem.itemsize, first_group=first,
            n=problem.n, reduction=part.reduction, channels=part.channels,
            step_r=blocks.step_r, step_c=blocks.step_c, blocks_c=blocks.blocks_c, blocks=blocks.count,
            pairs=self._pairs, workspace_bytes=sizes.workspace, spectra=sizes.spectra, scratch=sizes.scratch,
        )  # fmt: skip
        tasks = groups * problem.n * self._pairs
        return _launch(overlap_save.overlap_save, problem, plan, tasks, self._threads, sizes)

    @functools.cached_property
    def _prepared_steps(self) -> tuple[Launch, Launch]:
        """The same launches for all groups at once."""
        return self._spectra(0, self.problem.groups), self._results(0, self.problem.groups)

    def estimate(self, machine: Machine) -> Estimate:
        problem, blocks, sizes = self.problem, self.blocks, self._sizes
        rate = model.slot_rate(machine, vector_bytes() // problem.itemsize)
        pair, kernel = _pair_slots(problem, self.direction, blocks, sizes), _spectrum_slots(problem, blocks)
        seconds = model.planes_seconds(problem) / self._threads + far_bytes(problem) * model.STREAM_SECONDS
        for step in self._steps:
            for launch, each in zip(step, (kernel, pair), strict=True):
                work = launch.tasks * each / rate * model.balance(launch.tasks, launch.threads)
                seconds += model.launch_seconds(launch.threads) + work / launch.threads
        traffic = traffic_seconds(problem, self.direction, machine)
        return Estimate(max(seconds, traffic), describe(problem, self.direction, blocks))

    def prepare(self, w: np.ndarray) -> np.ndarray:
        if not self._keeps_weights:
            return w
        packed = aligned((1, 1, 1, self._all // self.problem.itemsize), self.problem.dtype)
        self._prepared_steps[0](w, w, self._zeros, packed)
        return packed

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: Any = None,
    ) -> None:  # fmt: skip
        start = self._zeros if epilogue.bias is None else epilogue.bias
        if prepared is not None and self._keeps_weights:
            self._prepared_steps[1](first, prepared, start, result, epilogue.end)
            return
        size = self._groups * self._group_bytes
        with Buffer(size) as buffer:
            packed = buffer[:size].view(self.problem.dtype).reshape(1, 1, 1, -1)
            for spectra, results in self._steps:
                spectra(second, second, self._zeros, packed)
                results(first, packed, start, result, epilogue.end)


class WeightGradientOperation(Operation):
    """Weight gradient: slabs of pairs of blocks, each summed on its own."""

    def __init__(self, problem: ConvProblem, blocks: Blocks, threads: int) -> None:
        self.problem = problem
        self.blocks = blocks
        self._pairs = -(-problem.n * blocks.count // 2)
        self._sizes = sizes = Sizes(blocks, problem, *_held(problem, "grad_weight"))
        slab_bytes = math.prod(problem.w_shape) * problem.itemsize
        room = min(SLABS_BYTES, int(scratch_limit(problem, 1)) - sizes.workspace) // slab_bytes
        self._slabs = slabs_up_to(min(self._pairs // _SLAB_PAIRS, MOST_SLABS // problem.groups, room))
        limit = scratch_limit(problem, threads) - (self._slabs * slab_bytes if self._slabs > 1 else 0)
        self._threads = max(1, min(threads, int(limit // (sizes.workspace + GAP_BYTES))))
        self._partial = Slabs(problem, self._slabs, threads)
        item, layout = problem.itemsize, problem.layout
        x, y = (canonical_strides(shape, item, layout) for shape in (problem.x_shape, problem.y_shape))
        w = canonical_weight_strides(problem.w_shape, item, layout)
        ic, oc = problem.ic_per_group, problem.oc_per_group
        (rows, columns), ((top, _), (left, _)) = problem.output_size, problem.padding
        plan = fill(
            overlap_save.WEIGHT_SPECTRA, **_transforms(problem, blocks, sizes),
            source_n=x[0], source_r=x[1], source_c=x[2], source_k=x[3], source_group=ic * x[3],
            source_rows=problem.input_size[0], source_columns=problem.input_size[1], first_row=-top, first_column=-left,
            gradient_n=y[0], gradient_r=y[1], gradient_c=y[2], gradient_d=y[3], gradient_group=oc * y[3],
            rows=rows, columns=columns,
            target_r=w[0], target_c=w[1], target_k=w[2], target_d=w[3], target_group=oc * w[3],
            slab_bytes=self._partial.bytes_each, taps_r=problem.kernel_size[0], taps_c=problem.kernel_size[1],
            n=problem.n, reduction=ic, channels=oc,
            step_r=blocks.step_r, step_c=blocks.step_c, blocks_c=blocks.blocks_c, blocks=blocks.count,
            pairs=self._pairs, slabs=self._slabs, workspace_bytes=sizes.workspace,
            spectra=sizes.spectra, scratch=sizes.scratch, sums=sizes.sums,
        )  # fmt: skip
        tasks = problem.groups * self._slabs
        self._launch = _launch(overlap_save.overlap_save_weights, problem, plan, tasks, self._threads, sizes)
        self._unused = np.zeros(1, problem.dtype)
        self.workspace_bytes = self._launch.workspace_bytes + self._partial.workspace_bytes

    def estimate(self, machine: Machine) -> Estimate:
        problem, blocks = self.problem, self.blocks
        ic, oc = problem.ic_per_group, problem.oc_per_group
        rate = model.slot_rate(machine, vector_bytes() // problem.itemsize)
        pair, kernel = _pair_slots(problem, "grad_weight", blocks, self._sizes), _spectrum_slots(problem, blocks)
        work = problem.groups * (pair * self._pairs + kernel * ic * oc * self._slabs) / rate
        work += model.planes_seconds(problem)
        seconds = work / self._launch.threads * model.balance(problem.groups * self._slabs, self._launch.threads)
        seconds += far_bytes(problem) * model.STREAM_SECONDS
        launches = 2 if self._partial.workspace_bytes else 1
        seconds += launches * model.launch_seconds(self._launch.threads)
        traffic = traffic_seconds(problem, "grad_weight", machine)
        return Estimate(max(seconds, traffic), describe(problem, "grad_weight", blocks))

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: Any = None,
    ) -> None:  # fmt: skip
        self._partial.run(self._launch, second, first, self._unused, result)


def describe(problem: ConvProblem, direction: str, blocks: Blocks) -> str:
    """The blocks in words."""
    pairs = -(-blocks.count // 2)
    share = math.prod(_targets(problem, direction)) / (2 * pairs * blocks.points)
    return f"spectra of {pairs} pairs of blocks of {blocks.n0} x {blocks.n1} points, {share:.0%} of them results"
