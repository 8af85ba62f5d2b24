"""asv: what a fresh process pays before its first result: the import, compilation, loading compiled kernels."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from fastconv.problem import DIRECTIONS

_FIRST_CALL = """
import sys, time
import numpy as np
import fastconv
x, w, y = (np.ones(shape, np.float32) for shape in ((1, 56, 56, 64), (3, 3, 64, 64), (1, 54, 54, 64)))
calls = {
    "forward": lambda: fastconv.conv2d(x, w),
    "grad_input": lambda: fastconv.conv2d_grad_input(y, w, x.shape),
    "grad_weight": lambda: fastconv.conv2d_grad_weight(y, x, (3, 3)),
}
begin = time.perf_counter()
calls[sys.argv[1]]()
print(time.perf_counter() - begin)
"""


def timeraw_import() -> str:
    return "import fastconv"


timeraw_import.number = 1  # a second import in the same process takes no time
timeraw_import.repeat = 5


class FirstCall:
    """The first convolution of a process, with nothing on disk (compiles, calibrates) and with both on disk."""

    params = (("empty", "filled"), DIRECTIONS)
    param_names = ("caches", "direction")
    timeout = 300
    unit = "s"

    def track_seconds(self, caches: str, direction: str) -> float:
        with tempfile.TemporaryDirectory() as folder:
            seconds = _first_call_seconds(direction, folder)
            return seconds if caches == "empty" else _first_call_seconds(direction, folder)


def _first_call_seconds(direction: str, caches: str) -> float:
    environment = os.environ | {"NUMBA_CACHE_DIR": caches, "FASTCONV_CACHE_DIR": caches}
    command = [sys.executable, "-c", _FIRST_CALL, direction]
    finished = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(finished.stdout)
