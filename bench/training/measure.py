"""Checks that all contenders compute the same step, then times whole steps and, if asked, every part of them."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench import timing
from bench.contenders import WrongResultError
from bench.training import ours, theirs
from bench.training.networks import Data, Network

FULL = timing.Effort(seconds=3, calls=12, most_calls=400, slow_calls=6, turns=6)
QUICK = timing.Effort(seconds=0.4, calls=3, most_calls=60, slow_calls=2, turns=2)
FULL_PARTS = timing.Effort(seconds=0.15, calls=9, most_calls=200, slow_calls=3, turns=3)
QUICK_PARTS = timing.Effort(seconds=0.02, calls=2, most_calls=20, slow_calls=2, turns=1)

TOLERANCE = 2e-3
"""Largest difference of losses and gradients, as a fraction of the largest value: through many layers in float32, where
a value near 0 that another order of summation moves over ReLU's edge opens or closes a pixel."""

Timings = dict[str, timing.Timing]


@dataclass(frozen=True)
class Part:
    """One direction of one layer, of which the network has `count` alike, by contender."""

    layer: str
    part: str
    count: int
    timings: Timings


@dataclass(frozen=True)
class Training:
    """One network: whole steps by contender, and their parts where those were asked for."""

    network: Network
    steps: Timings
    parts: Sequence[Part]

    @property
    def rival(self) -> str | None:
        """The faster of the others."""
        others = (name for name in self.steps if name != ours.Step.name)
        return min(others, key=lambda name: self.steps[name].median, default=None)

    @property
    def ratio(self) -> float | None:
        """The time of the rival's step over ours: above 1, fastconv is faster."""
        return None if self.rival is None else self.steps[self.rival].median / self.steps[ours.Step.name].median

    def facts(self) -> dict[str, Any]:
        """Return the network's figures for JSON."""
        return {
            "network": self.network.name,
            "title": self.network.title,
            "rival": self.rival,
            "ratio": self.ratio,
            "steps": {name: taken.facts() for name, taken in self.steps.items()},
            "parts": [
                {
                    "layer": part.layer,
                    "part": part.part,
                    "count": part.count,
                    "timings": {name: taken.facts() for name, taken in part.timings.items()},
                }
                for part in self.parts
            ],
        }


def measure(
    network: Network, threads: int, on_step: Callable[[str], None], *, quick: bool = False, parts: bool = False
) -> Training:
    """Time a network; raises WrongResultError where a contender's losses or gradients are not ours."""
    data = Data.make(network)
    steps: list[Any] = [ours.Step(network, data)]
    if importlib.util.find_spec("torch"):
        steps += [theirs.Step(network, data, name, threads) for name in theirs.LAYOUTS]
    on_step(network.title)
    require_same(steps)
    taken = timing.take_turns({step.name: step for step in steps}, QUICK if quick else FULL)
    effort = QUICK_PARTS if quick else FULL_PARTS
    return Training(network, taken, _parts(network, steps, effort, on_step) if parts else ())


def require_same(steps: Sequence[Any]) -> None:
    """Make two steps with each contender, and compare losses and gradients: the second loss knows the update."""
    losses = [[step()] for step in steps]
    gradients = [[array.copy() for pair in step.gradients for array in pair] for step in steps]
    for step, loss in zip(steps, losses, strict=True):
        loss.append(step())
    for step, loss, found in zip(steps, losses, gradients, strict=True):
        for value, expected in zip(loss, losses[0], strict=True):
            if not math.isclose(value, expected, rel_tol=TOLERANCE):
                raise WrongResultError(f"{step.name}: the losses of two steps are {loss}, fastconv's {losses[0]}")
        for gradient, right in zip(found, gradients[0], strict=True):
            error = float(np.abs(gradient - right).max()) / float(np.abs(right).max())
            if not error <= TOLERANCE:
                raise WrongResultError(
                    f"{step.name}: a gradient of shape {right.shape} differs by {error:.1e} of the largest value"
                )


def _parts(network: Network, steps: Sequence[Any], effort: timing.Effort, on_step: Callable[[str], None]) -> list[Part]:
    calls = {step.name: step.parts() for step in steps}
    names = [layer.name for layer in network.layers]
    found = []
    for layer, parts in calls[ours.Step.name].items():
        on_step(layer)
        for part in parts:
            contenders = {name: of_layer[layer][part] for name, of_layer in calls.items()}
            for call in contenders.values():
                call()
            taken = timing.take_turns(contenders, effort)
            found.append(Part(layer, part, max(1, names.count(layer)), taken))
    return found
