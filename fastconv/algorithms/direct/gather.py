"""Passes with output channels in the lanes: `fastconv.kernels.gather` on packed weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.copies import SET_BYTES
from fastconv.algorithms.direct.frames import Frame, frame_of
from fastconv.algorithms.direct.gathered import GatherPass, ReducePass
from fastconv.algorithms.direct.grids import (
    Axis,
    Roles,
    even_step,
    roles,
    tasks_wanted,
    workspace_offsets,
)
from fastconv.algorithms.direct.packing import pack_part, plan_pack
from fastconv.cost import LAST_CACHE_BYTES, leaves_caches
from fastconv.kernels import gather, pad, reduce
from fastconv.kernels.addresses import ADDRESS_BYTES, list_bytes
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import address, fill
from fastconv.kernels.target import (
    Tile,
    halves_vectors,
    highest_tile,
    masks_or_fills,
    panel_tile,
    rows_meeting,
    sum_tile_shape,
    vector_bytes,
)
from fastconv.kernels.tiles import ANYWHERE, CHANNEL_START, RUN_FIELDS, unrolling
from fastconv.problem import ConvProblem, IntPair

_TABLE_BYTES = 32 << 10
"""Addresses that a block of tiles may take: most of the smallest first cache level in use."""
_COPY_BYTES = 256 << 10
"""Copies of runs at the image's border that a block may take (layouts whose channels lie apart only)."""
_MAX_TILES = 32
_LISTED_STEPS = 9
"""Steps of a run up to which each is listed by itself instead: beginning a run takes longer than so few steps."""
_PADDED_BLOCKS = 4
"""How many times as long tasks may be that copy the rows that they read."""
_PADDED_CHANNELS = 16
"""Input channels up to which that is considered where they lie side by side."""
_PANEL_BYTES = 1 << 20
"""Largest panel whose weights are used at once."""
_CHUNK_BYTES = 1 << 19
"""Weights that are used at once of a larger one."""
_PACKING_TILES = 256
"""Tiles up to which a task packs the panel that it uses, if the addresses of all take no more than `_PACKING_BYTES`."""
_PACKING_BYTES = 256 << 10
_PACKING_BALANCE = 1.25
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


_RESULT_BYTES, _LEAST_TILES = 128 << 10, 8
"""What a task's results may take of the second cache level until they are written past it, and tiles that use each
panel of weights at least."""


def _passes_caches(result_bytes: int) -> bool:
    """Whether results are written past the caches: each line is then moved once, not read first.

    On a Zen 3 that writes 26 to 128 MB at 38 GB/s instead of 19, and 13 MB at 38 instead of 55. A Zen 4 wrote 64 MB at
    the same speed either way.
    """
    return vector_bytes() == 32 and result_bytes > LAST_CACHE_BYTES


def _follow(target: Sequence[int], n: int, rows: Axis, columns: Axis, pixel_bytes: int) -> bool:
    """Whether target pixels of so many bytes follow each other without gaps, in pieces that pass the caches."""
    whole = target[2] == pixel_bytes and (rows.every, columns.every) == (1, 1) and pixel_bytes % gather.ALIGNED == 0
    images = n == 1 or target[0] == rows.count * target[1]
    return whole and images and (rows.count == 1 or target[1] == columns.count * pixel_bytes)


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


def _steps_inside(rows: Axis, columns: Axis, source: tuple[int, ...], reduction: int) -> list[int]:
    """How far after a pixel's first source value each step's lies, where all taps are inside the image."""
    return [
        row * source[1] + column * source[2] + k * source[3]
        for row in rows.offsets
        for column in columns.offsets
        for k in range(reduction)
    ]


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
    # Of large results the lines would come from memory just to be written, and more than once where panels share them.
    tile_bytes = shape.MR * target[2]
    collected = _RESULT_BYTES // tile_bytes
    past_caches = not sums and panels > 1 and parts == 1 and _follow(target, n, rows, columns, channels * item)
    past_caches = past_caches and collected >= _LEAST_TILES and _passes_caches(pixels * target[2])
    if past_caches:
        size = min(tiles, collected, max(size, _RESULT_BYTES // entry_bytes))
    while frame is not None and not frame.fits(size * shape.MR):
        size -= 1
    # Where few tiles use a panel, the task that uses it packs it: it then never leaves the second cache level.
    packs = tiles <= _PACKING_TILES and tiles * copy_bytes <= _COPY_BYTES and tiles * entry_bytes <= _PACKING_BYTES
    packs = packs and not (in_place or sums or past_caches)
    packs = packs and model.balance(groups * panels, threads) <= _PACKING_BALANCE
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

    read_bytes = shape.MR * columns.step * source[2]
    far = sums and source_size[0] * source[1] > _NEAR_BYTES and read_bytes <= _MOST_ASKED
    ahead = -(-_AHEAD_BYTES // read_bytes) if far else 0

    # What pixels of few products write comes from memory first.
    expands = target[3] == item and channels > taps * reduction and leaves_caches(problem) and not past_caches

    listed = list_bytes(shape.MR)
    packed_shape = (groups, panels, taps, reduction, lanes)
    strip_rows = 0 if frame is None else frame.strip_rows(size * shape.MR)

    (
        table, counts, tables, chunk_runs, targets, numbers, row_parts, column_parts, spare, starts, buffer_rows,
        buffer, copies, strip, results, packed, total,
    ) = workspace_offsets(
        (size + sums) * entry_bytes + ADDRESS_BYTES, *[size * 8] * 3, size * shape.MR * 8 + ADDRESS_BYTES, 3 * listed,
        len(rows.taps) * listed, len(columns.taps) * listed, listed, max(shape.MR, shape.NV) * 8, shape.MR * 8,
        (1 if target[3] == item else gather.SCATTERED) * shape.MR * shape.NR * item,
        size * copy_bytes, strip_rows * source[1], size * tile_bytes if past_caches else 0,
        panel_bytes // taps * chunk if packs else keep_bytes,
    )  # fmt: skip
    touching = touching and (chunk == taps or chunk % len(columns.taps) == 0)
    joined = len(columns.taps) if touching else 1
    listed_steps = not sums and reduction * joined <= _LISTED_STEPS
    steps = _steps_inside(rows, columns, source, reduction if listed_steps else 1)
    runs = [(steps[tap], source[3], tap, reduction * joined) for tap in range(0, taps, joined)]
    inside = np.array(steps if listed_steps else runs, np.int64)
    zeros = np.zeros(1 if apart else reduction, problem.dtype)
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
        tiles_ahead=ahead, asks_targets=expands, asked_lines=0, asked_columns=1, asked_row=0, asked_column=0,
        tiles=tiles, blocks=blocks, panel_parts=parts,
        tile_pixels=shape.MR, tile_channels=lanes, row_bytes=lanes * item, item=item, trace=0, multiply=0,
        multiply_last=0, finish=0, last_pixel=0, list_bytes=listed, workspace_bytes=0,
        table=table, counts=counts, tables=tables, runs=counts if chunk == taps else chunk_runs, targets=targets,
        numbers=numbers, row_parts=row_parts, column_parts=column_parts, spare=spare, starts=starts,
        buffer_rows=buffer_rows, buffer=buffer, copies=copies, packed=packed, strip=strip,
        results=results if past_caches else 0, column=0,
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
        parts = gather.multiplies(
            problem.dtype, shape, channels, unroll, listed_steps, CHANNEL_START, bool(plan["in_place"])
        )
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
