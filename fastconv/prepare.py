"""A convolution layer whose weights are packed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba.core.dispatcher import Dispatcher

from fastconv.algorithms.base import Operation
from fastconv.arrays import ready
from fastconv.conv2d import run_forward
from fastconv.epilogue import check_activation, epilogue_for
from fastconv.kernels.launch import Bound
from fastconv.operands import ArrayLike, allocate, array_argument, bias_argument, same_dtype, weights_argument
from fastconv.plan import Plan, Request, conv2d_algorithms, request
from fastconv.problem import (
    check_choice,
    check_groups,
    check_layout,
    check_pair,
    check_sizes,
    compute_dtype,
    problem_from,
)


class PreparedConv2d:
    """A convolution with fixed weights; call it with an input. Made by `prepare_conv2d`."""

    def __init__(
        self,
        w: np.ndarray,
        bias: np.ndarray | None,
        geometry: dict[str, Any],
        algorithm: str,
        activation: Any,
    ) -> None:
        self._w = w
        self._bias = bias
        self._geometry = {**geometry, "algorithm": algorithm}
        self._activation = activation
        self._requests: dict[tuple[int, ...], Request] = {}
        self._prepared: dict[Operation, Any] = {}
        self._bound: dict[Operation, Bound] = {}
        self._packed: dict[tuple[Any, ...], Any] = {}
        may_fail = isinstance(activation, Dispatcher)
        self._epilogue = None if may_fail else epilogue_for(bias, activation, compute_dtype("w", w.dtype))
        """What all calls have in common, unless each must note whether its activation failed."""

    def plan(self, input_shape: Sequence[int]) -> Plan:
        """What a call with an input of that shape does."""
        return self._request(check_sizes("input_shape", input_shape), "input_shape").plan

    def _request(self, x_shape: Any, name: str) -> Request:
        return request("forward", x_shape, self._w.shape, self._w.dtype, **self._geometry, x_name=name)

    def _prepare(self, plan: Plan) -> Any:
        """The packed weights, made once for all shapes that want them alike."""
        key = (plan.algorithm, plan.operation.prepared_key)
        if key not in self._packed:
            self._packed[key] = plan.operation.prepare(ready(self._w, plan.problem.dtype))
        self._prepared[plan.operation] = self._packed[key]
        return self._packed[key]

    def __call__(self, x: ArrayLike, out: np.ndarray | None = None) -> np.ndarray:
        """Convolve x with the prepared weights.

        Parameters
        ----------
        x : array
            Input, as `fastconv.conv2d` takes it.
        out : array, optional
            Receives the result.

        Returns
        -------
        array
            The output, of the inputs' dtype.
        """
        known = self._requests.get(x.shape) if type(x) is np.ndarray else None
        if known is not None and known.takes(x, self._w, out):
            run = self._bound.get(known.plan.operation)
            if run is not None:
                result = known.result(out)
                run(x, self._w, result)
                return result
        x = array_argument("x", x)
        same_dtype("x", x, "w", self._w)
        asked = self._requests.get(x.shape)
        if asked is None:
            asked = self._requests[x.shape] = self._request(x.shape, "x")
        problem, plan = asked.problem, asked.plan
        y = allocate(problem.y_shape, problem.dtype, x.dtype, out, {"x": x}, asked.batchless)
        if problem.n:
            prepared = self._prepared.get(plan.operation)
            if prepared is None:
                prepared = self._prepare(plan)
            epilogue = self._epilogue or epilogue_for(self._bias, self._activation, problem.dtype)
            run_forward(plan, x, self._w, epilogue, y.array, prepared)
            if self._epilogue is not None and plan.operation not in self._bound:
                self._bound[plan.operation] = plan.operation.bound(self._epilogue, prepared)
        return y.deliver()


def prepare_conv2d(
    w: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    input_shape: Sequence[int] | None = None,
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    layout: str = "NHWC",
    algorithm: str = "auto",
    activation: Any = None,
) -> PreparedConv2d:
    """Make a layer of a convolution: its weights are packed or transformed once, not at every call.

    Parameters
    ----------
    w, bias : array
        Weights and bias, as `conv2d` takes them. The layer keeps copies.
    input_shape : tuple of int, optional
        Shape of the inputs to come: their kernels are compiled and the weights packed now. Without it this happens
        at the first call. Other shapes work too.
    stride, padding, dilation, groups, layout, algorithm, activation
        As for `conv2d`.

    Returns
    -------
    PreparedConv2d
        ``layer(x, out=None)`` is ``conv2d(x, w, bias, ..., out=out)``; ``layer.plan(input_shape)`` explains it.

    Raises
    ------
    ValueError, TypeError
        As `conv2d`; what depends on the input's shape at the call, unless `input_shape` is given.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> layer = fastconv.prepare_conv2d(np.ones((3, 3, 1, 2), np.float32), padding="same", activation="relu")
    >>> layer(np.ones((1, 5, 5, 1), np.float32)).shape
    (1, 5, 5, 2)
    """
    w = weights_argument(w)
    check_layout(layout)
    check_activation(activation)
    check_choice("algorithm", algorithm, conv2d_algorithms())
    geometry = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "layout": layout,
    }
    # An input that every window fits shows already now what is wrong with the parameters.
    spread = max(check_pair("dilation", dilation))
    kernel, ic = (w.shape[:2], w.shape[2]) if layout == "NHWC" else (w.shape[2:], w.shape[1])
    size, channels = [max(k, 1) * spread for k in kernel], max(ic, 1) * check_groups(groups)
    fitting = (1, *size, channels) if layout == "NHWC" else (1, channels, *size)
    problem = problem_from(fitting, w.shape, w.dtype, **geometry, x_name="the input")
    bias = bias_argument(bias, w, problem)
    layer = PreparedConv2d(w.copy(), None if bias is None else bias.copy(), geometry, algorithm, activation)
    if input_shape is not None:
        plan = layer.plan(input_shape)
        if plan.problem.n:
            layer._prepare(plan)
    return layer
