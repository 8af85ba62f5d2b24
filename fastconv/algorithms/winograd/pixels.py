"""Forward pass and input gradient by Winograd's tiles: `fastconv.kernels.winograd`, planned."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.algorithms.banded import Stage
from fastconv.algorithms.base import PLAIN, Epilogue, Estimate, Operation, scratch_limit
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.grids import Axis, forward_axis, grad_input_axes, roles, workspace_offsets
from fastconv.algorithms.winograd.forms import form_for, tiles_along
from fastconv.cost import far_bytes, traffic_seconds
from fastconv.kernels import winograd as kernels
from fastconv.kernels import winograd_packing as packing
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import Buffer, address, aligned, fill, odd_lines
from fastconv.kernels.target import (
    LATENCY_ROWS,
    TILE_SHARE,
    Tile,
    halves_vectors,
    panel_slots,
    panel_tile,
    registers,
    second_cache_bytes,
)
from fastconv.kernels.tiles import RUN_FIELDS
from fastconv.kernels.toomcook import Filtering
from fastconv.kernels.transforms import INPUT
from fastconv.problem import ConvProblem

if TYPE_CHECKING:
    from fastconv.machine import Machine

_CHUNK = 96
"""Source channels whose transformed weights a panel takes at once: they stay in the second cache level."""
_STREAMED_BYTES = 256
"""Source channels that are transformed at a time where not all are: 32 took as long, 16 and 128 up to a third more."""
_TASK_BYTES = 31 << 16
"""Workspace of a thread: the more tiles share the transformed weights the better, until they leave the caches."""
_TILE_BYTES = 22 << 16
"""The share of tiles: 120 tiles of 64 channels and 25 products in 1.6 MB took a sixth longer than 66."""
_TABLE_BYTES = 12 << 10
"""Its tables of matrices and of a register tile's rows, and the lines that keep matrices apart."""
_FAR_SHARE = 0.85
"""Speed of the products where transformed input does not stay in the second cache level beside the weights."""
_STORE_SLOTS = {False: 9.0, True: 6.0}
"""Storing a vector of transformed weights that do not stay there either, by whether the CPU multiplies halves."""
_MULTIPLY_SHARE = 0.95
"""Share of the peak that the products reach, their operands coming from the second cache level."""
_ALONE_SHARE = 0.6
"""Speed of a panel of a single vector where registers are few: its tile loads more than it multiplies."""
_PRODUCT_STEPS = 4
"""Beginning and end of the sums of a register tile, in their steps."""
_TRACE_SLOTS = 6
"""Writing the address of one input or output of a tile."""
_LAUNCHES_SAVED = 3
"""Launches whose time must be saved for a call to transform all weights first, instead of in every block of tiles."""
_LOW_ROWS = (8, LATENCY_ROWS)
"""Heights of register tiles lower than the usual one."""
_LOW_SHARE = 0.9
"""A low register tile must take less than that of the usual one's time, as it loads more for each multiply-add."""
_FEW_TASKS = 8
"""Tasks of a thread up to which the order counts in which threads take them."""
_RUNS_PER_THREAD = 4
"""Runs of tasks that a thread takes one after another, of problems in groups."""
_FETCH_SECONDS = 0.15e-9
"""Fetching a byte of transformed weights that another core has just written."""


class Held(NamedTuple):
    """What of a tile's source is held transformed: so many channels at a time, of so many pieces of the kernel."""

    channels: int
    pieces: int


