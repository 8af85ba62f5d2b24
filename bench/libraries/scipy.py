"""SciPy's convolutions of single planes, added up over channels."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.contenders import Prepared, Task
from bench.libraries.base import Peer
from bench.shapes import ConvCase

_MOST_PLANES = 16


class SciPyConvolve(Peer):
    """scipy.signal.convolve, plane by plane; it chooses between sums, on one thread, and FFT."""

    name = "SciPy convolve"
    packages = ("scipy",)
    function = "convolve"

    def declines(self, case: ConvCase) -> str | None:
        if case.groups != 1 or case.stride != (1, 1) or case.dilation != (1, 1):
            return "SciPy convolves without stride, dilation and groups"
        if case.n * case.ic * case.oc > _MOST_PLANES:
            return f"{case.n * case.ic * case.oc} planes, one call each (at most {_MOST_PLANES} are timed)"
        return None

    def prepare(self, task: Task) -> Prepared:
        from scipy import fft, signal

        planes = _Planes(task, getattr(signal, self.function))
        compute = getattr(planes, task.direction)

        def run() -> np.ndarray:
            with fft.set_workers(self.threads):
                return compute()

        return Prepared(run, np.asarray)


class SciPyOverlapAdd(SciPyConvolve):
    """scipy.signal.oaconvolve: FFT by overlap-add, plane by plane."""

    name = "SciPy oaconvolve"
    function = "oaconvolve"


class _Planes:
    """Convolution of many channels by a function ``convolve(plane, kernel, mode)`` that knows one plane."""

    def __init__(self, task: Task, convolve: Any) -> None:
        self.task = task
        self.convolve = convolve

    def forward(self) -> np.ndarray:
        x, w = self._padded(self.task.first), self.task.second
        y = self.task.zeros()
        for n, i, o in np.ndindex(y.shape[0], w.shape[2], w.shape[3]):
            y[n, :, :, o] += self._correlate(x[n, :, :, i], w[:, :, i, o])
        return y

    def grad_input(self) -> np.ndarray:
        grad_y, w, (ph, pw) = self.task.first, self.task.second, self.task.case.padding
        grad_x = self.task.zeros()
        ih, iw = grad_x.shape[1:3]
        for n, i, o in np.ndindex(grad_x.shape[0], w.shape[2], w.shape[3]):
            full = self.convolve(grad_y[n, :, :, o], w[:, :, i, o], "full")
            grad_x[n, :, :, i] += full[ph : ph + ih, pw : pw + iw]
        return grad_x

    def grad_weight(self) -> np.ndarray:
        grad_y, x = self.task.first, self._padded(self.task.second)
        grad_w = self.task.zeros()
        for n, i, o in np.ndindex(x.shape[0], grad_w.shape[2], grad_w.shape[3]):
            grad_w[:, :, i, o] += self._correlate(x[n, :, :, i], grad_y[n, :, :, o])
        return grad_w

    def _padded(self, x: np.ndarray) -> np.ndarray:
        ph, pw = self.task.case.padding
        return np.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)))

    def _correlate(self, plane: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        return self.convolve(plane, kernel[::-1, ::-1], "valid")
