"""What a peer is: a library, its limits, and what it can be held against."""

from __future__ import annotations

import importlib.util
from typing import ClassVar

from bench.contenders import Contender
from bench.shapes import ConvCase
from fastconv.problem import DIRECTIONS


class Peer(Contender):
    """A library, told how many threads it may use.

    Attributes
    ----------
    packages
        What must be installed, by the names of import.
    directions, dtypes
        What the library computes.
    packs
        Whether it takes constant weights, which it lays out for its kernels before the first call.
    """

    packages: ClassVar[tuple[str, ...]]
    directions: ClassVar[tuple[str, ...]] = DIRECTIONS
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float64")
    packs: ClassVar[bool] = False

    def __init__(self, threads: int, packed: bool = False) -> None:
        self.threads = threads
        self.packed = packed

    @classmethod
    def is_installed(cls) -> bool:
        return all(importlib.util.find_spec(package) for package in cls.packages)

    def supports(self, case: ConvCase, direction: str, dtype: str = "float32") -> str | None:
        if direction not in self.directions:
            return f"{self.name} has no {direction}"
        if dtype not in self.dtypes:
            return f"{self.name} has no {dtype}"
        return self.declines(case)

    def declines(self, case: ConvCase) -> str | None:
        """Return why the library cannot take that geometry, or None if it can."""
        return None
