"""A training step with fastconv, whole and in parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import fastconv
from bench.shapes import ConvCase
from bench.training.networks import MOMENTUM, RATE, Data, Dense, Network, Pool
from fastconv import nn

Parts = dict[str, Callable[[], Any]]


class Step:
    """Forward pass, gradients and update; a call returns the loss."""

    name = "fastconv"

    def __init__(self, network: Network, data: Data) -> None:
        self.network, self.x, self.labels = network, data.x, data.labels
        self.weights = data.copies()
        self.velocities = [(np.zeros_like(w), np.zeros_like(b)) for w, b in self.weights]
        self.gradients: list[tuple[np.ndarray, np.ndarray]] = []

    def __call__(self) -> float:
        loss = self.backward(self.forward())
        self.update()
        return loss

    def forward(self) -> list[np.ndarray]:
        """Return the input and the output of every layer."""
        values, weights = [self.x], iter(self.weights)
        for layer in self.network.layers:
            x = values[-1]
            if isinstance(layer, Pool):
                values.append(nn.avg_pool2d(x))
            elif isinstance(layer, ConvCase):
                values.append(fastconv.conv2d(x, *next(weights), activation="relu", **layer.parameters))
            else:
                values.append(_dense(_rows(x), *next(weights), layer.relu))
        return values

    def backward(self, values: list[np.ndarray]) -> float:
        """Return the loss; `gradients` has those of the weights."""
        loss, grad = self.loss(values[-1])
        gradients, weights = [], reversed(self.weights)
        for layer, x, y in zip(reversed(self.network.layers), values[-2::-1], values[:0:-1], strict=True):
            needed = self.network.needs_grad_input(layer)
            if isinstance(layer, Pool):
                grad = nn.avg_pool2d_grad_input(grad.reshape(y.shape), x.shape)
                continue
            if not isinstance(layer, Dense) or layer.relu:
                grad = nn.relu_grad_input(grad, y, out=grad)
            w, _ = next(weights)
            if isinstance(layer, ConvCase):
                grad, grad_w, grad_b = fastconv.conv2d_backward(
                    grad, x, w, needs=(needed, True, True), **layer.parameters
                )
            else:
                grad_w, grad_b = fastconv.dense_grad_weight(grad, _rows(x)), grad.sum(axis=0)
                grad = fastconv.dense_grad_input(grad, w)
            gradients.append((grad_w, grad_b))
        self.gradients = gradients[::-1]
        return loss

    def loss(self, y: np.ndarray) -> tuple[float, np.ndarray]:
        if self.network.classes:
            return nn.softmax_cross_entropy(y, self.labels)
        return float(np.vdot(y, y)) / (2 * y.size), y * np.float32(1 / y.size)

    def update(self) -> None:
        for parameters, velocities, gradients in zip(self.weights, self.velocities, self.gradients, strict=True):
            for value, velocity, gradient in zip(parameters, velocities, gradients, strict=True):
                nn.sgd_update(value, gradient, velocity, rate=RATE, momentum=MOMENTUM)

    def parts(self) -> dict[str, Parts]:
        """Return the calls of every layer, on what the layer meets in a step; equal layers share an entry."""
        values, weights = self.forward(), iter(self.weights)
        self.backward(values)
        found: dict[str, Parts] = {}
        for layer, x, y in zip(self.network.layers, values[:-1], values[1:], strict=True):
            mine = () if isinstance(layer, Pool) else next(weights)
            needed = self.network.needs_grad_input(layer)
            found.setdefault(layer.name, _parts(layer, x, y, mine, needed))
        return {**found, "loss": {"loss": lambda: self.loss(values[-1])}, "update": {"update": self.update}}


def _parts(layer: Any, x: np.ndarray, y: np.ndarray, weights: Any, needs_grad_input: bool) -> Parts:
    grad = np.random.default_rng(1).standard_normal(y.shape, np.float32)
    if isinstance(layer, Pool):
        return {"forward": lambda: nn.avg_pool2d(x), "grad_input": lambda: nn.avg_pool2d_grad_input(grad, x.shape)}
    w, b = weights
    parts: Parts = {}
    if isinstance(layer, ConvCase):
        how = layer.parameters
        parts["forward"] = lambda: fastconv.conv2d(x, w, b, activation="relu", **how)
        parts["grad_input"] = lambda: fastconv.conv2d_backward(grad, x, w, needs=(True, False, False), **how)
        parts["grad_weight"] = lambda: fastconv.conv2d_backward(grad, x, w, needs=(False, True, True), **how)
    else:
        rows = _rows(x)
        parts["forward"] = lambda: _dense(rows, w, b, layer.relu)
        parts["grad_input"] = lambda: fastconv.dense_grad_input(grad, w)
        parts["grad_weight"] = lambda: (fastconv.dense_grad_weight(grad, rows), grad.sum(axis=0))
    if not needs_grad_input:
        del parts["grad_input"]
    if isinstance(layer, ConvCase) or layer.relu:
        parts["grad_relu"] = lambda: nn.relu_grad_input(grad, y, out=grad)
    return parts


def _dense(x: np.ndarray, w: np.ndarray, b: np.ndarray, relu: bool) -> np.ndarray:
    return fastconv.dense(x, w, b, activation="relu" if relu else None)


def _rows(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)
