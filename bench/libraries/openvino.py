"""OpenVINO's CPU plugin, with a model of one convolution."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.contenders import Prepared, Task
from bench.libraries.base import Peer


class OpenVINO(Peer):
    """OpenVINO, reading and writing arrays that it shares."""

    name = "OpenVINO"
    packages = ("openvino",)
    directions = ("forward",)
    dtypes = ("float32",)
    packs = True

    def __init__(self, threads: int, packed: bool = False) -> None:
        super().__init__(threads, packed)
        import openvino

        self.openvino = openvino
        self.core = openvino.Core()
        self.options = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16, where the CPU has it
            "ENABLE_CPU_PINNING": False,  # pinned threads would hold the cores that other libraries are moved to
        }

    def prepare(self, task: Task) -> Prepared:
        (x, w), y = task.channels_first(), task.zeros_channels_first()
        request = self.core.compile_model(self._model(task, x, w), "CPU", self.options).create_infer_request()
        for index, array in enumerate((x,) if self.packed else (x, w)):
            request.set_input_tensor(index, self._shared(array))
        request.set_output_tensor(0, self._shared(y))
        return Prepared(lambda: request.infer(share_outputs=True), lambda _: task.channels_last(y), (x, w))

    def _shared(self, array: np.ndarray) -> Any:
        return self.openvino.Tensor(array, shared_memory=True)

    def _model(self, task: Task, x: np.ndarray, w: np.ndarray) -> Any:
        from openvino import opset13 as ops

        case = task.case
        geometry = (case.stride, case.padding, case.padding, case.dilation)
        grouped = w.reshape(case.groups, -1, *w.shape[1:])
        image = ops.parameter(x.shape, np.float32)
        if self.packed:
            inputs, given = [image], ops.constant(w if case.groups == 1 else grouped)
        else:
            weights = ops.parameter(w.shape, np.float32)
            inputs = [image, weights]
            given = weights if case.groups == 1 else ops.reshape(weights, np.array(grouped.shape), special_zero=False)
        convolve = ops.convolution if case.groups == 1 else ops.group_convolution
        return self.openvino.Model([convolve(image, given, *geometry)], inputs)
