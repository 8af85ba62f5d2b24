"""Direct convolution as gathered register tiles: no patch matrix, no padded copy of the whole input.

One kernel computes a grid of target pixels, each the sum over taps (a, b) and channels c of
``source[n, i * step_r + row_offset[a], j * step_c + column_offset[b], c] * weight[a, b, c, d]``. That is the forward
pass; it is also the input gradient, whose offsets and weights the caller derives (`fastconv.algorithms.direct`).

Pixels are numbered through the whole batch, so that a tile runs over the ends of rows and images and only the last
tile of a problem is partly wasted. What a tile reads is written down first, as addresses: one run for each tap with
the address of each of the tile's MR pixels. Padding is then a matter of addresses too: a run that lies wholly in the
padding is left out, and a pixel in the padding reads a row of zeros.

Where channels are few, listing addresses takes longer than the multiply-adds. Tasks then copy the rows that they read,
with zeros around them, and all windows lie inside.
"""

from __future__ import annotations

import functools

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.kernels import jit
from fastconv.kernels.activation import activate
from fastconv.kernels.addresses import (
    number_pixels,
    pitched_places,
    trace_axis,
    trace_run,
    write_places,
)
from fastconv.kernels.packing import PACKING
from fastconv.kernels.pad import PAD
from fastconv.kernels.params import CALL, LINE, record
from fastconv.kernels.simd import (
    array_at,
    call_part,
    copy_item,
    fence,
    integer_at,
    prefetch,
    record_at,
    store_past_caches,
    turn_tile,
)
from fastconv.kernels.target import Tile, vector_bytes
from fastconv.kernels.tiles import CHANNEL_START, ROW_START, RUN_FIELDS, UNROLLED, multiply_tile, pitched_tile

GATHER = record("""
    source_n source_r source_c source_k
    target_offset target_n target_r target_c target_d
    source_group target_group groups
    source_rows source_columns n rows columns row_step column_step
    taps_r taps_c row_offsets column_offsets first_row last_row first_column last_column
    reduction channels
    in_place weight_tap weight_step weight_panel weight_group packed_group packing keeps start_group
    zeros touching inside inside_runs most_runs padding scatter chunk tiles_ahead asks_targets
    asked_lines asked_columns asked_row asked_column
    tiles blocks panel_parts
    tile_pixels tile_channels row_bytes item trace multiply multiply_last finish last_pixel list_bytes
    workspace_bytes
    table counts tables runs targets numbers row_parts column_parts spare starts buffer_rows buffer copies packed strip
    results column
""")
"""Strides and `*_group` are in bytes; `groups` are those of the source and of what sums begin with, and targets and
weights may have more; `source_k` and `target_d` are those of channels. `touching` says that the taps of a kernel row
read neighbouring channels, and `inside` is the address of the runs of a tile in one row whose taps all lie inside the
image, relative to its first pixel, or of their steps where these are listed; no tile has more than `most_runs`. Where
weights are read `in_place`, `weight_*` say how they lie; `packing` is the address of a record that begins as `PACKING`
where tasks pack them, else 0, and `keeps` says that a thread keeps all panels of a group that it has packed; `padding`
that of the `PAD` record where tasks copy the rows that they read, with zeros around them, and `source_*` describes such
a copy; `scatter` that of the compiled `scatter`, where a pixel's channels lie apart in the target; what a tile reads is
asked for `tiles_ahead`, if that is not 0, and what the next one writes if `asks_targets` is not. Where pixels are in
the lanes, `asked_lines` lines of each row of the next panel are asked for, if that is not 0; `asked_*` say where a
pixel lies. A panel's taps are used `chunk` at a time for all tiles of a task: fewer than all where a whole panel would
leave the second cache level; `tables` and `runs` are the addresses and numbers of each tile's runs that are used now.
Rows of `tile_channels` weights and of a tile's results are `row_bytes` long, lists of its pixels `list_bytes`; `trace`,
`multiply` and `finish` are the addresses of these compiled parts, `multiply_last` that for the last panel, which may be
narrower, and `last_pixel` that for a pixel behind it, or 0. The last two lines' fields are offsets into each thread's
workspace; `results` is 0 where tasks write to the target at once, else the place of a task's results, which go past the
caches then: its pixels follow each other in the target without gaps. `column` is that of the last pixel's channels."""

ALIGNED = 16
"""Bytes that are stored past the caches at once, at a multiple of as many."""

SCATTERED = 8
"""Tiles that are copied at once where a target's channels lie apart: each of these is in another page."""


