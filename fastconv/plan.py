"""Which algorithm a problem gets, and why."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastconv import machine
from fastconv.algorithms import REGISTRY
from fastconv.cost import conv_bytes, conv_flops, conv_parameters
from fastconv.kernels import launch
from fastconv.problem import (
    DIRECTIONS,
    ConvProblem,
    check_choice,
    check_image_rank,
    check_layout,
    compute_dtype,
    problem_from,
)

CHOOSERS = ("auto", "exact")


def conv2d_algorithms() -> tuple[str, ...]:
    """Names that ``algorithm=`` takes.

    Returns
    -------
    tuple of str
        ``"auto"`` (any algorithm), ``"exact"`` (any that sums the plain products only), then the algorithms.

    Examples
    --------
    >>> import fastconv
    >>> fastconv.conv2d_algorithms()[:2]
    ('auto', 'exact')
    """
    return (*CHOOSERS, *REGISTRY)


@dataclass(frozen=True)
class Candidate:
    """One algorithm that was considered: its predicted seconds (None if it declines) and a reason in words."""

    name: str
    seconds: float | None
    reason: str

    def __iter__(self) -> Any:
        return iter((self.name, self.seconds, self.reason))


@dataclass(frozen=True)
class Plan:
    """What a convolution will do and what that should cost; ``str(plan)`` is a table.

    Attributes
    ----------
    algorithm : str
        The algorithm that runs.
    direction : str
        "forward", "grad_input" or "grad_weight".
    problem : ConvProblem
        The validated geometry.
    parameters : int
        Weights of the layer, bias not counted.
    flops : int
        Floating-point operations of the plain sum.
    bytes : int
        Bytes that must move at least: every array once.
    workspace_bytes : int
        Extra memory that the algorithm takes.
    predicted_seconds : float
        Time that the cost model expects on this machine.
    why : str
        Why this algorithm.
    candidates : tuple of Candidate
        All algorithms that were considered, each (name, seconds, reason).
    """

    algorithm: str
    direction: str
    problem: ConvProblem
    parameters: int
    flops: int
    bytes: int
    workspace_bytes: int
    predicted_seconds: float
    why: str
    candidates: tuple[Candidate, ...]

    def __str__(self) -> str:
        p = self.problem
        rows = [
            ("problem", f"{self.direction}, {p.layout}, {p.dtype}"),
            ("x, w, y", f"{p.x_shape}, {p.w_shape}, {p.y_shape}"),
            ("geometry", f"stride {p.stride}, padding {p.padding}, dilation {p.dilation}, groups {p.groups}"),
            ("algorithm", self.algorithm),
            ("why", self.why),
            ("parameters", f"{self.parameters:,}"),
            ("FLOPs", f"{self.flops:,}"),
            ("bytes moved", f"{self.bytes:,}"),
            ("workspace", f"{self.workspace_bytes:,} bytes"),
            ("predicted", f"{self.predicted_seconds * 1e3:.4g} ms"),
        ]
        for name, seconds, reason in self.candidates:
            time = "declines" if seconds is None else f"{seconds * 1e3:.4g} ms"
            rows.append((f"  {name}", f"{time}: {reason}"))
        return "\n".join(f"{label:<12} {value}" for label, value in rows)


def plan_problem(problem: ConvProblem, direction: str, algorithm: Any, threads: int) -> Plan:
    """Plan a validated problem. A named algorithm that declines raises ValueError; it is never replaced."""
    return _plan(problem, direction, check_choice("algorithm", algorithm, conv2d_algorithms()), threads)


@functools.lru_cache(maxsize=4096)
def _plan(problem: ConvProblem, direction: str, algorithm: str, threads: int) -> Plan:
    if problem.n == 0:  # nothing to compute: the plan of one image, at no cost
        plan = _plan(replace(problem, n=1), direction, algorithm, threads)
        return replace(
            plan,
            problem=problem,
            flops=0,
            bytes=conv_bytes(problem, direction),
            workspace_bytes=0,
            predicted_seconds=0.0,
        )
    limits = machine.current(threads, problem.dtype)
    considered = REGISTRY.values() if algorithm in CHOOSERS else (REGISTRY[algorithm],)
    candidates, estimates = [], {}
    for entry in considered:
        declined = entry.declines(problem, direction)
        if declined is None and algorithm == "exact" and not entry.exact:
            declined = "does not sum the plain products"
        if declined is not None:
            candidates.append(Candidate(entry.name, None, declined))
            continue
        estimate = entry.estimate(problem, direction, limits)
        estimates[entry.name] = estimate
        candidates.append(Candidate(entry.name, estimate.seconds, estimate.reason))
    if not estimates:
        raise ValueError(f"algorithm={algorithm!r} is not for this problem: {candidates[0].reason}")
    chosen = min(estimates, key=lambda name: estimates[name].seconds)
    best = estimates[chosen]
    if algorithm in CHOOSERS:
        why = f"{algorithm}: the shortest predicted time of {len(estimates)} algorithms; {best.reason}"
    else:
        why = f"named by the caller; {best.reason}"
    return Plan(
        chosen, direction, problem, conv_parameters(problem), conv_flops(problem), conv_bytes(problem, direction),
        best.workspace_bytes, best.seconds, why, tuple(candidates),
    )  # fmt: skip


def plan_conv2d(
    x_shape: Any, w_shape: Any, *, dtype: Any = "float32", direction: str = "forward", stride: Any = 1,
    padding: Any = 0, dilation: Any = 1, groups: int = 1, layout: str = "NHWC", algorithm: str = "auto",
) -> Plan:  # fmt: skip
    """Say what `conv2d` or one of its gradients would do, without doing it.

    Parameters
    ----------
    x_shape, w_shape : tuple of int
        Shapes of the input and the weights, as `conv2d` takes them.
    dtype : dtype, default "float32"
        "float16", "float32" or "float64".
    direction : {"forward", "grad_input", "grad_weight"}
        Which of the three computations.
    stride, padding, dilation, groups, layout, algorithm
        As for `conv2d`.

    Returns
    -------
    Plan
        The chosen algorithm, why, and parameters, FLOPs, bytes, workspace and predicted time.

    Raises
    ------
    ValueError, TypeError
        Where `conv2d` would raise them, or if the direction is unknown.

    Notes
    -----
    The prediction uses the machine's calibrated limits. They are measured at the first use on a machine and then
    kept on disk (`fastconv.machine`).

    Examples
    --------
    >>> import fastconv
    >>> plan = fastconv.plan_conv2d((1, 56, 56, 64), (3, 3, 64, 64), padding="same")
    >>> plan.parameters, plan.flops
    (36864, 231211008)
    """
    check_choice("direction", direction, DIRECTIONS)
    try:
        dtype = np.dtype(dtype)
    except TypeError:
        raise TypeError(f"dtype must be float16, float32 or float64, got {dtype!r}") from None
    compute_dtype("dtype", dtype)
    x_shape, _ = check_image_rank("x_shape", x_shape, check_layout(layout))
    problem = problem_from(
        x_shape, w_shape, dtype, stride, padding, dilation, groups, layout, x_name="x_shape", w_name="w_shape"
    )
    return plan_problem(problem, direction, algorithm, launch.max_threads())
