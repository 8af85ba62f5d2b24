"""PyTorch, with oneDNN underneath."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.contenders import Prepared, Task
from bench.libraries.base import Peer


class PyTorchNCHW(Peer):
    """PyTorch with its default layout."""

    name = "PyTorch NCHW"
    packages = ("torch",)
    memory_format = "contiguous_format"

    def __init__(self, threads: int, packed: bool = False) -> None:
        super().__init__(threads, packed)
        import torch

        torch.set_num_threads(threads)
        self.torch = torch

    def prepare(self, task: Task) -> Prepared:
        torch, case = self.torch, task.case
        geometry = (case.stride, case.padding, case.dilation)
        first, second = map(self._tensor, task.channels_first())

        def as_numpy(tensor: Any) -> np.ndarray:
            return task.channels_last(tensor.numpy())

        if task.direction == "forward":
            return Prepared(lambda: torch.nn.functional.conv2d(first, second, None, *geometry, case.groups), as_numpy)

        # The operator behind autograd, called as autograd calls it, without the cost of recording a graph.
        wants_input = task.direction == "grad_input"
        x, w = (self._tensor(task.zeros_channels_first()), second)
        if not wants_input:
            x, w = second, x
        mask = (wants_input, not wants_input, False)

        def backward() -> Any:
            gradients = torch.ops.aten.convolution_backward(
                first, x, w, None, *geometry, False, (0, 0), case.groups, mask
            )
            return gradients[0 if wants_input else 1]

        return Prepared(backward, as_numpy)

    def _tensor(self, array: np.ndarray) -> Any:
        return self.torch.from_numpy(array).contiguous(memory_format=getattr(self.torch, self.memory_format))


class PyTorchChannelsLast(PyTorchNCHW):
    """PyTorch with the layout that it recommends for convolutions on CPUs."""

    name = "PyTorch channels_last"
    memory_format = "channels_last"
