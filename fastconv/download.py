"""Files from the web: resumed where they broke off, checked, and put in place in one step."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

Progress = Callable[[str, int, int], None]
"""What is told of a download: its file name, and how many bytes are here of how many."""

_CHUNK = 1 << 16
_TIMEOUT = 30
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


def to_stderr(name: str, done: int, total: int) -> None:
    """Report progress on stderr: a line that counts up in a terminal, else one line for each file."""
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{name}: {done / 1e6:.1f} of {total / 1e6:.1f} MB", end=end, file=sys.stderr, flush=True)
    elif done == total:
        print(f"{name}: {total / 1e6:.1f} MB", file=sys.stderr, flush=True)


def fetch(address: str, target: Path, md5: str, progress: Progress) -> None:
    """Download one file, so that `target` holds all of it with the right checksum, or does not exist.

    What has arrived stays in ``target.part`` and is continued by the next call.

    Raises
    ------
    ConnectionError
        The server cannot be reached, refuses, or breaks off.
    ValueError
        The file that came has another checksum; it is deleted.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    resumed = part.exists()
    _fill(address, part, target.name, progress)
    found = _md5(part)
    if found != md5 and resumed:  # what was here may have belonged to another file
        part.unlink()
        _fill(address, part, target.name, progress)
        found = _md5(part)
    if found != md5:
        part.unlink()
        raise ValueError(f"{address} must have the MD5 checksum {md5}, got {found}: the file was changed on its way")
    os.replace(part, target)


def _fill(address: str, part: Path, name: str, progress: Progress) -> None:
    """Download into the partial file, from where it ends."""
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            done, total = _place(response, done)
            with part.open("r+b" if done else "wb") as file:
                file.seek(done)
                while block := response.read(_CHUNK):
                    file.write(block)
                    done += len(block)
                    progress(name, done, max(done, total))
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:  # nothing is missing at the end
            return
        raise ConnectionError(f"{address} cannot be downloaded: the server says {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(f"{address} cannot be downloaded: {error}") from error
    if done < total:
        raise ConnectionError(f"{address} broke off after {done} of {total} bytes: another call goes on from there")


def _place(response: Any, wanted: int) -> tuple[int, int]:
    """Where the bytes of an answer belong in the file, and the whole file's size, 0 for unknown."""
    if response.status == http.client.PARTIAL_CONTENT:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != wanted:
            raise http.client.HTTPException(f"the server sent another range than from byte {wanted}")
        return wanted, int(match[2])
    return 0, int(response.headers.get("Content-Length", 0))


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()
