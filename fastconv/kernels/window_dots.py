"""Weight gradient by windows that slide along rows, with channels in the lanes: depthwise, or of few outputs.

Every weight is a sum over pixels of the input times the output gradient. The sums of several kernel rows stay in
registers while a window slides along a row of outputs: for every output it loads the source columns that are new to
it, and keeps the others. Where a layer has few target channels, the lanes hold source channels, and each of several
values of the gradient is in all lanes.

Windows that reach into the padding leave out what lies there. Slabs of pixels have partial gradients, which are added
in order (`fastconv.kernels.slabs`), so the result has the same bits for any number of threads.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
from numba import types
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

from fastconv.kernels import jit
from fastconv.kernels.copies import copy_pixels
from fastconv.kernels.emit import I64, Emitter, ask, literal, scalar_ir
from fastconv.kernels.groups import GroupLanes
from fastconv.kernels.params import CALL, record
from fastconv.kernels.simd import array_at, call_part, record_at
from fastconv.kernels.spans import end_inside, first_inside
from fastconv.kernels.target import IN_FLIGHT, WindowTile, vector_bytes, window_pixels

WINDOW_DOTS = record("""
    source_n source_r source_c source_rows source_columns
    gradient_n gradient_r gradient_c
    rows columns row_step column_step taps_r tap_rows phases first_row first_column
    channels outputs row_block row_blocks blocks parts slabs slab_bytes
    all_rows one_row taps_c together pixels tile_channels item ahead_source ahead_gradient
    copies given_r given_c given_gradient_r given_gradient_c last_row
    workspace_bytes strip gradients
""")
"""Strides are in bytes. Kernel rows lie `tap_rows` source rows apart, the columns of each phase `phases` columns. The
target is an array (slabs, taps_r, taps_c, outputs, channels), slabs `slab_bytes` apart, where `channels` are those in
the lanes and `outputs` those that are not. A tile takes `together` kernel rows and `pixels` pixels; `all_rows` and
`one_row` are the addresses of the compiled `rows_of_taps` for these kernel rows, and for one. The former may ask for
what lies `ahead_source` bytes after a tile's last kernel row, and for its gradient's: the next block's. Where a task
copies what it reads, `copies` channels at a time, rows and pixels lie apart as in the copies, and `given_*` say how the
caller's do; a target row's sources are those from `first_row` to `last_row`. The last line's fields are offsets into
each thread's workspace."""


