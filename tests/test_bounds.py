"""No kernel reads or writes outside its arrays: guard pages around them, and Numba's own index checks."""

import signal
import subprocess
import sys

import numpy as np
import pytest

import fastconv

from .cases import CASES, NAMED, UNIVERSAL
from .extent import ALL
from .guarded import AVAILABLE
from .process import ROOT, run_python

TAKEN = len(CASES) if ALL else len(CASES) // 5
needs_guards = pytest.mark.skipif(not AVAILABLE, reason="needs mmap and mprotect")

TOUCH = """
import ctypes, os, sys
import numpy as np
from tests.guarded import guarded

with guarded(0):
    arrays = [np.zeros(5, np.float32) for _ in range(20)]
    for array in arrays:  # each has a guard at one end at least
        ends = array.ctypes.data - 1, array.ctypes.data + array.nbytes
        flush = [end for end in ends if (end + (end == ends[0])) % os.sysconf("SC_PAGE_SIZE") == 0]
        assert flush, ends
        array.sum()
    print("inside", flush=True)
    if sys.argv[1] == "outside":
        ctypes.c_char.from_address(flush[0]).value
    if sys.argv[1] == "freed":
        address = arrays[3].ctypes.data
        del array, arrays
        ctypes.c_char.from_address(address).value
os._exit(0)
"""


@needs_guards
@pytest.mark.parametrize(("where", "faults"), [("inside", False), ("outside", True), ("freed", True)])
def test_guards_fault(where, faults):
    done = subprocess.run([sys.executable, "-c", TOUCH, where], cwd=ROOT, capture_output=True, check=False)
    assert done.stdout.strip() == b"inside"
    assert done.returncode == (-signal.SIGSEGV if faults else 0), done.stderr


