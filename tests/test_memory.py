"""Memory that runs out, memory that must not grow, and a disk cache in any state."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest

import fastconv
from fastconv.kernels.disk import KernelFiles

from .guarded import AVAILABLE
from .process import run_python

ONE_KERNEL = """
import json, os, sys
import numpy as np
import fastconv
from fastconv.kernels import jit

if len(sys.argv) > 1:  # as on a full disk: no file may grow
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
y = fastconv.conv2d(np.ones((1, 4, 4, 2), np.float32), np.ones((2, 2, 2, 3), np.float32), algorithm="naive")
assert (y == 8).all()
print(json.dumps(jit.statistics()))
"""
BOTH = {"compiled": 2, "loaded": 0}, {"compiled": 0, "loaded": 2}


@pytest.mark.skipif(not AVAILABLE, reason="needs mmap and mprotect")
def test_each_allocation_may_fail():
    assert "survived" in run_python("-m", "tests.memory_check", "every_allocation", OMP_WAIT_POLICY="passive")


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on memory that holds")
def test_address_space_may_run_out():
    assert "survived" in run_python("-m", "tests.memory_check", "address_space")


@pytest.mark.skipif(find_spec("psutil") is None, reason="needs psutil")
def test_no_leak():
    assert "survived" in run_python("-m", "tests.memory_check", "no_leak", "4800", OMP_WAIT_POLICY="passive")


@pytest.fixture(scope="module")
def copied(tmp_path_factory) -> Path:
    """A folder with a copy of the package, which tests may edit."""
    folder = tmp_path_factory.mktemp("copied")
    shutil.copytree(Path(fastconv.__file__).parent, folder / "fastconv", ignore=shutil.ignore_patterns("__pycache__"))
    statistics(folder, folder / "cache")  # the first process calibrates the machine besides
    assert statistics(folder, folder / "kernels") == BOTH[0]
    return folder


def statistics(folder: Path, cache: Path, *arguments: str) -> dict:
    environment = {"NUMBA_CACHE_DIR": str(cache), "FASTCONV_CACHE_DIR": str(folder / "machine")}
    return json.loads(run_python("-c", ONE_KERNEL, *arguments, path=folder, **environment))


def files(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file())


def test_cache_folder_that_cannot_be_made(copied, tmp_path):
    """As where everything is read-only: kernels are compiled in every process."""
    file = tmp_path / "file"
    file.touch()
    assert statistics(copied, file / "cache") == BOTH[0]


@pytest.mark.skipif(os.name != "posix", reason="needs limits on files")
def test_full_disk(copied, tmp_path):
    assert statistics(copied, tmp_path, "full") == BOTH[0]
    assert statistics(copied, tmp_path) == BOTH[0]
    assert statistics(copied, tmp_path) == BOTH[1]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [lambda _: b"", lambda _: b"\x80\x04garbage" * 9, lambda content: content[: len(content) // 2], flipped],
    ids=["empty", "garbage", "half", "flipped-bit"],
)
def test_damaged_cache_is_replaced(copied, tmp_path, damage):
    shutil.copytree(copied / "kernels", tmp_path, dirs_exist_ok=True)
    assert statistics(copied, tmp_path) == BOTH[1]
    for path in files(tmp_path):
        path.write_bytes(damage(path.read_bytes()))
    assert statistics(copied, tmp_path) == BOTH[0]
    assert statistics(copied, tmp_path) == BOTH[1]


def test_kernels_of_one_function_saved_at_once_are_not_mixed_up(tmp_path):
    """With a common index one kernel's key leads to the other's code now and then."""
    keys = [(thread, number) for thread in range(8) for number in range(25)]

    def save(thread):
        for key in keys[thread * 25 : (thread + 1) * 25]:
            KernelFiles(str(tmp_path), "function").save(key, key)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(save, range(8)))
    assert [KernelFiles(str(tmp_path), "function").load(key) for key in keys] == keys


def test_kernel_under_another_ones_name_is_not_loaded(tmp_path):
    kernels = KernelFiles(str(tmp_path), "function")
    kernels.save("one", 1)
    (one,) = files(tmp_path)
    content = one.read_bytes()
    kernels.save("other", 2)
    (other,) = set(files(tmp_path)) - {one}
    other.write_bytes(content)
    assert (kernels.load("one"), kernels.load("other")) == (1, None)
    kernels.flush()
    assert files(tmp_path) == []


def test_processes_share_a_cache_from_its_first_moment(copied, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(copied), "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", ONE_KERNEL]
    processes = [subprocess.Popen(command, cwd=copied, env=environment, stdout=subprocess.PIPE) for _ in range(4)]
    for process in processes:
        process.communicate(timeout=100)
    assert [process.returncode for process in processes] == [0] * 4
    assert statistics(copied, tmp_path) == BOTH[1]


def test_cache_does_not_grow_over_versions(copied, tmp_path):
    shutil.copytree(copied / "kernels", tmp_path, dirs_exist_ok=True)
    before = len(files(tmp_path))
    for version in range(2):
        with (copied / "fastconv" / "kernels" / "simd.py").open("a") as file:
            file.write(f"# version {version}\n")
        assert statistics(copied, tmp_path) == BOTH[0]
        assert len(files(tmp_path)) == before
