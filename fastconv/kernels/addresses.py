"""Lists of addresses, which say to a register tile what it reads and writes.

`ADDRESSES` of them are computed at once, in the lanes of vectors of int64. One compiled loop serves tiles of any
height: compiled for each, in vectors as long as a tile is high, the lists took LLVM longer than the tiles themselves. A
list's last vector reaches up to ``ADDRESSES - 1`` places behind its end, where tables have room, or what follows is
written afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.kernels.emit import I32, I64, Emitter

ADDRESSES = 8
"""Addresses that are written at once."""
ADDRESS_BYTES = 8 * ADDRESSES


def list_bytes(count: int) -> int:
    """Bytes that whole vectors of so many addresses take."""
    return -(-count // ADDRESSES) * ADDRESS_BYTES


_OUTSIDE = -(1 << 62)
"""Offset of a row or column in the padding: added to any other it stays negative."""


class _Integers:
    """Arithmetic on vectors of int64."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder
        self.emit = Emitter(builder, ir.FloatType(), 1)
        self.vector = ir.VectorType(I64, ADDRESSES)
        self._lane0 = ir.Constant(ir.VectorType(I32, ADDRESSES), [0] * ADDRESSES)
        self.lanes = ir.Constant(self.vector, list(range(ADDRESSES)))
        self.zero = ir.Constant(self.vector, [0] * ADDRESSES)

    def splat(self, value: Any) -> Any:
        undefined = ir.Constant(self.vector, ir.Undefined)
        one = self.builder.insert_element(undefined, value, ir.Constant(I32, 0))
        return self.builder.shuffle_vector(one, undefined, self._lane0)

    def load(self, address: Any) -> Any:
        return self.builder.load(self.builder.inttoptr(address, self.vector.as_pointer()), align=8)

    def store(self, value: Any, address: Any) -> None:
        self.builder.store(value, self.builder.inttoptr(address, self.vector.as_pointer()), align=8)

    def scaled(self, value: Any, factor: Any) -> Any:
        """`value` times an integer."""
        return self.builder.mul(value, self.splat(factor))

    def each(self, count: Any, body: Callable[[Any, Any, list[Any]], list[Any]], carried: list[Any]) -> list[Any]:
        """Loop over a list of `count`: `body` gets the numbers of a vector's entries, and their offset in bytes."""
        emit = self.emit

        def step(k: Any, values: list[Any]) -> list[Any]:
            numbers = self.builder.add(self.lanes, self.splat(self.builder.mul(k, emit.const(ADDRESSES))))
            return body(numbers, self.builder.mul(k, emit.const(ADDRESS_BYTES)), values)

        return emit.loop(
            self.builder.sdiv(emit.add(count, emit.const(ADDRESSES - 1)), emit.const(ADDRESSES)), step, carried
        )


@intrinsic
def number_pixels(
    typingctx: Any, count: Any, image: Any, row: Any, column: Any, left: Any, rows: Any, columns: Any, places: Any,
    pitch: Any,
) -> Any:  # fmt: skip
    """Write the images, the rows and the columns of `count` pixels from one on, through the ends of rows and images.

    The three lists are `pitch` bytes apart; a pixel that is more than `left` after the first is that one.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        count, image, row, column, left, rows, columns, places, pitch = args
        many = _Integers(builder)
        emit, most, height, width = many.emit, many.splat(left), many.splat(rows), many.splat(columns)
        ends = builder.sdiv(emit.add(column, emit.add(count, emit.const(ADDRESSES))), columns)

        def wrap(_: Any, values: list[Any]) -> list[Any]:
            images, lines, places = values
            past = builder.icmp_signed(">=", places, width)
            places = builder.sub(places, builder.select(past, width, many.zero))
            lines = builder.add(lines, builder.zext(past, many.vector))
            below = builder.icmp_signed(">=", lines, height)
            lines = builder.sub(lines, builder.select(below, height, many.zero))
            return [builder.add(images, builder.zext(below, many.vector)), lines, places]

        def number(numbers: Any, along: Any, _: list[Any]) -> list[Any]:
            ahead = builder.select(builder.icmp_signed("<", numbers, most), numbers, most)
            place = emit.add(places, along)
            first = [many.splat(image), many.splat(row), builder.add(many.splat(column), ahead)]
            for values in emit.loop(ends, wrap, first):
                many.store(values, place)
                place = emit.add(place, pitch)
            return []

        many.each(count, number, [])
        return context.get_dummy_value()

    return types.void(*[types.intp] * 9), codegen


@intrinsic
def trace_axis(
    typingctx: Any, count: Any, positions: Any, step: Any, taps: Any, offsets: Any, size: Any, stride: Any,
    images: Any, image_stride: Any, parts: Any, pitch: Any,
) -> Any:  # fmt: skip
    """Write the part of an address that the rows, or columns, of `count` pixels contribute at each of `taps` taps.

    That is ``(position * step + offset) * stride + image * image_stride``, or a number too small for any sum with it
    to be an offset where the pixel lies in the padding. The lists of the taps are `pitch` bytes apart.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        count, positions, step, taps, offsets, size, stride, images, image_stride, parts, pitch = args
        many = _Integers(builder)
        emit, limit = many.emit, many.splat(size)

        def trace(_: Any, along: Any, __: list[Any]) -> list[Any]:
            scaled = many.scaled(many.load(emit.add(positions, along)), step)
            base = many.scaled(many.load(emit.add(images, along)), image_stride)

            def tap(a: Any, _: list[Any]) -> list[Any]:
                offset = emit.load_int(emit.add(offsets, builder.mul(a, emit.const(8))))
                at = builder.add(scaled, many.splat(offset))
                part = builder.add(base, many.scaled(at, stride))
                # As unsigned integers, negative positions are too large as well.
                inside = builder.icmp_unsigned("<", at, limit)
                part = builder.select(inside, part, many.splat(emit.const(_OUTSIDE)))
                many.store(part, emit.add(emit.add(parts, along), builder.mul(a, pitch)))
                return []

            return emit.loop(taps, tap, [])

        many.each(count, trace, [])
        return context.get_dummy_value()

    return types.void(*[types.intp] * 11), codegen


