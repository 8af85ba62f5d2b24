"""How problems in NCHW are cut into bands of images, rows or channels whose scratch is small enough."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from fastconv.algorithms.base import scratch_limit
from fastconv.problem import CHANNELS_LAST, ConvProblem

_CHANNEL_BLOCKS = (64, 32, 16)
"""Output channels of a block are a multiple of these: of the widest register tile's, or of narrower ones where those
are too many."""
_WEIGHTS_OF_SCRATCH = 4
"""Least part of the scratch that the weights of a block may take."""
_ADDED = 3.0
"""Time of adding a weight's gradient of one band to that of those before, over that of turning a value on a thread."""
_BAND_ROWS = 2
"""Rows of a band for each row of the kernel: what bands overlap is transposed twice."""


@dataclass(frozen=True)
class Band:
    """Images `first` to `last`, the output rows `top` to `bottom` and the input rows `low` to `high`."""

    first: int
    last: int
    top: int
    bottom: int
    low: int
    high: int
    problem: ConvProblem


def _rows_read(problem: ConvProblem, top: int, bottom: int) -> tuple[int, int]:
    """The input rows that the output rows from `top` to `bottom` read, those in the padding left out."""
    before, step = problem.padding[0][0], problem.stride[0]
    reach = (problem.kernel_size[0] - 1) * problem.dilation[0]
    return max(top * step - before, 0), min((bottom - 1) * step - before + reach + 1, problem.input_size[0])


