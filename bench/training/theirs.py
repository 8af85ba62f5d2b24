"""The same training step with PyTorch, in either of its memory layouts."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.shapes import ConvCase
from bench.training.networks import MOMENTUM, RATE, Data, Layer, Network, Pool
from bench.training.ours import Parts

LAYOUTS = {"PyTorch NCHW": "contiguous_format", "PyTorch channels_last": "channels_last"}
_NCHW, _OIHW, _HWIO = (0, 3, 1, 2), (3, 2, 0, 1), (2, 3, 1, 0)


class Step:
    """Forward pass, gradients and update; a call returns the loss."""

    def __init__(self, network: Network, data: Data, name: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.torch, self.network, self.name = torch, network, name
        self.format = {"memory_format": getattr(torch, LAYOUTS[name])}
        self.orders = _orders(network)
        self.x = torch.from_numpy(data.x.transpose(_NCHW)).contiguous(**self.format).requires_grad_(network.inner)
        self.labels = torch.from_numpy(data.labels)
        weights = iter(data.weights)
        self.layers = [self._module(layer, weights) for layer in network.layers]
        self.model = torch.nn.Sequential(*self.layers).to(**self.format)
        self.update = torch.optim.SGD(self.model.parameters(), lr=RATE, momentum=MOMENTUM, fused=True)

    def __call__(self) -> float:
        self.update.zero_grad(set_to_none=True)
        self.x.grad = None
        loss = self.loss(self.model(self.x))
        loss.backward()
        self.update.step()
        return loss.item()

    def loss(self, y: Any) -> Any:
        if self.network.classes:
            return self.torch.nn.functional.cross_entropy(y, self.labels)
        return y.square().mean() / 2

    @property
    def gradients(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Those of the weights, in the order of fastconv's axes."""
        found = []
        for layer, module in zip(self.network.layers, self.layers, strict=True):
            if isinstance(layer, Pool):
                continue
            w, b = (value.grad.numpy() for value in module.parameters())
            if isinstance(layer, ConvCase):
                w = w.transpose(_HWIO)
            else:
                w, theirs = np.empty(w.T.shape, w.dtype), w.T
                w[self.orders[layer.name]] = theirs
            found.append((w, b))
        return found

    def parts(self) -> dict[str, Parts]:
        """Return the calls of every layer by the names of fastconv's: the operators that autograd calls."""
        self()
        found: dict[str, Parts] = {}
        x = self.x.detach()
        for layer, module in zip(self.network.layers, self.layers, strict=True):
            with self.torch.no_grad():
                y = module(x)
            found.setdefault(layer.name, self._parts(layer, module, x, y))
            x = y
        logits = x.clone().requires_grad_()
        return {
            **found,
            "loss": {"loss": lambda: self.torch.autograd.grad(self.loss(logits), logits)},
            "update": {"update": self.update.step},
        }

    def _parts(self, layer: Layer, module: Any, x: Any, y: Any) -> Parts:
        torch, aten = self.torch, self.torch.ops.aten
        grad = torch.randn_like(y)  # in the layout of y

        def forward() -> Any:
            with torch.no_grad():
                return module(x)

        parts: Parts = {"forward": forward}
        if isinstance(layer, Pool):
            geometry = ([2, 2], [2, 2], [0, 0], False, True, None)
            return {**parts, "grad_input": lambda: aten.avg_pool2d_backward(grad, x, *geometry)}
        w = next(module.parameters()).detach()
        if isinstance(layer, ConvCase):
            geometry = (layer.stride, layer.padding, layer.dilation, False, (0, 0), layer.groups)
            mine = (grad, x, w, (layer.oc,), *geometry)
            parts["grad_input"] = lambda: aten.convolution_backward(*mine, (True, False, False))
            parts["grad_weight"] = lambda: aten.convolution_backward(*mine, (False, True, True))
        else:
            rows = x.flatten(1)
            parts["grad_input"] = lambda: grad @ w
            parts["grad_weight"] = lambda: (grad.T @ rows, grad.sum(0))
        parts["grad_relu"] = lambda: aten.threshold_backward(grad, y, 0)
        return parts

    def _module(self, layer: Layer, weights: Any) -> Any:
        torch = self.torch
        if isinstance(layer, Pool):
            return torch.nn.AvgPool2d(2)
        w, b = next(weights)
        if isinstance(layer, ConvCase):
            geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
            ours: list[Any] = [torch.nn.Conv2d(layer.ic, layer.oc, (layer.kh, layer.kw), *geometry)]
            w = w.transpose(_OIHW)
        else:
            ours = [torch.nn.Flatten(), torch.nn.Linear(layer.features, layer.units)]
            w = w[self.orders[layer.name]].T
        with torch.no_grad():
            ours[-1].weight.copy_(torch.from_numpy(w.copy()))
            ours[-1].bias.copy_(torch.from_numpy(b))
        if isinstance(layer, ConvCase) or layer.relu:
            ours.append(torch.nn.ReLU(inplace=True))
        return torch.nn.Sequential(*ours)


def _orders(network: Network) -> dict[str, np.ndarray]:
    """Return for each dense layer which of our features are PyTorch's first, second, ...: it flattens NCHW."""
    found, (_, *image) = {}, network.first.x_shape
    for layer in network.layers:
        if isinstance(layer, ConvCase):
            _, *image = layer.y_shape
        elif isinstance(layer, Pool):
            image = [image[0] // 2, image[1] // 2, image[2]]
        else:
            found[layer.name] = np.arange(layer.features).reshape(image).transpose(2, 0, 1).ravel()
            image = [1, 1, layer.units]
    return found