@jit.inline
def copy_traced(p, destination, row_parts, column_parts, source):
    """Copy what a run reads, channel by channel, with zeros for pixels in the padding."""
    for m in range(p.tile_pixels):
        offset = integer_at(row_parts + 8 * m) + integer_at(column_parts + 8 * m)
        place, step = source + offset, p.source_k
        if offset < 0:
            place, step = p.zeros, 0
        target = destination + m * p.item
        for _ in range(p.reduction):
            copy_item(p.item, place, target)
            place, target = place + step, target + p.tile_pixels * p.item


@jit.inline
def inside_tiles(p, i, j, most):
    """How many tiles from pixel (i, j) of an image on lie in this row, at most so many, all taps inside the image.

    None where not all taps are used at once.
    """
    above, below = i * p.row_step + p.first_row, i * p.row_step + p.last_row
    left, right = j * p.column_step + p.first_column, (j + p.tile_pixels - 1) * p.column_step + p.last_column
    if left < 0 or above < 0 or below >= p.source_rows or p.chunk < p.taps_r * p.taps_c:
        return 0
    count, end = 0, j + p.tile_pixels
    while count < most and end <= p.columns and right < p.source_columns:
        count, end, right = count + 1, end + p.tile_pixels, right + p.tile_pixels * p.column_step
    return count


@jit.inline
def list_inside(p, source, target, own, t, count, image, i, j):
    """Write what `count` tiles from the t-th on read and write, which begin at pixel (i, j) and have all taps inside.

    -1 stands for the number of their runs, which nobody has to list, and the address of the first pixel for these.
    """
    counts = array_at(own + p.counts, t + count, np.int64)
    tables = array_at(own + p.tables, t + count, np.int64)
    pixel = source + image * p.source_n + i * p.row_step * p.source_r + j * p.column_step * p.source_c
    for k in range(t, t + count):
        counts[k], tables[k] = -1, pixel
        pixel += p.tile_pixels * p.column_step * p.source_c
    here, pixels = target + image * p.target_n + i * p.target_r + j * p.target_c, count * p.tile_pixels
    pitched_places(pixels, 0, 1, pixels, here, p.target_c, here, own + p.targets + t * 8 * p.tile_pixels)


@jit.inline
def trace_tile(p, source, target, own, t, first, image, i, j):
    """Write the runs and targets of the tile that begins at pixel `first`, (i, j) of an image.

    Returns where its runs lie and their number.
    """
    MR = p.tile_pixels
    taps, entry_bytes = p.taps_r * p.taps_c, (MR + RUN_FIELDS) * 8
    table_at, targets = own + p.table + t * p.most_runs * entry_bytes, own + p.targets + t * 8 * MR
    # Tile rows past the end repeat the last pixel: they write the same value to the same place.
    left = p.n * p.rows * p.columns - 1 - first
    numbers, pitch = own + p.numbers, p.list_bytes
    number_pixels(MR, image, i, j, left, p.rows, p.columns, numbers, pitch)
    write_places(MR, targets, target, p.target_n, p.target_r, p.target_c, numbers, pitch)
    trace_axis(
        MR, numbers + pitch, p.row_step, p.taps_r, p.row_offsets, p.source_rows, p.source_r, numbers, p.source_n,
        own + p.row_parts, pitch,
    )  # fmt: skip
    trace_axis(
        MR, numbers + 2 * pitch, p.column_step, p.taps_c, p.column_offsets, p.source_columns, p.source_c, numbers, 0,
        own + p.column_parts, pitch,
    )  # fmt: skip
    runs = 0
    for a in range(p.taps_r):
        row_at = own + p.row_parts + a * pitch
        joined = False
        for b in range(p.taps_c):
            place = table_at + runs * entry_bytes
            column_at = own + p.column_parts + b * pitch
            inside = trace_run(MR, row_at, column_at, source, p.zeros, place)
            if b == 0 and p.touching != 0 and inside == MR:
                # Touching taps are one run where the last of them lies inside too; the first one's addresses hold.
                last = own + p.column_parts + (p.taps_c - 1) * pitch
                joined = trace_run(MR, row_at, last, source, p.zeros, own + p.spare) == MR
            if inside == 0:
                continue
            step = p.source_k
            run = array_at(place, MR + RUN_FIELDS, np.int64)
            if inside < MR and p.source_k != p.item:
                # A row of zeros can stand for a pixel only where its channels lie side by side.
                copy = own + p.copies + (t * taps + a * p.taps_c + b) * p.reduction * MR * p.item
                copy_traced(p, copy, row_at, column_at, source)
                for m in range(MR):
                    run[m] = copy + m * p.item
                step = MR * p.item
            run[MR] = step
            run[MR + 1] = a * p.taps_c + b
            run[MR + 2] = p.reduction * (p.taps_c if joined else 1)
            runs += 1
            if joined:
                break
    return table_at, runs


