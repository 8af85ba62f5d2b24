"""IDX files read strictly, and Fashion-MNIST found, downloaded from a server in this process, resumed and refused."""

import gzip
import hashlib
import http.server
import os
import re
import struct
import threading
from pathlib import Path

import numpy as np
import pytest

from fastconv import datasets, download

from .process import run_python

CODES = {"uint8": 8, "int8": 9, "int16": 11, "int32": 12, "float32": 13, "float64": 14}


def idx(array: np.ndarray) -> bytes:
    header = bytes((0, 0, CODES[array.dtype.name], array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (0, 3)])
def test_idx_gives_back_what_was_written(tmp_path, shape, dtype, compressed):
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    path = tmp_path / "array"
    path.write_bytes(gzip.compress(idx(array)) if compressed else idx(array))
    found = datasets.read_idx(path)
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype
    assert found.dtype.isnative
    assert found.flags.writeable


GOOD = idx(np.arange(6, dtype=np.uint8).reshape(2, 3))
REFUSED = {
    "empty": (b"", "IDX"),
    "other magic": (b"\x89PNG" + GOOD[4:], "IDX"),
    "unknown type": (bytes((0, 0, 10)) + GOOD[3:], "type codes"),
    "no axes": (bytes((0, 0, 8, 0)), "axes"),
    "header cut": (GOOD[:9], "header"),
    "values cut": (GOOD[:-1], "18 bytes"),
    "values follow": (GOOD + b"\0", "18 bytes"),
    "sizes beyond all memory": (bytes((0, 0, 8, 3)) + b"\xff" * 12, "bytes"),
    "gzip cut": (gzip.compress(GOOD)[:-9], "breaks off"),
    "gzip damaged": (gzip.compress(GOOD)[:-7] + b"wrong!!", "damaged"),
    "gzip with more behind": (gzip.compress(GOOD) + b"more", "follow"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_idx_that_is_none_is_refused(tmp_path, name):
    content, words = REFUSED[name]
    path = tmp_path / "array"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        datasets.read_idx(path)
    assert str(path) in str(caught.value)


@pytest.fixture
def small(monkeypatch, tmp_path) -> dict[str, bytes]:
    """A Fashion-MNIST of a few pictures in place of the published one, and no other folders to find it in."""
    rng = np.random.default_rng(0)
    files, contents = [], {}
    for file in datasets._FASHION_MNIST:
        shape = (20 if file.name.startswith("train") else 10, *file.shape[1:])
        content = idx(rng.integers(0, 10, shape, dtype=np.uint8))
        contents[f"{file.name}.gz"] = gzip.compress(content, mtime=0)
        md5 = hashlib.md5(contents[f"{file.name}.gz"]).hexdigest()
        files.append(datasets._File(file.name, shape, md5, hashlib.sha256(content).hexdigest()))
    monkeypatch.setattr(datasets, "_FASHION_MNIST", tuple(files))
    monkeypatch.setattr(datasets, "usual_folders", lambda: iter([tmp_path / "nothing"]))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return contents


def write(folder: Path, contents: dict[str, bytes], compressed: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        path = folder / (name if compressed else name.removesuffix(".gz"))
        path.write_bytes(content if compressed else gzip.decompress(content))


@pytest.mark.parametrize("below", ["", "fashion-mnist", "FashionMNIST/raw"])
@pytest.mark.parametrize("compressed", [True, False])
def test_files_in_the_given_folder_are_loaded(tmp_path, small, compressed, below):
    write(tmp_path / "given" / below, small, compressed)
    data = datasets.fashion_mnist(tmp_path / "given", fetch=False)
    assert data.train_images.shape == (20, 28, 28)
    assert data.test_images.shape == (10, 28, 28)
    assert data.train_labels.shape == (20,)
    assert data.test_labels.dtype == np.uint8
    assert len(data.class_names) == 10
    expected = gzip.decompress(small["t10k-labels-idx1-ubyte.gz"])[8:]
    assert data.test_labels.tobytes() == expected


def test_the_environment_names_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTCONV_DATA", str(tmp_path))
    assert next(datasets.usual_folders()) == tmp_path


def test_missing_files_are_an_error_that_says_where_was_looked(tmp_path, small):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "given"))):
        datasets.fashion_mnist(tmp_path / "given", fetch=False)


def test_other_data_of_the_same_shape_is_refused(tmp_path, small):
    name = "t10k-images-idx3-ubyte.gz"
    write(tmp_path, {**small, name: gzip.compress(idx(np.zeros((10, 28, 28), np.uint8)))})
    with pytest.raises(ValueError, match="SHA-256") as caught:
        datasets.fashion_mnist(tmp_path)
    assert name in str(caught.value)


def test_another_shape_is_refused(tmp_path, small):
    write(tmp_path, {**small, "t10k-images-idx3-ubyte.gz": small["train-images-idx3-ubyte.gz"]})
    with pytest.raises(ValueError, match=re.escape("(20, 28, 28)")):
        datasets.fashion_mnist(tmp_path)


