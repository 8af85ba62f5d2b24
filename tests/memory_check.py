"""What `test_memory` runs in processes of their own: ``python -m tests.memory_check SCENE``."""

from __future__ import annotations

import os
import sys

import numpy as np

import fastconv

from .cases import DIRECTIONS, NAMED, UNIVERSAL, by_name, call, data

WORK = [
    ("threads-stride", algorithm, direction, "NHWC")
    for algorithm in NAMED
    if algorithm in UNIVERSAL
    for direction in DIRECTIONS
] + [
    ("threads-winograd", "winograd", "forward", "NHWC"),
    ("threads-winograd", "winograd", "grad_input", "NCHW"),
    ("threads-winograd-slabs", "winograd", "grad_weight", "NHWC"),
    ("threads-blocks", "fft", "forward", "NHWC"),
    ("threads-blocks", "fft", "grad_weight", "NCHW"),
]
_NOISE_MEGABYTES = 6
"""What the allocator may keep more at one time than at another; a leak of 100 bytes a call is more over 100,000."""


def compute(work: tuple[str, str, str, str]) -> bytes:
    name, algorithm, direction, layout = work
    case = by_name(name)
    given = data(case, "integers", layout, "float32")
    return call(case, given, direction, algorithm=algorithm, layout=layout).tobytes()


def every_allocation() -> None:
    """Fail each allocation of a call in turn, from the first on: MemoryError, and the next call is right."""
    from .guarded import guarded
    from .soak import forget_plans

    failed = forgotten = 0
    expected = [compute(work) for work in WORK]
    for work, right in zip(WORK, expected, strict=True):
        with guarded(1) as guard:
            forget_plans()
            compute(work)
            fresh = guard.allocations
            guard.restart(1)
            compute(work)
            # All allocations of a call that is planned, and some of those that plan it.
            chosen = [("known", k) for k in range(1, guard.allocations + 1)]
            chosen += [("new", int(k)) for k in np.linspace(1, fresh, 6)]
            for kind, number in chosen:
                if kind == "new":
                    forget_plans()
                guard.restart(1)
                guard.fail_at = number
                try:
                    compute(work)
                except MemoryError:
                    failed += 1
                except SystemError:  # some of NumPy's functions forget to say which exception
                    forgotten += 1
                guard.fail_at = 0
                assert compute(work) == right, (work, kind, number)
    assert failed > 2 * len(WORK) + forgotten, (failed, forgotten)


def address_space() -> None:
    """A limit on the address space: results that do not fit are refused, and the process goes on."""
    import resource

    x, w = np.ones((1, 400, 400, 64), np.float32), np.ones((3, 3, 64, 64), np.float32)
    small = fastconv.conv2d(x[:, :20], w)
    algorithms = "naive", "direct", "winograd"  # NumPy's OpenBLAS ends a process that has no memory
    for algorithm in algorithms:  # and so does LLVM: compile now
        fastconv.conv2d(x, w, padding=1, algorithm=algorithm)
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: SIM115
    refused = 0
    for room in (0, 10, 30, 60, 100):
        resource.setrlimit(resource.RLIMIT_AS, (used + (room << 20), resource.RLIM_INFINITY))
        for algorithm in algorithms:
            try:
                fastconv.conv2d(x, w, padding=1, algorithm=algorithm)
            except MemoryError:
                refused += 1
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert refused >= 3
    assert (fastconv.conv2d(x[:, :20], w) == small).all()


def no_leak(calls: int) -> None:
    """Resident memory over calls of varied shapes: once the plans of all are known, it may grow by noise alone."""
    import psutil

    rng = np.random.default_rng(0)
    process = psutil.Process()
    memory = np.ones(1 << 16, np.float32)
    w = memory[: 9 * 64].reshape(3, 3, 8, 8)
    shapes = [tuple(int(k) for k in rng.integers(1, (4, 40, 40))) for _ in range(100)]

    def some(count: int) -> float:
        """Megabytes after so many calls."""
        for k in range(count // 4):
            n, rows, columns = shapes[k % len(shapes)]
            x = memory[: n * rows * columns * 8].reshape(n, rows, columns, 8)
            keywords = {"padding": 1, "algorithm": ("direct", "im2col", "naive")[k % 3]}
            y = fastconv.conv2d(x, w, **keywords)
            fastconv.conv2d_grad_input(y, w, x.shape, **keywords)
            fastconv.conv2d_grad_weight(y, x, 3, **keywords)
            fastconv.prepare_conv2d(w, **keywords)(x)
        return process.memory_info().rss / 1e6

    sizes = [some(calls // 4) for _ in range(4)]
    print(f"{calls} calls:", *(f"{size:.1f} MB" for size in sizes))
    assert sizes[-1] - sizes[0] < _NOISE_MEGABYTES


if __name__ == "__main__":
    if sys.argv[1] == "no_leak":
        no_leak(int(sys.argv[2]))
    else:
        {"every_allocation": every_allocation, "address_space": address_space}[sys.argv[1]]()
    print("survived")
    sys.stdout.flush()
    os._exit(0)  # guarded arrays outlive the interpreter's end