@jit.inline
def padded_row(p, frame, pixel):
    """The first padded row, counted through all images, that a target pixel reads."""
    row = pixel // p.columns
    return row // p.rows * frame.padded_rows + row % p.rows * p.row_step


@functools.cache
def scatter(dtype: str) -> CFunc:
    """The part of kernels that copies rows of a buffer to their target pixels, `lanes` channels of each.

    Channels are `target_d` bytes apart there. Where the pixels lie side by side, squares are transposed.
    """
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL = vector_bytes() // ITEM

    def scatter_tiles(buffer, row_bytes, targets, shift, target_d, rows, lanes):
        places = array_at(targets, rows, np.int64)
        if rows > 1 and places[1] - places[0] != ITEM and places[rows - 1] - places[rows - 2] != ITEM:
            # Pixels that lie apart share cache lines in a channel, and its channels often meet in one place of a cache.
            for d in range(lanes):
                for m in range(rows):
                    value = array_at(buffer + m * row_bytes + d * ITEM, 1, REAL)[0]
                    array_at(places[m] + shift + d * target_d, 1, REAL)[0] = value
            return
        m = 0
        while m < rows:
            count = 1
            while count < VL and m + count < rows and places[m + count] - places[m] == count * ITEM:
                count += 1
            here, there = buffer + m * row_bytes, places[m] + shift
            if count == 1:
                for d in range(lanes):
                    value = array_at(here + d * ITEM, 1, REAL)[0]
                    array_at(there + d * target_d, 1, REAL)[0] = value
            else:
                for d in range(0, lanes, VL):
                    turn_tile(
                        REAL, VL, here + d * ITEM, row_bytes, count, there + d * target_d, target_d,
                        min(VL, lanes - d), 0,
                    )  # fmt: skip
            m += count

    return jit.part(scatter_tiles)


@jit.inline
def runs_until(MR, table_at, runs, tap):
    """How many of the runs are those of taps before `tap`."""
    table = array_at(table_at, (runs, MR + RUN_FIELDS), np.int64)
    count = 0
    while count < runs and table[count, MR + 1] < tap:
        count += 1
    return count


@jit.inline
def take_chunk(p, own, tiles, tap):
    """Note which runs of each tile are those of the chunk of taps that begins with `tap`."""
    counts = array_at(own + p.counts, tiles, np.int64)
    tables = array_at(own + p.tables, tiles, np.int64)
    runs = array_at(own + p.runs, tiles, np.int64)
    MR, entry_bytes = p.tile_pixels, (p.tile_pixels + RUN_FIELDS) * 8
    for t in range(tiles):
        table = own + p.table + t * p.most_runs * entry_bytes
        before = runs_until(MR, table, counts[t], tap)
        tables[t] = table + before * entry_bytes
        runs[t] = runs_until(MR, table, counts[t], tap + p.chunk) - before


@functools.cache
def trace() -> CFunc:
    """The part of kernels that lists what `tiles` tiles from one on read and write."""

    def trace_tiles(plan, own, source, target, first, tiles):
        p = record_at(plan, GATHER)
        counts = array_at(own + p.counts, tiles, np.int64)
        tables = array_at(own + p.tables, tiles, np.int64)
        pixel = first * p.tile_pixels
        row = pixel // p.columns
        image = row // p.rows
        i, j = row - image * p.rows, pixel - row * p.columns
        t = 0
        while t < tiles:
            done = inside_tiles(p, i, j, tiles - t)
            if done > 0:
                list_inside(p, source, target, own, t, done, image, i, j)
            else:
                tables[t], counts[t] = trace_tile(p, source, target, own, t, pixel, image, i, j)
                done = 1
            # The divisions that give the next tile's place would take as long as some tiles' multiply-adds.
            t, pixel, j = t + done, pixel + done * p.tile_pixels, j + done * p.tile_pixels
            while j >= p.columns:
                j, i = j - p.columns, i + 1
                if i == p.rows:
                    i, image = 0, image + 1

    return jit.part(trace_tiles)


