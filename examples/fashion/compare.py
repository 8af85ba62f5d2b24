"""One training step against the same network in PyTorch, in one process and in turns."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from fastconv.datasets import FashionMNIST

from .networks import AvgPool, Conv, Dense, Dropout, Flatten, MaxPoolRelu, Network, Relu
from .train import State, as_input

_PAUSE = 0.05
"""OpenMP's threads spin for milliseconds after their last work, and would take the cores from the next library."""
_CALLS_A_TURN = 5
RATE = 1e-3


def measure(state: State, data: FashionMNIST, turns: int, threads: int) -> dict[str, list[float]]:
    """Seconds of single steps by contender. Raises where the losses of the first step, without dropout, differ."""
    batch = state.settings.batch
    x, labels = as_input(data.train_images[:batch]), data.train_labels[:batch]
    steps: dict[str, Any] = {"fastconv": _Ours(state, x, labels)}
    for layout in ("contiguous", "channels_last"):
        if layout == "contiguous" or any(isinstance(layer, Conv) for layer in state.network.layers):
            steps[f"torch {layout}"] = _Theirs(state, x, labels, layout, threads)
    first = {name: step() for name, step in steps.items()}
    if not np.allclose(list(first.values()), first["fastconv"], rtol=1e-3):
        raise RuntimeError(f"the networks are not the same: the losses of the first step are {first}")
    for contender in steps.values():
        contender.set_training(True)
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(turns):
        for name, step in steps.items():
            time.sleep(_PAUSE)
            step()
            for _ in range(_CALLS_A_TURN):
                begin = time.perf_counter()
                step()
                taken[name].append(time.perf_counter() - begin)
    return taken


def ratio(taken: dict[str, list[float]]) -> float:
    """How many times as long the faster of PyTorch's layouts takes, by medians."""
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    return min(value for name, value in medians.items() if name != "fastconv") / medians["fastconv"]


class _Ours:
    """A step with fastconv."""

    def __init__(self, state: State, x: np.ndarray, labels: np.ndarray) -> None:
        self.state, self.x, self.labels = state, x, labels
        self.set_training = state.network.set_training

    def __call__(self) -> float:
        loss, _ = self.state.network.loss(self.x, self.labels, self.state.settings.smoothing)
        self.state.adam.step(self.state.network.gradients, RATE)
        return loss


class _Theirs:
    """The same step with PyTorch."""

    def __init__(self, state: State, x: np.ndarray, labels: np.ndarray, layout: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        network, order = state.network, {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
        parts = (part for layer in network.layers for part in _torch_layers(layer, network))
        self.model = torch.nn.Sequential(*parts).to(memory_format=order[layout]).eval()
        images = torch.tensor(x.transpose(0, 3, 1, 2).copy()).to(memory_format=order[layout])
        loss_of = torch.nn.CrossEntropyLoss(label_smoothing=state.settings.smoothing)
        targets = torch.tensor(labels.astype(np.int64))
        self.loss = lambda: loss_of(self.model(images), targets)
        weights = [value for value in self.model.parameters() if value.ndim > 1]
        biases = [value for value in self.model.parameters() if value.ndim == 1]
        groups = [{"params": weights, "weight_decay": state.settings.decay}, {"params": biases, "weight_decay": 0.0}]
        self.adam = torch.optim.AdamW(groups, lr=RATE, fused=True)

    def set_training(self, training: bool) -> None:
        self.model.train(training)

    def __call__(self) -> float:
        self.adam.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        self.adam.step()
        return loss.item()


def _torch_layers(layer: Any, network: Network) -> list[Any]:
    """The same layer with the same weights; PyTorch flattens channels first, so a dense layer behind turns its rows."""
    import torch

    if isinstance(layer, Relu):
        return [torch.nn.ReLU()]
    if isinstance(layer, MaxPoolRelu):
        return [torch.nn.MaxPool2d(2), torch.nn.ReLU(inplace=True)]
    if isinstance(layer, Dropout):
        return [torch.nn.Dropout(layer.share)]
    if isinstance(layer, AvgPool):
        return [torch.nn.AvgPool2d(2)]
    if isinstance(layer, Flatten):
        return [torch.nn.Flatten()]
    w, b = layer.parameters["w"], layer.parameters["b"]
    if isinstance(layer, Conv):
        size, _, ic, oc = w.shape
        theirs: Any = torch.nn.Conv2d(ic, oc, size, padding=size // 2 if layer.padding == "same" else 0)
        w = w.transpose(3, 2, 0, 1)
    elif isinstance(layer, Dense):
        theirs = torch.nn.Linear(*w.shape)
        before = network.layers[: network.layers.index(layer)]
        if not any(isinstance(other, Dense) for other in before) and len(before) > 1:
            channels = next((o.parameters["w"].shape[3] for o in reversed(network.layers) if isinstance(o, Conv)), 1)
            side = int(np.sqrt(len(w) // channels))
            w = w.reshape(side, side, channels, -1).transpose(2, 0, 1, 3).reshape(len(w), -1)
        w = w.T
    else:
        raise TypeError(f"no layer of PyTorch for {type(layer).__name__}")
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(w.copy()))
        theirs.bias.copy_(torch.tensor(b))
    return [theirs]
