"""Layers with their gradients, and the networks made of them. Images are (n, rows, columns, channels)."""

from __future__ import annotations

import numpy as np

import fastconv
from fastconv import nn

Parameters = dict[str, np.ndarray]


class Layer:
    """One step of a network: `backward` takes the gradient for the output of the last `forward`."""

    training = False
    """Whether outputs go to arrays that are kept from step to step: fresh memory costs as much as a pooling."""

    def __init__(self) -> None:
        self.parameters: Parameters = {}
        self.gradients: Parameters = {}
        self._kept: Parameters = {}

    def room(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
        """Where a result goes: None for a new array, in training the one of the last step."""
        if not self.training:
            return None
        kept = self._kept.get(name)
        if kept is None or kept.shape != shape or kept.dtype != dtype:
            kept = self._kept[name] = np.empty(shape, dtype)
        return kept

    def forward(self, x: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def backward(self, grad: np.ndarray) -> np.ndarray | None:
        raise NotImplementedError


class Conv(Layer):
    """A square convolution with bias. The first of a network has no use for the gradient for its input."""

    def __init__(
        self, size: int, ic: int, oc: int, rng: np.random.Generator, padding: str, first: bool = False
    ) -> None:
        super().__init__()
        scale = np.float32(np.sqrt(2 / (size * size * ic)))  # He et al. 2015: keeps the variance through ReLU
        w = rng.standard_normal((size, size, ic, oc), np.float32) * scale
        self.parameters = {"w": w, "b": np.zeros(oc, np.float32)}
        self.padding, self.first = padding, first

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.x, w = x, self.parameters["w"]
        cut = 0 if self.padding == "same" else len(w) - 1
        shape = (len(x), x.shape[1] - cut, x.shape[2] - cut, w.shape[3])
        return fastconv.conv2d(x, w, self.parameters["b"], padding=self.padding, out=self.room("y", shape, x.dtype))

    def backward(self, grad: np.ndarray) -> np.ndarray | None:
        x, w, how = self.x, self.parameters["w"], {"padding": self.padding}
        self.gradients = {
            "w": fastconv.conv2d_grad_weight(grad, x, len(w), **how), "b": fastconv.conv2d_grad_bias(grad),
        }  # fmt: skip
        if self.first:
            return None
        return fastconv.conv2d_grad_input(grad, w, x.shape, out=self.room("grad_x", x.shape, x.dtype), **how)


class Dense(Layer):
    """A fully connected layer with bias."""

    def __init__(self, features: int, units: int, rng: np.random.Generator, first: bool = False) -> None:
        super().__init__()
        scale = np.float32(np.sqrt(2 / features))
        w = rng.standard_normal((features, units), np.float32) * scale
        self.parameters = {"w": w, "b": np.zeros(units, np.float32)}
        self.first = first

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.x = x
        return fastconv.dense(x, self.parameters["w"], self.parameters["b"])

    def backward(self, grad: np.ndarray) -> np.ndarray | None:
        self.gradients = {"w": fastconv.dense_grad_weight(grad, self.x), "b": grad.sum(axis=0)}
        return None if self.first else fastconv.dense_grad_input(grad, self.parameters["w"])


class Relu(Layer):
    def forward(self, x: np.ndarray) -> np.ndarray:
        self.y = nn.relu(x, out=x)
        return self.y

    def backward(self, grad: np.ndarray) -> np.ndarray:
        return nn.relu_grad_input(grad, self.y, out=grad)


class MaxPoolRelu(Layer):
    """The largest of 2 x 2 pixels, or 0: ReLU before or behind the pooling is the same."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.x = x
        n, rows, columns, channels = x.shape
        out = self.room("y", (n, rows // 2, columns // 2, channels), x.dtype)
        return nn.max_pool2d(x, activation="relu", out=out)

    def backward(self, grad: np.ndarray) -> np.ndarray:
        out = self.room("grad_x", self.x.shape, self.x.dtype)
        return nn.max_pool2d_grad_input(grad, self.x, activation="relu", out=out)


class AvgPool(Layer):
    def forward(self, x: np.ndarray) -> np.ndarray:
        self.shape = x.shape
        return nn.avg_pool2d(x)

    def backward(self, grad: np.ndarray) -> np.ndarray:
        return nn.avg_pool2d_grad_input(grad, self.shape)


class Flatten(Layer):
    def forward(self, x: np.ndarray) -> np.ndarray:
        self.shape = x.shape
        return x.reshape(len(x), -1)

    def backward(self, grad: np.ndarray) -> np.ndarray:
        return grad.reshape(self.shape)


class Dropout(Layer):
    """Forgets a share of the values in training, and scales up the others (Srivastava et al. 2014)."""

    share = 0.0
    rng = np.random.default_rng()
    """The training sets both: its share, and numbers that follow from its seed."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.mask = None
        if not self.training or self.share == 0:
            return x
        kept = np.frombuffer(self.rng.bytes(x.size), np.uint8) >= round(256 * self.share)  # cheaper than floats
        scale, room = x.dtype.type(1 / (1 - self.share)), self.room("mask", x.shape, x.dtype)
        self.mask = np.multiply(kept.reshape(x.shape), scale, out=room, dtype=x.dtype)
        return np.multiply(x, self.mask, out=self.room("y", x.shape, x.dtype))

    def backward(self, grad: np.ndarray) -> np.ndarray:
        return grad if self.mask is None else np.multiply(grad, self.mask, out=grad)


class Network:
    """Layers one after another."""

    def __init__(self, name: str, layers: list[Layer]) -> None:
        self.name = name
        self.layers = layers

    @property
    def parameters(self) -> Parameters:
        """All weights by name, as the layers hold them: writing into them changes the network."""
        return {f"{i}.{key}": value for i, layer in enumerate(self.layers) for key, value in layer.parameters.items()}

    @property
    def gradients(self) -> Parameters:
        """The gradients of the last `loss`, by the names of `parameters`."""
        return {f"{i}.{key}": value for i, layer in enumerate(self.layers) for key, value in layer.gradients.items()}

    def outputs(self, x: np.ndarray) -> list[np.ndarray]:
        """What each layer makes of the images; the last are the logits of the classes."""
        values = []
        for layer in self.layers:
            x = layer.forward(x)
            values.append(x)
        return values

    def logits(self, x: np.ndarray) -> np.ndarray:
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def set_training(self, training: bool) -> None:
        """Switch between a pass that learns and one that only looks."""
        for layer in self.layers:
            layer.training = training

    def loss(self, x: np.ndarray, labels: np.ndarray, smoothing: float = 0.0) -> tuple[float, np.ndarray]:
        """Forward and backward pass: the loss and the logits; `gradients` has the rest."""
        logits = self.logits(x)
        grad: np.ndarray | None
        loss, grad = nn.softmax_cross_entropy(logits, labels, smoothing=smoothing)
        for layer in reversed(self.layers):
            if grad is None:  # nothing before it has weights
                break
            grad = layer.backward(grad)
        return loss, logits


def mlp(rng: np.random.Generator) -> Network:
    """784-256-128-100-10."""
    layers: list[Layer] = [Flatten()]
    for features, units in ((784, 256), (256, 128), (128, 100)):
        layers += [Dense(features, units, rng, first=features == 784), Relu()]
    return Network("mlp", [*layers, Dense(100, 10, rng)])


def cnn(rng: np.random.Generator) -> Network:
    """Two convolutions and one dense layer: 89,098 parameters."""
    return Network(
        "cnn",
        [
            Conv(3, 1, 48, rng, "same", first=True), MaxPoolRelu(),
            Conv(3, 48, 96, rng, "same"), MaxPoolRelu(),
            Flatten(), Dropout(), Dense(7 * 7 * 96, 10, rng),
        ],
    )  # fmt: skip


def lenet5(rng: np.random.Generator) -> Network:
    """LeCun et al. 1998 with ReLU: 61,706 parameters."""
    return Network(
        "lenet5",
        [
            Conv(5, 1, 6, rng, "same", first=True), Relu(), AvgPool(),
            Conv(5, 6, 16, rng, "valid"), Relu(), AvgPool(),
            Flatten(), Dense(5 * 5 * 16, 120, rng), Relu(), Dense(120, 84, rng), Relu(), Dense(84, 10, rng),
        ],
    )  # fmt: skip


NETWORKS = {"mlp": mlp, "cnn": cnn, "lenet5": lenet5}


def parameter_count(network: Network) -> int:
    return sum(value.size for value in network.parameters.values())
