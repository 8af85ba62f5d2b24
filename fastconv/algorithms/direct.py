"""direct: register-tiled micro-kernels on the arrays as they lie, with no patch matrix.

Forward and input gradient are the same kernel (`fastconv.kernels.gather`). The input gradient of a strided
convolution falls apart into one dense convolution for each phase of the stride: the input pixels of a phase meet
the same taps, and no multiplication with an inserted zero is ever made.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fastconv.algorithms.base import Algorithm, Epilogue, Estimate, canonical_weight_strides
from fastconv.algorithms.direct_plan import Correlation, Pass, plan_correlation, plan_passes
from fastconv.cost import conv_bytes, conv_flops
from fastconv.kernels import correlate, gather, launch
from fastconv.kernels.params import address, aligned, fill
from fastconv.kernels.target import Tile, tile
from fastconv.problem import ConvProblem

if TYPE_CHECKING:
    from fastconv.machine import Machine

_LAUNCH_WEIGHTS = 1 << 14
"""Weights whose packing takes as long as starting another thread."""

# The cost model's constants, from the measurements in docs/experiments.md.
_PEAK_SHARE = 0.94
"""Share of the FMA peak that a tile of full width reaches."""
_NARROW_SHARE = 0.72
"""The same for one vector: each multiply-add needs a load of its own."""
_LATENCY_ROWS = 4
"""A tile of fewer rows takes as long as one of these many: multiply-adds wait for their own results."""
_RUN_SLOTS = 24
"""Multiply-add slots lost at the beginning and end of a run."""
_TRACE_SECONDS = 0.6e-9
"""Writing one address of a tile's runs."""
_PACK_SECONDS = 0.4e-9
"""Packing one weight or output gradient."""
_ADD_SECONDS = 0.3e-9
"""Adding one value of a finished tile to the weight gradient."""
_LAUNCH_SECONDS = 12e-6
"""Arguments, tables and the start of the threads."""


