"""asv: time, memory and speed of a few characteristic layers, from commit to commit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bench import timing
from bench.cases import named
from bench.contenders import Fastconv, Task, concrete_algorithms, plan
from fastconv.problem import DIRECTIONS

_LAYERS = (
    "resnet50-stem",
    "resnet50-conv2-3x3",
    "resnet50-conv2-expand",
    "resnet50-conv3-3x3-s2",
    "mobilenetv2-dw-56",
    "convnext-dw-56",
    "megapixel-5x5",
    "megapixel-3x3-3to16",
)
_LAYERS_OF_ALGORITHMS = ("resnet50-conv2-3x3", "megapixel-5x5")


class Auto:
    """What ``algorithm="auto"`` makes of a layer."""

    params = (_LAYERS, DIRECTIONS)
    param_names = ("layer", "direction")
    algorithm = "auto"

    def setup(self, layer: str, direction: str) -> None:
        contender = Fastconv(self.algorithm)
        case = named(layer)
        if contender.supports(case, direction) is not None:
            raise NotImplementedError  # asv's way to leave a benchmark out
        self.flops = plan(case, direction).flops
        self.call = contender.prepare(Task.make(case, direction)).run
        self.call()

    def time_call(self, layer: str, direction: str) -> None:
        self.call()

    def peakmem_call(self, layer: str, direction: str) -> None:
        self.call()

    def track_gflops(self, layer: str, direction: str) -> float:
        taken = timing.take_turns({layer: self.call}, timing.QUICK)[layer]
        return self.flops / taken.median / 1e9

    track_gflops.unit = "GFLOP/s"


class Subnormal:
    """What subnormal numbers cost: the time of a layer whose input is full of them, by that of its ordinary input."""

    params = _LAYERS_OF_ALGORITHMS
    param_names = ("layer",)
    unit = "times as long"

    def track_slowdown(self, layer: str) -> float:
        task = Task.make(named(layer), "forward")
        tiny = replace(task, first=task.first * np.finfo(task.dtype).smallest_normal / 64)
        calls = {name: Fastconv("direct").prepare(t).run for name, t in (("ordinary", task), ("subnormal", tiny))}
        for call in calls.values():
            call()
        taken = timing.take_turns(calls, timing.QUICK)
        return taken["subnormal"].median / taken["ordinary"].median


class Algorithms:
    """Each algorithm by itself, forward."""

    params = (_LAYERS_OF_ALGORITHMS, concrete_algorithms())
    param_names = ("layer", "algorithm")

    def setup(self, layer: str, algorithm: str) -> None:
        contender = Fastconv(algorithm)
        case = named(layer)
        if contender.supports(case, "forward") is not None:
            raise NotImplementedError
        self.call = contender.prepare(Task.make(case, "forward")).run
        self.call()

    def time_forward(self, layer: str, algorithm: str) -> None:
        self.call()
