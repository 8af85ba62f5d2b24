"""Train networks on Fashion-MNIST with fastconv alone: ``python examples/fashion_mnist.py train cnn``.

``train`` writes a checkpoint after every epoch and goes on from it; at the end come the figures. ``figures`` draws them
again, ``invariance`` compares trained networks on shifted test images, ``compare-torch`` times a training step.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

# OpenBLAS's threads spin for 25 ms after a dense layer and would hold the cores of the convolution that follows.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")

import numba
from fashion import compare, figures, invariance
from fashion.networks import NETWORKS, parameter_count
from fashion.train import DEFAULTS, Settings, State, mirrored_accuracy, split, train
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fastconv import datasets

OUTPUT = Path("fashion-mnist-results")
SHIFTS = range(5)
console = Console()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the commands."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.threads:
        numba.set_num_threads(options.threads)
    data = datasets.fashion_mnist(options.data)
    if options.limit:
        data = data._replace(
            train_images=data.train_images[: options.limit], train_labels=data.train_labels[: options.limit]
        )
    try:
        commands = {
            "train": run_train,
            "figures": run_figures,
            "invariance": run_invariance,
            "compare-torch": run_compare,
        }
        commands[options.command](options, data)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    return 0


def run_train(options: argparse.Namespace, data: datasets.FashionMNIST) -> None:
    given = {
        name: getattr(options, name) for name in [field.name for field in fields(Settings) if field.name != "network"]
    }
    settings = replace(DEFAULTS[options.network], **{key: value for key, value in given.items() if value is not None})
    path = checkpoint(options.output, options.network)
    state = start(path, settings, options.fresh)
    data = split(data, settings.holdout)
    console.print(f"{settings.network}: {parameter_count(state.network):,} parameters, {settings}")
    steps = -(-len(data.train_images) // settings.batch)
    until = min(options.until or settings.epochs, settings.epochs)
    with progress_bar() as bar:
        for epoch in range(len(state.history), until):
            task = bar.add_task(f"epoch {epoch + 1}/{settings.epochs}", total=steps, state="")

            def on_step(_: int, step: int, loss: float, accuracy: float, task=task) -> None:
                bar.update(task, completed=step, state=f"loss {loss:.4f}  accuracy {accuracy:.4f}")

            train(state, data, epoch + 1, on_step)
            state.save(path)
            last = state.history[-1]
            bar.update(task, state=f"loss {last['train_loss']:.4f}  test accuracy {last['test_accuracy']:.4f}")
    if not state.history:
        return
    seconds = sum(entry["seconds"] for entry in state.history)
    console.print(
        f"Epoch {len(state.history)} of {settings.epochs}: test accuracy {state.history[-1]['test_accuracy']:.4f} "
        f"after {seconds:.0f} s of training. Checkpoint: {path}"
    )
    if len(state.history) == settings.epochs:
        if settings.flip:
            mirrored = mirrored_accuracy(state.network, data)
            console.print(f"By the mean logits of each image and its mirror image: test accuracy {mirrored:.4f}")
        show_paths(figures.write_all(state, data, options.output))


def start(path: Path, settings: Settings, fresh: bool) -> State:
    """The state of the checkpoint, or a new one where there is none."""
    if fresh or not path.exists():
        return State.fresh(settings)
    state = State.load(path)
    if state.settings != settings:
        raise ValueError(f"{path} was trained with {state.settings}, not {settings}: --fresh begins anew")
    return state


def run_figures(options: argparse.Namespace, data: datasets.FashionMNIST) -> None:
    show_paths(figures.write_all(State.load(checkpoint(options.output, options.network)), data, options.output))


def run_invariance(options: argparse.Namespace, data: datasets.FashionMNIST) -> None:
    paths = {name: checkpoint(options.output, name) for name in NETWORKS}
    found = {name: State.load(path).network for name, path in paths.items() if path.exists()}
    if not found:
        raise FileNotFoundError(f"no checkpoint in {options.output}: run train first")
    accuracies = {name: invariance.accuracies(network, data, SHIFTS) for name, network in found.items()}
    table = Table(title="Accuracy of shifted test images (mean of down, up, right, left)")
    table.add_column("network")
    for shift in SHIFTS:
        table.add_column(f"{shift} px", justify="right")
    for name, values in accuracies.items():
        table.add_row(name, *(f"{value:.4f}" for value in values))
    console.print(table)
    show_paths([figures.save_invariance(accuracies, options.output)])


def run_compare(options: argparse.Namespace, data: datasets.FashionMNIST) -> None:
    settings = replace(DEFAULTS[options.network], batch=options.batch or DEFAULTS[options.network].batch)
    threads = numba.get_num_threads()
    taken = compare.measure(State.fresh(settings), data, options.turns, threads)
    table = Table(title=f"{options.network}: one training step, batch {settings.batch}, {threads} threads, float32")
    for column in ("", "median", "quartiles"):
        table.add_column(column, justify="right")
    for name, seconds in taken.items():
        first, middle, third = (1e3 * value for value in statistics.quantiles(seconds, n=4, method="inclusive"))
        table.add_row(name, f"{middle:.2f} ms", f"{first:.2f} to {third:.2f} ms")
    console.print(table)
    console.print(f"The faster of PyTorch's layouts takes {compare.ratio(taken):.2f} times as long as fastconv.")


def checkpoint(folder: Path, network: str) -> Path:
    return folder / f"{network}.npz"


def progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[state]}"), console=console,
    )  # fmt: skip


def show_paths(paths: Sequence[Path]) -> None:
    for path in paths:
        console.print(f"Figure: {path}", soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    texts = {
        "train": "train a network, or go on where its checkpoint ends",
        "figures": "draw the figures of a trained network",
        "invariance": "accuracy of the trained networks on shifted test images",
        "compare-torch": "time one training step against the same network in PyTorch",
    }
    parsers = {name: commands.add_parser(name, help=text, description=text) for name, text in texts.items()}
    for name, command in parsers.items():
        if name != "invariance":
            command.add_argument("network", choices=NETWORKS)
        command.add_argument("--data", type=Path, metavar="FOLDER", help="where the data set lies")
        command.add_argument("--output", type=Path, default=OUTPUT, metavar="FOLDER", help=f"default: {OUTPUT}")
        command.add_argument("--threads", type=int, metavar="N", help="default: all")
        command.add_argument("--limit", type=int, metavar="N", help="use the first N training images only")
    for option, kind, text in (
        ("--epochs", int, "length of the whole training"),
        ("--batch", int, "images a step"),
        ("--rate", float, "highest learning rate"),
        ("--shift", int, "shift training images by up to so many pixels"),
        ("--dropout", float, "share of the last features that a step forgets"),
        ("--smoothing", float, "share of the target that is spread over all classes"),
        ("--decay", float, "of the weights, times the learning rate"),
        ("--holdout", int, "test with the last N training images, to choose settings by"),
        ("--seed", int, "of weights, order and augmentation"),
        ("--until", int, "stop after this epoch; the next call goes on"),
    ):
        parsers["train"].add_argument(option, type=kind, metavar="N", help=text)
    parsers["train"].add_argument("--flip", action=argparse.BooleanOptionalAction, help="mirror half of the images")
    parsers["train"].add_argument("--fresh", action="store_true", help="ignore the checkpoint")
    parsers["compare-torch"].add_argument("--batch", type=int, metavar="N", help="images a step")
    parsers["compare-torch"].add_argument("--turns", type=int, default=8, metavar="N", help="rounds (default: 8)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
