"""What strips of pixels read in a row: neighbouring source pixels of a vector of channels, zeros outside the image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastconv.kernels.emit import I64, Emitter, ask


class PixelColumns:
    """Neighbouring source pixels of a vector of channels, each with where it lies in a row; those outside are `zeros`.

    Pixel v of `width` meets column v + b by each of the kernel's `taps`. Column q is the source's `first` + `spread` q,
    of `size`; they lie `step` bytes apart. With every pixel the line so many bytes `ahead` of it is asked for.
    """

    def __init__(
        self, emit: Emitter, width: int, taps: int, first: Any, spread: Any, size: Any, step: Any, zeros: Any,
        ahead: Any = None,
    ) -> None:  # fmt: skip
        builder, self._emit = emit.builder, emit
        self._ahead = ahead
        self._width, self._taps = width, taps
        self._places = []
        for q in range(width + taps - 1):
            column = emit.add(first, builder.mul(spread, emit.const(q)))
            inside = builder.icmp_unsigned("<", column, size)
            # The optimiser would make a loop of its own for each side of a choice.
            mask = emit.opaque(builder.sext(inside, I64))
            self._places.append((mask, builder.select(inside, builder.mul(column, step), zeros)))

    def in_row(self, row: Any) -> Iterator[tuple[int, int, Any]]:
        """What pixels meet in the row at an address: each pixel, tap and source vector, which is loaded once."""
        for q, (mask, offset) in enumerate(self._places):
            place = self._emit.add(self._emit.builder.and_(row, mask), offset)
            if self._ahead is not None:
                ask(self._emit.builder, self._emit.add(place, self._ahead))
            value = self._emit.load(place)
            for v in range(max(0, q - self._taps + 1), min(self._width, q + 1)):
                yield v, q - v, value