class _Window:
    """The source columns under a window, and the sums of its products with the output gradient.

    A column is a list of vectors: all vectors of channels of each kernel row. Sums are in the order of kernel column,
    kernel row, output, vector of channels.
    """

    def __init__(self, emit: Emitter, rows: int, taps: int, outputs: int, channels: list[GroupLanes]) -> None:
        self._emit = emit
        self._rows, self.taps, self._outputs = rows, taps, outputs
        self._channels = channels
        self.height = rows * len(channels)
        """Vectors of a column."""
        self.count = taps * self.height * outputs
        self.sets = -(-IN_FLIGHT // self.count)
        """Sets of sums that are added to in turn: fewer sums would wait for their own results."""

    def column(self, place: Any, tap_step: Any) -> list[Any]:
        """Load a source column."""
        emit, size = self._emit, self._emit.vector_bytes
        places = [emit.add(place, emit.builder.mul(tap_step, emit.const(a))) for a in range(self._rows)]
        return [
            channels.load_source(emit.add(at, emit.const(v * size)))
            for at in places
            for v, channels in enumerate(self._channels)
        ]

    def gradient(self, place: Any, offsets: list[Any]) -> list[Any]:
        """Load a pixel's gradient: its channels, or one vector for each of the outputs at these offsets."""
        if not offsets:
            return [self._channels[0].load(place)]
        return [self._emit.load_broadcast(self._emit.add(place, offset)) for offset in offsets]

    def multiply(self, column: list[Any], b: int, gradient: list[Any], sums: list[Any]) -> list[Any]:
        """The sums of kernel column `b` with the products of a source column added."""
        pairs = [(source, value) for source in column for value in gradient]
        first = b * len(pairs)
        added = [self._emit.fma(*pair, total) for pair, total in zip(pairs, sums[first:], strict=False)]
        return [*sums[:first], *added, *sums[first + len(pairs) :]]

    def add_to(self, sums: list[Any], target: Any, steps: tuple[Any, Any, Any], outputs: Any) -> None:
        """Add the sums to the target, whose kernel rows, columns and outputs lie `steps` apart."""
        emit, builder = self._emit, self._emit.builder
        const, multiply = emit.const, builder.mul
        for d in range(self._outputs):
            with builder.if_then(builder.icmp_signed("<", const(d), outputs)):
                for b, a in itertools.product(range(self.taps), range(self._rows)):
                    at = emit.add(target, multiply(steps[0], const(a)))
                    at = emit.add(emit.add(at, multiply(steps[1], const(b))), multiply(steps[2], const(d)))
                    for v, channels in enumerate(self._channels):
                        place = emit.add(at, const(v * emit.vector_bytes))
                        index = (b * self.height + a * len(self._channels) + v) * self._outputs + d
                        total = channels.load(place)
                        for one in sums[index :: self.count]:
                            total = builder.fadd(total, one)
                        channels.store(total, place)


@intrinsic(prefer_literal=True)
def slide_window(
    typingctx: Any, REAL: Any, VL: Any, KH: Any, KW: Any, S: Any, NV: Any, ND: Any, MASKED: Any, ASK: Any,
    lines: Any, columns: Any, inside: Any, tiles: Any, first: Any, size: Any,
    source: Any, source_line: Any, source_tap: Any, source_step: Any,
    gradient: Any, gradient_line: Any, gradient_step: Any,
    target: Any, target_row: Any, target_step: Any, target_output: Any, there: Any, outputs: Any,
    ahead_source: Any, ahead_gradient: Any,
) -> Any:  # fmt: skip
    """Sums of KH x KW taps over `lines` rows: ``target[a, b] += sum over pixels j of source[a, j S + b] gradient[j]``.

    Rows have `columns` pixels, of which the first reads from source position `first` of `size`; those from `inside` on
    read no padding, for as many pixels as `tiles` tiles have. `source` is the address of position 0. Lines, kernel
    rows, source columns and pixels lie as many bytes apart as their steps say. The lanes hold NV vectors of channels,
    `there` channels if MASKED. With ND > 0, all lanes meet each of ND values of the gradient, of which `outputs` are
    there, in sums `target_output` apart. If they ASK, tiles do so for what lies ahead of their last row and gradient.
    """
    lanes, width, taps, stride, values = literal(VL), literal(NV), literal(KW), literal(S), literal(ND)
    rows, masked, asks = literal(KH), literal(MASKED), literal(ASK)
    unroll = window_pixels(taps)
    kept = max(0, taps - stride)
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lines, columns, inside, tiles, first, size = args[9:15]
        source, source_line, source_tap, source_step, gradient, gradient_line, gradient_step = args[15:22]
        target, target_row, target_step, target_output, there, outputs, ahead_source, ahead_gradient = args[22:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        const, add, multiply = emit.const, emit.add, builder.mul
        channels = [GroupLanes(emit, 1, 1, masked, builder.sub(there, const(v * lanes))) for v in range(width)]
        window = _Window(emit, rows, taps, max(1, values), channels)
        last = builder.sub(outputs, const(1))
        offsets = [
            multiply(builder.select(builder.icmp_signed("<", const(d), outputs), const(d), last), const(emit.item))
            for d in range(values)
        ]
        in_tiles = multiply(tiles, const(unroll))
        count = window.count

        def line(i: Any, sums: list[Any]) -> list[Any]:
            row, pixels = add(source, multiply(i, source_line)), add(gradient, multiply(i, gradient_line))

            def careful(k: Any, sums: list[Any]) -> list[Any]:
                """A pixel beside the tiles, whose window may reach into the padding."""
                k = add(k, builder.select(builder.icmp_signed("<", k, inside), const(0), in_tiles))
                value = window.gradient(add(pixels, multiply(k, gradient_step)), offsets)
                position = add(first, multiply(k, const(stride)))
                for b in range(taps):
                    at = add(position, const(b))
                    place = add(row, multiply(at, source_step))

                    def tap(_: Any, sums: list[Any], b: int = b, place: Any = place) -> list[Any]:
                        return window.multiply(window.column(place, source_tap), b, value, sums)

                    sums = emit.loop(builder.zext(builder.icmp_unsigned("<", at, size), I64), tap, sums)
                return sums

            def tile(_: Any, carried: list[Any]) -> list[Any]:
                """Pixels whose windows lie inside, and share columns with those before."""
                place, pixel, *carried = carried
                split = len(carried) - kept * window.height
                sums, flat = carried[:split], carried[split:]
                under = [flat[k : k + window.height] for k in range(0, len(flat), window.height)]
                place, pixel = emit.opaque(place), emit.opaque(pixel)
                for u in range(unroll):
                    for c in range(len(under), taps):
                        at = add(place, multiply(source_step, const(u * stride + c - kept)))
                        under.append(window.column(at, source_tap))
                        if asks:
                            ask(builder, add(add(at, multiply(source_tap, const(rows - 1))), ahead_source))
                    at = add(pixel, multiply(gradient_step, const(u)))
                    value = window.gradient(at, offsets)
                    if asks:
                        ask(builder, add(at, ahead_gradient))
                    begin = u % window.sets * count
                    these = sums[begin : begin + count]
                    for b in range(taps):
                        these = window.multiply(under[b], b, value, these)
                    sums = [*sums[:begin], *these, *sums[begin + count :]]
                    under = under[stride:]
                place = add(place, multiply(source_step, const(unroll * stride)))
                return [place, add(pixel, multiply(gradient_step, const(unroll))), *sums, *itertools.chain(*under)]

            def all_tiles(_: Any, sums: list[Any]) -> list[Any]:
                place = add(row, multiply(add(first, multiply(inside, const(stride))), source_step))
                pixel = add(pixels, multiply(inside, gradient_step))
                under = [window.column(add(place, multiply(source_step, const(c))), source_tap) for c in range(kept)]
                place = add(place, multiply(source_step, const(kept)))
                return emit.loop(tiles, tile, [place, pixel, *sums, *itertools.chain(*under)])[2 : 2 + len(sums)]

            sums = emit.loop(builder.sub(columns, in_tiles), careful, sums)
            return emit.loop(builder.zext(builder.icmp_signed(">", tiles, const(0)), I64), all_tiles, sums)

        sums = emit.loop(lines, line, [emit.constant(0.0)] * (count * window.sets))
        window.add_to(sums, target, (target_row, target_step, target_output), outputs)
        return context.get_dummy_value()

    return types.void(REAL, VL, KH, KW, S, NV, ND, MASKED, ASK, *[types.intp] * 21), codegen


@functools.cache
def rows_of_taps(dtype: str, tile: WindowTile) -> CFunc:
    """The part of the kernel that knows dtype and tile: KH kernel rows over `lines` rows of pixels.

    Channels are those from `first_channel` to `end_channel`; `x`, `y` and `target` are the addresses of the first line,
    of its gradient and of the first kernel row's sums. The others are the arguments of `slide_window`.
    """
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, KH, KW, S, NV, ND, MASKED = tile.VL, tile.KH, tile.KW, tile.S, tile.NV, tile.ND, int(tile.masked)
    LANES, OUTPUTS, ASK = VL * NV, max(1, ND), int(tile.asks)

    def slide_over_lines(
        plan, x, y, target, lines, columns, inside, tiles, first, size, first_channel, end_channel
    ):  # fmt: skip
        p = record_at(plan, WINDOW_DOTS)
        target_output = p.channels * ITEM
        target_step = p.outputs * target_output
        for k in range(first_channel, end_channel, LANES):
            for d in range(0, p.outputs, OUTPUTS):
                slide_window(
                    REAL, VL, KH, KW, S, NV, ND, MASKED, ASK, lines, columns, inside, tiles, first, size,
                    x + k * ITEM, p.row_step * p.source_r, p.tap_rows * p.source_r, p.phases * p.source_c,
                    y + (d if ND > 0 else k) * ITEM, p.gradient_r, p.phases * p.gradient_c,
                    target + d * target_output + k * ITEM, KW * target_step, target_step, target_output,
                    p.channels - k, p.outputs - d, p.ahead_source, p.ahead_gradient,
                )  # fmt: skip

    return jit.part(slide_over_lines)


@jit.inline
def copy_block(p, WORDS, own, source, gradient, first, last, start, end):
    """Copy channels `start` to `end` of what target rows `first` to `last` read.

    Returns where the first channels of an image, and of its gradient, would lie as those of the copies do.
    """
    begin, count = start * p.item, (end - start) * p.item
    top = max(0, first * p.row_step + p.first_row)
    bottom = max(top, min(p.source_rows, (last - 1) * p.row_step + p.last_row + 1))
    copy_pixels(
        WORDS, source + top * p.given_r + begin, p.given_r, p.given_c, own + p.strip, p.source_r, p.source_c,
        bottom - top, p.source_columns, count,
    )  # fmt: skip
    copy_pixels(
        WORDS, gradient + first * p.given_gradient_r + begin, p.given_gradient_r, p.given_gradient_c,
        own + p.gradients, p.gradient_r, p.gradient_c, last - first, p.columns, count,
    )  # fmt: skip
    return own + p.strip - top * p.source_r - begin, own + p.gradients - first * p.gradient_r - begin


@jit.inline
def slide_over_block(p, plan, source, gradient, slab, first, last, start, end):
    """Add what target rows `first` to `last` of an image give to the sums of channels `start` to `end` of a slab."""
    row_bytes = p.taps_c * p.outputs * p.channels * p.item
    for phase in range(min(p.phases, p.columns)):
        # Positions in a row of the source are those of one phase.
        base, at = (p.first_column + phase) % p.phases, (p.first_column + phase) // p.phases
        size = max(0, (p.source_columns - base + p.phases - 1) // p.phases)
        columns = (p.columns - phase + p.phases - 1) // p.phases
        inside = first_inside(at, p.column_step)
        tiles = max(0, end_inside(at + p.taps_c - 1, p.column_step, size, columns) - inside) // p.pixels
        x_image = source + base * p.source_c
        y_image = gradient + phase * p.gradient_c
        for a in range(0, p.taps_r, p.together):
            # Rows where all taps at once lie inside the image; before and after them, each for itself.
            row, low, high = p.first_row + a * p.tap_rows, first, first
            if a + p.together <= p.taps_r:
                low = min(max(first, first_inside(row, p.row_step)), last)
                below = row + (p.together - 1) * p.tap_rows
                high = max(low, end_inside(below, p.row_step, p.source_rows, last))
            for side in range(-1, 2 * min(p.together, p.taps_r - a)):
                entry, tap, top, bottom = p.all_rows, a, low, high
                if side >= 0:
                    entry, tap = p.one_row, a + side // 2
                    row = p.first_row + tap * p.tap_rows
                    top = max(first, first_inside(row, p.row_step))
                    bottom = end_inside(row, p.row_step, p.source_rows, last)
                    if side % 2 == 0:
                        bottom = min(bottom, low)
                    else:
                        top = max(top, high)
                if top >= bottom:
                    continue
                x = x_image + (p.first_row + tap * p.tap_rows + top * p.row_step) * p.source_r
                y, target = y_image + top * p.gradient_r, slab + tap * row_bytes
                call_part(
                    entry, (plan, x, y, target, bottom - top, columns, inside, tiles, at, size, start, end)
                )  # fmt: skip


@functools.cache
def window_dots() -> CFunc:
    """The kernel for all dtypes and tiles; its tasks are (slab of blocks of rows, part of the channels)."""
    WORDS = vector_bytes() // 4

    def window_dot_tiles(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, WINDOW_DOTS)
        own = call.workspace + thread * p.workspace_bytes
        line_bytes = p.channels * p.item
        tiles_c = (p.channels + p.tile_channels - 1) // p.tile_channels
        for task in range(begin, end):
            part, slab = task % p.parts, task // p.parts
            first_channel = tiles_c * part // p.parts * p.tile_channels
            end_channel = min(tiles_c * (part + 1) // p.parts * p.tile_channels, p.channels)
            slab_target = call.target + slab * p.slab_bytes
            for line in range(p.taps_r * p.taps_c * p.outputs):
                sums = array_at(slab_target + line * line_bytes, line_bytes, np.uint8)
                sums[first_channel * p.item : end_channel * p.item] = 0
            for block in range(p.blocks * slab // p.slabs, p.blocks * (slab + 1) // p.slabs):
                image, first = block // p.row_blocks, block % p.row_blocks * p.row_block
                last = min(first + p.row_block, p.rows)
                together = p.copies if p.copies != 0 else p.channels
                for start in range(first_channel, end_channel, together):
                    end = min(start + together, end_channel)
                    source, gradient = call.source + image * p.source_n, call.other + image * p.gradient_n
                    if p.copies != 0:
                        source, gradient = copy_block(p, WORDS, own, source, gradient, first, last, start, end)
                    slide_over_block(p, call.plan, source, gradient, slab_target, first, last, start, end)

    return jit.kernel(window_dot_tiles)