@functools.cache
def finish() -> CFunc:
    """The part of kernels for tiles that are not just stored: they are activated, or scattered over the target."""

    def finish_tile(address, own, panel, first, tiles, t, last):
        call = record_at(address, CALL)
        p = record_at(call.plan, GATHER)
        MR = p.tile_pixels
        lanes = min(p.tile_channels, p.channels - panel * p.tile_channels)
        shift = panel * p.tile_channels * p.target_d
        there = min(MR, p.n * p.rows * p.columns - (first + t) * MR)
        begin = t - t % SCATTERED
        in_place = p.target_d == p.item
        if call.activation != 0 and last != 0:
            targets = array_at(own + p.targets + t * 8 * MR, MR, np.int64)
            kept = own + p.buffer + (t - begin) * MR * p.row_bytes
            for m in range(there):
                activate(call, targets[m] + shift if in_place else kept + m * p.row_bytes, lanes)
        if not in_place and (t + 1 == tiles or t + 1 == begin + SCATTERED):
            at = own + p.targets + begin * 8 * MR
            rows = (t - begin) * MR + there
            call_part(p.scatter, (own + p.buffer, p.row_bytes, at, shift, p.target_d, rows, lanes))

    return jit.part(finish_tile)


@functools.cache
def multiply(dtype: str, tile: Tile, unroll: int, listed: bool, start_kind: int, masked: bool) -> CFunc:
    """The part of the kernel that knows its register tile: the tiles of a task, by the taps of a panel from one on.

    The tile may be narrower than the panels, for the last of them. `unroll`, `listed` and `masked` are those of
    `fastconv.kernels.tiles`. Sums begin with a value for each channel in the lanes, or for each pixel.
    """
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, MR, NV, NR = tile.VL, tile.MR, tile.NV, tile.NR
    UNROLL, LISTED, START, MASKED = unroll, int(listed), start_kind, int(masked)

    def multiply_tiles(address, own, group, first, tiles, panel, tap, weights, weight_step, weight_tap):
        call = record_at(address, CALL)
        p = record_at(call.plan, GATHER)
        last = tap + p.chunk >= p.taps_r * p.taps_c
        before = panel * p.tile_channels
        lanes = min(NR, p.channels - before)
        stored = lanes if MASKED or p.target_d == ITEM else NR
        start = call.start + group % p.groups * p.start_group + (before * ITEM if START == CHANNEL_START else 0)
        shift = before * p.target_d
        in_place = p.target_d == ITEM
        more = not in_place or (last and call.activation != 0)
        floor = REAL(0) if call.relu != 0 and last else REAL(-np.inf)
        following = call.start
        if START == ROW_START and p.asked_lines != 0:
            row = (before + NR) // p.asked_columns
            following = call.other + group * p.weight_group + row * p.asked_row
            following += (before + NR - row * p.asked_columns) * p.asked_column
        for t in range(tiles):
            targets, table, runs = (
                own + p.targets + t * 8 * MR,
                integer_at(own + p.tables + 8 * t),
                integer_at(own + p.runs + 8 * t),
            )
            kept = t % SCATTERED * MR * p.row_bytes
            here = start
            asked, ask_step = call.start, 0
            if START == ROW_START:
                if t < p.asked_lines * UNROLLED:
                    ask_step = p.weight_step
                    asked = following + t // UNROLLED * LINE + t % UNROLLED * (p.reduction // UNROLLED) * ask_step
                here += (first + t) * MR * ITEM
                # The rows are planes, whose pages the CPU does not foresee: those of the next tile are asked for.
                for m in range(0 if t == 0 else MR, MR if t == tiles - 1 else 2 * MR):
                    for line in range(0, NR * ITEM, LINE):
                        prefetch(integer_at(targets + m * 8) + shift + line)
            elif p.asks_targets != 0 and t + 1 < tiles:
                for m in range(MR, 2 * MR):
                    for line in range(0, lanes * ITEM, LINE):
                        prefetch(integer_at(targets + m * 8) + shift + line)
            if runs < 0:
                pitched_tile(
                    REAL, VL, MR, NV, START, UNROLL, LISTED, MASKED, p.inside_runs, p.inside, table,
                    p.column_step * p.source_c, weights, weight_step, weight_tap, here, floor,
                    integer_at(targets) + shift if in_place else own + p.buffer + kept,
                    p.target_c if in_place else p.row_bytes, stored, asked, ask_step,
                )  # fmt: skip
            else:
                starts, place = own + p.starts if START == CHANNEL_START else call.start, here - call.start
                if tap > 0:  # the sums so far lie in the target
                    starts, place = targets, shift
                rows = targets if in_place else own + p.buffer_rows
                multiply_tile(
                    REAL, VL, MR, NV, START, UNROLL, MASKED, runs, table, weights, weight_step, weight_tap, starts,
                    place, floor, rows, shift if in_place else kept, stored,
                )  # fmt: skip
            if more:
                call_part(p.finish, (address, own, panel, first, tiles, t, last))

    return jit.part(multiply_tiles)


