"""The pictures: curves, confusion matrix, learned kernels, feature maps, accuracy of shifted images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastconv.datasets import FashionMNIST

from .networks import Conv, Dense, Network
from .train import State, as_input, predict

_BLUE, _ORANGE, _GREEN = "#0072B2", "#D55E00", "#009E73"  # Okabe and Ito's, told apart with any colour vision
_MARKS = ((_ORANGE, "o"), (_BLUE, "s"), (_GREEN, "^"))


def write_all(state: State, data: FashionMNIST, folder: Path) -> list[Path]:
    """Write the figures of one trained network and return their paths."""
    name, network = state.settings.network, state.network
    predicted = predict(network, data.test_images).argmax(axis=1)
    drawn = {
        "curves": curves(state),
        "confusion": confusion(predicted, data.test_labels, data.class_names),
        "kernels": kernels(network),
    }
    if any(isinstance(layer, Conv) for layer in network.layers):
        drawn["features"] = features(network, data)
    return [_save(figure, folder / f"{name}-{what}.png") for what, figure in drawn.items()]


def curves(state: State) -> Any:
    """Loss and accuracy by epoch, while training and of the test images."""
    figure = _figure(11, 4.2)
    epochs = range(1, len(state.history) + 1)
    for axes, what in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for (colour, marker), kind in zip(_MARKS, ("train", "test"), strict=False):
            values = [entry[f"{kind}_{what}"] for entry in state.history]
            axes.plot(epochs, values, color=colour, marker=marker, ms=4, label=f"{kind}: {values[-1]:.4f} at the end")
        axes.set(title=f"{state.settings.network}: {what}", xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color="#DDDDDD")
        axes.legend(frameon=False)
    return figure


def confusion(predicted: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Any:
    """How often pictures of each class were taken for each."""
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (labels, predicted), 1)
    figure = _figure(8.4, 7.6)
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(counts.shape):
        if counts[i, j]:
            axes.text(j, i, counts[i, j], ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black")
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right")
    axes.set_yticks(range(len(names)), names)
    accuracy = (predicted == labels).mean()
    axes.set(xlabel="predicted", ylabel="true", title=f"{len(labels):,} test images, accuracy {accuracy:.4f}")
    return figure


def kernels(network: Network) -> Any:
    """The weights of the first layer: kernels of a convolution, or what the first units of a dense layer look at."""
    layer = next(layer for layer in network.layers if isinstance(layer, (Conv, Dense)))
    w = layer.parameters["w"]
    pictures = w[:, :, 0].transpose(2, 0, 1) if w.ndim == 4 else w.T.reshape(-1, 28, 28)[:32]
    kind = "kernels of the first convolution" if w.ndim == 4 else "weights of the first units"
    return _gallery([(f"{network.name}: {kind}, blue below and red above 0", pictures)], "RdBu_r", signed=True)


def features(network: Network, data: FashionMNIST) -> Any:
    """What the network's activations show for one test image of each of three classes."""
    rows = []
    for image in (data.test_images[np.argmax(data.test_labels == label)] for label in (0, 9, 8)):
        outputs = network.outputs(as_input(image[None]))
        title = data.class_names[int(outputs[-1].argmax())]
        maps = _maps(image, outputs)
        rows.append((f"taken for {title}: the image and its first {len(maps) - 1} maps", maps))
    return _gallery(rows, "gray", signed=False)


def _maps(image: np.ndarray, outputs: list[np.ndarray]) -> list[np.ndarray]:
    """An image and the largest resolution of its feature maps that pooling leaves."""
    maps = next(values[0] for values in outputs if values.ndim == 4 and values.shape[1] < image.shape[0])
    return [image, *maps.transpose(2, 0, 1)[:15]]


def invariance(accuracies: Mapping[str, Sequence[float]]) -> Any:
    """Accuracy of each network by the shift of the test images."""
    figure = _figure(7, 4.4)
    axes = figure.subplots()
    for (colour, marker), (name, values) in zip(_MARKS, accuracies.items(), strict=False):
        axes.plot(range(len(values)), values, color=colour, marker=marker, label=name)
        axes.annotate(
            f"{values[-1]:.3f}", (len(values) - 1, values[-1]), (8, 0), textcoords="offset points", va="center",
            color=colour,
        )  # fmt: skip
    axes.set(xlabel="shift of the test images, pixels", ylabel="accuracy", title="Shifted test images")
    axes.margins(x=0.12)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(color="#DDDDDD")
    axes.legend(frameon=False, loc="lower left")
    return figure


def save_invariance(accuracies: Mapping[str, Sequence[float]], folder: Path) -> Path:
    return _save(invariance(accuracies), folder / "invariance.png")


def _gallery(rows: Sequence[tuple[str, Any]], colours: str, signed: bool) -> Any:
    """Pictures side by side under a title for each row of them."""
    across = min(16, max(8, *(len(pictures) for _, pictures in rows)))
    lines = [-(-len(pictures) // across) for _, pictures in rows]
    figure = _figure(0.75 * across, 0.8 * sum(lines) + 0.45 * len(rows))
    for part, (title, pictures), height in zip(
        np.atleast_1d(figure.subfigures(len(rows), 1, height_ratios=lines)), rows, lines, strict=True
    ):
        part.suptitle(title, x=0.01, ha="left", fontsize=11)
        all_axes = part.subplots(height, across, squeeze=False).ravel()
        for axes in all_axes:
            axes.axis("off")
        for axes, picture in zip(all_axes, pictures, strict=False):
            limit = np.abs(picture).max()
            axes.imshow(picture, cmap=colours, vmin=-limit if signed else 0, vmax=limit)
    return figure


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, facecolor="white")
    return path
