"""Passes of gathered tiles: what they run, and what that costs. They are planned in `direct.gather`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastconv.algorithms.banded import Stage
from fastconv.algorithms.base import Epilogue
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.base import BoundPass
from fastconv.algorithms.direct.copies import sets_of
from fastconv.algorithms.direct.grids import targets_inside
from fastconv.cost import far_bytes
from fastconv.kernels.launch import Bound, Launch
from fastconv.kernels.params import LINE, Buffer, address, aligned
from fastconv.kernels.target import panel_slots
from fastconv.kernels.tiles import RUN_FIELDS

_CACHED_BYTES = 1 << 20
"""Packed weights that stay in the second cache level."""
_NEAR_WEIGHTS_BYTES = 2 << 20
"""Weights that are packed from the nearer caches."""


@dataclass(frozen=True, eq=False)
class GatherPass(BoundPass):
    """One launch of the gather kernel, planned: its record but for the addresses of a call's arrays."""

    pack: Launch
    zeros: np.ndarray
    """What sums begin with where there is no bias."""
    tables: tuple[np.ndarray, ...]
    """Offsets, taps and zeros whose addresses the record holds, and which it keeps alive."""
    packed_shape: tuple[int, ...]
    copying: float
    """Time in which a task copies the rows that it reads."""
    in_place: Launch | None
    """The launch that reads the weights as they lie."""
    on_lines: bool
    """Whether that is worth it only for weights that begin on a cache line."""
    packing: Launch | None
    """The launch whose tasks pack what they use themselves."""

    @property
    def workspace_bytes(self) -> int:
        """Bytes of all threads' tables and of the packed weights."""
        if self.in_place is not None and not self.on_lines:
            return self.in_place.workspace_bytes
        if self.packing is not None:
            return self.packing.workspace_bytes
        return self.launch.workspace_bytes + math.prod(self.packed_shape) * self.problem.itemsize

    @property
    def unpacked(self) -> Launch | None:
        """The launch that takes the weights as the caller has them; None where all of them are packed before."""
        return self.in_place or self.packing

    @property
    def prepared_key(self) -> Any:
        return self.tile, self.packed_shape

    def describe(self) -> str:
        channels = int(self.launch.plan["channels"][0])
        return model.describe(self.tile, "channels", model.filled(channels, self.tile.VL))

    def seconds(self, rate: float) -> float:
        return model.launch_seconds(self.threads) + self._on_packed(rate) + self._getting_seconds()

    def _getting_seconds(self) -> float:
        """The time of bringing the weights into the order of the tiles."""
        if self.in_place is not None:
            return 0.0
        weights = math.prod(self.packed_shape)
        far = max(0, weights * self.problem.itemsize - _NEAR_WEIGHTS_BYTES) * model.FAR_WEIGHT_SECONDS
        if self.packing is None:
            others = weights * model.FETCH_MANY_SECONDS * (self.threads - 1)
            return (self._packing_seconds() + others) / self.threads + far
        # Threads that share a group pack it each for itself.
        sharing = self.packed_shape[0] if self.packing.keeps else self.packing.tasks
        return self._turned * model.PACK_SECONDS / min(self.threads, sharing) + far

    @property
    def _turned(self) -> float:
        """Weights that packing moves: those of all taps where these lie side by side and only some are wanted."""
        p, (_, _, taps, reduction, _) = self.pack.plan[0], self.packed_shape
        apart = p["source_d"] != self.problem.itemsize
        read = int(p["lines"] * p["line"]) if apart else 0
        least = 1.0 if not apart else model.PACK_TAPS_TIMES if taps > 1 else model.costs().pack_turned_times
        return math.prod(self.packed_shape) * max(least, read / (taps * reduction))

    def _packing_seconds(self) -> float:
        """The time of packing all weights on one thread."""
        written = math.prod(self.packed_shape) * self.problem.itemsize
        again = 2 * written * model.STREAM_SECONDS if written > _CACHED_BYTES else 0.0  # written, then read
        return self._turned * model.PACK_SECONDS + again

    def _on_packed(self, rate: float) -> float:
        """The time of the launch's work on packed weights."""
        p = self.launch.plan[0]
        taps, groups, panels = int(p["taps_r"] * p["taps_c"]), *self.packed_shape[:2]
        tiles = int(p["tiles"]) * groups
        runs = int(p["taps_r"]) if p["touching"] else taps
        slots = taps * panel_slots(self.tile, int(p["channels"]), model.GATHER_SHARE) * int(p["reduction"])
        costs = model.costs()
        slots = self._met_share() * (slots + panels * runs * costs.gather_run) + panels * costs.gather_tile
        multiply = tiles * slots / rate
        # At a border each tap is a run of its own, whose addresses are listed.
        multiply += tiles * self._border_share() * panels * (taps - runs) * costs.gather_run / rate
        if p["source_k"] != self.problem.itemsize:
            multiply /= self._apart_share()
        traced = tiles * self._border_share() * int(p["panel_parts"]) * taps
        trace = traced * (self.tile.MR + RUN_FIELDS) * model.TRACE_SECONDS
        trace += self.launch.tasks * self.copying + self._copied() * model.COPY_TRACED_SECONDS
        scatter = 0.0
        if p["target_d"] != self.problem.itemsize:
            value = model.TILE_TURN_SECONDS if p["target_c"] == self.problem.itemsize else model.SCATTER_SECONDS
            scatter = tiles * self.tile.MR * int(p["channels"]) * value
        work = (multiply + trace + scatter) * model.balance(self.launch.tasks, self.threads)
        if self.problem.layout == "NCHW":
            work += far_bytes(self.problem) * model.PLANES_FAR_SECONDS
        return work / self.threads

    def _apart_share(self) -> float:
        """Speed of a tile whose scalars lie in planes, of which each tap reads the same lines again."""
        p = self.launch.plan[0]
        if p["source_k"] % model.CONFLICT_BYTES == 0:
            return model.costs().apart_conflict_share
        if p["column_step"] * p["source_c"] >= LINE // 2:
            return model.costs().apart_lines_share
        if int(p["reduction"]) * LINE >= model.FIRST_CACHE_BYTES and int(p["taps_r"] * p["taps_c"]) == 1:
            return model.costs().apart_gone_share
        lines = int(p["reduction"]) * min(self.tile.MR, self.tile.MR * int(p["column_step"] * p["source_c"]) / LINE + 1)
        meet = int(p["taps_r"] * p["taps_c"]) > 1 and lines / sets_of(int(p["source_k"])) > model.APART_LINES
        return model.costs().apart_far_share if meet else model.costs().apart_share

    def stage(self, *taps: tuple[int, ...]) -> Stage:
        """What the pass, with these taps' rows and columns, is to a band that one thread computes."""
        packed_bytes = math.prod(self.packed_shape) * self.problem.itemsize
        return Stage(
            self.launch, self.zeros, self._on_packed, self.pack, packed_bytes, self._packing_seconds(),
            (self.prepared_key, taps),
        )  # fmt: skip

    def _met_share(self) -> float:
        """Share of the taps that some pixel of a tile meets inside the image: the others are left out."""
        p, height, share = self.launch.plan[0], self.tile.MR, 1.0
        if p["padding"]:
            return share
        # A tile reaches over height - 1 more columns, and where rows are short over as many of the next row.
        for axis, reach in (("row", (height - 1) / int(p["columns"])), ("column", height - 1)):
            names = f"first_{axis}", f"last_{axis}", f"{axis}_step", f"source_{axis}s", f"{axis}s", f"taps_{axis[0]}"
            first, last, step, size, count, taps = (int(p[name]) for name in names)
            offsets = range(first, last + 1, max(1, (last - first) // max(1, taps - 1)))
            met = sum(
                min(count, len(inside) + reach) for inside in (targets_inside(o, o, step, size, count) for o in offsets)
            )
            share *= met / (len(offsets) * count)
        return share

    def _border_share(self) -> float:
        """Share of the tiles that meet the padding or the end of a row."""
        p, height = self.launch.plan[0], self.tile.MR
        rows = targets_inside(*(int(p[name]) for name in ("first_row", "last_row", "row_step", "source_rows", "rows")))
        columns = targets_inside(
            *(int(p[name]) for name in ("first_column", "last_column", "column_step", "source_columns", "columns"))
        )
        count = int(p["columns"])
        # Tiles begin at multiples of their height where rows do, and anywhere else.
        if count % height == 0:
            along = height * max(0, columns.stop // height + columns.start // -height)
        else:
            along = max(0, len(columns) - height + 1)
        return 1 - along / count * len(rows) / int(p["rows"])

    def _copied(self) -> int:
        """Values of tiles at the ends of rows that are copied, as rows of zeros cannot stand for pixels of planes."""
        p, taps = self.launch.plan[0], int(self.launch.plan[0]["taps_c"])
        if p["source_k"] == self.problem.itemsize or p["padding"]:
            return 0
        begin, end = self.tables[1], self.tables[1] + p["column_step"] * (p["columns"] - 1)
        outside = int(np.count_nonzero(begin < 0) + np.count_nonzero(end >= p["source_columns"]))
        ends = min(int(p["n"] * p["rows"]), int(p["tiles"])) * self.packed_shape[0]
        return ends * int(p["taps_r"]) * min(taps, outside) * int(p["reduction"]) * self.tile.MR

    def prepare(self, w: np.ndarray) -> np.ndarray:
        packed = aligned((1, 1, 1, math.prod(self.packed_shape)), self.problem.dtype)
        self.pack(w, w, self.zeros, packed)
        return packed

    def bound(self, epilogue: Epilogue, prepared: np.ndarray | None) -> Bound:
        start = epilogue.start(self.zeros, self.packed_shape[0])
        if prepared is not None:
            multiply = self.launch.bound(start, epilogue.end)
            return lambda first, second, result: multiply(first, prepared, result)
        if self.in_place is not None and not self.on_lines:
            return self.in_place.bound(start, epilogue.end)
        if self.in_place is None and self.packing is not None:
            return self.packing.bound(start, epilogue.end)
        return lambda first, second, result: self._run(first, second, result, start, epilogue.end)

    def _run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, start: np.ndarray, end: tuple[int, int, int]
    ) -> None:
        """Run with the weights as they lie if they begin on a line, else with weights packed by each task or before."""
        launch = self.packing
        if self.in_place is not None and not address(second) % LINE:
            launch = self.in_place
        if launch is not None:
            launch(first, second, start, result, end)
            return
        size = math.prod(self.packed_shape)
        with Buffer(size * self.problem.itemsize) as buffer:
            packed = buffer[: size * self.problem.itemsize].view(self.problem.dtype).reshape(1, 1, 1, size)
            self.pack(second, second, self.zeros, packed)
            self.launch(first, packed, start, result, end)


@dataclass(frozen=True, eq=False)
class ReducePass(GatherPass):
    """One launch of the kernel that adds up lanes (`fastconv.kernels.reduce`), planned as the gather kernel is."""

    def describe(self) -> str:
        tile = f"register tiles of {self.tile.MR} pixels x {self.tile.NV} sums over the lanes"
        return f"{tile}, {self._lanes_share():.0%} of them in use"

    def _run_length(self) -> int:
        p = self.launch.plan[0]
        return int(p["reduction"]) * (int(p["taps_c"]) if p["touching"] else 1)

    def _lanes_share(self) -> float:
        return model.filled(self._run_length(), self.tile.VL)

    def seconds(self, rate: float) -> float:
        p, shape = self.launch.plan[0], self.tile
        tiles = int(p["tiles"]) * self.packed_shape[0]
        passes = -(-int(p["channels"]) // shape.NV)
        runs = int(p["taps_r"]) * (1 if p["touching"] else int(p["taps_c"]))
        vectors = -(-self._run_length() // shape.VL)
        # Each step loads a vector for every pixel and every channel, two in the time of a pair of multiply-adds.
        step = max(shape.MR * shape.NV / model.costs().sum_share, (shape.MR + shape.NV) / model.SUM_LOAD_SHARE)
        ends = shape.MR * shape.NV * model.SUM_SLOTS + model.TILE_SLOTS
        work = tiles * passes * (runs * (vectors * step + model.STRIP_RUN_SLOTS) + ends) / rate
        alone = int(p["taps_r"] * p["taps_c"]) - runs  # each tap is a run of its own where some lie in the padding
        work += tiles * passes * self._border_share() * alone * (step + model.STRIP_RUN_SLOTS) / rate
        trace = tiles * runs * (shape.MR + RUN_FIELDS) * model.TRACE_SECONDS
        pack = 0.0 if self.in_place else math.prod(self.packed_shape) * model.PACK_SECONDS
        share = model.balance(self.launch.tasks, self.threads) / self.threads
        far = far_bytes(self.problem) * model.REDUCE_FAR_SECONDS
        return model.launch_seconds(self.threads) + (work + trace) * share + pack + far
