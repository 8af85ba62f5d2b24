"""Every kind of pass that `direct` may take, by name, and its results held against the reference.

Which kind a problem gets is the cost model's choice; correctness must not hang on it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numba
import numpy as np

from fastconv.algorithms import direct
from fastconv.algorithms.base import PLAIN
from fastconv.algorithms.direct.base import Pass
from fastconv.algorithms.direct.grids import sub_problems
from fastconv.epilogue import epilogue_for
from fastconv.problem import ConvProblem, problem_from

from .cases import DIRECTIONS, LAYOUTS, Case, data

KINDS = {kind.__name__: kind for kind in (*direct.PIXEL_KINDS, *direct.TOGETHER, *direct.WEIGHT_KINDS)}


_MARGIN = 32
"""Values before and after a result, which must stay as they are."""


def directions_of(name: str) -> tuple[str, ...]:
    """The directions that a kind of pass can do."""
    return ("grad_weight",) if KINDS[name] in direct.WEIGHT_KINDS else ("forward", "grad_input")


def _planned(name: str, problem: ConvProblem, direction: str, threads: int) -> list[Pass | None]:
    kind = KINDS[name]
    if kind in direct.WEIGHT_KINDS:
        return [kind(problem, threads)]
    if kind in direct.TOGETHER:
        return [direct.plan_together(kind, problem, direction, threads)]
    return [kind(problem, direction, *part, threads) for part in sub_problems(problem, direction)]


def compare_pass(
    name: str, case: Case, direction: str, layout: str, dtype: str, activation: Any = None, threads: int = 2
) -> bool:
    """Hold a result for integer-valued data against the reference; False where the kind is not for the problem.

    A forward pass adds a bias, and applies the activation where there is one.
    """
    x_shape, w_shape, _ = case.shapes(layout)
    problem = problem_from(x_shape, w_shape, np.dtype(dtype), **case.arguments, layout=layout)
    planned = _planned(name, problem, direction, threads)
    if None in planned:
        return False
    given = data(case, "integers", layout, dtype)
    first = given.x if direction == "forward" else given.grad_y
    second = given.x if direction == "grad_weight" else given.w
    expected = given.expected[direction]
    # Pixels between the phases of an input gradient are nobody's: their caller writes zeros there.
    before = 0 if direction == "grad_input" else np.nan
    around = np.full(expected.size + 2 * _MARGIN, before, dtype)
    result = around[_MARGIN:-_MARGIN].reshape(expected.shape)
    epilogue = PLAIN
    if direction == "forward":
        bias = (np.arange(case.oc) % 5 - 2).astype(dtype)
        epilogue = epilogue_for(bias, activation, dtype)
        expected = expected + (bias if layout == "NHWC" else bias[:, None, None])
        if activation is not None:
            expected = np.maximum(expected, 0) if activation == "relu" else activation(expected)
    for step in planned:
        assert step is not None
        step.run(np.ascontiguousarray(first), np.ascontiguousarray(second), result, epilogue)
    message = f"{name} {case.name} {direction} {layout} {dtype}"
    np.testing.assert_array_equal(result, expected, err_msg=message)
    beside = np.concatenate([around[:_MARGIN], around[-_MARGIN:]])
    np.testing.assert_array_equal(beside, np.full_like(beside, before), err_msg=message)
    return True


@numba.njit
def halve(value):
    return value / 2


def compare_all(name: str, numbered: Iterable[tuple[int, Case]]) -> int:
    """All directions and layouts of these cases; how many the kind could do.

    One in four is of float64; activations come in turn.
    """
    done = 0
    for number, case in numbered:
        for direction in directions_of(name):
            for turn, layout in enumerate(LAYOUTS):
                dtype = "float64" if (number + turn) % 4 == 0 else "float32"
                activation = (None, halve, "relu")[number // 2 % 3]
                done += compare_pass(name, case, direction, layout, dtype, activation)
    return done


assert {direction for name in KINDS for direction in directions_of(name)} == set(DIRECTIONS)
