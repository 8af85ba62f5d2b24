"""Training: batches, Adam with a one-cycle learning rate, checkpoints that continue to the same bits."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from fastconv import nn
from fastconv.datasets import FashionMNIST

from .networks import NETWORKS, Dropout, Network, Parameters

MEAN, DEVIATION = np.float32(72.94), np.float32(90.02)
"""Of the training pixels, 0 to 255."""


@dataclass(frozen=True)
class Settings:
    """What decides the result of a training, together with the data."""

    network: str
    epochs: int
    batch: int = 128
    rate: float = 2e-3
    shift: int = 0
    flip: bool = False
    dropout: float = 0.0
    smoothing: float = 0.0
    decay: float = 0.0
    holdout: int = 0
    """Training images that are not trained with and stand for the test images, to choose all of this by."""
    seed: int = 0


DEFAULTS = {
    "mlp": Settings("mlp", epochs=12),
    "cnn": Settings("cnn", epochs=24, batch=64, rate=4e-3, flip=True, dropout=0.4, decay=0.05),
    "lenet5": Settings("lenet5", epochs=12),
}


class Adam:
    """Kingma and Ba 2014, with a decay of the weights, not of the biases (Loshchilov and Hutter 2017)."""

    def __init__(self, parameters: Parameters, decay: float = 0.0) -> None:
        self.parameters = parameters
        self.decay = decay
        self.first = {name: np.zeros_like(value) for name, value in parameters.items()}
        self.second = {name: np.zeros_like(value) for name, value in parameters.items()}
        self.steps = 0

    def step(self, gradients: Parameters, rate: float) -> None:
        self.steps += 1
        for name, value in self.parameters.items():
            moments = self.first[name], self.second[name]
            decay = self.decay if value.ndim > 1 else 0.0
            nn.adam_update(value, gradients[name], *moments, step=self.steps, rate=rate, weight_decay=decay)


def one_cycle(progress: float, peak: float, warm_up: float = 0.2) -> float:
    """Learning rate at a point of the training from 0 to 1: up in a line, down in a half cosine."""
    if progress < warm_up:
        return peak * (0.1 + 0.9 * progress / warm_up)
    return peak * 0.5 * (1 + np.cos(np.pi * (progress - warm_up) / (1 - warm_up)))


def as_input(images: np.ndarray) -> np.ndarray:
    """Pictures of uint8 as network input (n, 28, 28, 1), with mean 0 and variance 1."""
    return ((images.astype(np.float32) - MEAN) / DEVIATION)[..., None]


def shifted(images: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Move each picture by its own numbers of pixels down and right; black comes in."""
    n, height, width = images.shape
    reach = int(max(np.abs(rows).max(), np.abs(columns).max()))
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))
    return windows[np.arange(n), reach - rows, reach - columns]


def augmented(images: np.ndarray, settings: Settings, rng: np.random.Generator) -> np.ndarray:
    """Shift each picture by up to `shift` pixels along both axes, and mirror half of them."""
    if settings.shift:
        rows, columns = rng.integers(-settings.shift, settings.shift + 1, (2, len(images)))
        images = shifted(images, rows, columns)
    if settings.flip:
        images = np.where(rng.random(len(images))[:, None, None] < 0.5, images, images[:, :, ::-1])
    return images


@dataclass
class State:
    """A training between two epochs."""

    settings: Settings
    network: Network
    adam: Adam
    history: list[dict[str, float]] = field(default_factory=list)
    """One entry an epoch: loss and accuracy while training, loss and accuracy of the test images, seconds."""

    @classmethod
    def fresh(cls, settings: Settings) -> State:
        network = NETWORKS[settings.network](np.random.default_rng(settings.seed))
        for layer in network.layers:
            if isinstance(layer, Dropout):
                layer.share = settings.dropout
        return cls(settings, network, Adam(network.parameters, settings.decay))

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {f"{kind}/{name}": value for kind, group in self._arrays() for name, value in group.items()}
        facts = {"settings": asdict(self.settings), "steps": self.adam.steps, "history": self.history}
        part = path.with_name(f"{path.name}.part")
        with part.open("wb") as file:
            np.savez(file, facts=np.array(json.dumps(facts)), **arrays)
        os.replace(part, path)

    @classmethod
    def load(cls, path: Path) -> State:
        with np.load(path, allow_pickle=False) as stored:
            facts = json.loads(str(stored["facts"]))
            state = cls.fresh(Settings(**facts["settings"]))
            for kind, group in state._arrays():
                for name, value in group.items():
                    value[...] = stored[f"{kind}/{name}"]
        state.adam.steps, state.history = facts["steps"], facts["history"]
        return state

    def _arrays(self) -> list[tuple[str, Parameters]]:
        return [("parameters", self.network.parameters), ("first", self.adam.first), ("second", self.adam.second)]


def split(data: FashionMNIST, holdout: int) -> FashionMNIST:
    """Put the last `holdout` training images in the place of the test images; with 0 all is as it was."""
    if not holdout:
        return data
    return data._replace(
        train_images=data.train_images[:-holdout], train_labels=data.train_labels[:-holdout],
        test_images=data.train_images[-holdout:], test_labels=data.train_labels[-holdout:],
    )  # fmt: skip


def batches(data: FashionMNIST, settings: Settings, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The training images in an order that depends on seed and epoch alone, so that a training can go on anywhere."""
    rng = np.random.default_rng((settings.seed, epoch))
    order = rng.permutation(len(data.train_images))
    for start in range(0, len(order), settings.batch):
        chosen = order[start : start + settings.batch]
        yield as_input(augmented(data.train_images[chosen], settings, rng)), data.train_labels[chosen]


def train(state: State, data: FashionMNIST, until: int, on_step: Callable[[int, int, float, float], None]) -> None:
    """Train up to the end of epoch `until`; `on_step` gets (epoch, step, loss, accuracy) with running means."""
    settings, steps = state.settings, -(-len(data.train_images) // state.settings.batch)
    for epoch in range(len(state.history), min(until, settings.epochs)):
        begin = time.perf_counter()
        state.network.set_training(True)
        Dropout.rng = np.random.default_rng((settings.seed, epoch, 1))
        losses, right, seen = 0.0, 0, 0
        for step, (x, labels) in enumerate(batches(data, settings, epoch), 1):
            loss, logits = state.network.loss(x, labels, settings.smoothing)
            state.adam.step(
                state.network.gradients, one_cycle(state.adam.steps / (settings.epochs * steps), settings.rate)
            )
            losses += loss * len(labels)
            right += int((logits.argmax(axis=1) == labels).sum())
            seen += len(labels)
            on_step(epoch, step, losses / seen, right / seen)
        state.network.set_training(False)
        seconds = time.perf_counter() - begin
        scores = predict(state.network, data.test_images)
        state.history.append({
            "train_loss": losses / seen, "train_accuracy": right / seen,
            "test_loss": nn.softmax_cross_entropy(scores, data.test_labels)[0],
            "test_accuracy": accuracy(scores, data.test_labels), "seconds": seconds,
        })  # fmt: skip


def predict(network: Network, images: np.ndarray, batch: int = 500) -> np.ndarray:
    """Logits of all pictures."""
    parts = [network.logits(as_input(images[start : start + batch])) for start in range(0, len(images), batch)]
    return np.concatenate(parts)


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float((logits.argmax(axis=1) == labels).mean())


def mirrored_accuracy(network: Network, data: FashionMNIST) -> float:
    """Accuracy of the test images by the mean logits of each and its mirror image."""
    both = predict(network, data.test_images) + predict(network, data.test_images[:, :, ::-1])
    return accuracy(both, data.test_labels)
