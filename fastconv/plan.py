"""Which algorithm a problem gets, and why."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from pickle import dumps
from typing import Any

import numpy as np

from fastconv import machine
from fastconv.algorithms import REGISTRY
from fastconv.algorithms.base import PLAIN, Epilogue, Estimate, Operation
from fastconv.arrays import NATIVE
from fastconv.cost import conv_bytes, conv_flops, conv_parameters, usual_seconds
from fastconv.kernels import launch
from fastconv.kernels.launch import Bound
from fastconv.operands import takes_result
from fastconv.problem import (
    DIRECTIONS,
    ConvProblem,
    check_choice,
    check_image_rank,
    check_layout,
    check_sizes,
    compute_dtype,
    problem_from,
)

CHOOSERS = ("auto", "exact")
_WORTH_SECONDS = 5e-6
_WORTH_SHARE = 0.05
_WORTH_ERRORS_SHARE = 0.11
"""What an algorithm that does not sum the plain products must save, in time and as a share of it, for `auto` to choose
it, and the share where its rounding errors are larger."""


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
        Time that the cost model expects of a call on this machine: of many calls, half should take less.
    why : str
        Why this algorithm.
    candidates : tuple of Candidate
        All algorithms that were considered, each (name, seconds, reason).
    operation : Operation
        What runs.
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
    operation: Operation = field(repr=False, compare=False)

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


@functools.lru_cache(maxsize=4096)
def plan_problem(problem: ConvProblem, direction: str, algorithm: str, threads: int) -> Plan:
    """Plan a validated problem. A named algorithm that declines raises ValueError; it is never replaced."""
    if problem.n == 0:  # nothing to compute: the plan of one image, at no cost
        plan = plan_problem(replace(problem, n=1), direction, algorithm, threads)
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
    candidates, operations, estimates, usual = [], {}, {}, {}
    for entry in considered:
        declined = entry.declines(problem, direction)
        if declined is None and algorithm == "exact" and not entry.exact:
            declined = "does not sum the plain products"
        if declined is not None:
            candidates.append(Candidate(entry.name, None, declined))
            continue
        operations[entry.name] = entry.plan(problem, direction, threads)
        estimates[entry.name] = estimate = operations[entry.name].estimate(limits)
        usual[entry.name] = usual_seconds(estimate.seconds, problem, direction, limits)
        candidates.append(Candidate(entry.name, usual[entry.name], estimate.reason))
    if not estimates:
        raise ValueError(f"algorithm={algorithm!r} is not for this problem: {candidates[0].reason}")
    chosen = _choose(estimates, {name for name in estimates if REGISTRY[name].errs_more(problem, direction)})
    best = estimates[chosen]
    if algorithm in CHOOSERS:
        why = f"{algorithm}: {_reason(chosen, estimates)} {len(estimates)} algorithms; {best.reason}"
    else:
        why = f"named by the caller; {best.reason}"
    return Plan(
        chosen, direction, problem, conv_parameters(problem), conv_flops(problem), conv_bytes(problem, direction),
        operations[chosen].workspace_bytes, usual[chosen], why, tuple(candidates), operations[chosen],
    )  # fmt: skip


def _choose(estimates: dict[str, Estimate], err_more: set[str]) -> str:
    """The fastest algorithm; one that does not sum the plain products only where that saves enough."""
    fastest = min(estimates, key=lambda name: estimates[name].seconds)
    exact = [name for name in estimates if REGISTRY[name].exact]
    if fastest in exact or not exact:
        return fastest
    plain = min(exact, key=lambda name: estimates[name].seconds)
    share = _WORTH_ERRORS_SHARE if fastest in err_more else _WORTH_SHARE
    least = max(_WORTH_SECONDS, share * estimates[plain].seconds)
    return fastest if estimates[plain].seconds - estimates[fastest].seconds >= least else plain


def _reason(chosen: str, estimates: dict[str, Estimate]) -> str:
    if estimates[chosen].seconds == min(estimate.seconds for estimate in estimates.values()):
        return "the shortest predicted time of"
    return "the shortest predicted time without transforming data, which would save too little, of"


_LEAST_SHARED, _SURELY_SHARED = 200_000, 6_000_000
"""Operations that several threads are never and always started for; between them, the predicted times decide."""
_WORTH_SHARING = 0.9
"""Share of one thread's predicted time above which several are not started: they wait where another program runs."""