@needs_guards
@pytest.mark.parametrize(("part", "problems"), [("bounds", -(-TAKEN // 9) * 12), ("faults", TAKEN)])
def test_random_problems_stay_inside_their_arrays(part, problems):
    """So many cases of the table once, all else drawn; ``make soak`` draws geometry too."""
    arguments = ["--table", "--seed", "2024", "--problems", str(problems), "--seconds", "280"]
    output = run_python("-m", "tests.soak", part, *arguments)
    assert f" {problems} problems" in output, output


EVERY_SECOND = """
import os, sys
import numpy as np
from fastconv.algorithms import direct
from fastconv.problem import problem_from
from tests.guarded import guarded

w = np.ones((2, 1, 3, 3), np.float32)
with guarded(0) as guard:
    for size in range(90, 170):
        x = np.ones((1, 2, 5, size), np.float32)
        problem = problem_from(x.shape, w.shape, np.dtype("float32"), 2, ((1, 0), (1, 2)), 1, 2, "NCHW")
        step = direct.plan_rolling(problem, "forward", *direct.sub_problems(problem, "forward")[0], 1)
        if step is not None:  # vectors of 16 bytes have no masked loads
            step.run(x, w, np.empty(problem.y_shape, np.float32))
    print("inside", flush=True)
os._exit(0)
"""


@needs_guards
def test_vectors_of_every_second_column_end_with_the_row():
    assert run_python("-c", EVERY_SECOND) == "inside\n"


PLANES = """
import os
import numpy as np
from fastconv.algorithms.direct import plane_dots, rolling, sub_problems
from fastconv.problem import problem_from
from tests.guarded import guarded

w = np.ones((3, 1, 3, 3), np.float32)
runs = 0
for number in range(6):
    with guarded(number) as guard:
        for stride in (1, 2):
            for size in (3, 7, 8, 9, 15, 16, 17, 31, 33, 35, 50, 66, 115):
                x = np.ones((2, 3, 7, size), np.float32)
                padding = ((0, 1), (1, 0))
                problem = problem_from(x.shape, w.shape, np.dtype("float32"), stride, padding, 1, 3, "NCHW")
                y, forward, back = (np.ones(problem.y_shape, np.float32),
                    *(sub_problems(problem, direction)[0] for direction in ("forward", "grad_input")))
                steps = (
                    (rolling.plan_rolling(problem, "forward", *forward, 1), (x, w, y)),
                    (rolling.plan_pairs(problem, 1) if stride == 2 else
                     rolling.plan_rolling(problem, "grad_input", *back, 1), (y, w, np.empty_like(x))),
                    (plane_dots.plan_plane_dots(problem, 1), (y, x, np.empty_like(w))),
                )
                for step, arrays in steps:
                    if step is not None:  # vectors of 16 bytes have no masked loads
                        step.run(*arrays)
                        runs += 1
                guard.check()
print("inside", runs in (0, 6 * 2 * 13 * 3), flush=True)
os._exit(0)
"""


@needs_guards
def test_planes_one_after_another_are_read_inside():
    """Also where the compiler might take a load's mask away, as LLVM 22 does from some."""
    assert run_python("-c", PLANES) == "inside True\n"


NAIVE = """
import sys
import numpy as np


import fastconv
from fastconv.kernels import jit, launch
from fastconv.kernels.simd import array_at
from tests.cases import DIRECTIONS, LAYOUTS, TARGET_CASES, call, data

errors = []
sys.unraisablehook = errors.append

def past_the_end(address, begin, end, thread):
    array_at(address, 3, np.float32)[3 * end] = 1

launch.run(jit.kernel(past_the_end), np.zeros(8, np.float32), 1, threads=1)
assert errors, "an index outside an array was not found"
errors.clear()
for case in TARGET_CASES:
    for layout in LAYOUTS:
        for direction in DIRECTIONS:
            given = data(case, "integers", layout, "float32")
            result = call(case, given, direction, algorithm="naive", layout=layout)
            np.testing.assert_array_equal(result, given.expected[direction])
            assert not errors, (case, layout, direction)
print(len(TARGET_CASES))
"""


def test_plain_loops_index_inside_their_arrays(tmp_path):
    # The disk cache does not know which kernels check indices, so these have one of their own.
    output = run_python("-c", NAIVE, NUMBA_BOUNDSCHECK="1", NUMBA_CACHE_DIR=str(tmp_path))
    assert int(output) > 40


BEYOND_4_GB = [
    ((1, 1, 2**30, 1), (1, 2**24 + 1)),
    ((1, 2**30, 1, 1), (2**24 + 1, 1)),
    ((2, 3, 2**27, 2), (1, 2**21 + 1)),
]


@pytest.mark.parametrize("algorithm", [name for name in NAMED if name in UNIVERSAL])
@pytest.mark.parametrize(("shape", "stride"), BEYOND_4_GB, ids=str)
def test_images_of_more_than_4_gigabytes(shape, stride, algorithm):
    """Untouched pages of zeros take no memory, and a large stride reads few of them."""
    try:
        x = np.zeros(shape, np.float32)
    except MemoryError:
        pytest.skip("the machine has no room for it")
    read = x[:, :: stride[0], :: stride[1], :1]
    read[...] = np.arange(read.size).reshape(read.shape) % 31
    w = np.zeros((1, 1, shape[3], 1), np.float32)
    w[0, 0, 0, 0] = 2
    keywords = {"stride": stride, "algorithm": algorithm}
    y = fastconv.conv2d(x, w, **keywords)
    np.testing.assert_array_equal(y, 2 * read)
    dw = fastconv.conv2d_grad_weight(np.ones_like(y), x, 1, **keywords)
    assert dw[0, 0, 0, 0] == read.sum()


TOO_LARGE = """
import itertools, resource
import numpy as np
import fastconv

x, w = np.ones((1, 4, 4, 1), np.float32), np.ones((1, 1, 1, 1), np.float32)
algorithms = fastconv.conv2d_algorithms()
for algorithm in algorithms[:2] + ("naive", "im2col", "direct"):
    fastconv.conv2d(x, w, algorithm=algorithm)
limit = 6 << 30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

shapes = (2**33, 1, 1, 1), (1, 2**33, 1, 1), (1, 2**17, 2**17, 1), (1, 1, 2**40, 1), (2**33, 3, 3, 1), (2**60, 1, 1, 1)
for shape, stride in itertools.product(shapes, (1, 2**30)):
    large = np.broadcast_to(np.float32(1), shape)
    for algorithm in ("auto", "naive", "im2col", "direct"):
        rows, columns = (-(-size // stride) for size in shape[1:3])
        grad_y = np.broadcast_to(np.float32(1), (shape[0], rows, columns, 1))
        keywords = {"stride": stride, "algorithm": algorithm}
        for call in (
            lambda: fastconv.conv2d(large, w, **keywords),
            lambda: fastconv.conv2d_grad_weight(grad_y, large, 1, **keywords),
            lambda: fastconv.conv2d_grad_input(grad_y, w, shape, **keywords),
        ):
            try:
                call()
            except (MemoryError, ValueError) as error:
                continue
            raise AssertionError((shape, stride, algorithm))
    assert (fastconv.conv2d(x, w) == 1).all()
print("refused")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on memory that holds")
def test_broadcast_images_that_would_fill_memory_are_refused():
    assert run_python("-c", TOO_LARGE, timeout=100) == "refused\n"