def _axis(problem: ConvProblem, direction: str, axis: int, together: bool) -> Axis:
    """One axis of the pass, with the sub-problems of a strided input gradient as one.

    Where a filtering does these `together`, targets are counted from the beginning of the padding, where those that
    output 0 meets begin: target t meets outputs (t - a) / stride, and so a tile from target i stride on those from
    output i - (taps - 1) // stride on. Else `first` and `offsets` are those of the phase whose windows end with the
    kernel's last tap, or a zero beyond it; the targets of the others lie up to stride - 1 before its own.
    """
    stride, size, pad = problem.stride[axis], problem.kernel_size[axis], problem.padding[axis][0]
    if direction == "forward":
        return forward_axis(problem, axis)
    if stride == 1:
        return grad_input_axes(problem, axis)[0]
    taps = range(size)
    if together:
        offsets = tuple(-(a // stride) for a in taps)
        return Axis(-pad, stride, problem.input_size[axis], 1, tuple(taps), offsets)
    last = size - 1 + _zeros_beyond(problem, axis)
    begin = -((last - pad) // stride)  # the first output whose windows reach a target
    offsets = tuple(begin + (last - a) // stride for a in taps)
    return Axis(begin * stride + last - pad, stride, problem.input_size[axis], 1, tuple(taps), offsets)


def _zeros_beyond(problem: ConvProblem, axis: int) -> int:
    """Zeros behind a strided kernel's last tap with which the first targets of all phases lie in the same places.

    0 where that would take another tap in a phase: a place more then has targets of some phases.
    """
    stride, size = problem.stride[axis], problem.kernel_size[axis]
    missing = (problem.padding[axis][0] - size) % stride
    return missing if missing <= -size % stride else 0


def _tiles_along(filtering: Filtering, axis: Axis, dilation: int, phases: int) -> int:
    """Tiles that the targets of an axis take; with a place for each of their phases, those of the last of these."""
    if phases == 1:
        return tiles_along(filtering, axis.count - axis.first, dilation)
    return tiles_along(filtering, (axis.count - 1 - axis.first + phases - 1) // phases + 1, 1)


def _tile(dtype: str, tiles: int, channels: int) -> Tile:
    """The register tile for so many tiles as rows: a lower one where the last rows would be computed for nothing."""
    usual = panel_tile(dtype, 1 << 20, channels)

    def slots(shape: Tile) -> float:
        return -(-tiles // shape.MR) * panel_slots(shape, channels, TILE_SHARE)

    low = min((replace(usual, MR=rows) for rows in _LOW_ROWS if rows <= usual.MR), key=slots)
    return low if slots(low) < _LOW_SHARE * slots(usual) else usual


class WinogradOperation(Operation):
    """Forward pass or input gradient by tiles."""

    def __init__(
        self, problem: ConvProblem, direction: str, threads: int, held: Held | None = None, tile: Tile | None = None
    ) -> None:  # fmt: skip
        """`held` is transformed at a time, and `tile` is used; None for what takes the least time."""
        self.problem = problem
        self.direction = direction
        self.threads = threads
        self.form = form = form_for(problem, direction)
        together = form.target_phases == (1, 1)
        rows, columns = (_axis(problem, direction, axis, together) for axis in (0, 1))
        self._tile_rows, self._tile_columns = map(
            _tiles_along, (form.rows, form.columns), (rows, columns), problem.dilation, form.target_phases
        )
        self._roles = roles(problem, direction)
        self._tiles = problem.n * self._tile_rows * self._tile_columns
        self.tile = tile or _tile(problem.dtype, self._tiles, self._roles.channels)
        self._panels = -(-self._roles.channels // self.tile.NR)
        self._all_panels = self._panels * form.target_count
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
            self._pack_kernel(pack), problem.dtype, pack, problem.groups * self._all_panels, threads, workspace
        )
        self._kept = zeros  # the records hold its address
        self.workspace_bytes = self._launches[0].workspace_bytes
        self._packed_bytes = problem.groups * self._all_panels * int(pack["weight_panel"][0])
        self._keeps_weights = self._packed_bytes <= form.kept_bytes
        fits = self._keeps_weights and self.workspace_bytes + self._packed_bytes <= scratch_limit(problem, threads)
        self._saved_slots = self._repeated_slots() if fits else 0.0
        cost = _LAUNCHES_SAVED * model.launch_seconds(threads)
        if threads > 1:
            cost += self._packed_bytes * _FETCH_SECONDS
        if self._saved_slots / model.nominal_rate() > cost:
            self.workspace_bytes += self._packed_bytes
        else:
            self._saved_slots = 0.0
        self.prepared_key = (self.tile.NR, self._panels, self._chunk(self.held)) if self._keeps_weights else None

    def _compile_transform_of_weights(self, plan: np.ndarray) -> None:
        form, problem = self.form, self.problem
        order = packing.order_of_weights(plan, form.taps, form.whole, problem.itemsize)
        taps = form.taps if order == packing.PICKED else 0  # the others take any number
        plan["transform_weights"] = packing.transform_weights(problem.dtype, order, form.whole, taps).address
        plan["transform_taps"] = packing.transform_taps(problem.dtype, form.rows, form.columns).address

    def _pack_kernel(self, plan: np.ndarray) -> Callable[[], CFunc]:
        """What compiles the kernel that transforms weights, and the part that `plan` tells it of."""

        def compiled() -> CFunc:
            self._compile_transform_of_weights(plan)
            return packing.pack()

        return compiled

    def _kernel(self, plan: np.ndarray) -> Callable[[], CFunc]:
        """The same for the kernel that multiplies."""

        def compiled() -> CFunc:
            form, dtype = self.form, self.problem.dtype
            if not plan["transformed"][0]:
                self._compile_transform_of_weights(plan)
            plan["trace_inputs"] = kernels.trace(form.rows.inputs, form.columns.inputs).address
            plan["trace_outputs"] = kernels.trace(form.rows.outputs, form.columns.outputs).address
            plan["transform_inputs"] = kernels.transform_pixels(dtype, INPUT, form.rows, form.columns).address
            plan["transform_outputs"] = kernels.transform_products(dtype, form.rows, form.columns).address
            last = self.tile.last(self._roles.channels)
            plan["multiply_last"] = kernels.multiply(dtype, last, form.matrices).address
            if self._panels > 1:
                plan["multiply"] = kernels.multiply(dtype, self.tile, form.matrices).address
            return kernels.winograd()

        return compiled

    def _blocking(self, given: Held | None) -> tuple[int, int, Held, float]:
        """Tiles of a block, parts of the panels, what is held transformed, and slots of the thread that works longest.

        Either a block's source channels are all transformed at once, and multiplied panel by panel, or a chunk of them
        at a time, whose products with all of a task's panels are added up: that takes less where channels are many.
        """
        parts = [parts for parts in (1, 2, 4, 8, 16, 32) if parts <= self._all_panels]
        found = []
        all_held = Held(self._roles.reduction, self.form.piece_count)
        streamed = Held(min(self._roles.reduction, _STREAMED_BYTES // self.problem.itemsize), 1)
        ways = {all_held, streamed} if given is None else {given}
        for held, part in itertools.product(ways, parts):
            most = self._most_tiles(held, part) // self.tile.MR
            if most < 1 and held != streamed and given is None:  # the pieces of many channels
                continue
            blocks = sorted({min(self._tiles, self.tile.MR * count) for count in range(1, max(1, most) + 1)})
            found += [(self._thread_slots(block, part, held), -block, part, held) for block in blocks]
        slots, block, part, held = min(found, key=lambda choice: (*choice[:3], -choice[3].channels, -choice[3].pieces))
        return -block, part, held, slots

    def _most_tiles(self, held: Held, parts: int) -> int:
        """Tiles of a block whose transformed input, products and addresses the caches hold beside a panel's weights."""
        shape, item, form = self.tile, self.problem.itemsize, self.form
        beside = form.matrices * self._chunk(held) * shape.NR * item
        beside += self._buffer_bytes + self._row_bytes + _TABLE_BYTES
        products = self._held_panels(held, parts) * shape.NR * item
        each = form.matrices * (self._tile_bytes(held) + products + 8 * form.piece_count)
        each += form.outputs * form.target_count * 8
        return min(_TASK_BYTES - beside, _TILE_BYTES) // each

    def _held_panels(self, held: Held, parts: int) -> int:
        """Panels of which a task holds the products."""
        return -(-self._all_panels // parts) if self._streams(held) else 1

    @property
    def _buffer_bytes(self) -> int:
        """Bytes of the buffer for what does not fill vectors, and for weights that are turned."""
        return max((self.form.taps + 1) * self.tile.VL, self.form.matrices) * self.tile.VL * self.problem.itemsize

    @property
    def _row_bytes(self) -> int:
        """Bytes of a pixel that nobody reads."""
        channels = max(self._roles.reduction, self.problem.groups * self._roles.channels, self.tile.NR)
        return channels * self.problem.itemsize

    def _tile_bytes(self, held: Held) -> int:
        """Bytes of one value of a tile, transformed, of all that is held."""
        lanes = -(-held.channels // self.tile.VL) * self.tile.VL
        return held.pieces * lanes * self.problem.itemsize

    def _streams(self, held: Held) -> bool:
        """Whether a tile's source is transformed in parts, whose products are added up."""
        return held != (self._roles.reduction, self.form.piece_count)

    def _chunk(self, held: Held) -> int:
        """Source channels whose weights are transformed at once."""
        reduction = self._roles.reduction
        return held.channels if held.channels < reduction else -(-reduction // -(-reduction // _CHUNK))

    def _thread_slots(self, block: int, parts: int, held: Held) -> float:
        """Slots of the thread that works longest."""
        each = self.problem.groups * parts
        whole, rest = divmod(self._tiles, block)
        slots = self._task_slots(block, parts, held)
        last = self._task_slots(rest, parts, held) if rest else 0.0
        if whole * each <= _FEW_TASKS * self.threads and self.problem.groups == 1:
            return model.last_done([slots] * (each * whole) + [last] * (each if rest else 0), self.threads)
        # Of many tasks, the last blocks fill the gaps.
        rounds, more = divmod(each * whole, self.threads)
        busy = [(rounds + (thread < more)) * slots for thread in range(self.threads)]
        heapq.heapify(busy)
        for _ in range(each if rest else 0):
            heapq.heapreplace(busy, busy[0] + last)
        return max(busy)

    def _task_slots(self, tiles: int, parts: int, held: Held) -> float:
        shape, form, reduction = self.tile, self.form, self._roles.reduction
        height = -(-tiles // shape.MR) * shape.MR
        panels = -(-self._all_panels // parts)
        vectors = min(panels * shape.NV, -(-self._roles.channels // shape.VL) * form.target_count)
        pieces = form.piece_count
        inputs = tiles * -(-reduction // shape.VL) * form.input_slots
        weights = reduction * vectors * self._vector_slots(tiles, held)
        sums = -(-reduction // held.channels)
        alone = form.target_count if registers() == 16 and shape.last(self._roles.channels).NV == 1 else 0
        multiplied = vectors + alone * (1 / _ALONE_SHARE - 1)
        multiply = form.matrices * height * multiplied * (reduction + sums * _PRODUCT_STEPS) / _MULTIPLY_SHARE
        if form.matrices * tiles * self._tile_bytes(held) > second_cache_bytes():
            multiply /= _FAR_SHARE
        trace = tiles * (form.matrices * pieces + form.outputs * form.target_count) * _TRACE_SLOTS
        return trace + pieces * (inputs + weights + multiply) + tiles * vectors * form.output_slots

    def _vector_slots(self, tiles: int, held: Held) -> float:
        """Slots of transforming a vector of weights beside so many tiles."""
        packed = self._chunk(held) * self.tile.NR * self.problem.itemsize
        if self.form.matrices * (tiles * self._tile_bytes(held) + packed) <= second_cache_bytes():
            return self.form.weight_slots
        return max(self.form.weight_slots, self.form.matrices * _STORE_SLOTS[halves_vectors()])

    def _weight_slots(self) -> float:
        """Slots of transforming all weights."""
        vectors = self.problem.groups * self._roles.reduction * -(-self._roles.channels // self.tile.VL)
        return vectors * self.form.piece_count * self.form.target_count * self.form.weight_slots

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
            self._packed_bytes, self._weight_slots() / model.nominal_rate(), self.prepared_key,
        )  # fmt: skip

    def _record(
        self, rows: Axis, columns: Axis, zeros: np.ndarray, transformed: bool
    ) -> tuple[np.ndarray, int]:  # fmt: skip
        problem, part, shape, form = self.problem, self._roles, self.tile, self.form
        outputs, taps, matrices, pieces = form.outputs, form.taps, form.matrices, form.piece_count
        (phases_r, phases_c), targets_each = form.target_phases, outputs * form.target_count
        kh, kw = problem.kernel_size
        apart_r, apart_c = form.taps_apart(problem.stride)
        item, reduction = problem.itemsize, part.reduction
        w_r, w_c, w_k, w_d = part.weights
        lead_r, lead_c = (
            _zeros_beyond(problem, axis) if phases > 1 else 0 for axis, phases in enumerate(form.target_phases)
        )
        offset, read_r, read_c = 0, apart_r, apart_c
        if self.direction == "grad_input":  # the last tap comes first, and what a tile reads follows each other
            offset, read_r, read_c = (kh - 1 + lead_r) * w_r + (kw - 1 + lead_c) * w_c, 1, 1
            w_r, w_c = -w_r, -w_c
        height = -(-self._block // shape.MR) * shape.MR
        chunk = self._chunk(self.held)
        # A transform writes to all matrices at once: they must not lie a multiple of 4 KiB apart.
        value_pitch = self._tile_bytes(self.held)
        value_step, weight_step, product_step = (
            odd_lines(size) for size in (self._block * value_pitch, chunk * shape.NR * item, height * shape.NR * item)
        )
        chunk_bytes, product_bytes = matrices * weight_step, matrices * product_step
        panel_bytes = pieces * -(-reduction // chunk) * chunk_bytes
        sizes = (
            self._block * targets_each * 8, height * 8, pieces * self._block * matrices * 8, matrices * value_step,
            chunk_bytes, self._held_panels(self.held, self._parts) * product_bytes, matrices * 8, matrices * 8,
            matrices * 8, 2 * taps * 8, self._row_bytes, (shape.MR + RUN_FIELDS) * 8, shape.MR * 8, matrices * 8,
            self._buffer_bytes,
        )  # fmt: skip
        (
            sources, targets, pixels, values, weights, products, value_table, weight_table, product_table,
            weight_source, unused, tile_table, starts, buffer_table, buffer, total,
        ) = workspace_offsets(*sizes)  # fmt: skip
        record = fill(
            kernels.WINOGRAD, **form.fields(shape.VL, item),
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
            stride_r=rows.step, stride_c=columns.step, apart_r=apart_r, apart_c=apart_c,
            read_r=problem.dilation[0] * read_r, read_c=problem.dilation[1] * read_c,
            write_r=problem.dilation[0] * phases_r, write_c=problem.dilation[1] * phases_c,
            every_r=rows.every, every_c=columns.every, target_row=rows.first, target_column=columns.first,
            pieces_r=form.pieces[0] * phases_r, pieces_c=form.pieces[1] * phases_c, summed=pieces,
            phases_r=form.phases[0] * phases_r, phases_c=form.phases[1] * phases_c,
            taps_r=kh + lead_r, taps_c=kw + lead_c, lead_r=lead_r, lead_c=lead_c,
            streams=self._streams(self.held), asks=far_bytes(problem) > 0,
            piece_bytes=value_pitch // pieces if self.held.pieces == pieces else 0,
            held=self.held.channels, value_pitch=value_pitch, pixels=pixels,
            transformed=transformed, weight_offset=0 if transformed else offset,
            weight_r=w_r, weight_c=w_c, tap_r=w_r * apart_r, tap_c=w_c * apart_c, weight_k=w_k, weight_d=w_d,
            weight_group=self._all_panels * panel_bytes if transformed else part.weight_group, weight_panel=panel_bytes,
            weight_chunk=chunk_bytes,
            start_group=self._panels * shape.NR * item,
            value_step=value_step, weight_step=weight_step, product_step=product_step,
            product_panel=product_bytes if self._streams(self.held) else 0, zeros=address(zeros),
            trace_inputs=0, trace_outputs=0, transform_inputs=0, transform_outputs=0, transform_weights=0,
            transform_taps=0, multiply=0, multiply_last=0,
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
        return Estimate(max(seconds, traffic), self._describe())

    def _describe(self) -> str:
        outputs, taps = self.problem.n * math.prod(self.problem.output_size), math.prod(self.problem.kernel_size)
        return self.form.describe(self._tiles, outputs, taps)

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
        if prepared is None and self._saved_slots:
            with Buffer(self._packed_bytes) as buffer:
                packed = buffer[: self._packed_bytes].view(self.problem.dtype).reshape(1, 1, 1, -1)
                self._pack(second, second, self._zeros, packed)
                self._launches[True](first, packed, start, result, epilogue.end)
            return
        launch = self._launches[prepared is not None and self._keeps_weights]
        launch(first, second if prepared is None else prepared, start, result, epilogue.end)