class Request:
    """What a caller asks for, checked, with a plan for each number of threads."""

    __slots__ = (
        "_calls", "_dtype", "_plans", "_result_shape", "_work", "algorithm", "batchless", "direction", "problem",
    )  # fmt: skip

    def __init__(self, direction: str, problem: ConvProblem, batchless: bool, algorithm: Any) -> None:
        self.direction = direction
        self.problem = problem
        self.batchless = batchless
        self.algorithm = check_choice("algorithm", algorithm, conv2d_algorithms())
        # Depthwise layers move a byte in the time of some operations.
        self._work = max(conv_flops(problem), launch.FLOPS_OF_BYTE * conv_bytes(problem, direction))
        self._plans: dict[int, Plan] = {}
        self._calls: dict[int, Bound] = {}
        shapes = {"forward": problem.y_shape, "grad_input": problem.x_shape, "grad_weight": problem.w_shape}
        self._result_shape = shapes[direction]
        # Of arrays that need no look at each: what is computed is what the caller gets.
        self._dtype = None if batchless or problem.n == 0 else NATIVE[problem.dtype]

    def takes(self, first: np.ndarray, second: np.ndarray, out: Any = None) -> bool:
        """Whether `run` is for these arrays: operands whose shapes fit, and an `out` that plainly does."""
        dtype = self._dtype
        if not (first.dtype is dtype and second.dtype is dtype and first.flags.carray and second.flags.carray):
            return False
        return out is None or takes_result(out, self._result_shape, dtype, first, second)

    def run(
        self, first: np.ndarray, second: np.ndarray, out: np.ndarray | None = None, epilogue: Epilogue = PLAIN
    ) -> np.ndarray:
        """The result in `out`, or in a new array: a microsecond sooner than where arrays must be looked at."""
        result = self.result(out)
        if epilogue is not PLAIN:
            self.plan.operation.run(first, second, result, epilogue)
            return result
        threads = self._threads()
        run = self._calls.get(threads)
        if run is None:
            run = self._calls[threads] = self.plan.operation.bound()
        run(first, second, result)
        return result

    def result(self, out: np.ndarray | None) -> np.ndarray:
        """Where `run` computes: in `out`, or in a new array."""
        return np.empty(self._result_shape, self._dtype) if out is None else out

    @property
    def plan(self) -> Plan:
        """The plan for the threads that this Python thread may use now: for one where others would save too little."""
        threads = self._threads()
        plan = self._plans.get(threads)
        # Of callers that plan at once all take the first's: what it binds does not keep its operation's tables alive.
        return self._plans.setdefault(threads, self._plan_for(threads)) if plan is None else plan

    def _threads(self) -> int:
        return 1 if self._work < _LEAST_SHARED else launch.max_threads()

    def _plan_for(self, threads: int) -> Plan:
        plan = plan_problem(self.problem, self.direction, self.algorithm, threads)
        if threads > 1 and self._work < _SURELY_SHARED:
            alone = plan_problem(self.problem, self.direction, self.algorithm, 1)
            if plan.predicted_seconds > _WORTH_SHARING * alone.predicted_seconds:
                return alone
        return plan


_MOST_KEPT = 4096
_REQUESTS: dict[tuple[Any, ...], Request] = {}


def _keep(table: dict[tuple[Any, ...], Request], key: tuple[Any, ...], made: Request) -> None:
    if len(table) >= _MOST_KEPT:
        table.clear()
    table[key] = made


def request(
    direction: str, x_shape: Any, w_shape: Any, dtype: np.dtype, stride: Any, padding: Any, dilation: Any, groups: Any,
    layout: Any, algorithm: Any, x_name: str = "x", w_name: str = "w",
) -> Request:  # fmt: skip
    """Check what a caller asks for, or raise ValueError or TypeError.

    Requests are remembered by their pickled arguments: 1, True and 1.0 are equal and have one hash, but only the first
    is an integer.
    """
    try:
        key: Any = (direction, x_shape, w_shape, dtype, dumps((stride, padding, dilation, groups, layout, algorithm)))
        known = _REQUESTS.get(key)
    except Exception:  # what cannot be pickled or hashed is not valid either, and the checks say why
        key, known = None, None
    if known is not None:
        return known
    shape, batchless = check_image_rank(x_name, x_shape, check_layout(layout))
    problem = problem_from(
        shape, w_shape, dtype, stride, padding, dilation, groups, layout, x_name=x_name, w_name=w_name
    )
    made = Request(direction, problem, batchless, algorithm)
    if key is not None:
        _keep(_REQUESTS, key, made)
    return made


_CALLS: dict[tuple[Any, ...], Request] = {}


def _exact(value: Any) -> bool:
    """Whether an argument consists of plain integers and strings: what is equal to it then is the same argument."""
    kind = type(value)
    if kind is tuple:
        for part in value:  # noqa: SIM110 (`all` of a generator would take twice as long)
            if type(part) is not int and not _exact(part):
                return False
        return True
    return kind is int or kind is str


def call_key(
    direction: str, first: Any, second: Any, size: Any, stride: Any, padding: Any, dilation: Any, groups: Any,
    layout: Any, algorithm: Any,
) -> tuple[Any, ...] | None:  # fmt: skip
    """What a call is remembered by, its operands being arrays and its other arguments what cannot change; else None.

    `size` is what a gradient must be told besides its operands.
    """
    if type(first) is not np.ndarray or type(second) is not np.ndarray or type(groups) is not int:
        return None
    if not (
        (type(stride) is int or _exact(stride))
        and (type(padding) is int or _exact(padding))
        and (type(dilation) is int or _exact(dilation))
        and (size is None or _exact(size))
        and type(layout) is str is type(algorithm)
    ):
        return None
    return (
        direction, first.shape, second.shape, first.dtype, second.dtype, size, stride, padding, dilation, groups,
        layout, algorithm,
    )  # fmt: skip


def earlier(key: tuple[Any, ...] | None) -> Request | None:
    """The request of a call like one that was made before, whose arguments need no more checks."""
    return _CALLS.get(key)  # type: ignore[arg-type]


def remember(key: tuple[Any, ...] | None, made: Request) -> None:
    """Keep a checked call's request for the next one like it."""
    if key is not None:
        _keep(_CALLS, key, made)


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
    x_shape, w_shape = check_sizes("x_shape", x_shape), check_sizes("w_shape", w_shape)
    return request(
        direction, x_shape, w_shape, dtype, stride, padding, dilation, groups, layout, algorithm, "x_shape", "w_shape"
    ).plan