@intrinsic
def trace_run(
    typingctx: Any, count: Any, row_parts: Any, column_parts: Any, source: Any, outside: Any, table: Any
) -> Any:  # fmt: skip
    """Write the addresses that `count` pixels read at one tap, and return how many of them lie inside the image.

    An address is `source` plus a row part and a column part, the two given by the addresses of their lists; where their
    sum is negative the pixel lies in the padding and gets the address `outside`.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        count, row_parts, column_parts, source, outside, table = args
        many = _Integers(builder)
        emit, base, elsewhere, all_of_them = many.emit, many.splat(source), many.splat(outside), many.splat(count)

        def trace(numbers: Any, along: Any, found: list[Any]) -> list[Any]:
            offset = builder.add(many.load(emit.add(row_parts, along)), many.load(emit.add(column_parts, along)))
            inside = builder.icmp_signed(">=", offset, many.zero)
            many.store(builder.select(inside, builder.add(offset, base), elsewhere), emit.add(table, along))
            counted = builder.and_(inside, builder.icmp_signed("<", numbers, all_of_them))
            mask = builder.bitcast(counted, ir.IntType(ADDRESSES))
            return [builder.add(found[0], builder.ctpop(builder.zext(mask, I64)))]

        return many.each(count, trace, [emit.const(0)])[0]

    return types.intp(*[types.intp] * 6), codegen


@intrinsic
def write_places(
    typingctx: Any, count: Any, places: Any, first: Any, image_step: Any, row_step: Any, column_step: Any,
    numbers: Any, pitch: Any,
) -> Any:  # fmt: skip
    """Write the places of the pixels of `number_pixels`, those at the given steps from `first`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        count, places, first, *steps, numbers, pitch = args
        many = _Integers(builder)
        emit = many.emit

        def write(_: Any, along: Any, __: list[Any]) -> list[Any]:
            total, number = many.splat(first), emit.add(numbers, along)
            for step in steps:
                total = builder.add(total, many.scaled(many.load(number), step))
                number = emit.add(number, pitch)
            many.store(total, emit.add(places, along))
            return []

        many.each(count, write, [])
        return context.get_dummy_value()

    return types.void(*[types.intp] * 8), codegen


@intrinsic
def trace_places(typingctx: Any, count: Any, places: Any, first: Any, outside: Any, table: Any) -> Any:
    """Write the addresses of `count` pixels: `first` plus their places, or `outside` where a place is negative."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        count, places, first, outside, table = args
        many = _Integers(builder)
        emit, base, elsewhere = many.emit, many.splat(first), many.splat(outside)

        def trace(_: Any, along: Any, __: list[Any]) -> list[Any]:
            place = many.load(emit.add(places, along))
            inside = builder.icmp_signed(">=", place, many.zero)
            many.store(builder.select(inside, builder.add(base, place), elsewhere), emit.add(table, along))
            return []

        many.each(count, trace, [])
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), codegen


@intrinsic
def pitched_places(
    typingctx: Any, count: Any, first: Any, step: Any, limit: Any, base: Any, stride: Any, outside: Any, table: Any
) -> Any:  # fmt: skip
    """Write the places of `count` positions, `step` apart from the `first` one on.

    A place is `base` plus the position times `stride`; `outside` for a position that is negative or not below `limit`.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        count, first, step, limit, base, stride, outside, table = args
        many = _Integers(builder)
        begin, start, most, elsewhere = (many.splat(value) for value in (first, base, limit, outside))

        def write(numbers: Any, along: Any, _: list[Any]) -> list[Any]:
            position = builder.add(begin, many.scaled(numbers, step))
            # As unsigned integers, negative positions are too large as well.
            inside = builder.icmp_unsigned("<", position, most)
            place = builder.select(inside, builder.add(start, many.scaled(position, stride)), elsewhere)
            many.store(place, many.emit.add(table, along))
            return []

        many.each(count, write, [])
        return context.get_dummy_value()

    return types.void(*[types.intp] * 8), codegen
