"""OpenCV's image filter."""

from __future__ import annotations

import numpy as np

from bench.contenders import Prepared, Task
from bench.libraries.base import Peer
from bench.shapes import ConvCase


class OpenCV(Peer):
    """cv2.filter2D, made for image filters: one channel, and an output of the input's size."""

    name = "OpenCV filter2D"
    packages = ("cv2",)
    directions = ("forward", "grad_input")

    def __init__(self, threads: int, packed: bool = False) -> None:
        super().__init__(threads, packed)
        import cv2

        cv2.setNumThreads(threads)
        self.cv2 = cv2

    def declines(self, case: ConvCase) -> str | None:
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
