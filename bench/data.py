"""The megapixel image: a mosaic of Fashion-MNIST pictures, or a synthetic one where the data is not found."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DATA_VARIABLE = "FASTCONV_DATA"
PICTURE_FILES = ("t10k-images-idx3-ubyte", "train-images-idx3-ubyte")
_IDX_UINT8_3D = bytes((0, 0, 8, 3))
_PICTURE_SIZE = 28


@dataclass(frozen=True)
class Pictures:
    """A stack of 28 x 28 pictures with values from 0 to 1, and where they come from."""

    stack: np.ndarray
    source: str

    def mosaic(self, size: int, channels: int) -> np.ndarray:
        """Lay the pictures out side by side, shape (1, size, size, channels); each channel shows other pictures."""
        across = -(-size // _PICTURE_SIZE)
        chosen = np.arange(channels * across * across) % len(self.stack)
        tiles = self.stack[chosen].reshape(channels, across, across, _PICTURE_SIZE, _PICTURE_SIZE)
        image = tiles.transpose(1, 3, 2, 4, 0).reshape(across * _PICTURE_SIZE, across * _PICTURE_SIZE, channels)
        return np.ascontiguousarray(image[None, :size, :size])


def load(folder: str | Path | None = None) -> Pictures:
    """Load Fashion-MNIST from a folder or from where it usually lies; make up pictures where it is not found.

    Raises
    ------
    FileNotFoundError
        A folder was given, and the pictures are not in it.
    """
    folders = [Path(folder)] if folder is not None else list(_usual_folders())
    for candidate in folders:
        for path in _picture_files(candidate):
            return Pictures(_read_idx(path), f"Fashion-MNIST ({path.name})")
    if folder is not None:
        raise FileNotFoundError(f"no {PICTURE_FILES[0]}[.gz] in {folder}")
    return Pictures(_synthetic_pictures(), "synthetic pictures (no Fashion-MNIST found: --data FOLDER)")


def _usual_folders() -> Iterator[Path]:
    if DATA_VARIABLE in os.environ:
        yield Path(os.environ[DATA_VARIABLE])
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    yield caches / "fastconv"
    yield caches / "fashion-mnist"
    yield Path.home() / ".keras" / "datasets" / "fashion-mnist"
    yield Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist


def _picture_files(folder: Path) -> Iterator[Path]:
    for base in (folder, folder / "fashion-mnist", folder / "FashionMNIST" / "raw"):
        for name in PICTURE_FILES:
            yield from (path for path in (base / f"{name}.gz", base / name) if path.is_file())


def _read_idx(path: Path) -> np.ndarray:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        content = file.read()
    if content[:4] != _IDX_UINT8_3D:
        raise ValueError(f"{path} is not an IDX file of 8-bit pictures: it begins with {content[:4]!r}")
    shape = tuple(int(extent) for extent in np.frombuffer(content, ">u4", count=3, offset=4))
    if shape[1:] != (_PICTURE_SIZE, _PICTURE_SIZE):
        raise ValueError(f"{path} holds pictures of {shape[1:]}, not of {_PICTURE_SIZE} x {_PICTURE_SIZE} pixels")
    return np.frombuffer(content, np.uint8, offset=16).reshape(shape).astype(np.float32) / 255


def _synthetic_pictures(count: int = 1296) -> np.ndarray:
    """Make up pictures of soft-edged ellipses, the same ones at every run."""
    rng = np.random.default_rng(1998)
    rows, columns = np.mgrid[-1 : 1 : _PICTURE_SIZE * 1j, -1 : 1 : _PICTURE_SIZE * 1j]
    heights, widths, turns = rng.uniform((0.3, 0.2, 0.0), (0.9, 0.8, np.pi), (count, 3)).T[:, :, None, None]
    along = rows * np.cos(turns) + columns * np.sin(turns)
    across = columns * np.cos(turns) - rows * np.sin(turns)
    inside = 1 - np.hypot(along / heights, across / widths)
    return np.clip(4 * inside, 0, 1).astype(np.float32)
