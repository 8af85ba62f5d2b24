"""Dense sub-problems of a convolution: which targets meet which taps, and where the parts of a workspace lie."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import NamedTuple

from fastconv.algorithms.base import canonical_strides, canonical_weight_strides
from fastconv.cost import conv_flops
from fastconv.problem import ConvProblem, IntPair

TASKS_PER_THREAD = 8
"""Tasks to cut a launch into for each of several threads, so that a late one holds up little."""
_TASK_FLOPS = 300_000
"""Work of a task beside which listing and packing what it reads counts little: some 3 microseconds."""


def tasks_wanted(problem: ConvProblem, threads: int) -> int:
    """Into how many tasks to cut a launch whose tasks each begin with listing or packing something."""
    if threads == 1:
        return 1
    return threads * max(2, min(TASKS_PER_THREAD, conv_flops(problem) // (threads * _TASK_FLOPS)))


@dataclass(frozen=True)
class Axis:
    """One spatial axis of a dense sub-problem: `count` targets from `first` in steps of `every`.

    Target t reads source position t * step + offset of each tap; `taps` are the kernel positions and `offsets` theirs.
    """

    first: int
    every: int
    count: int
    step: int
    taps: tuple[int, ...]
    offsets: tuple[int, ...]


def forward_axis(problem: ConvProblem, axis: int) -> Axis:
    """The only sub-problem of the forward pass along an axis."""
    taps = range(problem.kernel_size[axis])
    low = problem.padding[axis][0]
    offsets = tuple(a * problem.dilation[axis] - low for a in taps)
    return Axis(0, 1, problem.output_size[axis], problem.stride[axis], tuple(taps), offsets)


def grad_input_axes(problem: ConvProblem, axis: int) -> tuple[Axis, ...]:
    """The sub-problems of the input gradient along an axis: the phases of the stride that any tap meets.

    Input position p met output position (p + pad - a * dilation) / stride at tap a where that is a whole number.
    """
    size, stride = problem.input_size[axis], problem.stride[axis]
    dilation, low = problem.dilation[axis], problem.padding[axis][0]
    phases: dict[int, list[int]] = {}
    for a in range(problem.kernel_size[axis]):
        phases.setdefault((a * dilation - low) % stride, []).append(a)
    return tuple(
        Axis(
            phase, stride, -(-(size - phase) // stride), 1,
            tuple(taps), tuple((phase + low - a * dilation) // stride for a in taps),
        )
        for phase, taps in sorted(phases.items())
        if phase < size
    )  # fmt: skip


def sub_problems(problem: ConvProblem, direction: str) -> tuple[tuple[Axis, Axis], ...]:
    """The (rows, columns) of each dense sub-problem; none where no output has a tap."""
    if direction == "forward":
        return ((forward_axis(problem, 0), forward_axis(problem, 1)),)
    return tuple(itertools.product(grad_input_axes(problem, 0), grad_input_axes(problem, 1)))


def even_step(values: tuple[int, ...]) -> int | None:
    """The difference between neighbours where it is the same for all; 1 for a single value."""
    steps = {b - a for a, b in itertools.pairwise(values)}
    return (steps or {1}).pop() if len(steps) <= 1 else None


def spread_of(axis: Axis) -> int:
    """The source positions from one tap to the next."""
    spread = even_step(axis.offsets)
    assert spread is not None  # of a kernel's taps, or those of a phase, it is the same for all
    return spread


def tap_order(axis: Axis, stride: int) -> tuple[int, int]:
    """Where the weights of the first tap lie and how far apart they are, in the order of the sources they meet."""
    step = (even_step(axis.taps) or 1) * stride
    return (axis.taps[-1] * stride, -step) if spread_of(axis) < 0 else (axis.taps[0] * stride, step)


def workspace_offsets(*sizes: int) -> tuple[int, ...]:
    """Where the parts of a workspace begin, each on a cache line, and its whole size."""
    return tuple(itertools.accumulate(sizes, lambda end, size: -(-(end + size) // 64) * 64, initial=0))


class Roles(NamedTuple):
    """What the arrays are to a pass: forward it reads x and writes y, for the input gradient the other way round.

    Strides are in bytes, along (n, row, column, channel) and (row, column, source channel, target channel);
    `reduction` and `channels` are the source's and the target's channels of a group.
    """

    source: tuple[int, int, int, int]
    target: tuple[int, int, int, int]
    source_size: IntPair
    reduction: int
    channels: int
    weights: tuple[int, int, int, int]
    weight_group: int


def roles(problem: ConvProblem, direction: str) -> Roles:
    """The roles for "forward" or "grad_input"."""
    item, layout = problem.itemsize, problem.layout
    x, y = (canonical_strides(shape, item, layout) for shape in (problem.x_shape, problem.y_shape))
    w_r, w_c, w_k, w_d = canonical_weight_strides(problem.w_shape, item, layout)
    ic, oc = problem.ic_per_group, problem.oc_per_group
    if direction == "forward":
        return Roles(x, y, problem.input_size, ic, oc, (w_r, w_c, w_k, w_d), oc * w_d)
    return Roles(y, x, problem.output_size, oc, ic, (w_r, w_c, w_d, w_k), oc * w_d)


def met_taps(axis: Axis, size: int) -> Axis:
    """The axis without the taps that read nothing but padding; one stays in any case."""
    pairs = list(zip(axis.taps, axis.offsets, strict=True))
    met = [pair for pair in pairs if targets_inside(pair[1], pair[1], axis.step, size, axis.count)]
    taps, offsets = zip(*(met or pairs[:1]), strict=True)
    return replace(axis, taps=taps, offsets=offsets)


def met_share(axis: Axis, size: int) -> float:
    """Share of the products along an axis whose source is not padding."""
    met = sum(len(targets_inside(offset, offset, axis.step, size, axis.count)) for offset in axis.offsets)
    return met / (len(axis.offsets) * axis.count)


def targets_inside(first: int, last: int, step: int, size: int, count: int) -> range:
    """The targets, of `count`, whose taps from offset `first` to `last` all lie inside the source."""
    begin = -(min(first, 0) // step)
    return range(begin, max(begin, min(count, (size - 1 - last) // step + 1)))
