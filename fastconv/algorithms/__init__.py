"""The algorithms, one file each with forward pass and both gradients, in the order in which `auto` prefers them."""

from __future__ import annotations

from fastconv.algorithms.base import Algorithm
from fastconv.algorithms.direct import Direct
from fastconv.algorithms.fft import Fft
from fastconv.algorithms.im2col import Im2col
from fastconv.algorithms.naive import Naive
from fastconv.algorithms.winograd import Winograd

REGISTRY: dict[str, Algorithm] = {
    algorithm.name: algorithm for algorithm in (Direct(), Winograd(), Fft(), Im2col(), Naive())
}
"""Name to algorithm; the plain reference comes last."""
