"""winograd: 3x3, 5x5, 1xk and kx1 convolutions of stride 1, dilated or not, with a quarter to a half of the products.

The kernels are in `fastconv.kernels.winograd`.

Forward pass, and input gradient as the same kernel on the flipped weights; the weight gradient is the transposed
algorithm (`fastconv.kernels.winograd_weights`). The rounding error is about twice that of the plain sum
(`fastconv.kernels.toomcook`), and a NaN or infinity reaches all outputs of the tiles that read it: in the weight
gradient all weights of its channel, with every channel of the other side.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.algorithms.banded import BandPlanner, GroupBands, Stage, plan_banded, plan_banded_gradient
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
from fastconv.algorithms.direct.grids import Axis, roles, sub_problems, workspace_offsets
from fastconv.algorithms.slabs import SLABS_BYTES, Slabs, slabs_up_to
from fastconv.algorithms.transposed import bands_of, cut_of, transposed
from fastconv.cost import traffic_seconds
from fastconv.kernels import winograd as kernels
from fastconv.kernels import winograd_weights as kernels_of_weights
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import Buffer, address, aligned, fill, odd_lines
from fastconv.kernels.target import (
    LATENCY_ROWS,
    TILE_SHARE,
    Tile,
    correlate_tile,
    panel_slots,
    panel_tile,
    vector_bytes,
)
from fastconv.kernels.tiles import RUN_FIELDS
from fastconv.kernels.toomcook import Filtering
from fastconv.kernels.transforms import GRADIENT, INPUT
from fastconv.problem import CHANNELS_LAST, IMAGES_LAST, ConvProblem

if TYPE_CHECKING:
    from fastconv.machine import Machine


@dataclass(frozen=True)
class Form:
    """F(m0 x m1, r0 x r1): tiles of m0 x m1 outputs of r0 x r1 kernels, from n0 x n1 inputs.

    `*_slots` are the slots (`direct.model`) that transforming one vector of a tile takes, most of them for moving it
    between caches: the inputs, the weights, the products back, and for the weight gradient the output gradients and the
    sums.
    """

    rows: Filtering
    columns: Filtering
    input_slots: int
    weight_slots: int
    output_slots: int
    gradient_slots: int
    sums_slots: int
    kept_bytes: int
    """Transformed weights that a prepared layer keeps: from a slower cache more come later than they are made."""

    def __str__(self) -> str:
        return f"F({self.rows.m} x {self.columns.m}, {self.rows.r} x {self.columns.r})"

    @property
    def matrices(self) -> int:
        """Inputs of a tile, and its products."""
        return self.rows.n * self.columns.n

    @property
    def outputs(self) -> int:
        """Outputs of a tile."""
        return self.rows.m * self.columns.m

    @property
    def taps(self) -> int:
        """Weights of a kernel."""
        return self.rows.r * self.columns.r

    def describe(self, tiles: int, outputs: int) -> str:
        """The form in words, with its share of the plain sum's multiplications when so many tiles make the outputs."""
        share = outputs * self.taps / (tiles * self.matrices)
        return f"{self}, 1/{share:.1f} of the multiplications"


def tiles_along(filtering: Filtering, count: int, dilation: int) -> int:
    """Tiles that `count` targets of an axis take: of each phase, the targets that lie `dilation` apart.

    Tile a is that of phase a % dilation whose first target is a // dilation * m * dilation + a % dilation.
    """
    whole, rest = divmod(count, filtering.m * dilation)
    return whole * dilation + min(rest, dilation)


def _square(m: int, r: int, **slots: int) -> dict[tuple[int, int], Form]:
    return {(r, r): Form(Filtering(m, r), Filtering(m, r), **slots)}


def _flat(m: int, r: int, **slots: int) -> dict[tuple[int, int], Form]:
    along, across = Filtering(m, r), Filtering(1, 1)
    return {(1, r): Form(across, along, **slots), (r, 1): Form(along, across, **slots)}