def multiplies(
    dtype: str, tile: Tile, channels: int, unroll: int, listed: bool, start_kind: int, in_place: bool
) -> dict[str, CFunc]:  # fmt: skip
    """The parts that multiply, by the record's fields: that of the last panel, and that of the others if there are any.

    Weights that are read `in_place` end with the last channel, packed ones fill their vectors.
    """
    last = tile.last(channels)
    parts = {"multiply_last": multiply(dtype, last, unroll, listed, start_kind, in_place and channels % tile.VL != 0)}
    if channels > tile.NR:
        parts["multiply"] = multiply(dtype, tile, unroll, listed, start_kind, False)
    return parts


@jit.inline
def is_new(own, address, group, panel):
    """Whether this thread packs a panel for the first time in a launch; notes that it does."""
    notes = array_at(own - LINE, 3, np.int64)
    if notes[0] != address or notes[1] != group:
        notes[0], notes[1], notes[2] = address, group, 0
    before = notes[2]
    notes[2] = before | 1 << panel
    return before != notes[2]


@jit.inline
def write_past_caches(source, target, count):
    """Copy bytes to a target whose cache lines are not read first."""
    for at in range(0, count, ALIGNED):
        store_past_caches(source + at, target + at)
    fence()


@functools.cache
def gather() -> CFunc:
    """The kernel for all dtypes and tiles; its tasks are (group, block of pixels, part of the channel panels)."""

    def gather_tiles(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, GATHER)
        own = call.workspace + thread * p.workspace_bytes
        starts = array_at(own + p.starts, p.tile_pixels, np.int64)
        buffer_rows = array_at(own + p.buffer_rows, p.tile_pixels, np.int64)
        for m in range(p.tile_pixels):
            buffer_rows[m] = own + p.buffer + m * p.row_bytes
            starts[m] = call.start
        panels = (p.channels + p.tile_channels - 1) // p.tile_channels
        pixels = p.n * p.rows * p.columns
        taps = p.taps_r * p.taps_c
        chunks = (taps + p.chunk - 1) // p.chunk
        for task in range(begin, end):
            part = task % p.panel_parts
            block = task // p.panel_parts % p.blocks
            group = task // p.panel_parts // p.blocks
            first = p.tiles * block // p.blocks
            tiles = p.tiles * (block + 1) // p.blocks - first
            source = call.source
            if p.padding != 0:
                frame = record_at(p.padding, PAD)
                top = padded_row(p, frame, first * p.tile_pixels)
                last = min((first + tiles) * p.tile_pixels, pixels) - 1
                bottom = padded_row(p, frame, last) + p.last_row + 1
                given = call.source + group * frame.source_group
                call_part(frame.entry, (p.padding, given, own + p.strip, top, bottom))
                source = own + p.strip - top * frame.row_bytes
            source += group % p.groups * p.source_group
            target = written = call.target + p.target_offset + group * p.target_group
            done = first * p.tile_pixels * p.target_c
            past_caches = p.results != 0 and target % ALIGNED == 0
            if past_caches:
                target = own + p.results - done
            call_part(p.trace, (call.plan, own, source, target, first, tiles))
            first_panel, last_panel = panels * part // p.panel_parts, panels * (part + 1) // p.panel_parts
            for turn in range(first_panel * chunks, last_panel * chunks):
                panel, tap = turn // chunks, turn % chunks * p.chunk
                weight_step, weight_tap = p.row_bytes, p.reduction * p.row_bytes
                if p.in_place != 0:
                    weight_step, weight_tap = p.weight_step, p.weight_tap
                    weights = call.other + group * p.weight_group + panel * p.weight_panel
                elif p.packing != 0:
                    weights = own + p.packed + (panel * taps * weight_tap if p.keeps != 0 else 0)
                    if p.keeps == 0 or is_new(own, address, group, panel):
                        q = record_at(p.packing, PACKING)
                        given = call.other + group * q.source_group
                        call_part(q.entry, (p.packing, given, panel, weights, tap, min(tap + p.chunk, taps)))
                    weights -= tap * weight_tap
                else:
                    weights = call.other + group * p.packed_group + panel * taps * weight_tap
                if p.chunk < taps:
                    take_chunk(p, own, tiles, tap)
                call_part(
                    p.multiply_last if panel == panels - 1 else p.multiply,
                    (address, own, group, first, tiles, panel, tap, weights, weight_step, weight_tap),
                )
            if p.last_pixel != 0 and last_panel == panels:
                call_part(p.last_pixel, (address, own, group, first, tiles))
            if past_caches:
                count = min((first + tiles) * p.tile_pixels, pixels) * p.target_c - done
                write_past_caches(own + p.results, written + done, count)

    return jit.kernel(gather_tiles)
