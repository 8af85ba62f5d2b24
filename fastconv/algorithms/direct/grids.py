"""Dense sub-problems of a convolution: which targets meet which taps, and where the parts of a workspace lie."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from fastconv.problem import ConvProblem


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


def workspace_offsets(*sizes: int) -> tuple[int, ...]:
    """Where the parts of a workspace begin, each on a cache line, and its whole size."""
    return tuple(itertools.accumulate(sizes, lambda end, size: -(-(end + size) // 64) * 64, initial=0))
