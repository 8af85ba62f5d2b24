"""The CPU that Numba compiles for: how wide its vectors are, and the register tile that fits it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import llvmlite.binding as llvm
import numpy as np
from numba.core.registry import cpu_target

_PROBE = """
define <16 x float> @probe(<16 x float> %a, <16 x float> %b) {
  %sum = fadd <16 x float> %a, %b
  ret <16 x float> %sum
}
"""


@dataclass(frozen=True)
class Tile:
    """A register tile: MR rows by NV vectors of VL lanes, the accumulators of one micro-kernel call.

    A multiply-add of such a vector takes `slots` of the time that one of a whole register takes.
    """

    VL: int
    MR: int
    NV: int
    slots: float = 1.0

    @property
    def NR(self) -> int:
        """Output channels that a tile covers."""
        return self.VL * self.NV

    def last(self, channels: int) -> Tile:
        """The tile of the last panel of so many channels, no wider than what the others leave."""
        left = channels - (-(-channels // self.NR) - 1) * self.NR
        return replace(self, NV=-(-left // self.VL))


@functools.cache
def vector_bytes() -> int:
    """Bytes of one vector register of the target CPU.

    LLVM itself is asked, by compiling an addition and reading which registers it took: NUMBA_CPU_NAME may name a
    CPU whose features no table here knows.
    """
    triple, cpu, features = cpu_target.target_context.codegen().magic_tuple()
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, features=features, opt=2)
    assembly = machine.emit_assembly(llvm.parse_assembly(_PROBE))
    return 64 if "zmm" in assembly else 32 if "ymm" in assembly else 16


def masks_have_registers() -> bool:
    """Whether masks have registers of their own, and cost nothing: not those of CPUs with narrower vectors."""
    return vector_bytes() == 64


_LEAST_BYTES = 32
"""Bytes of the narrowest vectors that have masks."""


def lanes_for(count: int, item: int) -> int:
    """Lanes of the vectors for rows of `count` values of `item` bytes: of short ones, as many as hold a row."""
    widest, lanes = vector_bytes() // item, _LEAST_BYTES // item
    while lanes < min(count, widest):
        lanes *= 2
    return lanes


def lanes_dividing(lanes: int, item: int) -> int:
    """Lanes of the widest vectors of which a whole number makes up a row of so many, of `item` bytes each."""
    return min(lanes & -lanes, vector_bytes() // item)


@functools.cache
def registers() -> int:
    """Vector registers of the target CPU."""
    triple = cpu_target.target_context.codegen().magic_tuple()[0]
    return 32 if vector_bytes() == 64 or triple.startswith(("aarch64", "arm64")) else 16


_HALVING = frozenset({"znver4", "cannonlake", "icelake-client", "rocketlake", "tigerlake"})
"""CPUs with 64-byte registers that compute with halves of them: one whole multiply-add a cycle, or two of half as many
lanes."""


@functools.cache
def halves_vectors() -> bool:
    """Whether a vector of half the lanes takes half the time, so that narrow ones may fill up with few channels."""
    return vector_bytes() == 64 and cpu_target.target_context.codegen().magic_tuple()[1] in _HALVING


Table = TypeVar("Table")


def of_this_cpu(whole: Table, halved: Table, narrow: Table) -> Table:
    """Which of three tables of costs is that of the target CPU.

    It multiplies vectors as a whole, or halves of them, or has those of 32 bytes, which find few registers.
    """
    return halved if halves_vectors() else narrow if vector_bytes() == 32 else whole


_SMALL_SECOND_CACHE = frozenset({"znver1", "znver2", "znver3"})
"""CPUs whose second cache level has half of what others have."""


@functools.cache
def second_cache_bytes() -> int:
    """Bytes of the second cache level of the target CPU."""
    return 1 << 19 if cpu_target.target_context.codegen().magic_tuple()[1] in _SMALL_SECOND_CACHE else 1 << 20


_HEIGHTS = {32: {1: 12, 2: 14, 3: 8, 4: 6}, 16: {1: 8, 2: 6, 3: 4}}
"""Rows of a tile for each number of vectors, by registers: the sums, a row of vectors and a scalar fill them."""
_HIGHEST = 15
"""Rows of the highest tile, of one vector: those of 5 taps of 3 channels, or of 15, 30 or 45 channels."""
_LOWER_HEIGHTS = {32: {4: (5, 4)}, 16: {2: (5, 4)}}
"""Further heights where few rows fill them better: the 49 pixels of a 7x7 image are ten times five, nearly."""
_LOWER_SHARE = 0.98
"""Speed of such a tile, which begins and ends more often."""
_NARROW_SHARE = 0.96
"""Time of tiles of half vectors that pays: there are twice as many of them, which begin and end."""
IN_FLIGHT = 8
"""Multiply-adds that a core has under way: fewer sums than these wait for their own results."""
LATENCY_ROWS = 4
"""A tile of fewer rows takes as long as one of these many: multiply-adds wait for their own results."""
TILE_SHARE = {1: 0.72, 2: 0.88, 3: 0.95, 4: 0.97}
"""Share of the peak that a tile of so many vectors reaches from the first cache level (docs/experiments.md)."""
_HALVED_SHARE = {1: 0.93, 2: 0.95, 3: 0.965, 4: 0.97}
"""The same of tiles of whole vectors where the CPU halves them: loads and addresses then have twice the time."""
_FEW_REGISTERS_SHARE = {1: 0.74, 2: 0.93, 3: 0.955}
"""The same of tiles of 16 registers."""


def share_of(shape: Tile, shares: dict[int, float]) -> float:
    """Share of the peak that a tile reaches; `shares` say it by vectors where a core does two multiply-adds a cycle."""
    if halves_vectors() and shape.slots == 1.0:
        shares = _HALVED_SHARE
    elif registers() == 16:
        shares = _FEW_REGISTERS_SHARE
    return shares[min(shape.NV, max(shares))]


_SPILLED_SHARE = 0.93
"""Speed of a tile of one vector that is higher than the one made for it: addresses of its rows are spilled."""


def tile(dtype: str, rows: int, channels: int) -> Tile:
    """Choose the tile for a problem with that many rows and channels in the lanes.

    The number of vectors is the one that leaves the fewest of the multiply-adds unused. At most four rows take a lower
    tile, which would compute most of its rows for nothing otherwise.
    """
    lanes = vector_bytes() // np.dtype(dtype).itemsize
    vectors = -(-channels // lanes)
    shapes = [Tile(VL=lanes, MR=_height(MR, rows), NV=NV) for NV, MR in _HEIGHTS[registers()].items()]

    def used(shape: Tile) -> float:
        return share_of(shape, TILE_SHARE) * vectors / (-(-vectors // shape.NV) * shape.NV)

    return max(shapes, key=lambda shape: (used(shape), shape.NV))


def panel_tile(
    dtype: str, rows: int, channels: int, halves: bool = False, highest: int = _HIGHEST, low_share: float = _LOWER_SHARE
) -> Tile:
    """Choose the tile where the last panel of channels has one of its own (`Tile.last`): none computes for nothing.

    Its vectors may be `halves` of registers where the CPU takes half the time for them. It has at most `highest` rows;
    low ones reach `low_share` of the speed of others.
    """
    lanes = vector_bytes() // np.dtype(dtype).itemsize
    if rows == 1:  # sums enough not to wait for each other, as evenly as they divide
        vectors = -(-channels // lanes)
        return Tile(VL=lanes, MR=1, NV=-(-vectors // -(-vectors // IN_FLIGHT)))
    heights, lower = _HEIGHTS[registers()], _LOWER_HEIGHTS[registers()]
    shapes = [Tile(VL=lanes, MR=min(_height(MR, rows), highest), NV=NV) for NV, MR in heights.items()]
    if rows > LATENCY_ROWS:
        shapes += [Tile(VL=lanes, MR=MR, NV=NV) for NV in lower for MR in lower[NV]]

    def slots(shape: Tile) -> float:
        share = low_share if shape.MR in lower.get(shape.NV, ()) else 1.0
        return -(-rows // shape.MR) * panel_slots(shape, channels, TILE_SHARE) / share

    best = min(shapes, key=lambda shape: (slots(shape), -shape.NV))
    return _narrowed(best, shapes, slots) if halves else best


def _narrowed(best: Tile, shapes: list[Tile], time: Callable[[Tile], float]) -> Tile:
    """The tile, or the best of half vectors where the CPU halves vectors and that takes less time."""
    if not halves_vectors():
        return best
    narrow = min((replace(shape, VL=shape.VL // 2, slots=0.5) for shape in shapes), key=time)
    return narrow if time(narrow) < _NARROW_SHARE * time(best) else best


def rows_meeting(pitch: int, set_bytes: int, most: int) -> int:
    """The highest tile where rows whose scalars lie `pitch` apart meet in a set of a cache, which holds `most`."""
    return most if pitch % set_bytes == 0 else _HIGHEST


def highest_tile() -> int:
    """Rows of the highest tile that `panel_tile` may choose."""
    return max(_HEIGHTS[registers()].values())


def panel_slots(shape: Tile, channels: int, shares: dict[int, float]) -> float:
    """Slots of one step of all panels, the multiply-adds of a vector; `shares` are what tiles reach of the peak.

    A low or narrow tile is held up by loads, of which one takes a slot, or waits for its own results.
    """
    one_vector = _HEIGHTS[registers()][1]

    def slots(part: Tile) -> float:
        share = share_of(part, shares)
        if part.NV == 1 and one_vector < shape.MR:
            share *= _SPILLED_SHARE
        return max(part.NV * max(shape.MR, LATENCY_ROWS) / share, IN_FLIGHT, (part.NV + shape.MR) / share)

    whole = -(-channels // shape.NR) - 1
    return (whole * slots(shape) + slots(shape.last(channels))) * shape.slots


def masks_or_fills(shape: Tile, channels: int) -> bool:
    """Whether vectors need read nothing past the last channel: they end there, or the CPU masks loads."""
    return channels % shape.VL == 0 or vector_bytes() > 16


def _height(rows_of_tile: int, rows: int) -> int:
    """Rows of a tile that is so high where it is filled."""
    return rows_of_tile if rows > 4 else 1 if rows == 1 else 4


MOST_SUMS = 4
"""Channels of a tile whose lanes are added up in the end."""


_LOWER = (1, 2, 3, 4, 6, 9)
"""Heights that tiles of few rows may have: each is one more kernel to compile."""
_ROW_OF_LOADS = 0.5
"""Rows of a tile that take as long as loading the vectors of a step."""


def correlate_tile(dtype: str, rows: int, channels: int) -> Tile:
    """Choose the tile for a weight gradient: that of `tile`, lower where its rows would be left over."""
    shape = tile(dtype, max(rows, _HEIGHTS[registers()][1]), channels)
    return _lowered(replace(shape, MR=_HIGHEST) if shape.NV == 1 and registers() == 32 else shape, rows)


def gradient_slots(shape: Tile, channels: int) -> float:
    """Slots of a row of all panels of a weight gradient's tile."""
    each, last = (part.NV / share_of(part, TILE_SHARE) * shape.slots for part in (shape, shape.last(channels)))
    return (-(-channels // shape.NR) - 1) * each + last


def gradient_tile(dtype: str, rows: int, channels: int) -> Tile:
    """Choose the same where the last panel of channels has a tile of its own (`Tile.last`)."""
    lanes = vector_bytes() // np.dtype(dtype).itemsize
    heights = {**_HEIGHTS[registers()], **({1: _HIGHEST} if registers() == 32 else {})}
    vectors = -(-channels // lanes)
    shapes = [_lowered(Tile(VL=lanes, MR=MR, NV=NV), rows) for NV, MR in heights.items()]

    def steps(shape: Tile) -> float:
        return -(-rows // shape.MR) * (shape.MR + _ROW_OF_LOADS) * gradient_slots(shape, channels)

    return _narrowed(
        min((shape for shape in shapes if vectors >= shape.NV), key=lambda shape: (steps(shape), -shape.NV)),
        shapes,
        steps,
    )


def _lowered(shape: Tile, rows: int) -> Tile:
    """The tile with as many rows as fill it best."""

    def steps(MR: int) -> tuple[float, int, int]:
        tiles = -(-rows // MR)
        return tiles * (MR + _ROW_OF_LOADS), tiles * MR - rows, -MR

    return replace(shape, MR=min((shape.MR, *(height for height in _LOWER if height < shape.MR)), key=steps))


def sum_tile_shape(dtype: str, channels: int, pixels: int) -> Tile:
    """Choose the tile of MR pixels by NV sums over the lanes, for so many target channels and pixels."""
    lanes = vector_bytes() // np.dtype(dtype).itemsize
    if pixels == 1 and channels >= IN_FLIGHT:
        return Tile(VL=lanes, MR=1, NV=IN_FLIGHT)
    sums = -(-channels // -(-channels // MOST_SUMS))
    rows = {32: {1: 14, 2: 12, 3: 8, 4: 6}, 16: {1: 8, 2: 4, 3: 3, 4: 2}}[registers()][sums]
    return Tile(VL=lanes, MR=rows, NV=sums)


def pixel_tile(dtype: str, channels: int, columns: int, beyond: bool = False) -> Tile:
    """Choose the tile for `columns` pixels in the lanes and `channels` output channels as rows.

    Fewer rows make room for more vectors, which hide the latency of the multiply-adds. Among the widths that fit the
    columns, or reach `beyond` them by less than a vector, the one wins that leaves the fewest lanes to compute twice or
    for nothing.
    """
    lanes = vector_bytes() // np.dtype(dtype).itemsize
    six = channels <= 6 and (lanes > 4 or registers() == 32)  # vectors of four lanes turn four rows at most
    rows = 1 if channels == 1 else 4 if channels <= 4 else 6 if six else 4 if registers() == 16 else 8
    widest = 2 if rows == 8 or (rows > 1 and registers() == 16) else 4
    room = columns + (lanes - 1 if beyond else 0)
    widths = [NV for NV in (4, 2, 1) if widest >= NV and NV * lanes <= room] or [1]
    return Tile(VL=lanes, MR=rows, NV=min(widths, key=lambda NV: -(-columns // (NV * lanes)) * NV))


def dot_tile_shape(dtype: str, channels: int) -> Tile:
    """Choose the tile of dot products: MR shifted input planes by NV planes of the output gradient."""
    lanes = vector_bytes() // np.dtype(dtype).itemsize
    planes = 4 if channels >= 4 else 1
    rows = {(32, 1): 14, (32, 4): 6, (16, 1): 6, (16, 4): 2}[registers(), planes]
    return Tile(VL=lanes, MR=rows, NV=planes)


def plane_tile(dtype: str) -> Tile:
    """Choose the tile of dot products of planes as they lie: MR planes by NV, whose products lie side by side."""
    lanes = vector_bytes() // np.dtype(dtype).itemsize
    rows, planes = (3, 8) if registers() == 32 else (3, 4)
    return Tile(VL=lanes, MR=rows, NV=planes)


def patch_tile(dtype: str) -> Tile:
    """Choose the tile of dot products of planes with packed windows: the rows of these are often no multiple of 8."""
    lanes = vector_bytes() // np.dtype(dtype).itemsize
    rows, planes = (4, 6) if registers() == 32 else (3, 4)
    return Tile(VL=lanes, MR=rows, NV=planes)


@dataclass(frozen=True)
class RowTile:
    """A register tile for depthwise convolution: MR pixels of a row by one vector of VL channels.

    KW taps of a kernel row are multiplied at once, REST after them, by source pixels S apart from target pixel to
    target pixel. Each T target channels meet G source channels: Q of them at once. The lanes hold whole groups, as many
    as fit; where they do not fill vectors one after another, the tile is `masked`. It `asks` for the next tile's pixels
    beside its own where these come from memory.
    """

    VL: int
    MR: int
    KW: int
    REST: int
    S: int
    G: int = 1
    Q: int = 1
    T: int = 1
    masked: bool = False
    asks: bool = False

    @property
    def lanes(self) -> int:
        """Target channels of a full vector."""
        return self.VL // max(self.G, self.T) * self.T


def row_tile_shape(
    dtype: str, taps: int, columns: int, stride: int, group: int = 1, targets: int = 1, channels: int | None = None
) -> RowTile:
    """Choose the tile for a kernel row of that many taps, rows of that many target pixels and groups of channels.

    A group has `group` source and `targets` target channels, and all groups together `channels` targets.

    Weights and sums share the registers. Among the widths that fit, the one wins that leaves the fewest pixels to
    compute for nothing.
    """
    lanes = vector_bytes() // np.dtype(dtype).itemsize
    most, widths = (7, (14, 7)) if registers() == 32 else (5, (8, 4))
    width = min(taps, most)
    pixels = min(widths, key=lambda MR: (-(-columns // MR) * MR, -MR))
    together = max(1, min(group, 2 * most // width if registers() == 32 else most // width))
    while group % together:
        together -= 1
    shape = RowTile(VL=lanes, MR=pixels, KW=width, REST=taps % width, S=stride, G=group, Q=together, T=targets)
    filled = group == targets and lanes % group == 0 and (channels is None or channels >= lanes)
    return replace(shape, masked=not filled)


@dataclass(frozen=True)
class WindowTile:
    """A register tile for weight gradients with channels in the lanes: sums of KH x KW taps, for NV vectors.

    Neighbouring target pixels meet source pixels S apart. With ND > 0 the lanes hold source channels, and ND values of
    the output gradient meet all of them; otherwise every channel has its own. Where channels do not fill the vectors
    the tile is `masked`. It `asks` for the next block's pixels beside its own where these come from memory.
    """

    VL: int
    KH: int
    KW: int
    S: int
    NV: int
    ND: int
    masked: bool
    asks: bool = False


def window_pixels(taps: int) -> int:
    """Pixels that a tile of such windows unrolls: with as many as taps, columns stay in their registers."""
    return max(taps, 4 if taps < 3 else 0)


def window_tile_shape(
    dtype: str, rows: int, taps: int, stride: int, channels: int, outputs: int | None
) -> WindowTile | None:
    """Choose the tile for kernels of that many rows and columns; None where a row's sums do not fit the registers.

    The lanes hold `channels`; `outputs` is the number of targets that all of them meet, None where each has its own.
    """
    lanes = vector_bytes() // np.dtype(dtype).itemsize
    vectors = -(-channels // lanes)
    values = 0 if outputs is None else -(-outputs // -(-outputs // MOST_SUMS))

    def fits(height: int, width: int) -> bool:
        columns = height * taps * width
        return columns * (max(1, values) + 1) + max(1, values) <= registers()

    if not fits(1, 1):
        return None
    width = 1
    if outputs is not None:
        most = max(NV for NV in range(1, min(vectors, MOST_SUMS) + 1) if fits(1, NV))
        width = -(-vectors // -(-vectors // most))
    most = max(height for height in range(1, rows + 1) if fits(height, width))
    height = -(-rows // -(-rows // most))
    return WindowTile(lanes, height, taps, stride, width, values, channels % (lanes * width) != 0)


@dataclass(frozen=True)
class StencilTile:
    """A register tile for planes: MR target rows by NV vectors of VL neighbouring pixels.

    KH rows of a kernel are multiplied at once, REST after them. Neighbouring target pixels meet source pixels SR rows
    and SC columns apart; they lie EC columns apart themselves. Where several channels of a pixel lie side by side,
    MIXED is 1, and every lane has a weight of its own.
    """

    VL: int
    MR: int
    NV: int
    KH: int
    REST: int
    SR: int
    SC: int
    EC: int
    MIXED: int = 0

    @property
    def NR(self) -> int:
        """Values of a row that a tile covers."""
        return self.VL * self.NV


@dataclass(frozen=True)
class RollingTile:
    """A strip of planes under a kernel of KH x KW taps: NV vectors of VL pixels, which run down its rows.

    Every AT-th kernel row meets a source row, and neighbouring target pixels meet source pixels S apart. Where INNER is
    1, only the first and the last vector of a strip meet columns outside the image.
    """

    VL: int
    KH: int
    KW: int
    AT: int
    S: int
    NV: int
    INNER: int


@dataclass(frozen=True)
class PixelStripTile:
    """The same of pixels whose channels lie side by side: NV neighbours of VL channels run down the rows.

    It `asks` for the next strip's pixels beside its own where these come from memory.
    """

    VL: int
    KH: int
    KW: int
    NV: int
    asks: bool


@dataclass(frozen=True)
class PairTile:
    """Strips of planes of an input gradient of stride 2: NV vectors of pairs of pixels.

    PR and PC are 1 where the padding of rows and columns before the image is odd.
    """

    VL: int
    KH: int
    KW: int
    PR: int
    PC: int
    NV: int
    INNER: int


@dataclass(frozen=True)
class PixelPairTile:
    """The same of pixels whose channels lie side by side: NV neighbouring pairs of pixels."""

    VL: int
    KH: int
    KW: int
    PR: int
    PC: int
    NV: int
    asks: bool


def mixed_vectors(dtype: str, channels: int) -> int:
    """After how many vectors of pixels with so many channels side by side the lanes meet the same channels again."""
    return channels // math.gcd(channels, vector_bytes() // np.dtype(dtype).itemsize)


_MIXED = {32: {1: (14, 7), 2: (8, 5), 3: (6, 3)}, 16: {1: (8, 5), 2: (4, 2), 3: (2, 2)}}
"""Rows of a tile and of the kernel at once, for so many registers and vectors, which their weights have as well."""
MOST_MIXED = 3


def stencil_tile_shape(
    dtype: str, taps: int, fewer: int, rows: int, columns: int, steps: tuple[int, int], every: int, channels: int = 1
) -> StencilTile:
    """Choose the tile for kernels of `taps` rows, some of `fewer`, and planes of that many target rows and columns.

    `steps` and `every` are the tile's SR and SC, and EC; `channels` of each pixel lie side by side. The kernel's rows
    and the sums share the registers. That tile wins which computes the fewest pixels for nothing.
    """
    lanes = vector_bytes() // np.dtype(dtype).itemsize
    if channels > 1:
        width = mixed_vectors(dtype, channels)
        # Rows of sums and of weights, and one of loaded vectors, take width registers each.
        MR, most = _MIXED[registers()][width]
        height = min(taps, most)
        return StencilTile(lanes, MR, width, height, taps % height, *steps, every, MIXED=1)
    most, tiles = (7, ((7, 2), (14, 1), (9, 1), (7, 1))) if registers() == 32 else (5, ((4, 2), (8, 1), (4, 1)))
    MR, NV = min(tiles, key=lambda t: -(-rows // t[0]) * t[0] * -(-columns // (t[1] * lanes)) * t[1])
    height = min(taps, most)
    return StencilTile(
        VL=lanes, MR=MR, NV=NV, KH=height, REST=taps % height or fewer % height, SR=steps[0], SC=steps[1], EC=every
    )


@dataclass(frozen=True)
class TileRow:
    """A register tile of `tiles` tiles of Winograd's along a row, for a vector of VL channels."""

    VL: int
    tiles: int


_MOST_TILES = 4
"""Of a tile row: with more, one of short rows is mostly empty."""


def tile_row(lanes: int, points: int) -> TileRow:
    """As many tiles, of so many sums each, as registers hold beside a vector of weights and a scalar."""
    return TileRow(lanes, min(_MOST_TILES, (registers() - 2) // points))
