"""Kernels come from the disk cache in every later process, and never outlive the source they came from."""

import json
import shutil
from pathlib import Path

import pytest

import fastconv

from .process import run_python

PRINT_STATISTICS = """
import json
from fastconv.kernels import jit
print(json.dumps(jit.statistics()))
"""

IMPORT_ONLY = "import fastconv" + PRINT_STATISTICS

ONE_KERNEL = (
    """
import numpy as np
import fastconv
fastconv.conv2d(np.ones((1, 4, 4, 2), np.float32), np.ones((2, 2, 2, 3), np.float32), algorithm="direct")
"""
    + PRINT_STATISTICS
)

UPGRADED_AFTER_IMPORT = (
    """
from pathlib import Path
import fastconv
with (Path(fastconv.__file__).parent / "kernels" / "simd.py").open("a") as file:
    file.write("# another version\\n")
"""
    + ONE_KERNEL
)

EVERY_ALGORITHM = (
    """
import numpy as np
import fastconv

for algorithm in ("auto", "exact", "direct", "im2col", "naive"):
    for layout, x_shape, w_shape in (
        ("NHWC", (2, 5, 6, 3), (3, 3, 3, 4)),
        ("NCHW", (2, 3, 5, 6), (4, 3, 3, 3)),
    ):
        x, w = np.ones(x_shape, np.float32), np.ones(w_shape, np.float32)
        keywords = {"algorithm": algorithm, "layout": layout}
        y = fastconv.conv2d(x, w, activation="relu", **keywords)
        fastconv.conv2d_grad_input(y, w, x.shape, **keywords)
        fastconv.conv2d_grad_weight(y, x, (3, 3), **keywords)
        fastconv.conv2d_backward(y, x, w, **keywords)
        fastconv.prepare_conv2d(w, **keywords)(x)

x, w = np.ones((1, 6, 6, 16), np.float32), np.ones((3, 3, 16, 16), np.float32)
y = fastconv.conv2d(x, w, algorithm="winograd")
fastconv.conv2d_grad_weight(y, x, 3, algorithm="winograd")
fastconv.conv2d(x, np.ones((3, 3, 1, 16), np.float32), groups=16, algorithm="direct")

x, w = np.ones((1, 40, 40, 1), np.float32), np.ones((15, 15, 1, 1), np.float32)
y = fastconv.conv2d(x, w, algorithm="fft")
fastconv.conv2d_grad_weight(y, x, 15, algorithm="fft")

x, w = np.ones((2, 5), np.float32), np.ones((5, 7), np.float32)
y = fastconv.dense(x, w)
fastconv.dense_grad_input(y, w)
fastconv.dense_grad_weight(y, x)

for oc in (1, 3):
    x, w = np.ones((1, 4, 4, 2), np.float32), np.ones((4, 4, 1, 1, 2, oc), np.float32)
    y = fastconv.local2d(x, w)
    fastconv.local2d_grad_input(y, w, x.shape)
    fastconv.local2d_grad_weight(y, x, 1)
"""
    + PRINT_STATISTICS
)


@pytest.fixture(scope="module")
def copied_package(tmp_path_factory) -> Path:
    """A folder with a copy of the package, which a test may edit, and an empty cache beside it."""
    folder = tmp_path_factory.mktemp("copied")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(fastconv.__file__).parent, folder / "fastconv", ignore=ignored)
    return folder


def statistics(folder: Path, script: str) -> dict[str, int]:
    caches = {"NUMBA_CACHE_DIR": str(folder / "kernels"), "FASTCONV_CACHE_DIR": str(folder / "machine")}
    return json.loads(run_python("-c", script, path=folder, **caches))


def test_import_compiles_and_measures_nothing(copied_package):
    assert statistics(copied_package, IMPORT_ONLY) == {"compiled": 0, "loaded": 0}
    assert not (copied_package / "kernels").exists()
    assert not (copied_package / "machine").exists()


def test_second_process_loads_every_kernel():
    """From the cache of the other tests, which have most of them already."""
    run_python("-c", EVERY_ALGORITHM)
    second = json.loads(run_python("-c", EVERY_ALGORITHM))
    assert second["compiled"] == 0
    assert second["loaded"] > 50


def test_edit_compiles_anew(copied_package):
    first = statistics(copied_package, ONE_KERNEL)
    assert first["compiled"] > 0
    assert first["loaded"] == 0
    second = statistics(copied_package, ONE_KERNEL)
    assert second["compiled"] == 0
    assert 0 < second["loaded"] <= first["compiled"]  # the first process calibrates the machine besides

    with (copied_package / "fastconv" / "kernels" / "simd.py").open("a") as file:
        file.write("\n# edited\n")
    edited = statistics(copied_package, ONE_KERNEL)
    assert edited["compiled"] > 0
    assert edited["loaded"] == 0


def test_process_that_imported_an_older_version_leaves_no_kernels_to_the_newer(copied_package):
    """A process may outlive an upgrade: what it compiles afterwards still comes from the old source."""
    older = statistics(copied_package, UPGRADED_AFTER_IMPORT)
    assert older["compiled"] + older["loaded"] > 0
    newer = statistics(copied_package, ONE_KERNEL)
    assert newer["compiled"] > 0
    assert newer["loaded"] == 0
