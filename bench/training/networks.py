"""The networks: chains of layers, with the weights and the data of one step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.shapes import ConvCase, conv

RATE, MOMENTUM = 0.01, 0.9
"""Of the update, stochastic gradient descent with momentum."""


@dataclass(frozen=True)
class Pool:
    """The mean of windows of 2 x 2 pixels."""

    name: str


@dataclass(frozen=True)
class Dense:
    """A fully connected layer with bias."""

    name: str
    features: int
    units: int
    relu: bool = True


Layer = ConvCase | Pool | Dense
"""A `ConvCase` is that convolution with bias and ReLU."""


@dataclass(frozen=True)
class Network:
    """Layers one after another.

    Attributes
    ----------
    classes
        Of the labels that the loss, cross-entropy, compares the last layer with; with 0 the loss is half the mean of
        the squares of the last layer.
    inner
        Whether this is the inside of a network, which needs the gradient for its input as well.
    """

    name: str
    title: str
    layers: tuple[Layer, ...]
    classes: int = 0
    inner: bool = False

    @property
    def first(self) -> ConvCase:
        """The first layer, which knows the shape of the input."""
        layer = self.layers[0]
        assert isinstance(layer, ConvCase)
        return layer

    def needs_grad_input(self, layer: Layer) -> bool:
        return self.inner or layer is not self.layers[0]


@dataclass(frozen=True)
class Data:
    """What a step reads: images as NHWC, labels, and (w, b) of each layer that has weights, as HWIO."""

    x: np.ndarray
    labels: np.ndarray
    weights: tuple[tuple[np.ndarray, np.ndarray], ...]

    @classmethod
    def make(cls, network: Network) -> Data:
        """Draw random data, the same at every run; weights keep the variance through ReLU (He et al. 2015)."""
        rng = np.random.default_rng(0)

        def weights() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for layer in network.layers:
                if not isinstance(layer, Pool):
                    shape = layer.w_shape if isinstance(layer, ConvCase) else (layer.features, layer.units)
                    scale = np.float32(np.sqrt(2 / np.prod(shape[:-1])))
                    w = rng.standard_normal(shape, np.float32) * scale
                    yield w, rng.standard_normal(shape[-1], np.float32) * np.float32(0.1)

        x = rng.standard_normal(network.first.x_shape, np.float32)
        return cls(x, rng.integers(0, max(network.classes, 1), len(x)), tuple(weights()))

    def copies(self) -> list[Any]:
        """Copy the weights, which training changes."""
        return [(w.copy(), b.copy()) for w, b in self.weights]


def lenet5(batch: int = 64) -> Network:
    """LeCun et al. 1998 with ReLU; C5, a convolution of all that is left of the image, is a dense layer."""
    return Network(
        "lenet5",
        f"LeNet-5, batch {batch}",
        (
            conv("lenet5-c1", 1, 32, 6, 5, n=batch), Pool("lenet5-s2"),
            conv("lenet5-c3", 6, 14, 16, 5, n=batch), Pool("lenet5-s4"),
            Dense("lenet5-c5", 400, 120), Dense("lenet5-f6", 120, 84), Dense("lenet5-output", 84, 10, relu=False),
        ),
        classes=10,
    )  # fmt: skip


def resnet18(batch: int = 8, width: int = 64, image: int = 56) -> Network:
    """The 3x3 convolutions of He et al. 2015 one after another, without shortcuts and normalisation."""
    layers = [conv("resnet18-conv2", width, image, width, 3, n=batch, padding=1)] * 4
    for stage in (3, 4, 5):
        down = conv(f"resnet18-conv{stage}-s2", width, image, 2 * width, 3, n=batch, stride=2, padding=1)
        width, image = 2 * width, down.output_size[0]
        layers += [down, *[conv(f"resnet18-conv{stage}", width, image, width, 3, n=batch, padding=1)] * 3]
    return Network("resnet18", f"3x3 stack of ResNet-18, batch {batch}", tuple(layers), inner=True)


NETWORKS = {"lenet5": lenet5, "resnet18": resnet18}
