"""Compiled kernels on disk: each in a file of its own, which says what it holds.

Numba keeps an index of a function's kernels beside files that are numbered. Two processes that compile two of them at
once may take the same number, and the index then has one kernel's key lead to the other's code. Here a file is named
by what it was compiled from, holds that once more with a checksum, and appears whole; files have nothing in common.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import uuid
from pathlib import Path
from typing import Any

import numba
from numba.core.serialize import dumps

_DIGITS = 16
"""Hexadecimal digits of a hash in a file's name: the file itself holds what they stand for."""
_CHECKSUM_BYTES = hashlib.sha256().digest_size


@functools.cache
def source_stamp() -> str:
    """One hash over every source file of the package.

    Numba looks only at the file of the cached function, so an edit in `simd.py` would leave stale machine code in
    every kernel built on it.
    """
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


source_stamp()  # now: a process that outlives an upgrade must not stamp its old kernels with the new sources


@functools.cache
def _forget_other_versions(folder: Path) -> None:
    """Delete the kernels that other sources left in a folder, once in a process."""
    for path in folder.glob("*.nbc*"):
        if f".{source_stamp()[:_DIGITS]}." not in path.name:
            path.unlink(missing_ok=True)


class KernelFiles:
    """The kernels of one function, as Numba's `Cache` reads and writes them."""

    def __init__(self, folder: str, base: str) -> None:
        self._folder = Path(folder)
        self._base = f"{base}.{source_stamp()[:_DIGITS]}"

    def _what(self, key: Any) -> tuple[str, str, Any]:
        return source_stamp(), numba.__version__, key

    def _path(self, key: Any) -> Path:
        digest = hashlib.sha256(repr(self._what(key)).encode()).hexdigest()
        return self._folder / f"{self._base}.{digest[:_DIGITS]}.nbc"

    def load(self, key: Any) -> Any:
        """What was saved under this key, or None: also where the file is damaged or holds something else."""
        try:
            content = self._path(key).read_bytes()
        except OSError:
            return None
        checksum, body = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
        if hashlib.sha256(body).digest() != checksum:
            return None
        what, data = pickle.loads(body)
        return data if what == self._what(key) else None

    def save(self, key: Any, data: Any) -> None:
        """Write a file under another name first: whoever reads meanwhile finds the one before, or none."""
        _forget_other_versions(self._folder)
        path, body = self._path(key), dumps((self._what(key), data))
        unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex[:_DIGITS]}")
        try:
            unfinished.write_bytes(hashlib.sha256(body).digest() + body)
            os.replace(unfinished, path)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise

    def flush(self) -> None:
        """Forget all kernels of the function."""
        for path in self._folder.glob(f"{self._base}.*"):
            path.unlink(missing_ok=True)
