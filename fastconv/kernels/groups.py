"""Vectors whose lanes hold whole groups of channels, for kernels with channels in the lanes."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from fastconv.kernels import jit
from fastconv.kernels.emit import I32, Emitter


@jit.inline
def vectors_of_part(p, part):
    """The vectors of channels from the first to the last of a part; the last part has the one that overlaps as well."""
    first, last = p.vectors * part // p.parts, p.vectors * (part + 1) // p.parts
    if part == p.parts - 1:
        last += p.overlapping
    return first, last


class GroupLanes:
    """How the lanes of target channels meet source channels: `targets` and `sources` of them make a group.

    Where groups do not fill vectors, masks keep to the `there` target lanes in use and to their sources.
    """

    def __init__(self, emit: Emitter, sources: int, targets: int, masked: int, there: Any) -> None:
        self._emit, self._sources, self._targets = emit, sources, targets
        self._target_mask = self._source_mask = None
        if masked:
            groups = emit.builder.sdiv(there, emit.const(targets))
            self._target_mask = emit.between(emit.const(0), there)
            self._source_mask = emit.between(emit.const(0), emit.builder.mul(groups, emit.const(sources)))

    def _load(self, place: Any, mask: Any) -> Any:
        return self._emit.load(place) if mask is None else self._emit.load_masked(place, mask)

    def load(self, place: Any) -> Any:
        """The vector of target channels at an address."""
        return self._load(place, self._target_mask)

    def load_source(self, place: Any) -> Any:
        """The vector of source channels at an address."""
        return self._load(place, self._source_mask)

    def store(self, value: Any, place: Any) -> None:
        """Store a vector of target channels."""
        if self._target_mask is None:
            self._emit.store(value, place)
        else:
            self._emit.store_masked(value, place, self._target_mask)

    def of_group(self, value: Any, q: int) -> Any:
        """The q-th source channel of each lane's group."""
        if self._sources == self._targets == 1:
            return value
        lanes = self._emit.vector.count
        places = [min(i // self._targets * self._sources + q, lanes - 1) for i in range(lanes)]
        return self._emit.builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(I32, lanes), places))