FORMS = {
    **_square(4, 3, input_slots=570, weight_slots=320, output_slots=150, gradient_slots=450, sums_slots=450,
              kept_bytes=3 << 19),
    **_square(2, 5, input_slots=460, weight_slots=1000, output_slots=50, gradient_slots=250, sums_slots=600,
              kept_bytes=8 << 20),
    **_flat(4, 3, input_slots=90, weight_slots=55, output_slots=55, gradient_slots=75, sums_slots=60,
            kept_bytes=3 << 19),
    **_flat(4, 5, input_slots=120, weight_slots=75, output_slots=35, gradient_slots=100, sums_slots=80,
            kept_bytes=3 << 19),
    **_flat(2, 7, input_slots=90, weight_slots=110, output_slots=40, gradient_slots=75, sums_slots=100,
            kept_bytes=3 << 19),
}  # fmt: skip
"""By the kernel's size: the largest tiles whose rounding errors stay small, which grow along both axes of a square."""
_CHUNK = 96
"""Source channels whose transformed weights a panel takes at once: they stay in the second cache level."""
_STREAMED_BYTES = 256
"""Source channels that are transformed at a time where not all are held."""
_TASK_BYTES = 31 << 16
"""Workspace of a thread: the more tiles share the transformed weights the better, until they leave the caches."""
_NEAR_BYTES = 1 << 20
"""Transformed input that stays in the second cache level beside the weights."""
_FAR_SHARE = 0.85
"""Speed of the products where it does not."""
_MULTIPLY_SHARE = 0.95
"""Share of the peak that the products reach, their operands coming from the second cache level."""
_PRODUCT_STEPS = 4
"""Beginning and end of the sums of a register tile, in their steps."""
_TRACE_SLOTS = 6
"""Writing the address of one input or output of a tile."""
_LAUNCHES_SAVED = 3
"""Launches whose time must be saved for a call to transform all weights first, instead of in every block of tiles."""
_LOW_SHARE = 0.9
"""A low register tile must take less than that of the usual one's time, as it loads more for each multiply-add."""
_RUNS_PER_THREAD = 4
"""Runs of tasks that a thread takes one after another, of problems in groups."""
_FETCH_SECONDS = 0.15e-9
"""Fetching a byte of them that another core has just written."""
_BLOCK_BYTES = 256
"""Weight gradient: input channels, and output channels, whose sums a task owns."""
_GRADIENT_BYTES = 9 << 17
"""Its sums and transformed tiles: they stay in the second cache level."""
_SLAB_TILES = 48
"""Least tiles of a slab: each slab transforms its sums back."""
_TASKS = 16
"""Tasks that are enough for slabs not to be cut further."""
_PRODUCT_SHARE = 0.95
"""Share of the peak that its products reach, each of their sums read and written for every block of tiles."""


