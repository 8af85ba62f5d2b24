"""Data sets for examples and benchmarks: found on this machine or downloaded, checked, as NumPy arrays."""

from __future__ import annotations

import hashlib
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastconv.machine import cache_path

if TYPE_CHECKING:
    from fastconv.download import Progress

DATA_VARIABLE = "FASTCONV_DATA"
FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

_ADDRESS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_FOLDERS = ("", "fashion-mnist", "FashionMNIST/raw")
"""Where the files lie in a folder of data sets; the last is torchvision's."""

_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


class _File(NamedTuple):
    name: str
    shape: tuple[int, ...]
    md5: str
    """Published, of the compressed file."""
    sha256: str
    """Of the content, which has the same bytes however it is compressed."""


_FASHION_MNIST = (
    _File(
        "train-images-idx3-ubyte", (60000, 28, 28), "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    _File(
        "train-labels-idx1-ubyte", (60000,), "25c81989df183df01b3e8a0aad5dffbe",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    _File(
        "t10k-images-idx3-ubyte", (10000, 28, 28), "bef4ecab320f06d8554ea6380940ec79",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    _File(
        "t10k-labels-idx1-ubyte", (10000,), "bb300cfdad3c16e7a12a480ee83cd310",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
)  # fmt: skip


class FashionMNIST(NamedTuple):
    """Pictures of 28 x 28 gray pixels as uint8, and the number of each one's class."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]


def fashion_mnist(
    path: str | os.PathLike[str] | None = None,
    *,
    fetch: bool = True,
    progress: Progress | None = None,
) -> FashionMNIST:
    """Load Fashion-MNIST: 70,000 pictures of clothes in ten classes.

    Parameters
    ----------
    path : str or path, optional
        Folder of the four IDX files, compressed by gzip or not. Where they are not in it, the folder that the
        environment variable FASTCONV_DATA names, the user's cache and the folders of Debian's package
        dataset-fashion-mnist are looked in.
    fetch : bool, default True
        Whether to download the files (30 MB) where they are in none of these, into `path` or the cache.
    progress : function of (file name, bytes here, bytes in all), optional
        Told how a download goes on; by default stderr is.

    Returns
    -------
    FashionMNIST
        Named tuple of train_images uint8 (60000, 28, 28), train_labels uint8 (60000,), test_images (10000, 28, 28),
        test_labels (10000,) and class_names.

    Raises
    ------
    FileNotFoundError
        If the files are nowhere and must not be downloaded.
    ConnectionError
        If a download fails; what has arrived is kept, and the next call continues it.
    ValueError
        If a file is damaged, or is not the published one.

    References
    ----------
    Xiao, Rasul and Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms", 2017.

    Examples
    --------
    >>> from fastconv import datasets
    >>> data = datasets.fashion_mnist()  # doctest: +SKIP
    >>> data.train_images.shape, data.class_names[data.train_labels[0]]  # doctest: +SKIP
    ((60000, 28, 28), 'Ankle boot')
    """
    folders = [*([] if path is None else [Path(path)]), *usual_folders()]
    for folder in folders:
        files = [find_file(folder, file.name) for file in _FASHION_MNIST]
        if None not in files:
            break
    else:
        if not fetch:
            raise FileNotFoundError(f"no complete Fashion-MNIST in {', '.join(map(str, folders))}")
        folder = folders[0] if path is not None else cache_path().parent / "fashion-mnist"
        files = [_downloaded(folder, file, progress) for file in _FASHION_MNIST]
    train_images, train_labels, test_images, test_labels = (
        _load(found, file) for found, file in zip(files, _FASHION_MNIST, strict=True) if found is not None
    )
    return FashionMNIST(train_images, train_labels, test_images, test_labels, FASHION_MNIST_CLASSES)


def usual_folders() -> Iterator[Path]:
    """The folders in which data sets are looked for, in this order."""
    if os.environ.get(DATA_VARIABLE):
        yield Path(os.environ[DATA_VARIABLE])
    yield cache_path().parent
    yield Path.home() / ".keras" / "datasets"
    yield Path("/usr/share/dataset-fashion-mnist")
    yield Path("/usr/share/datasets")


def find_file(folder: Path, name: str) -> Path | None:
    """Find a data set's file in a folder, compressed or not."""
    for base in _FOLDERS:
        for path in (folder / base / f"{name}.gz", folder / base / name):
            if path.is_file():
                return path
    return None


def _downloaded(folder: Path, file: _File, progress: Progress | None) -> Path:
    from fastconv import download  # urllib would add 37 ms to every import of the package

    found = find_file(folder, file.name)
    if found is None:
        found = folder / f"{file.name}.gz"
        download.fetch(f"{_ADDRESS}{found.name}", found, file.md5, progress or download.to_stderr)
    return found


def _load(path: Path, file: _File) -> np.ndarray:
    content = _content(path)
    array = _parse_idx(content, path)
    if array.dtype != np.uint8 or array.shape != file.shape:
        raise ValueError(f"{path} must hold uint8 of shape {file.shape}, got {array.dtype} of shape {array.shape}")
    found = hashlib.sha256(content).hexdigest()
    if found != file.sha256:
        raise ValueError(
            f"{path} must hold Fashion-MNIST's content with SHA-256 {file.sha256}, got {found}: delete it, or name "
            f"another folder"
        )
    return array


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an IDX file, the format of MNIST, compressed by gzip or not.

    Parameters
    ----------
    path : str or path
        The file.

    Returns
    -------
    array
        Of the shape and dtype that the file gives, in native byte order: (u)int8, int16, int32, float32 or float64.

    Raises
    ------
    ValueError
        If it is no IDX file, or is shorter or longer than its header says.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from fastconv import datasets
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "labels")
    ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]))
    ...     datasets.read_idx(path)
    array([7, 8, 9], dtype=uint8)
    """
    return _parse_idx(_content(Path(path)), Path(path))


def _content(path: Path) -> bytes:
    """The bytes of a file, decompressed where it is compressed, which its first two bytes say."""
    content = path.read_bytes()
    if content[:2] != b"\x1f\x8b":
        return content
    stream = zlib.decompressobj(wbits=31)
    try:
        content = stream.decompress(content)
    except zlib.error as error:
        raise ValueError(f"{path} must be a gzip file, but is damaged: {error}") from error
    if not stream.eof:
        raise ValueError(f"{path} must be a whole gzip file, but breaks off after {len(content)} bytes of content")
    if stream.unused_data:
        raise ValueError(f"{path} must end with its gzip stream, but {len(stream.unused_data)} bytes follow")
    return content


def _parse_idx(content: bytes, path: Path) -> np.ndarray:
    """The array in an IDX file: two zeros, the type's code, the rank, the big-endian sizes, the values."""
    if len(content) < 4 or content[:2] != b"\0\0":
        raise ValueError(f"{path} must be an IDX file and begin with two zero bytes, got {content[:4]!r}")
    code, rank = content[2], content[3]
    if code not in _IDX_TYPES:
        raise ValueError(f"{path} must have one of the IDX type codes {sorted(_IDX_TYPES)}, got {code}")
    if not 1 <= rank <= 32:
        raise ValueError(f"{path} must have 1 to 32 axes, got {rank}")
    begin = 4 + 4 * rank
    if len(content) < begin:
        raise ValueError(f"{path} must have a header of {begin} bytes for {rank} axes, got {len(content)} bytes")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", rank, offset=4))
    dtype = np.dtype(_IDX_TYPES[code])
    expected = begin + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise ValueError(f"{path} must have {expected} bytes for {dtype.name} of shape {shape}, got {len(content)}")
    return np.frombuffer(content, dtype, offset=begin).reshape(shape).astype(dtype.newbyteorder("="))
