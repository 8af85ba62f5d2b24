"""How much accuracy a network loses on test images that are shifted by some pixels."""

from __future__ import annotations

import numpy as np

from fastconv.datasets import FashionMNIST

from .networks import Network
from .train import accuracy, predict, shifted

DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1))


def accuracies(network: Network, data: FashionMNIST, shifts: range) -> list[float]:
    """Accuracy for each shift, the mean over shifts down, up, right and left."""
    return [float(np.mean([_accuracy(network, data, shift * i, shift * j) for i, j in DIRECTIONS])) for shift in shifts]


def _accuracy(network: Network, data: FashionMNIST, down: int, right: int) -> float:
    n = len(data.test_images)
    images = shifted(data.test_images, np.full(n, down), np.full(n, right))
    return accuracy(predict(network, images), data.test_labels)