def _rows_reaching(problem: ConvProblem, low: int, high: int) -> tuple[int, int]:
    """The output rows that read any of the input rows from `low` to `high`, and begin no later than these."""
    before, step = problem.padding[0][0], problem.stride[0]
    reach = (problem.kernel_size[0] - 1) * problem.dilation[0]
    top = min((low + before) // step, -(-(low + before - reach) // step))
    return max(top, 0), min((high - 1 + before) // step + 1, problem.output_size[0])


def row_band(problem: ConvProblem, direction: str, image: int, first: int, last: int, layout: str) -> Band | None:
    """The part of one image that makes some rows of the result; None where that is no problem of its own."""
    if direction == "forward":
        (top, bottom), (low, high) = (first, last), _rows_read(problem, first, last)
    else:
        (low, high), (top, bottom) = (first, last), _rows_reaching(problem, first, last)
        if last == problem.input_size[0]:
            bottom = problem.output_size[0]  # tiles over the image's edge read further, and bits are to be theirs
    if low >= high or top >= bottom:
        return None
    before, step = problem.padding[0][0], problem.stride[0]
    begin = top * step - before
    end = (bottom - 1) * step - before + (problem.kernel_size[0] - 1) * problem.dilation[0] + 1
    padding = ((low - begin, max(end - high, 0)), problem.padding[1])
    size = (high - low, problem.input_size[1])
    part = replace(problem, n=1, input_size=size, padding=padding, layout=layout)
    if part.output_size[0] != bottom - top:
        return None
    return Band(image, image + 1, top, bottom, low, high, part)


def bands_of(problem: ConvProblem, direction: str, layout: str, together: int = 1) -> list[Band] | None:
    """Cut a problem into bands whose scratch is small enough; None where that cannot be done.

    `layout` is that of the bands' own problems, CHANNELS_LAST or IMAGES_LAST; bands are multiples of `together` rows.
    """
    limit = scratch_limit(replace(problem, n=1), 2)  # whatever the threads and the batch: bits depend on the bands
    if layout == CHANNELS_LAST:
        limit -= math.prod(problem.w_shape) * problem.itemsize
    each = (math.prod(problem.x_shape) + math.prod(problem.y_shape)) // problem.n * problem.itemsize
    return _bands_within(problem, direction, layout, int(limit), each, together)


def _bands_within(
    problem: ConvProblem, direction: str, layout: str, limit: int, each: int, multiple: int = 1
) -> list[Band] | None:  # fmt: skip
    """Bands that take no more than `limit` bytes of scratch, where a whole image takes `each`."""
    n, (ih, _), (oh, _) = problem.n, problem.input_size, problem.output_size
    together = min(n, limit // each)
    if together >= 1:
        return [
            Band(first, min(first + together, n), 0, oh, 0, ih,
                  replace(problem, n=min(together, n - first), layout=layout))
            for first in range(0, n, together)
        ]  # fmt: skip
    if limit <= 0:
        return None
    count = oh if direction == "forward" else ih
    rows = -(-count // -(-each // limit) // multiple) * multiple
    if rows < _BAND_ROWS * problem.kernel_size[0]:
        return None
    starts = [(image, first) for image in range(n) for first in range(0, count, rows)]
    bands = [row_band(problem, direction, image, first, min(first + rows, count), layout) for image, first in starts]
    return None if None in bands else bands  # type: ignore[return-value]


Span = tuple[int, int]
"""Where some channels begin and end."""


@dataclass(frozen=True)
class Cut:
    """How a weight gradient is cut: blocks of channels after others, each the sum of the gradients of all bands."""

    bands: tuple[Band, ...]
    inputs: tuple[Span, ...]
    outputs: tuple[Span, ...]

    @property
    def blocks(self) -> Iterator[Block]:
        """All blocks, in the order in which they are computed."""
        x = y = None
        for inputs, outputs, band in itertools.product(self.inputs, self.outputs, self.bands):
            before, x, y = (x, y), (inputs, band), (outputs, band)
            yield Block(inputs, outputs, band, x != before[0], y != before[1])


@dataclass(frozen=True)
class Block:
    """Some input and some output channels of a band, and whether the block before had others of x and of y."""

    inputs: Span
    outputs: Span
    band: Band
    other_x: bool
    other_y: bool


def cut_of(problem: ConvProblem) -> Cut | None:
    """Cut a weight gradient so that its scratch is small enough; None where that cannot be done."""
    cuts = (_cut(problem, block, whole) for block in _CHANNEL_BLOCKS for whole in (True, False))
    first = next((cut for cut in cuts if cut is not None), None)
    if first is not None and len(first.bands) <= problem.n:
        return first
    found = [cut for cut in (first, *_blocks_of_both(problem)) if cut is not None]
    return min(found, key=lambda cut: _moved(problem, cut), default=None)


def _spans(count: int, width: int) -> tuple[Span, ...]:
    """`count` channels in spans of so many, the last of as many as are left."""
    return tuple((first, min(first + width, count)) for first in range(0, count, width))


def _cut(problem: ConvProblem, block: int, whole: bool) -> Cut | None:
    """Cut into blocks of a multiple of `block` output channels, whose images are `whole` or cut into bands."""
    limit = int(scratch_limit(problem, 2))
    w_bytes = math.prod(problem.w_shape) * problem.itemsize
    parts = -(-w_bytes * _WEIGHTS_OF_SCRATCH // limit) if problem.groups == 1 else 1
    width = -(-problem.oc // parts // block) * block
    outputs = _spans(problem.oc, width)
    if len(outputs) > 1 and problem.oc - outputs[-1][0] < block:
        outputs = (*outputs[:-2], (outputs[-2][0], problem.oc))
    width = max(end - first for first, end in outputs)
    # One block's gradient, and that of a band which is added to it.
    limit -= (1 if whole else 2) * (w_bytes * width // problem.oc)
    each = math.prod(problem.x_shape) + math.prod(problem.y_shape) * width // problem.oc
    bands = _bands_within(problem, "forward", CHANNELS_LAST, limit, each // problem.n * problem.itemsize)
    if bands is None or (whole and len(bands) > 1):
        return None
    return Cut(tuple(bands), ((0, problem.ic),), outputs)


def _blocks_of_both(problem: ConvProblem) -> Iterator[Cut]:
    """Cut into blocks of input and of output channels, whose images are whole."""
    if problem.groups > 1:
        return
    limit, block = int(scratch_limit(problem, 2)) // problem.itemsize, _CHANNEL_BLOCKS[0]
    pixels_in, pixels_out = math.prod(problem.input_size), math.prod(problem.output_size)
    images = _bands_within(problem, "forward", CHANNELS_LAST, 1, 1)  # each image for itself
    assert images is not None
    gradients = math.prod(problem.kernel_size) * min(2, len(images))
    for width in range(block, problem.ic, block):
        most = (limit - width * pixels_in) // (pixels_out + width * gradients) // block * block
        if most >= min(block, problem.oc):
            yield Cut(tuple(images), _spans(problem.ic, width), _spans(problem.oc, most))


def _moved(problem: ConvProblem, cut: Cut) -> float:
    """Values that are turned, and the time of adding up the bands' gradients in as many more."""
    moved = _ADDED * math.prod(problem.w_shape) * (len(cut.bands) - 1)
    for block in cut.blocks:
        (first, last), (start, end), band = block.inputs, block.outputs, block.band
        part = band.problem
        moved += block.other_x * part.n * (last - first) * math.prod(part.input_size)
        moved += block.other_y * part.n * (end - start) * math.prod(part.output_size)
    return moved
