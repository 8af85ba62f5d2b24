"""One training step against the same network in PyTorch, in one process and in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fastconv.datasets import FashionMNIST

from .networks import AvgPool, Conv, Dense, Flatten, MaxPool, Network, Relu
from .train import State, as_input

_PAUSE = 0.05
"""OpenMP's threads spin for milliseconds after their last work, and would take the cores from the next library."""
_CALLS_A_TURN = 5
RATE = 1e-3


def measure(state: State, data: FashionMNIST, turns: int, threads: int) -> dict[str, list[float]]:
    """Seconds of single steps by contender. Raises where the losses of the first step differ."""
    batch = state.settings.batch
    x, labels = as_input(data.train_images[:batch]), data.train_labels[:batch]
    steps = {"fastconv": _ours(state, x, labels)}
    for layout in ("contiguous", "channels_last"):
        if layout == "contiguous" or any(isinstance(layer, Conv) for layer in state.network.layers):
            steps[f"torch {layout}"] = _theirs(state.network, x, labels, layout, threads)
    first = {name: step() for name, step in steps.items()}
    if not np.allclose(list(first.values()), first["fastconv"], rtol=1e-3):
        raise RuntimeError(f"the networks are not the same: the losses of the first step are {first}")
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


def _ours(state: State, x: np.ndarray, labels: np.ndarray) -> Callable[[], float]:
    def step() -> float:
        loss, _ = state.network.loss(x, labels)
        state.adam.step(state.network.gradients, RATE)
        return loss

    return step


def _theirs(network: Network, x: np.ndarray, labels: np.ndarray, layout: str, threads: int) -> Callable[[], float]:
    import torch

    torch.set_num_threads(threads)
    images, targets = torch.tensor(x.transpose(0, 3, 1, 2).copy()), torch.tensor(labels.astype(np.int64))
    model = torch.nn.Sequential(*(part for layer in network.layers for part in _torch_layers(layer, network)))
    if layout == "channels_last":
        images, model = images.to(memory_format=torch.channels_last), model.to(memory_format=torch.channels_last)
    adam = torch.optim.Adam(model.parameters(), lr=RATE)

    def step() -> float:
        adam.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(model(images), targets)
        loss.backward()
        adam.step()
        return loss.item()

    return step


def _torch_layers(layer: Any, network: Network) -> list[Any]:
    """The same layer with the same weights; PyTorch flattens channels first, so a dense layer behind turns its rows."""
    import torch

    if isinstance(layer, Relu):
        return [torch.nn.ReLU()]
    if isinstance(layer, MaxPool):
        return [torch.nn.MaxPool2d(2)]
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
        before = network.layers[network.layers.index(layer) - 1]
        if isinstance(before, Flatten):
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
