"""Other libraries that compute convolutions, each as a `Contender`.

To add one, write a `Peer` that says which package it needs, which problems it takes and how it runs them, and add it
to `PEERS`. It is imported only where it is asked for and installed.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from bench.cases import ConvCase
from bench.contenders import Contender, Prepared, Task

_MOST_SCIPY_PLANES = 16


class Peer(Contender):
    """A library, told how many threads it may use."""

    package: str

    def __init__(self, threads: int) -> None:
        self.threads = threads

    @classmethod
    def is_installed(cls) -> bool:
        return importlib.util.find_spec(cls.package) is not None


class PyTorchNCHW(Peer):
    """PyTorch (oneDNN underneath) with its default layout."""

    name = "PyTorch NCHW"
    package = "torch"
    memory_format = "contiguous_format"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import torch

        torch.set_num_threads(threads)
        self.torch = torch

    def supports(self, case: ConvCase, direction: str) -> str | None:
        return None

    def prepare(self, task: Task) -> Prepared:
        torch, case = self.torch, task.case
        geometry = (case.stride, case.padding, case.dilation)
        if task.direction == "forward":
            x, w = self._image(task.first), self._weights(task.second)
            return Prepared(lambda: torch.nn.functional.conv2d(x, w, None, *geometry, case.groups), self._image_back)

        # The operator behind autograd, called as autograd calls it, without the cost of recording a graph.
        wants_input = task.direction == "grad_input"
        grad_y = self._image(task.first)
        x = self._image(np.zeros(case.x_shape, np.float32) if wants_input else task.second)
        w = self._weights(task.second if wants_input else np.zeros(case.w_shape, np.float32))
        mask = (wants_input, not wants_input, False)

        def backward() -> Any:
            gradients = torch.ops.aten.convolution_backward(
                grad_y, x, w, None, *geometry, False, (0, 0), case.groups, mask
            )
            return gradients[0 if wants_input else 1]

        return Prepared(backward, self._image_back if wants_input else self._weights_back)

    def _image(self, array: np.ndarray) -> Any:
        return self._formatted(array, (0, 3, 1, 2))

    def _weights(self, array: np.ndarray) -> Any:
        return self._formatted(array, (3, 2, 0, 1))

    def _formatted(self, array: np.ndarray, axes: tuple[int, ...]) -> Any:
        tensor = self.torch.from_numpy(array).permute(*axes)
        return tensor.contiguous(memory_format=getattr(self.torch, self.memory_format))

    @staticmethod
    def _image_back(tensor: Any) -> np.ndarray:
        return tensor.permute(0, 2, 3, 1).numpy()

    @staticmethod
    def _weights_back(tensor: Any) -> np.ndarray:
        return tensor.permute(2, 3, 1, 0).numpy()


class PyTorchChannelsLast(PyTorchNCHW):
    """PyTorch with the layout that it recommends for convolutions on CPUs."""

    name = "PyTorch channels_last"
    memory_format = "channels_last"


class SciPyConvolve(Peer):
    """scipy.signal.convolve, plane by plane; it chooses between sums and FFT. Runs on one thread."""

    name = "SciPy convolve"
    package = "scipy"

    def supports(self, case: ConvCase, direction: str) -> str | None:
        if case.groups != 1 or case.stride != (1, 1) or case.dilation != (1, 1):
            return "SciPy convolves without stride, dilation and groups"
        if case.ic * case.oc > _MOST_SCIPY_PLANES:
            return f"{case.ic * case.oc} pairs of planes, one call each (at most {_MOST_SCIPY_PLANES} are timed)"
        return None

    def prepare(self, task: Task) -> Prepared:
        runs = {
            "forward": _Planes.forward,
            "grad_input": _Planes.grad_input,
            "grad_weight": _Planes.grad_weight,
        }
        planes = _Planes(task, self._convolve())
        return Prepared(lambda: runs[task.direction](planes), np.asarray)

    def _convolve(self) -> Any:
        from scipy.signal import convolve

        return convolve


class SciPyOverlapAdd(SciPyConvolve):
    """scipy.signal.oaconvolve: FFT by overlap-add, plane by plane. Runs on one thread."""

    name = "SciPy oaconvolve"

    def _convolve(self) -> Any:
        from scipy.signal import oaconvolve

        return oaconvolve


class _Planes:
    """Convolution of many channels by a function ``convolve(plane, kernel, mode)`` that knows one plane."""

    def __init__(self, task: Task, convolve: Any) -> None:
        self.task = task
        self.convolve = convolve

    def forward(self) -> np.ndarray:
        x, w = self._padded(self.task.first), self.task.second
        y = np.zeros(self.task.result_shape, np.float32)
        for n, i, o in np.ndindex(y.shape[0], w.shape[2], w.shape[3]):
            y[n, :, :, o] += self._correlate(x[n, :, :, i], w[:, :, i, o])
        return y

    def grad_input(self) -> np.ndarray:
        grad_y, w, (ph, pw) = self.task.first, self.task.second, self.task.case.padding
        grad_x = np.zeros(self.task.result_shape, np.float32)
        ih, iw = grad_x.shape[1:3]
        for n, i, o in np.ndindex(grad_x.shape[0], w.shape[2], w.shape[3]):
            full = self.convolve(grad_y[n, :, :, o], w[:, :, i, o], "full")
            grad_x[n, :, :, i] += full[ph : ph + ih, pw : pw + iw]
        return grad_x

    def grad_weight(self) -> np.ndarray:
        grad_y, x = self.task.first, self._padded(self.task.second)
        grad_w = np.zeros(self.task.result_shape, np.float32)
        for n, i, o in np.ndindex(x.shape[0], grad_w.shape[2], grad_w.shape[3]):
            grad_w[:, :, i, o] += self._correlate(x[n, :, :, i], grad_y[n, :, :, o])
        return grad_w

    def _padded(self, x: np.ndarray) -> np.ndarray:
        ph, pw = self.task.case.padding
        return np.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)))

    def _correlate(self, plane: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        return self.convolve(plane, kernel[::-1, ::-1], "valid")


class OpenCV(Peer):
    """cv2.filter2D, made for image filters: one channel, and an output of the input's size."""

    name = "OpenCV filter2D"
    package = "cv2"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import cv2

        cv2.setNumThreads(threads)
        self.cv2 = cv2

    def supports(self, case: ConvCase, direction: str) -> str | None:
        if direction == "grad_weight":
            return "OpenCV filters images only"
        if (case.n, case.ic, case.oc) != (1, 1, 1):
            return "OpenCV sums over no channels"
        if case.stride != (1, 1) or case.dilation != (1, 1):
            return "OpenCV filters without stride and dilation"
        if (case.kh, case.kw) != tuple(2 * p + 1 for p in case.padding):
            return "OpenCV keeps the size of the image"
        return None

    def prepare(self, task: Task) -> Prepared:
        cv2, plane = self.cv2, task.first[0, :, :, 0]
        kernel = task.second[:, :, 0, 0]
        if task.direction == "grad_input":
            kernel = kernel[::-1, ::-1]
        kernel, out = np.ascontiguousarray(kernel), np.zeros_like(plane)
        return Prepared(
            lambda: cv2.filter2D(plane, -1, kernel, dst=out, borderType=cv2.BORDER_CONSTANT),
            lambda filtered: filtered[None, :, :, None],
        )


PEERS: tuple[type[Peer], ...] = (PyTorchNCHW, PyTorchChannelsLast, SciPyConvolve, SciPyOverlapAdd, OpenCV)


def installed(threads: int) -> list[Peer]:
    """Return the peers whose package is installed."""
    return [peer(threads) for peer in PEERS if peer.is_installed()]


def missing() -> list[str]:
    """Return the names of the peers whose package is not installed."""
    return [peer.name for peer in PEERS if not peer.is_installed()]