def _tile(dtype: str, tiles: int, channels: int) -> Tile:
    """The register tile for so many tiles as rows: a lower one where the last rows would be computed for nothing."""
    usual = panel_tile(dtype, 1 << 20, channels)
    low = replace(usual, MR=min(usual.MR, LATENCY_ROWS))

    def slots(shape: Tile) -> float:
        return -(-tiles // shape.MR) * panel_slots(shape, channels, TILE_SHARE)

    return low if slots(low) < _LOW_SHARE * slots(usual) else usual


def _even_block(channels: int, most: int, lanes: int) -> int:
    """Channels of a block: whole vectors, at most `most` channels, blocks about as large as each other."""
    blocks = -(-channels // most)
    return -(-channels // (blocks * lanes)) * lanes


def _band_rows(problem: ConvProblem) -> int:
    """Target rows of which bands of an image are multiples, for its tiles to be those of the whole image."""
    return FORMS[problem.kernel_size].rows.m * problem.dilation[0]


class Winograd(Algorithm):
    """F(4 x 4, 3 x 3) and its like on blocks of tiles that stay in the second cache level."""

    name = "winograd"
    exact = False

    def declines(self, problem: ConvProblem, direction: str) -> str | None:
        lanes = vector_bytes() // problem.itemsize
        if problem.kernel_size not in FORMS:
            sizes = ", ".join(f"{kh} x {kw}" for kh, kw in FORMS)
            return f"winograd is for kernels of {sizes}, not {problem.kernel_size}"
        if problem.stride != (1, 1):
            return f"winograd is for stride 1, not {problem.stride}"
        read = {"forward": problem.ic_per_group, "grad_input": problem.oc_per_group}
        least = read.get(direction, min(problem.ic_per_group, problem.oc_per_group))
        if least < lanes:
            return f"winograd needs {lanes} channels in a group to read, not {least}"
        if problem.layout == "NCHW" and not self._transposes(problem, direction):
            return "winograd in layout 'NCHW' transposes images, and these are too large for that"
        return None

    @staticmethod
    def _transposes(problem: ConvProblem, direction: str) -> bool:
        """Whether NCHW images can be transposed in parts."""
        if direction == "grad_weight":
            return cut_of(problem) is not None
        return bands_of(problem, direction, IMAGES_LAST, _band_rows(problem)) is not None

    def plan(self, problem: ConvProblem, direction: str, threads: int) -> Operation:
        if problem.layout == "NCHW" and direction == "grad_weight":
            in_groups = problem.groups > 1
            banded = plan_banded_gradient(problem, _gradient_of_band, "NHWC", True, threads) if in_groups else None
            gradient = banded or transposed(problem, direction, CHANNELS_LAST, self, threads)
            assert gradient is not None  # or it would have declined
            return gradient
        if problem.layout == "NCHW":
            planner = self._band_planner(problem, direction)
            ways = [
                plan_banded(problem, direction, planner, threads),
                transposed(problem, direction, IMAGES_LAST, self, threads, planner.rows),
            ]
            if problem.groups > 1:
                ways.append(plan_banded(problem, direction, self._group_planner(problem, direction), threads))
            return min((way for way in ways if way), key=lambda way: way.seconds(model.NOMINAL_RATE))
        if direction == "grad_weight":
            return WeightGradientOperation(problem, threads)
        return WinogradOperation(problem, direction, threads)

    @staticmethod
    def _band_planner(problem: ConvProblem, direction: str) -> BandPlanner:
        """How bands of NCHW images are computed: with as many channels held as in the first, as weights lie so."""
        first: list[WinogradOperation] = []

        def stages(band: ConvProblem) -> tuple[Stage, ...]:
            as_first = (first[0].held, first[0].tile) if first else ()
            operation = WinogradOperation(band, direction, 1, *as_first)
            first.append(operation)
            return (operation.stage(),)

        return BandPlanner(IMAGES_LAST, _band_rows(problem), str(FORMS[problem.kernel_size]), stages)

    @staticmethod
    def _group_planner(problem: ConvProblem, direction: str) -> BandPlanner:
        """The same in bands of some groups, each of which transforms its weights."""

        def stages(band: ConvProblem) -> tuple[Stage, ...]:
            return (WinogradOperation(band, direction, 1).stage(packs=False),)

        return BandPlanner(IMAGES_LAST, 1, str(FORMS[problem.kernel_size]), stages, GroupBands(dense=True))


class WinogradOperation(Operation):
    """Forward pass or input gradient by tiles."""

    def __init__(
        self, problem: ConvProblem, direction: str, threads: int, held: int | None = None, tile: Tile | None = None
    ) -> None:  # fmt: skip
        """`held` source channels are transformed at a time, and `tile` is used; None for what takes the least time."""
        self.problem = problem
        self.direction = direction
        self.threads = threads
        self.form = form = FORMS[problem.kernel_size]
        ((rows, columns),) = sub_problems(problem, direction)
        self._tile_rows = tiles_along(form.rows, rows.count, problem.dilation[0])
        self._tile_columns = tiles_along(form.columns, columns.count, problem.dilation[1])
        self._roles = roles(problem, direction)
        self._tiles = problem.n * self._tile_rows * self._tile_columns
        self.tile = tile or _tile(problem.dtype, self._tiles, self._roles.channels)
        self._targets = problem.n * rows.count * columns.count
        self._panels = -(-self._roles.channels // self.tile.NR)
        self._block, self._parts, self.held, self._slots = self._blocking(held)
        zeros = np.zeros(max(problem.groups * self._roles.reduction, self.tile.NR), problem.dtype)
        self._zeros = np.zeros(problem.groups * self._panels * self.tile.NR, problem.dtype)
        tasks = problem.groups * -(-self._tiles // self._block) * self._parts
        self._launches = []
        for transformed in (False, True):
            plan, workspace = self._record(rows, columns, zeros, transformed)
            # A run of tasks traces its tiles once, for all its groups.
            grain = max(1, tasks // (_RUNS_PER_THREAD * threads)) if problem.groups > 1 else 1
            self._launches.append(Launch(self._kernel(plan), problem.dtype, plan, tasks, threads, workspace, grain))
        pack, workspace = self._record(rows, columns, zeros, False)
        self._pack = Launch(
            self._pack_kernel(pack), problem.dtype, pack, problem.groups * self._panels, threads, workspace
        )
        self._kept = zeros  # the records hold its address
        self.workspace_bytes = self._launches[0].workspace_bytes
        self._packed_bytes = problem.groups * self._panels * int(pack["weight_panel"][0])
        self._keeps_weights = self._packed_bytes <= form.kept_bytes
        fits = self._keeps_weights and self.workspace_bytes + self._packed_bytes <= scratch_limit(problem, threads)
        self._saved_slots = self._repeated_slots() if fits else 0.0
        cost = _LAUNCHES_SAVED * model.launch_seconds(threads)
        if threads > 1:
            cost += self._packed_bytes * _FETCH_SECONDS
        if self._saved_slots / model.NOMINAL_RATE > cost:
            self.workspace_bytes += self._packed_bytes
        else:
            self._saved_slots = 0.0
        self.prepared_key = (self.tile.NR, self._panels, self._chunk(self.held)) if self._keeps_weights else None

    def _pack_kernel(self, plan: np.ndarray) -> Callable[[], CFunc]:
        """What compiles the kernel that transforms weights, and the part that `plan` tells it of."""

        def compiled() -> CFunc:
            form, dtype = self.form, self.problem.dtype
            plan["transform_weights"] = kernels.transform_weights(dtype, form.rows, form.columns).address
            return kernels.pack()

        return compiled

    def _kernel(self, plan: np.ndarray) -> Callable[[], CFunc]:
        """The same for the kernel that multiplies."""

        def compiled() -> CFunc:
            form, dtype = self.form, self.problem.dtype
            if not plan["transformed"][0]:
                plan["transform_weights"] = kernels.transform_weights(dtype, form.rows, form.columns).address
            plan["transform_inputs"] = kernels.transform_pixels(dtype, INPUT, form.rows, form.columns).address
            plan["transform_outputs"] = kernels.transform_products(dtype, form.rows, form.columns).address
            last = self.tile.last(self._roles.channels)
            plan["multiply_last"] = kernels.multiply(dtype, last, form.matrices).address
            if self._panels > 1:
                plan["multiply"] = kernels.multiply(dtype, self.tile, form.matrices).address
            return kernels.winograd(dtype, form.rows, form.columns)

        return compiled

    def _blocking(self, given: int | None) -> tuple[int, int, int, float]:
        """Tiles of a block, parts of the panels, channels held transformed, and slots of the thread that works longest.

        Either a block's source channels are all transformed once, for all panels, or a chunk of them at a time and
        again for every panel, which leaves room for more tiles to share the transformed weights.
        """
        shape, reduction, item = self.tile, self._roles.reduction, self.problem.itemsize
        matrices, outputs = self.form.matrices, self.form.outputs
        parts = [parts for parts in (1, 2, 4, 8, 16, 32) if parts <= self._panels]
        found = []
        for held in {reduction, min(reduction, _STREAMED_BYTES // item)} if given is None else {given}:
            beside = matrices * self._chunk(held) * shape.NR * item
            # A tile takes its transformed input, its products with a panel, and the addresses of its pixels.
            lanes = -(-held // shape.VL) * shape.VL
            each = matrices * ((lanes + shape.NR) * item + 8) + outputs * 8
            most = max(1, (_TASK_BYTES - beside) // (each * shape.MR))
            blocks = sorted({min(self._tiles, shape.MR * count) for count in range(1, most + 1)})
            choices = itertools.product(blocks, parts)
            found += [(self._thread_slots(block, part, held), -block, part, -held) for block, part in choices]
        slots, block, part, held = min(found)
        return -block, part, -held, slots

    def _chunk(self, held: int) -> int:
        """Source channels whose weights are transformed at once."""
        reduction = self._roles.reduction
        return held if held < reduction else -(-reduction // -(-reduction // _CHUNK))

    def _thread_slots(self, block: int, parts: int, held: int) -> float:
        """Slots of the thread that works longest: whole blocks come first, and the last ones fill the gaps."""
        each = self.problem.groups * parts
        whole, rest = divmod(self._tiles, block)
        slots = self._task_slots(block, parts, held)
        last = self._task_slots(rest, parts, held) if rest else 0.0
        rounds, more = divmod(each * whole, self.threads)
        busy = [(rounds + (thread < more)) * slots for thread in range(self.threads)]
        heapq.heapify(busy)
        for _ in range(each if rest else 0):
            heapq.heapreplace(busy, busy[0] + last)
        return max(busy)

    def _task_slots(self, tiles: int, parts: int, held: int) -> float:
        shape, form, reduction = self.tile, self.form, self._roles.reduction
        height = -(-tiles // shape.MR) * shape.MR
        panels = -(-self._panels // parts)
        vectors = min(panels * shape.NV, -(-self._roles.channels // shape.VL))
        times = 1 if held == reduction else panels
        inputs = times * tiles * -(-reduction // shape.VL) * form.input_slots
        weights = reduction * vectors * form.weight_slots
        multiply = form.matrices * height * vectors * (reduction + _PRODUCT_STEPS) / _MULTIPLY_SHARE
        if form.matrices * tiles * held * self.problem.itemsize > _NEAR_BYTES:
            multiply /= _FAR_SHARE
        trace = tiles * (form.matrices + form.outputs) * _TRACE_SLOTS
        return trace + inputs + weights + multiply + tiles * vectors * form.output_slots

    def _weight_slots(self) -> float:
        """Slots of transforming all weights."""
        vectors = self.problem.groups * self._roles.reduction * -(-self._roles.channels // self.tile.VL)
        return vectors * self.form.weight_slots

    def _repeated_slots(self) -> float:
        """Slots of each thread in which blocks of tiles transform weights that other blocks have transformed."""
        blocks = -(-self._tiles // self._block)
        return (blocks - 1) * self._weight_slots() / self.threads

    def stage(self, packs: bool = True) -> Stage:
        """What the operation is to a band that one thread computes.

        Weights that are kept are transformed before, if it `packs` any.
        """
        if not (packs and self._keeps_weights):
            return Stage(self._launches[False], self._zeros, lambda rate: self._slots / rate)
        transforming = -(-self._tiles // self._block) * self._weight_slots()
        return Stage(
            self._launches[True], self._zeros, lambda rate: (self._slots - transforming) / rate, self._pack,
            self._packed_bytes, self._weight_slots() / model.NOMINAL_RATE, self.prepared_key,
        )  # fmt: skip

    def _record(
        self, rows: Axis, columns: Axis, zeros: np.ndarray, transformed: bool
    ) -> tuple[np.ndarray, int]:  # fmt: skip
        problem, part, shape, form = self.problem, self._roles, self.tile, self.form
        outputs, taps, matrices = form.outputs, form.taps, form.matrices
        item, reduction = problem.itemsize, part.reduction
        w_r, w_c, w_k, w_d = part.weights
        flipped_r, flipped_c = (axis.offsets[0] > axis.offsets[-1] for axis in (rows, columns))
        offset = (form.rows.r - 1) * w_r * flipped_r + (form.columns.r - 1) * w_c * flipped_c
        height = -(-self._block // shape.MR) * shape.MR
        chunk = self._chunk(self.held)
        # A transform writes to all matrices at once: they must not lie a multiple of 4 KiB apart.
        value_pitch = -(-self.held // shape.VL) * shape.VL * item
        value_step, weight_step, product_step = (
            odd_lines(size) for size in (self._block * value_pitch, chunk * shape.NR * item, height * shape.NR * item)
        )
        chunk_bytes = matrices * weight_step
        panel_bytes = -(-reduction // chunk) * chunk_bytes
        sizes = (
            self._block * outputs * 8, height * 8, self._block * matrices * 8, matrices * value_step, chunk_bytes,
            matrices * product_step, matrices * 8, matrices * 8, matrices * 8, taps * 8,
            max(reduction, problem.groups * part.channels, shape.NR) * item, (shape.MR + RUN_FIELDS) * 8, shape.MR * 8,
            matrices * 8, max((taps + 1) * shape.VL, matrices) * shape.VL * item,
        )  # fmt: skip
        (
            sources, targets, pixels, values, weights, products, value_table, weight_table, product_table,
            weight_source, unused, tile_table, starts, buffer_table, buffer, total,
        ) = workspace_offsets(*sizes)  # fmt: skip
        record = fill(
            kernels.WINOGRAD,
            source_n=part.source[0], source_r=part.source[1], source_c=part.source[2],
            source_group=reduction * part.source[3],
            source_rows=part.source_size[0], source_columns=part.source_size[1],
            target_offset=0, target_n=part.target[0], target_r=part.target[1], target_c=part.target[2],
            target_group=part.channels * part.target[3],
            rows=rows.count, columns=columns.count, first_row=min(rows.offsets), first_column=min(columns.offsets),
            dilation_r=problem.dilation[0], dilation_c=problem.dilation[1],
            tile_rows=self._tile_rows, tile_columns=self._tile_columns, tiles=self._tiles,
            block=self._block, blocks=-(-self._tiles // self._block), parts=self._parts,
            reduction=reduction, channels=part.channels, panels=self._panels, chunk=chunk,
            held=self.held, value_pitch=value_pitch, pixels=pixels,
            transformed=transformed, weight_offset=0 if transformed else offset,
            weight_r=-w_r if flipped_r else w_r, weight_c=-w_c if flipped_c else w_c, weight_k=w_k, weight_d=w_d,
            weight_group=self._panels * panel_bytes if transformed else part.weight_group, weight_panel=panel_bytes,
            weight_chunk=chunk_bytes,
            start_group=self._panels * shape.NR * item,
            value_step=value_step, weight_step=weight_step, product_step=product_step, zeros=address(zeros),
            transform_inputs=0, transform_outputs=0, transform_weights=0, multiply=0, multiply_last=0,
            panel_lanes=shape.NR, height=shape.MR,
            workspace_bytes=total, sources=sources, targets=targets, values=values, weights=weights,
            products=products, value_table=value_table, weight_table=weight_table, product_table=product_table,
            weight_source=weight_source, unused=unused, tile_table=tile_table, starts=starts,
            buffer_table=buffer_table, buffer=buffer,
        )  # fmt: skip
        return record, total

    def estimate(self, machine: Machine) -> Estimate:
        seconds = self.seconds(model.slot_rate(machine, self.tile.VL))
        traffic = traffic_seconds(self.problem, self.direction, machine)
        return Estimate(max(seconds, traffic), self.form.describe(self._tiles, self._targets))

    def seconds(self, rate: float) -> float:
        """Predicted time with `rate` slots a second on each thread."""
        launches = 2 if self._saved_slots else 1
        return launches * model.launch_seconds(self.threads) + (self._slots - self._saved_slots) / rate

    def prepare(self, w: np.ndarray) -> np.ndarray:
        if not self._keeps_weights:
            return w
        packed = aligned((1, 1, 1, self._packed_bytes // self.problem.itemsize), self.problem.dtype)
        self._pack(w, w, self._zeros, packed)
        return packed

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: Any = None,
    ) -> None:  # fmt: skip
        start = epilogue.start(self._zeros, self.problem.groups)
        end = epilogue.relu, epilogue.activation, epilogue.failed_address
        if prepared is None and self._saved_slots:
            with Buffer(self._packed_bytes) as buffer:
                packed = buffer[: self._packed_bytes].view(self.problem.dtype).reshape(1, 1, 1, -1)
                self._pack(second, second, self._zeros, packed)
                self._launches[True](first, packed, start, result, *end)
            return
        launch = self._launches[prepared is not None and self._keeps_weights]
        launch(first, second if prepared is None else prepared, start, result, *end)


def _gradient_of_band(problem: ConvProblem) -> WeightGradientOperation:
    return WeightGradientOperation(problem, 1)


class WeightGradientOperation(Operation):
    """Weight gradient by tiles: slabs of them, each summed on its own for every block of channels."""

    def __init__(self, problem: ConvProblem, threads: int) -> None:
        self.problem = problem
        self.form = form = FORMS[problem.kernel_size]
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
        tasks = self._slabs * problem.groups * self._blocks

        def compiled() -> CFunc:
            for name, kind in (("transform_inputs", INPUT), ("transform_gradients", GRADIENT)):
                plan[name] = kernels.transform_pixels(problem.dtype, kind, form.rows, form.columns).address
            plan["transform_sums"] = kernels_of_weights.transform_sums(problem.dtype, form.rows, form.columns).address
            return kernels_of_weights.winograd_weights(problem.dtype, self.tile, form.rows, form.columns)

        self.launch = Launch(compiled, problem.dtype, plan, tasks, threads, workspace)
        self.workspace_bytes = self.launch.workspace_bytes + self.slabs.workspace_bytes

    def _slab_count(self) -> int:
        """Slabs to add up: a function of the problem alone, because the result's bits depend on it."""
        bytes_each = math.prod(self.problem.w_shape) * self.problem.itemsize
        tasks = self.problem.groups * self._blocks
        return slabs_up_to(min(self._tiles // _SLAB_TILES, SLABS_BYTES // bytes_each, _TASKS // tasks))

    def _record(self, slab_bytes: int) -> tuple[np.ndarray, int]:
        problem, shape, item, form = self.problem, self.tile, self.problem.itemsize, self.form
        matrices = form.matrices
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
            values, gradients, products, value_table, gradient_table, product_table, target_table, pixels, spare_table,
            spare, run, total,
        ) = workspace_offsets(
            matrices * value_step, matrices * gradient_step, matrices * product_step, table, table, table, table, table,
            table, matrices * shape.VL * item, (1 + RUN_FIELDS) * 8,
        )  # fmt: skip
        (rows, columns), ((top, _), (left, _)) = problem.output_size, problem.padding
        record = fill(
            kernels_of_weights.WINOGRAD_WEIGHTS,
            source_n=x[0], source_r=x[1], source_c=x[2], source_group=problem.ic_per_group * x[3],
            source_rows=problem.input_size[0], source_columns=problem.input_size[1], first_row=-top, first_column=-left,
            dilation_r=problem.dilation[0], dilation_c=problem.dilation[1],
            gradient_n=y[0], gradient_r=y[1], gradient_c=y[2], gradient_group=problem.oc_per_group * y[3],
            rows=rows, columns=columns,
            target_r=w[0], target_c=w[1], target_k=w[2], target_group=problem.oc_per_group * w[3],
            slab_bytes=slab_bytes, tile_rows=self._tile_rows, tile_columns=self._tile_columns, tiles=self._tiles,
            block=block, slabs=self._slabs, groups=problem.groups,
            inputs=problem.ic_per_group, outputs=problem.oc_per_group,
            input_block=self._inputs, output_block=self._outputs,
            input_blocks=-(-problem.ic_per_group // self._inputs),
            output_blocks=-(-problem.oc_per_group // self._outputs),
            input_pitch=input_pitch, output_pitch=output_pitch,
            value_step=value_step, gradient_step=gradient_step, product_step=product_step,
            zeros=address(self._zeros), transform_inputs=0, transform_gradients=0, transform_sums=0,
            workspace_bytes=total, values=values, gradients=gradients, products=products,
            value_table=value_table, gradient_table=gradient_table, product_table=product_table,
            target_table=target_table, pixels=pixels, spare_table=spare_table, spare=spare, run=run,
        )  # fmt: skip
        return record, total

    def describe(self) -> str:
        """The form in words."""
        outputs = self.problem.n * math.prod(self.problem.output_size)
        return self.form.describe(self._tiles, outputs)

    def seconds(self, rate: float) -> float:
        """Predicted time with `rate` slots a second on each thread."""
        problem, shape, form, threads = self.problem, self.tile, self.form, self.launch.threads
        inputs, outputs = (-(-count // shape.VL) for count in (self._inputs, self._outputs))
        transforms = self._tiles * (inputs * form.input_slots + outputs * form.gradient_slots)
        multiply = form.matrices * self._tiles * model.tile_slots(self._outputs, shape) / shape.MR / _PRODUCT_SHARE
        multiply *= -(-self._inputs // shape.MR) * shape.MR
        write = self._slabs * self._inputs * outputs * form.sums_slots
        work = problem.groups * self._blocks * (transforms + multiply + write) / rate
        seconds = work / threads * model.balance(self.launch.tasks, threads)
        launches = 2 if self.slabs.workspace_bytes else 1
        return seconds + launches * model.launch_seconds(threads) + self.slabs.workspace_bytes * model.STREAM_SECONDS

    def estimate(self, machine: Machine) -> Estimate:
        seconds = self.seconds(model.slot_rate(machine, self.tile.VL))
        traffic = traffic_seconds(self.problem, "grad_weight", machine)
        return Estimate(max(seconds, traffic), self.describe())

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: Any = None,
    ) -> None:  # fmt: skip
        self.slabs.run(self.launch, second, first, self._zeros, result)