def _pack(problem: ConvProblem, direction: str, step: Pass, w: np.ndarray, threads: int) -> np.ndarray:
    """The weights of a pass in panels, or the weights themselves where they are used in place."""
    if step.in_place_weights:
        return w
    w_r, w_c, w_k, w_d = canonical_weight_strides(problem.w_shape, problem.itemsize, problem.layout)
    source_group = problem.oc_per_group * w_d
    if direction == "grad_input":
        w_k, w_d = w_d, w_k
    groups, panels, _, reduction, _ = step.packed_shape
    packed = aligned(step.packed_shape, problem.dtype)
    params = fill(
        gather.PACK,
        source=address(w), source_r=w_r, source_c=w_c, source_k=w_k, source_d=w_d, source_group=source_group,
        target=address(packed), target_group=packed.strides[0], target_panel=packed.strides[1],
        taps_r=len(step.row_taps), taps_c=len(step.column_taps),
        rows=address(step.row_taps), columns=address(step.column_taps),
        reduction=reduction, channels=step.template["channels"][0], panels=panels,
    )  # fmt: skip
    grain = max(1, _LAUNCH_WEIGHTS * groups * panels // packed.size)
    launch.run(gather.pack(problem.dtype, step.tile), params, groups * panels, threads=threads, grain=grain)
    return packed


def _run_pass(
    problem: ConvProblem, step: Pass, source: np.ndarray, packed: np.ndarray, epilogue: Epilogue,
    start: np.ndarray, target: np.ndarray, threads: int,
) -> None:  # fmt: skip
    params = step.template.copy()
    own = aligned((threads, step.workspace_bytes), "uint8")
    params["source"] = address(source)
    params["target"] = address(target) + step.target_offset
    params["weights"] = address(packed)
    params["start"] = address(start)
    params["relu"] = epilogue.relu
    params["activation"] = epilogue.address
    params["failed"] = address(epilogue.failed)
    params["workspace"] = address(own)
    launch.run(gather.gather(problem.dtype, step.tile), params, step.tasks, threads=threads)


class Direct(Algorithm):
    """Register tiles over pixels and output channels, or over input and output channels for the weight gradient."""

    name = "direct"

    def prepared_key(self, problem: ConvProblem) -> Any:
        (step,) = plan_passes(problem, "forward", launch.threads_for(conv_flops(problem)))
        return step.tile, step.in_place_weights

    def prepare(self, problem: ConvProblem, w: np.ndarray) -> np.ndarray:
        threads = launch.threads_for(conv_flops(problem))
        (step,) = plan_passes(problem, "forward", threads)
        return _pack(problem, "forward", step, w, threads)

    def forward(
        self,
        problem: ConvProblem,
        x: np.ndarray,
        w: np.ndarray,
        epilogue: Epilogue,
        y: np.ndarray,
        prepared: Any,
    ) -> None:
        threads = launch.threads_for(conv_flops(problem))
        (step,) = plan_passes(problem, "forward", threads)
        packed = _pack(problem, "forward", step, w, threads) if prepared is None else prepared
        start = epilogue.start(problem.oc, problem.groups, step.start_channels, problem.dtype)
        _run_pass(problem, step, x, packed, epilogue, start, y, threads)

    def grad_input(self, problem: ConvProblem, grad_y: np.ndarray, w: np.ndarray, grad_x: np.ndarray) -> None:
        threads = launch.threads_for(conv_flops(problem))
        steps = plan_passes(problem, "grad_input", threads)
        if len(steps) < math.prod(min(*pair) for pair in zip(problem.stride, problem.input_size, strict=True)):
            grad_x[...] = 0  # the pixels of the other phases were never read
        epilogue = Epilogue()
        for step in steps:
            start = epilogue.start(problem.ic, problem.groups, step.start_channels, problem.dtype)
            packed = _pack(problem, "grad_input", step, w, threads)
            _run_pass(problem, step, grad_y, packed, epilogue, start, grad_x, threads)

    def grad_weight(self, problem: ConvProblem, grad_y: np.ndarray, x: np.ndarray, grad_w: np.ndarray) -> None:
        threads = launch.threads_for(conv_flops(problem))
        plan = plan_correlation(problem, threads)
        own = aligned((threads, plan.workspace_bytes), "uint8")
        grad_w[...] = 0
        params = plan.template.copy()
        params["source"] = address(x)
        params["gradient"] = address(grad_y)
        params["target"] = address(grad_w)
        params["workspace"] = address(own)
        launch.run(correlate.correlate(problem.dtype, plan.tile), params, plan.tasks, threads=threads)

    def estimate(self, problem: ConvProblem, direction: str, machine: Machine) -> Estimate:
        threads, item = machine.threads, problem.itemsize
        traffic = conv_bytes(problem, direction) / machine.bandwidth
        if direction == "grad_weight":
            plan = plan_correlation(problem, threads)
            seconds = _correlation_seconds(problem, plan, machine)
            share = _lanes_share(problem.oc_per_group, plan.tile)
            return Estimate(max(seconds, traffic), threads * plan.workspace_bytes, _describe(plan.tile, share))
        steps = plan_passes(problem, direction, threads)
        seconds = sum(_pass_seconds(step, machine) for step in steps)
        sizes = [
            threads * step.workspace_bytes + (0 if step.in_place_weights else math.prod(step.packed_shape) * item)
            for step in steps
        ]
        shape = steps[0].tile if steps else tile(problem.dtype, 1)
        channels = problem.oc_per_group if direction == "forward" else problem.ic_per_group
        return Estimate(max(seconds, traffic), max(sizes, default=0), _describe(shape, _lanes_share(channels, shape)))


def _lanes_share(channels: int, shape: Tile) -> float:
    """Share of the vectors' lanes that output channels fill."""
    return channels / (-(-channels // shape.VL) * shape.VL)


def _describe(shape: Tile, share: float) -> str:
    return f"register tiles of {shape.MR} x {shape.NR}, {share:.0%} of the lanes in use"


def _tile_slots(channels: int, shape: Tile) -> float:
    """Multiply-add slots that one step of all panels of a tile takes; a single vector leaves some of them empty."""
    whole, rest = divmod(channels, shape.NR)
    slots = whole * shape.NV / _PEAK_SHARE
    if rest:
        slots += 1 / _NARROW_SHARE if rest <= shape.VL else shape.NV / _PEAK_SHARE
    return slots * max(shape.MR, _LATENCY_ROWS)


def _balance(tasks: int, threads: int) -> float:
    """How much longer the last thread works than it would if tasks divided evenly."""
    return -(-tasks // threads) * threads / tasks if tasks else 1.0


def _pass_seconds(step: Pass, machine: Machine) -> float:
    p = step.template[0]
    shape, taps = step.tile, int(p["taps_r"] * p["taps_c"])
    groups, panels = step.packed_shape[:2]
    slots_per_second = machine.peak_flops / machine.threads / (2 * shape.VL)
    slots = _tile_slots(int(p["channels"]), shape) * int(p["reduction"]) + panels * _RUN_SLOTS
    tiles = int(p["tiles"]) * groups
    multiply = tiles * taps * slots / slots_per_second
    trace = tiles * int(p["panel_parts"]) * taps * (shape.MR + 2) * _TRACE_SECONDS
    pack = 0.0 if step.in_place_weights else math.prod(step.packed_shape) * _PACK_SECONDS
    return (
        _LAUNCH_SECONDS
        + (multiply + trace) * _balance(step.tasks, machine.threads) / machine.threads
        + pack / machine.threads
    )


def _correlation_seconds(problem: ConvProblem, plan: Correlation, machine: Machine) -> float:
    p = plan.template[0]
    shape, taps = plan.tile, math.prod(problem.kernel_size)
    slots_per_second = machine.peak_flops / machine.threads / (2 * shape.VL)
    pixels = problem.n * math.prod(problem.output_size)
    tiles = int(p["channel_tiles"]) * taps * problem.groups
    multiply = tiles * pixels * _tile_slots(problem.oc_per_group, shape) / slots_per_second
    blocks = int(p["row_blocks"] * p["column_blocks"])
    add = tiles * blocks * int(p["panels"]) * shape.MR * shape.NR * _ADD_SECONDS
    pack = pixels * int(p["panels"]) * int(p["parts"]) * problem.groups * shape.NR * _PACK_SECONDS
    return _LAUNCH_SECONDS + (multiply + add + pack) * _balance(plan.tasks, machine.threads) / machine.threads
