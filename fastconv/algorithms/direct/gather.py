"""Passes with output channels in the lanes: `fastconv.kernels.gather` on packed weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.algorithms.banded import Stage
from fastconv.algorithms.base import PLAIN, Epilogue
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.base import Pass
from fastconv.algorithms.direct.copies import SET_BYTES, sets_of
from fastconv.algorithms.direct.frames import Frame, frame_of
from fastconv.algorithms.direct.grids import (
    Axis,
    Roles,
    even_step,
    roles,
    targets_inside,
    tasks_wanted,
    workspace_offsets,
)
from fastconv.algorithms.direct.packing import pack_part, plan_pack
from fastconv.cost import far_bytes
from fastconv.kernels import gather, pad, reduce
from fastconv.kernels.addresses import ADDRESS_BYTES, list_bytes
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import LINE, Buffer, address, aligned, fill
from fastconv.kernels.target import (
    Tile,
    halves_vectors,
    highest_tile,
    masks_or_fills,
    panel_slots,
    panel_tile,
    rows_meeting,
    sum_tile_shape,
)
from fastconv.kernels.tiles import ANYWHERE, CHANNEL_START, RUN_FIELDS, unrolling
from fastconv.problem import ConvProblem, IntPair

_TABLE_BYTES = 32 << 10
"""Addresses that a block of tiles may take: most of the smallest first cache level in use."""
_COPY_BYTES = 256 << 10
"""Copies of runs at the image's border that a block may take (layouts whose channels lie apart only)."""
_MAX_TILES = 32
_PADDED_BLOCKS = 4
"""How many times as long tasks may be that copy the rows that they read."""
_PADDED_CHANNELS = 16
"""Input channels up to which that is considered where they lie side by side."""
_CACHED_BYTES = 1 << 20
"""Packed weights that stay in the second cache level."""
_PANEL_BYTES = 1 << 20
"""Largest panel whose weights are used at once."""
_CHUNK_BYTES = 1 << 19
"""Weights that are used at once of a larger one."""
_PACKING_TILES = 256
"""Tiles up to which a task packs the panel that it uses, if the addresses of all take no more than `_PACKING_BYTES`."""
_PACKING_BYTES = 256 << 10
_PACKING_BALANCE = 1.25
_NEAR_WEIGHTS_BYTES = 2 << 20
"""Weights that are packed from the nearer caches."""
_KEPT_BYTES = 3 << 19
"""Packed weights that each thread may keep."""
_MOST_KEPT = 60
"""Panels that are noted in the bits of one integer."""
_IN_PLACE_BYTES = 1 << 20
"""How far apart the first and last weights of a panel may lie to be read in place: their pages must stay known."""
_STRADDLING_STEPS = 50_000
"""Steps of tiles, for each thread, that win more from weights on cache lines than it takes to pack these."""
CONFLICT_BYTES = 1 << 9
"""Rows of weights at multiples of this meet in few lines of the first cache level."""
_MEETING_PIXELS = 6
"""Pixels of a tile that may meet in a set of the first cache level. Where that level is small (Zen 4), every other
meeting takes as long."""
_NEAR_BYTES, _AHEAD_BYTES, _MOST_ASKED = 1 << 20, 12 << 10, 8 << 10
"""Images that leave the second cache level; how far ahead of adding up lanes they are asked for, and how much at most
for one tile."""
_MOST_REDUCED = 12
"""Target channels up to which adding up lanes is considered."""


def lies_well(step: int, panel_bytes: int, steps: int) -> bool:
    """Whether a panel of weights `step` bytes apart can be read in place over and over: from lines of its own."""
    return steps * step <= _IN_PLACE_BYTES and (step % CONFLICT_BYTES != 0 or panel_bytes <= CONFLICT_BYTES)