class Server(http.server.ThreadingHTTPServer):
    """Serves `contents`, with the faults that a test sets."""

    daemon_threads = True
    contents: dict[str, bytes]
    ranges = True
    status = 200
    cut = 0
    """Send only so many bytes of each body, and break off."""

    def __init__(self, contents: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.contents = contents
        self.requests: list[tuple[str, str | None]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        name, wanted = self.path[1:], self.headers.get("Range")
        self.server.requests.append((name, wanted))
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        content, begin = self.server.contents[name], 0
        if wanted and self.server.ranges:
            begin = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if begin >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        body = content[begin:]
        self.wfile.write(body[: self.server.cut] if self.server.cut else body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(small, monkeypatch):
    with Server(small) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(datasets, "_ADDRESS", running.address)
        yield running
        running.shutdown()
        thread.join()


def quiet(name, done, total):
    pass


def test_download_puts_all_files_in_place_and_is_not_repeated(tmp_path, small, server):
    told = []
    data = datasets.fashion_mnist(tmp_path / "new", progress=lambda *call: told.append(call))
    assert data.train_images.shape == (20, 28, 28)
    assert sorted(os.listdir(tmp_path / "new")) == sorted(small)
    assert {name for name, done, total in told if done == total} == set(small)
    assert len(server.requests) == 4
    datasets.fashion_mnist(tmp_path / "new")
    assert len(server.requests) == 4


def test_download_goes_on_where_it_broke_off(tmp_path, small, server):
    server.cut = 100
    with pytest.raises(ConnectionError, match="broke off after 100 of"):
        datasets.fashion_mnist(tmp_path, progress=quiet)
    assert os.listdir(tmp_path) == ["train-images-idx3-ubyte.gz.part"]
    server.cut = 0
    server.requests.clear()
    datasets.fashion_mnist(tmp_path, progress=quiet)
    assert server.requests[0] == ("train-images-idx3-ubyte.gz", "bytes=100-")
    assert sorted(os.listdir(tmp_path)) == sorted(small)


def test_download_starts_again_where_the_server_knows_no_ranges(tmp_path, small, server):
    server.ranges = False
    (tmp_path / "train-images-idx3-ubyte.gz.part").write_bytes(b"x" * 50)
    datasets.fashion_mnist(tmp_path, progress=quiet)
    assert (tmp_path / "train-images-idx3-ubyte.gz").read_bytes() == small["train-images-idx3-ubyte.gz"]


@pytest.mark.parametrize("length", ["part", "whole", "longer"])
def test_leftover_of_another_file_is_replaced(tmp_path, small, server, length):
    whole = len(small["train-images-idx3-ubyte.gz"])
    leftover = b"x" * {"part": 50, "whole": whole, "longer": whole + 1}[length]
    (tmp_path / "train-images-idx3-ubyte.gz.part").write_bytes(leftover)
    datasets.fashion_mnist(tmp_path, progress=quiet)
    assert sorted(os.listdir(tmp_path)) == sorted(small)


def test_whole_leftover_is_kept(tmp_path, small, server):
    (tmp_path / "train-images-idx3-ubyte.gz.part").write_bytes(small["train-images-idx3-ubyte.gz"])
    datasets.fashion_mnist(tmp_path, progress=quiet)
    assert [name for name, _ in server.requests].count("train-images-idx3-ubyte.gz") == 1


def test_wrong_checksum_leaves_nothing(tmp_path, small, server):
    server.contents = {name: content[:-1] + b"!" for name, content in small.items()}
    with pytest.raises(ValueError, match="MD5"):
        datasets.fashion_mnist(tmp_path, progress=quiet)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("status", [404, 500])
def test_server_error_is_named(tmp_path, server, status):
    server.status = status
    with pytest.raises(ConnectionError, match=str(status)):
        datasets.fashion_mnist(tmp_path, progress=quiet)
    assert os.listdir(tmp_path) == []


def test_no_server_is_a_connection_error(tmp_path, small, monkeypatch):
    monkeypatch.setattr(datasets, "_ADDRESS", "http://127.0.0.1:9/")
    with pytest.raises(ConnectionError, match=re.escape("127.0.0.1:9")):
        datasets.fashion_mnist(tmp_path, progress=quiet)


def test_progress_goes_to_stderr(capsys):
    download.to_stderr("file", 5_000_000, 10_000_000)
    download.to_stderr("file", 10_000_000, 10_000_000)
    assert capsys.readouterr().err == "file: 10.0 MB\n"


def test_import_loads_no_network_code():
    code = "import sys, fastconv; print(fastconv.datasets.__name__, 'urllib.request' in sys.modules)"
    assert run_python("-c", code).split() == ["fastconv.datasets", "False"]


def test_the_real_data():
    try:
        data = datasets.fashion_mnist(fetch=False)
    except FileNotFoundError:
        pytest.skip("Fashion-MNIST is not on this machine")
    assert (np.bincount(data.train_labels) == 6000).all()
    assert (np.bincount(data.test_labels) == 1000).all()
    assert data.class_names[data.train_labels[0]] == "Ankle boot"
