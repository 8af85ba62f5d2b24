"""What `test_threads` runs in processes of their own: ``python -m tests.threads_check SCENE``.

Each scene computes the same results in unusual company and holds their bits against those computed alone.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
import sys
import threading

import numba
import numpy as np

import fastconv

from .cases import DIRECTIONS, NAMED, UNIVERSAL, by_name, call, data

WORK = [
    (name, algorithm, direction)
    for name, algorithm in (
        *(("threads-batch", algorithm) for algorithm in NAMED if algorithm in UNIVERSAL),
        ("threads-winograd-slabs", "winograd"),
        ("threads-blocks", "fft"),
    )
    for direction in DIRECTIONS
]


def compute(work: tuple[str, str, str]) -> bytes:
    """One result, of more operations than one thread does alone."""
    name, algorithm, direction = work
    case = by_name(name)
    return call(case, data(case, "floats", "NHWC", "float32"), direction, algorithm=algorithm).tobytes()


def compute_all(_: int = 0) -> list[bytes]:
    """Every result."""
    return [compute(work) for work in WORK]


def concurrent_calls() -> None:
    """Eight Python threads, from the first call on, when kernels are still compiled and plans made."""
    ready = threading.Barrier(8)

    def run(first: int) -> list[tuple[int, bytes]]:
        ready.wait()
        order = [(first + k) % len(WORK) for k in range(len(WORK))]
        return [(k, compute(WORK[k])) for k in order]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = [result for results in pool.map(run, range(8)) for result in results]
    alone = compute_all()
    assert all(bits == alone[k] for k, bits in found)


def forked_child() -> None:
    """A child forked while the parent's other threads compute."""
    alone = compute_all()
    stop = threading.Event()

    def keep_computing() -> None:
        while not stop.is_set():
            compute(WORK[0])

    threads = [threading.Thread(target=keep_computing) for _ in range(2)]
    for thread in threads:
        thread.start()
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            os._exit(0 if compute_all() == alone else 1)
        children.append(child)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    stop.set()
    for thread in threads:
        thread.join()
    assert statuses == [0, 0, 0], statuses
    assert compute_all() == alone


def process_pools() -> None:
    """Children that multiprocessing forks and spawns, and those of concurrent.futures."""
    alone = compute_all()
    for method in multiprocessing.get_all_start_methods():
        with multiprocessing.get_context(method).Pool(1) as pool:
            assert pool.apply(compute_all) == alone, method
    with concurrent.futures.ProcessPoolExecutor(2) as executor:
        assert list(executor.map(compute_all, range(2))) == [alone] * 2


def dask_threads() -> None:
    """Dask's threaded scheduler."""
    import dask

    alone = compute_all()
    for _ in range(3):
        assert list(dask.compute(*map(dask.delayed(compute), WORK), scheduler="threads", num_workers=4)) == alone


def torch_workers() -> None:
    """Worker processes of PyTorch's DataLoader, and PyTorch's own threads beside ours."""
    import torch

    alone = compute_all()
    torch.nn.functional.conv2d(torch.ones(4, 16, 64, 64), torch.ones(16, 16, 3, 3))

    class Results(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(WORK)

        def __getitem__(self, index: int) -> bytes:
            return compute(WORK[index])

    loader = torch.utils.data.DataLoader(Results(), batch_size=None, num_workers=2)
    assert list(loader) == alone


def inside_prange() -> None:
    """A call from the body of the caller's own parallel loop, which starts the threads."""
    found = []

    def add() -> None:
        found.append(compute(WORK[0]))

    @numba.njit(parallel=True)
    def callers_own(n):
        for _ in numba.prange(n):
            with numba.objmode():
                add()

    for _ in range(3):
        callers_own(6)
        assert found == [compute(WORK[0])] * 6
        found.clear()


def interrupted() -> None:
    """Ctrl-C in the middle of a kernel that runs for a second or so."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets its background jobs ignore it
    alone = compute_all()
    x, w = np.ones((1, 400, 400, 32), np.float32), np.ones((3, 3, 32, 64), np.float32)
    fastconv.conv2d(x[:, :40], w, algorithm="naive")
    for _ in range(3):
        threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        try:
            while True:
                fastconv.conv2d(x, w, algorithm="naive")
        except KeyboardInterrupt:
            pass
        assert compute_all() == alone


SCENES = {
    scene.__name__: scene
    for scene in (
        concurrent_calls,
        forked_child,
        process_pools,
        dask_threads,
        torch_workers,
        inside_prange,
        interrupted,
    )
}


def main() -> None:
    scene = sys.argv[1]
    try:
        SCENES[scene]()
    except ValueError as error:
        if "No threading layer" not in str(error):
            raise
        print("no such layer")
        return
    print(numba.threading_layer())


if __name__ == "__main__":
    main()