def blocks_of(
    tiles: int, entry_bytes: int, copy_bytes: int, panels: int, groups: int, wanted: int, longer: int = 1
) -> tuple[int, int]:  # fmt: skip
    """How many tiles a task takes, and in how many parts it splits the channel panels.

    Tasks first get shorter, then narrower, until there are as many as `wanted`: a short task shares a panel of weights
    between fewer tiles, a narrow one traces the same addresses again.
    """
    size = min(_MAX_TILES, max(1, _TABLE_BYTES // entry_bytes), max(1, _COPY_BYTES // max(copy_bytes, 1)))
    size = min(tiles, longer * size)
    while size > 4 and groups * -(-tiles // size) < wanted:
        size = max(4, size // 2)
    parts = min(panels, -(-wanted // (groups * -(-tiles // size))))
    while size > 1 and groups * -(-tiles // size) * parts < wanted:
        size //= 2
    return size, parts


def taps_of_chunk(taps: int, columns: int, tap_bytes: int) -> int:
    """How many taps of a panel are used at once: whole kernel rows if one of these fits, all where all fit."""
    if taps * tap_bytes <= _PANEL_BYTES:
        return taps
    most = max(1, _CHUNK_BYTES // tap_bytes)
    return min(taps, most // columns * columns or most)


@dataclass(frozen=True, eq=False)
class GatherPass(Pass):
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
            others = weights * model.FETCH_SECONDS * (self.threads - 1)
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
        return math.prod(self.packed_shape) * max(1.0, read / (taps * reduction))

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
        trace += self.launch.tasks * self.copying
        scatter = 0.0
        if p["target_d"] != self.problem.itemsize:
            value = model.TURN_SECONDS if p["target_c"] == self.problem.itemsize else model.SCATTER_SECONDS
            scatter = tiles * self.tile.MR * int(p["channels"]) * value
        apart = far_bytes(self.problem) * model.STREAM_SECONDS if p["source_k"] != self.problem.itemsize else 0.0
        return (multiply + trace + scatter) * model.balance(self.launch.tasks, self.threads) / self.threads + apart

    def _apart_share(self) -> float:
        """Speed of a tile whose scalars lie in planes, of which each tap reads the same lines again."""
        p = self.launch.plan[0]
        if p["source_k"] % model.CONFLICT_BYTES == 0:
            return model.costs().apart_conflict_share
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

    def prepare(self, w: np.ndarray) -> np.ndarray:
        packed = aligned((1, 1, 1, math.prod(self.packed_shape)), self.problem.dtype)
        self.pack(w, w, self.zeros, packed)
        return packed

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        if prepared is not None:
            self._multiply(self.launch, first, prepared, result, epilogue)
            return
        launch = self.packing
        if self.in_place is not None and not (self.on_lines and address(second) % LINE):
            launch = self.in_place
        if launch is not None:
            self._multiply(launch, first, second, result, epilogue)
            return
        size = math.prod(self.packed_shape)
        with Buffer(size * self.problem.itemsize) as buffer:
            packed = buffer[: size * self.problem.itemsize].view(self.problem.dtype).reshape(1, 1, 1, size)
            self.pack(second, second, self.zeros, packed)
            self._multiply(self.launch, first, packed, result, epilogue)

    def _multiply(
        self, launch: Launch, source: np.ndarray, packed: np.ndarray, target: np.ndarray, epilogue: Epilogue
    ) -> None:
        start = epilogue.start(self.zeros, self.packed_shape[0])
        launch(source, packed, start, target, epilogue.relu, epilogue.activation, epilogue.failed_address)


def _one_row(part: Roles, n: int, rows: Axis, columns: Axis) -> tuple[int, Axis, Axis, IntPair]:
    """The pixels as one long row where a single tap reads each in place: then hardly a tile meets an end."""
    count = rows.count * columns.count
    alone = all(axis.offsets == (0,) and axis.step == axis.every == 1 for axis in (rows, columns))
    adjoin = all(
        stride[1] == columns.count * stride[2] and (n == 1 or stride[0] == count * stride[2])
        for stride in (part.source, part.target)
    )
    if not (alone and adjoin and part.source_size == (rows.count, columns.count)):
        return n, rows, columns, part.source_size
    return 1, replace(rows, count=1), replace(columns, count=n * count), (1, n * count)


def _ascending(axis: Axis) -> Axis:
    """The axis with its taps in the order of what they read, so that those of a kernel row may touch."""
    if axis.offsets[0] <= axis.offsets[-1]:
        return axis
    return replace(axis, taps=axis.taps[::-1], offsets=axis.offsets[::-1])


def _highest(pitch: int) -> int:
    """Rows of the highest tile whose pixels lie that far apart."""
    return rows_meeting(pitch, SET_BYTES // 2 if halves_vectors() else SET_BYTES, _MEETING_PIXELS)


def _stays_inside(axis: Axis, size: int) -> bool:
    """Whether every tap of every target reads a source of that size, and none the padding."""
    return min(axis.offsets) >= 0 and (axis.count - 1) * axis.step + max(axis.offsets) < size


def plan_gather(problem: ConvProblem, direction: str, rows: Axis, columns: Axis, threads: int) -> GatherPass:
    """Plan the launch with target channels in the lanes for one dense sub-problem."""
    part = roles(problem, direction)
    pixels, highest = problem.n * rows.count * columns.count, _highest(columns.step * part.source[2])
    shape = panel_tile(problem.dtype, pixels, part.channels, halves=True, highest=highest)
    return _plan(GatherPass, problem, direction, rows, columns, threads, shape)


def plan_padded(problem: ConvProblem, direction: str, rows: Axis, columns: Axis, threads: int) -> GatherPass | None:
    """Plan the launch whose tasks pad what they read, and lay channels side by side.

    None where these do and nothing is gained, or where a tile's rows leave the second cache level.
    """
    part, rows, columns = roles(problem, direction), _ascending(rows), _ascending(columns)
    channels = part.channels
    if problem.layout != "NCHW":
        if part.reduction * problem.groups > _PADDED_CHANNELS or (rows.every, columns.every) != (1, 1):
            return None
        if all(map(_stays_inside, (rows, columns), part.source_size)):
            return None
    frame = frame_of(problem, direction, rows, columns)
    # Whether this is done must not depend on the batch, as the tile's height does.
    if not frame.fits(highest_tile()):
        return None
    pixels, highest = problem.n * rows.count * columns.count, _highest(columns.step * frame.part.source[2])
    shape = panel_tile(problem.dtype, pixels, channels, halves=True, highest=highest)
    return _plan(GatherPass, problem, direction, rows, columns, threads, shape, frame)


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


def _in_lines(part: Roles, problem: ConvProblem, taps: int) -> bool:
    """Whether the weights of each target channel lie side by side, and those of one after another's."""
    line = part.reduction * problem.itemsize
    alone = taps == math.prod(problem.kernel_size) == 1 and problem.groups == 1
    return alone and part.weights[2] == problem.itemsize and part.weights[3] == line


def plan_reduce(problem: ConvProblem, direction: str, rows: Axis, columns: Axis, threads: int) -> GatherPass | None:
    """Plan the launch with source channels in the lanes; None where they lie apart or are many for each target."""
    part = roles(problem, direction)
    few = part.channels <= _MOST_REDUCED or _in_lines(part, problem, len(rows.taps) * len(columns.taps))
    if part.source[3] != problem.itemsize or not few:
        return None
    shape = sum_tile_shape(problem.dtype, part.channels, problem.n * rows.count * columns.count)
    return _plan(ReducePass, problem, direction, rows, columns, threads, shape)


def _plan(
    kind: type[GatherPass], problem: ConvProblem, direction: str, rows: Axis, columns: Axis, threads: int, shape: Tile,
    frame: Frame | None = None,
) -> GatherPass:  # fmt: skip
    """Plan a launch that gathers tiles of pixels; `frame` says how tasks pad what they read."""
    rows, columns = _ascending(rows), _ascending(columns)
    sums = kind is ReducePass
    item, groups = problem.itemsize, problem.groups
    part = roles(problem, direction) if frame is None else frame.part
    source, target, _, reduction, channels, w_strides, _ = part
    pack_taps = rows.taps, columns.taps
    n, source_size = problem.n, part.source_size
    if frame is None:
        n, rows, columns, source_size = _one_row(part, n, rows, columns)
    else:
        rows, columns = frame.rows, frame.columns
    pixels = n * rows.count * columns.count
    lanes = 1 if sums else shape.NR
    tiles, panels = -(-pixels // shape.MR), -(-channels // lanes)
    taps = len(rows.taps) * len(columns.taps)
    apart = source[3] != item
    copy_bytes = taps * reduction * shape.MR * item if apart else 0
    panel_bytes = taps * reduction * lanes * item
    touching = even_step(columns.offsets) == 1 and not apart and source[2] == reduction * item
    if sums:  # joined or not, a value must meet the same lane: borders, and so neighbours, may not change a sum's order
        touching = touching and reduction % shape.VL == 0
    whole_rows = taps_of_chunk(taps, len(columns.taps), panel_bytes // taps) % len(columns.taps) == 0
    always = touching and whole_rows and all(map(_stays_inside, (rows, columns), source_size))
    most_runs = len(rows.taps) if always else taps
    entry_bytes = most_runs * (shape.MR + RUN_FIELDS) * 8
    # Weights already lie in panels where output channels are contiguous; packing them pays off over a few tiles.
    in_order = direction == "forward" and w_strides[1] == reduction * w_strides[2]  # as packed taps follow each other
    in_order = in_order or problem.kernel_size == (1, 1)
    in_place = not sums and in_order and w_strides[3] == item and masks_or_fills(shape, channels)
    in_place = in_place and (tiles <= 2 or lies_well(w_strides[2], panel_bytes, taps * reduction))
    # NumPy's arrays begin 16 bytes behind a cache line mostly, and every vector of theirs lies in two.
    on_lines = in_place and tiles * panels * taps * reduction >= _STRADDLING_STEPS * threads
    longer = 1 if frame is None else _PADDED_BLOCKS
    wanted = tasks_wanted(problem, threads)
    sides = -(-channels // shape.NV) if sums else panels
    size, parts = blocks_of(tiles, entry_bytes, copy_bytes, sides, groups, wanted, longer)
    while frame is not None and not frame.fits(size * shape.MR):
        size -= 1
    # Where few tiles use a panel, the task that uses it packs it: it then never leaves the second cache level.
    packs = tiles <= _PACKING_TILES and tiles * copy_bytes <= _COPY_BYTES and tiles * entry_bytes <= _PACKING_BYTES
    packs = packs and not (in_place or sums) and model.balance(groups * panels, threads) <= _PACKING_BALANCE
    packs = packs and (frame is None or frame.fits(tiles * shape.MR))
    if packs:
        size, parts = tiles, panels
    # Blocks are as large as each other, and as many for each thread where none copies rows that others copy too.
    blocks = -(-tiles // size)
    if blocks > 1 and frame is None:
        blocks = min(tiles, -(-blocks // threads) * threads)
    size = -(-tiles // blocks)
    # Sums are kept in the target from chunk to chunk, in whole vectors.
    chunked = not sums and target[3] == item and channels % shape.VL == 0 and tiles > 2
    chunked = chunked and not (packs and w_strides[3] != item != w_strides[2])  # taps that lie apart for packing
    chunk = taps_of_chunk(taps, len(columns.taps), reduction * lanes * item) if chunked else taps

    # Else each thread packs what it uses and keeps that: what another packed would have to come from there.
    keeps = not (packs or sums) and chunk == taps and panels <= _MOST_KEPT and panels * panel_bytes <= _KEPT_BYTES
    keep_bytes = panels * panel_bytes if keeps else 0

    tile_bytes = shape.MR * columns.step * source[2]
    far = sums and source_size[0] * source[1] > _NEAR_BYTES and tile_bytes <= _MOST_ASKED
    ahead = -(-_AHEAD_BYTES // tile_bytes) if far else 0

    listed = list_bytes(shape.MR)
    packed_shape = (groups, panels, taps, reduction, lanes)
    strip_rows = 0 if frame is None else frame.strip_rows(size * shape.MR)

    (
        table, counts, tables, chunk_runs, targets, numbers, row_parts, column_parts, spare, starts, buffer_rows,
        buffer, copies, strip, packed, total,
    ) = workspace_offsets(
        (size + sums) * entry_bytes + ADDRESS_BYTES, *[size * 8] * 3, size * shape.MR * 8 + ADDRESS_BYTES, 3 * listed,
        len(rows.taps) * listed, len(columns.taps) * listed, listed, max(shape.MR, shape.NV) * 8, shape.MR * 8,
        (1 if target[3] == item else gather.SCATTERED) * shape.MR * shape.NR * item,
        size * copy_bytes, strip_rows * source[1], panel_bytes // taps * chunk if packs else keep_bytes,
    )  # fmt: skip
    touching = touching and (chunk == taps or chunk % len(columns.taps) == 0)
    joined = len(columns.taps) if touching else 1
    inside = np.array([
        (row * source[1] + column * source[2], source[3], a * len(columns.taps) + b, reduction * joined)
        for a, row in enumerate(rows.offsets)
        for b, column in enumerate(columns.offsets)
        if b % joined == 0
    ], np.int64)  # fmt: skip
    zeros = np.zeros(0 if apart else reduction, problem.dtype)
    row_offsets, column_offsets = np.array(rows.offsets, np.int64), np.array(columns.offsets, np.int64)
    template = fill(
        gather.GATHER,
        source_n=source[0], source_r=source[1], source_c=source[2], source_k=source[3],
        target_offset=rows.first * target[1] + columns.first * target[2],
        target_n=target[0], target_r=target[1] * rows.every, target_c=target[2] * columns.every,
        target_d=target[3],
        source_group=reduction * source[3] if frame is None else frame.group_bytes, groups=groups,
        target_group=channels * target[3],
        source_rows=source_size[0], source_columns=source_size[1],
        n=n, rows=rows.count, columns=columns.count, row_step=rows.step, column_step=columns.step,
        taps_r=len(rows.taps), taps_c=len(columns.taps),
        row_offsets=address(row_offsets), column_offsets=address(column_offsets),
        first_row=min(rows.offsets), last_row=max(rows.offsets),
        first_column=min(columns.offsets), last_column=max(columns.offsets),
        reduction=reduction, channels=channels,
        in_place=0, weight_tap=w_strides[1], weight_step=w_strides[2], weight_panel=shape.NR * item,
        weight_group=part.weight_group, packed_group=panels * panel_bytes, packing=0, keeps=0,
        start_group=panels * lanes * item,
        zeros=address(zeros), touching=touching, inside=address(inside), inside_runs=len(inside),
        most_runs=most_runs, padding=0 if frame is None else frame.record.ctypes.data, scatter=0, chunk=chunk,
        tiles_ahead=ahead,
        tiles=tiles, blocks=blocks, panel_parts=parts,
        tile_pixels=shape.MR, tile_channels=lanes, row_bytes=lanes * item, item=item, trace=0, multiply=0,
        multiply_last=0, finish=0, list_bytes=listed, workspace_bytes=0,
        table=table, counts=counts, tables=tables, runs=counts if chunk == taps else chunk_runs, targets=targets,
        numbers=numbers, row_parts=row_parts, column_parts=column_parts, spare=spare, starts=starts,
        buffer_rows=buffer_rows, buffer=buffer, copies=copies, packed=packed, strip=strip,
    )  # fmt: skip
    arrays = (row_offsets, column_offsets, zeros, inside, *([] if frame is None else [frame.record, frame.slots]))
    tasks = groups * blocks * parts

    def compile_(plan: np.ndarray) -> CFunc:
        plan["trace"] = gather.trace().address
        if sums:
            return reduce.reduce(problem.dtype, shape)
        if frame is not None:
            frame.record["entry"] = pad.rows(problem.dtype).address
        if plan["packing"]:
            pack.plan["entry"] = pack_part(problem, pack.plan, lanes).address
        if target[3] != item:
            plan["scatter"] = gather.scatter(problem.dtype).address
        unroll = ANYWHERE if apart else unrolling(reduction * joined)
        parts = gather.multiplies(problem.dtype, shape, channels, unroll, CHANNEL_START, bool(plan["in_place"]))
        for name, compiled_part in parts.items():
            plan[name] = compiled_part.address
        plan["finish"] = gather.finish().address
        return gather.gather()

    def launch_of(needs: int, **changes: int) -> Launch:
        plan = template.copy()
        for name, value in {"workspace_bytes": needs, **changes}.items():
            plan[name] = value
        return Launch(
            lambda: compile_(plan), problem.dtype, plan, tasks, threads, needs, keeps=bool(changes.get("keeps"))
        )

    start = np.zeros(groups * panels * lanes, problem.dtype)
    pack, taps_read = plan_pack(problem, direction, *pack_taps, packed_shape, threads)
    reads_in_place = in_place or (sums and _in_lines(part, problem, taps))
    return kind(
        problem, threads, shape, launch_of(packed), pack, start, (*arrays, *taps_read), packed_shape,
        0.0 if frame is None else strip_rows * frame.seconds_per_row,
        launch_of(packed, in_place=in_place) if reads_in_place else None, on_lines,
        launch_of(total, packing=pack.plan.ctypes.data, keeps=keeps) if packs or keeps else None,
    )  # fmt: skip
