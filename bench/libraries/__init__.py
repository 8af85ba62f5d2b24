"""Other libraries that compute convolutions, each as a `bench.contenders.Contender`.

To add one, write a module with a `Peer` that says which packages it needs, which problems it takes and how it runs
them, and add it to `PEERS`. The library is imported where a peer is made, which happens only if it is installed.
"""

from __future__ import annotations

from bench.libraries.base import Peer
from bench.libraries.jax import Jax
from bench.libraries.onnxruntime import OnnxRuntime
from bench.libraries.opencv import OpenCV
from bench.libraries.openvino import OpenVINO
from bench.libraries.pytorch import PyTorchChannelsLast, PyTorchNCHW
from bench.libraries.scipy import SciPyConvolve, SciPyOverlapAdd

PEERS: tuple[type[Peer], ...] = (
    PyTorchNCHW,
    PyTorchChannelsLast,
    OnnxRuntime,
    OpenVINO,
    Jax,
    OpenCV,
    SciPyConvolve,
    SciPyOverlapAdd,
)


def installed(threads: int, packed: bool = False) -> list[Peer]:
    """Return the peers whose packages are installed; with `packed`, those that lay out constant weights beforehand."""
    return [peer(threads, packed) for peer in PEERS if peer.is_installed() and (peer.packs or not packed)]


def missing() -> list[str]:
    """Return the names of the peers whose packages are not installed."""
    return [peer.name for peer in PEERS if not peer.is_installed()]
