"""The megapixel image: a mosaic of Fashion-MNIST pictures, or a synthetic one where the data is not found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastconv import datasets

PICTURE_FILES = ("t10k-images-idx3-ubyte", "train-images-idx3-ubyte")
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
    folders = [Path(folder)] if folder is not None else list(datasets.usual_folders())
    for path in (datasets.find_file(candidate, name) for candidate in folders for name in PICTURE_FILES):
        if path is not None:
            return Pictures(_read_pictures(path), f"Fashion-MNIST ({path.name})")
    if folder is not None:
        raise FileNotFoundError(f"no {PICTURE_FILES[0]}[.gz] in {folder}")
    return Pictures(_synthetic_pictures(), "synthetic pictures (no Fashion-MNIST found: --data FOLDER)")


def _read_pictures(path: Path) -> np.ndarray:
    pictures = datasets.read_idx(path)
    if pictures.dtype != np.uint8 or pictures.shape[1:] != (_PICTURE_SIZE, _PICTURE_SIZE):
        raise ValueError(f"{path} must hold uint8 pictures of 28 x 28 pixels, got {pictures.dtype} {pictures.shape}")
    return pictures.astype(np.float32) / 255


def _synthetic_pictures(count: int = 1296) -> np.ndarray:
    """Make up pictures of soft-edged ellipses, the same ones at every run."""
    rng = np.random.default_rng(1998)
    rows, columns = np.mgrid[-1 : 1 : _PICTURE_SIZE * 1j, -1 : 1 : _PICTURE_SIZE * 1j]
    heights, widths, turns = rng.uniform((0.3, 0.2, 0.0), (0.9, 0.8, np.pi), (count, 3)).T[:, :, None, None]
    along = rows * np.cos(turns) + columns * np.sin(turns)
    across = columns * np.cos(turns) - rows * np.sin(turns)
    inside = 1 - np.hypot(along / heights, across / widths)
    return np.clip(4 * inside, 0, 1).astype(np.float32)
