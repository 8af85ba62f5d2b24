"""The constants of the direct algorithm's cost model, from the measurements in docs/experiments.md.

Compute is counted in slots: one slot is one multiply-add of one vector, of which a core does peak / (2 VL) a second.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from fastconv.kernels.target import LATENCY_ROWS, Tile, halves_vectors, of_this_cpu, share_of, vector_bytes

if TYPE_CHECKING:
    from fastconv.machine import Machine
    from fastconv.problem import ConvProblem

GATHER_SHARE = {1: 0.85, 2: 0.97, 3: 0.97, 4: 0.97}
"""Share of the peak that a tile of so many vectors of channels reaches, apart from what is counted below."""
LINE_SHARE = {**GATHER_SHARE, 1: 0.7}
"""The same of one of pixels in lines: a single vector straddles cache lines for each multiply-add."""
STRIP_SHARE = {1: 0.6, 2: 0.98, 4: 0.98}
"""Share of the peak that a tile of so many vectors of pixels reaches: with one, each multiply-add loads a scalar."""
NEAR_BYTES = 16 << 10
STRIP_FAR_SHARE = 0.9
"""Speed of tiles that read more of a strip than that."""
STRIP_ROWS = 3
"""The same where pixels are in the lanes: each multiply-add of a single row loads a vector that straddles lines."""
TILE_SLOTS = 86
"""Slots lost at the beginning and end of a tile."""
PLANE_TILE_SLOTS = 128
"""The same for a tile of weights by pixels of a plane, whose run is all taps of all channels."""
LINE_TILE_SLOTS = 60
"""The same for one whose pixels lie in lines."""
STRIP_RUN_SLOTS = 20
"""The same for a tile with pixels in the lanes, whose runs hold fewer addresses."""
FIRST_CACHE_BYTES = 32 << 10
"""The first cache level of most CPUs."""
APART_LINES = 8
"""Lines of a set of the first cache level that the scalars of a tile may take before they are lost."""
SPREAD_BYTES = 2 << 20
SPREAD_SHARE = 0.97
"""Speed of a tile that reads planes in place, each in pages of its own, over more bytes than that."""
MEETING_SHARE = 0.96
"""Speed of a tile that reads planes in place of which many meet in few cache lines."""
TRACE_SECONDS = 0.3e-9
"""Writing one address of a tile's runs."""
COPY_TRACED_SECONDS = 0.3e-9
"""Copying one value that a tile reads in planes, where others of its pixels lie in the padding."""
PACK_SECONDS = 0.12e-9
"""Packing one weight or output gradient."""
PACK_TAPS_TIMES = 1.5
"""How many times as long it takes where several taps lie between one channel's weights and the next's."""
FAR_WEIGHT_SECONDS = 0.025e-9
"""Waiting for a byte of weights that lie farther than the second cache level."""
SHARED_WEIGHTS = 1 << 14
"""Weights whose order several threads change, instead of one."""
FETCH_SECONDS = 0.5e-9
"""Reading one of them that another core has packed, and taking its line back there."""
FETCH_MANY_SECONDS = 0.2e-9
"""The same of more than threads keep each for themselves."""
COLUMN_SECONDS = {1: 0.04e-9, 2: 0.06e-9, 3: 0.09e-9, 4: 0.13e-9, 0: 0.5e-9}
"""Packing one value that a window of a plane reads, by the columns between windows; 0 stands for more of them."""
COLUMN_RUN_SECONDS = 0.9e-9
"""Beginning a row of such values that lie side by side."""
COLUMN_TAP_SECONDS = 4e-9
"""Beginning a tap's rows, one for each channel: its masks are made anew."""
ADD_SECONDS = 0.3e-9
"""Adding one value of a finished tile to the weight gradient."""
CORRELATE_COPY_SECONDS = 0.065e-9
"""Packing one value of an input or output gradient whose channels lie side by side."""
CORRELATE_TURN_SECONDS = 0.05e-9
"""Packing one input that lies in a plane: of whole vectors of channels, in squares that registers turn."""
CORRELATE_LINE_SECONDS = 0.2e-9
"""Packing one output gradient that lies in a plane."""
CORRELATE_ADD_SECONDS = 0.046e-9
"""Adding one value of its tile to the weight gradient where both lie alike."""
CORRELATE_ROW_SECONDS = 0.2e-9
"""The same where only a tile's output channels do, not its rows."""
DOT_SHARE = {1: 0.28, 4: 0.35}
"""Share of the peak that dot products over pixels with so many planes reach: most vectors straddle two cache lines."""
DOT_GATHER_SECONDS = 0.02e-9
"""Copying one value into their strips, for each byte up to a cache line between it and the next."""
DOT_SECONDS = 6e-9
"""Adding up the lanes of one dot product."""
PATCH_DOT_SHARE = 0.97
"""The same of products with packed windows, which lie in the second cache level."""
PATCH_BLOCK_SECONDS = 0.6e-6
"""Beginning a block of packed windows."""
PIXEL_DOT_CONFLICT_SHARE = 0.95
"""Speed of such products where planes meet in few lines of a cache."""
SUM_LOAD_SHARE = 0.66
"""Loads in a slot of a tile whose lanes are added up: most straddle two cache lines."""
REDUCE_FAR_SECONDS = 0.03e-9
"""Waiting for a byte of images from beyond the caches in such a tile."""
LAST_PIXEL_LOADS = 1.5
"""Slots of a vector of weights by a plane's last pixel: a load, mostly from beyond the first cache level."""
SUM_SLOTS = 6
"""Slots that adding up the lanes of one sum takes."""
COPY_SECONDS = 0.1e-9
"""Copying one value of a row into a strip, where the row lies as the strip does."""
COPY_ROW_SECONDS = 20e-9
"""Beginning and end of such a row."""
STEP_SECONDS = 0.5e-9
"""Copying one value of a row whose neighbours go to strips of their own, as strides ask for."""
MANY_PLANES = 16
PLANES_SHARE = 0.3
"""Speed of copying from more planes than that, each in pages of its own."""
STRIP_TILE_SECONDS = 24e-9
"""What a tile with pixels in the lanes takes besides its multiply-adds."""
TURN_SECONDS = 0.1e-9
"""Moving one value of such a tile to a pixel whose channels lie side by side, in squares that registers turn."""
TILE_TURN_SECONDS = 0.17e-9
"""Moving one value of a tile with channels in the lanes to a plane, in which the tile has a few pixels."""
SCATTER_SECONDS = 0.56e-9
"""Moving one value to or from a place of its own."""
NEAR_SCATTER_BYTES = 1 << 20
TURNED_PLANES = 192
MANY_LINES_SECONDS = 0.45e-9
"""Moving one value of more planes than that, each in pages of its own, to a thread's copy of a few rows."""
GROUP_SHARE = 0.95
"""Share of the peak that a depthwise tile reaches whose lanes hold one group of channels, the loads aside."""
BROADCAST_SLOTS = 0.2
"""Slots of bringing a channel of that group to all lanes."""
MASKED_SHARE = 0.93
"""Speed of such a tile that loads and stores a part of its lanes only."""
PERMUTE_SLOTS = 0.5
"""Slots of bringing a channel of each group to its lanes."""
PLANE_DOT_END_SHARE = 0.7
"""Speed of adding up the lanes of weight gradients of planes: one sum waits for another."""
STENCIL_SHARE = 0.95
"""Share of what multiply-adds and loads allow that a tile of a plane reaches."""
STENCIL_PLANES = 6
STENCIL_FAR_BYTES = 256 << 10
STENCIL_CONFLICT_PLANES = 12
CONFLICT_BYTES = 4 << 10
"""Planes that lie multiples of that far apart meet in few lines of the first cache level."""
STREAM_SECONDS = 0.05e-9
"""Moving a byte of an image that does not stay in a core's caches."""
PLANE_SECONDS = 0.012e-9
"""Moving a byte of an image that is read in the order in which it lies."""
PLANES_FAR_SECONDS = 0.08e-9
"""Moving a byte of an image that comes from beyond the caches, and whose planes are read in turn."""
FAR_BYTES = 32 << 20
"""Images that no cache keeps from one use to the next."""
SPREAD_SECONDS = 0.05e-9
"""Adding one value of overlapping runs to where it belongs."""
ARRAY_SECONDS = 1.5e-6
"""An operation of NumPy on small arrays."""
_CALL_SECONDS = 3e-6
"""Arguments and tables."""
_AGAIN_SECONDS = 1.5e-6
"""The same of another launch in one call."""
_START_SECONDS = 4e-6
"""Waking the other threads."""
_CORE_HERTZ = 3.6e9
"""Of an ordinary core."""


class Costs(NamedTuple):
    """What depends on the CPU: on whether it multiplies whole vectors at once, or halves of them, or has narrow ones.

    Slots, or shares.
    """

    stencil_load: float
    """A load of a tile of a plane, most of which straddle two cache lines."""
    stencil_tap: float
    """Lost with every column of its kernel."""
    stencil_tile: float
    """Lost at the beginning and end of such a tile."""
    stencil_planes_share: float
    """Speed of one that reads more than `STENCIL_PLANES` planes that stay near."""
    stencil_more_planes: float
    """One that reads so many more takes twice as long where all of them take more than `STENCIL_FAR_BYTES`."""
    stencil_conflict_share: float
    """Speed of one that reads `STENCIL_CONFLICT_PLANES` planes which meet."""
    rolling_share: float
    """Share of what multiply-adds and loads allow that rolling sums of planes reach."""
    spilled_share: float
    """The same of those whose weights and sums find too few registers."""
    pixel_rolling_share: float
    """The same of pixels whose channels lie side by side."""
    rolling_dot_share: float
    """The same of weight gradients that roll down such pixels."""
    line_share: float
    """Speed of a tile of pixels in lines, beside what its vectors allow."""
    line_dot_share: float
    """Speed of dot products over strips of pixels, beside what is counted."""
    rolling_strip: float
    """Lost with every strip of rolling sums."""
    rolling_plane: float
    """The same of planes that are one strip, and have its masks in common."""
    pixel_store: float
    """Storing a vector of channels of a pixel."""
    pair_store: float
    """Interleaving two vectors and storing one."""
    depthwise_share: float
    """Share of the peak that a depthwise tile reaches, the loads of its sources aside."""
    channel_load: float
    """A load of such a tile, or bringing a channel to its lanes."""
    depthwise_tile: float
    """Lost at the beginning and end of such a tile."""
    group_tile: float
    """The same of one of groups of several channels."""
    one_group_share: float
    """Speed of one whose lanes a single group fills, beside one of several groups."""
    asks_planes: bool
    """Whether planes that strips are read of are asked for as they lie, also those that other caches keep."""
    hides_loads: bool
    """Whether weight gradients of small groups load while they multiply."""
    channel_dot_share: float
    """Share of the peak that these reach, apart from the loads."""
    channel_dot_load: float
    """A load of these."""
    pixel_dot_load: float
    """Loading a vector of the pixels that a tap meets: most straddle two cache lines."""
    window_load: float
    """Loading a vector of a window's column."""
    window_line: float
    """Lost with every row that a window slides along: pixels beside the tiles, and the end of the loop."""
    plane_dot_share: float
    """Share of what multiply-adds allow that weight gradients of planes reach."""
    plane_dot_slots: float
    """Slots of a vector of a plane besides its multiply-adds, in these."""
    plane_dot_load: float
    """A load of these, where more than multiply-adds."""
    apart_share: float
    """Speed of a tile whose scalars lie in planes."""
    apart_conflict_share: float
    """The same where they meet in few cache lines."""
    apart_far_share: float
    """The same where more than `APART_LINES` lines share a set of the first cache level."""
    apart_lines_share: float
    """The same where each of them lies in a line of its own, or nearly so."""
    apart_gone_share: float
    """The same of pointwise layers, of whose lines the first are lost before the next tile reads them."""
    plane_share: float
    """Speed of a tile of weights by pixels of a plane, beside one of pixels by channels."""
    in_place_share: float
    """The same where the panels of pixels are read in place."""
    row_apart_share: float
    """Speed of a tile of weights whose rows lie apart so."""
    sum_share: float
    """Share of the peak that a tile whose lanes are added up reaches, as far as its loads allow."""
    gather_run: float
    """Lost at the beginning and end of a run of a tile of gathered pixels."""
    gather_tile: float
    """Lost at the beginning and end of such a tile."""
    pixel_dot_share: float
    """Share of the peak that dot products over the pixels of planes as they lie reach, apart from their ends."""
    patch_far_share: float
    """Speed of those over windows whose panels fill more than half of the first cache level."""
    dot: float
    """Adding up the lanes of one such product."""
    far_scatter_seconds: float
    """Moving one value to or from a place of its own, of places spread over more than `NEAR_SCATTER_BYTES`."""
    masked_tap_seconds: float
    """What `COLUMN_TAP_SECONDS` is more where rows end inside vectors, which are stored by masks then."""
    transpose_seconds: float
    """Moving one value between planes and pixels whose channels lie side by side, to a copy of a few rows."""
    pack_turned_times: float
    """How much longer packing a pointwise layer's weight takes that does not lie beside the next target channel's."""
    turn_seconds: float
    """Turning one value of a band of images, near the core that reads it next."""
    dot_far_seconds: float
    """Waiting for a byte of planes from beyond the caches, in a weight gradient."""


_WHOLE = Costs(
    stencil_load=2.0, stencil_tap=17, stencil_tile=55, stencil_planes_share=0.85, stencil_more_planes=16,
    stencil_conflict_share=0.64, rolling_share=0.97, spilled_share=0.8, pixel_rolling_share=1.0,
    rolling_dot_share=1.0, line_share=1.0, line_dot_share=1.0, rolling_strip=300, rolling_plane=100,
    pixel_store=2.0, pair_store=2.0,
    depthwise_share=0.74, channel_load=1.0, depthwise_tile=68, group_tile=68, one_group_share=1.0,
    asks_planes=False, hides_loads=False,
    channel_dot_share=0.74, channel_dot_load=1.0,
    pixel_dot_load=2.1, window_load=2.1, window_line=100, plane_dot_share=0.7, plane_dot_slots=6, plane_dot_load=3.0,
    apart_share=0.9, apart_conflict_share=0.75, apart_far_share=0.6, apart_lines_share=0.9, apart_gone_share=0.9,
    plane_share=1.0, in_place_share=1.0, row_apart_share=0.9, sum_share=0.66,
    gather_run=34, gather_tile=86, pixel_dot_share=0.9, patch_far_share=1.0, dot=2.8, far_scatter_seconds=8e-9,
    masked_tap_seconds=0.0, transpose_seconds=0.15e-9, pack_turned_times=1.0,
    turn_seconds=0.1e-9, dot_far_seconds=0.0,
)  # fmt: skip
_HALVED = Costs(
    stencil_load=1.6, stencil_tap=4, stencil_tile=35, stencil_planes_share=0.95, stencil_more_planes=64,
    stencil_conflict_share=0.85, rolling_share=0.97, spilled_share=0.8, pixel_rolling_share=1.0,
    rolling_dot_share=1.0, line_share=1.0, line_dot_share=1.0, rolling_strip=90, rolling_plane=36,
    pixel_store=1.5, pair_store=1.0,
    depthwise_share=0.97, channel_load=0.75, depthwise_tile=25, group_tile=45, one_group_share=1.0,
    asks_planes=False, hides_loads=True,
    channel_dot_share=0.93, channel_dot_load=1.7,
    pixel_dot_load=1.4, window_load=0.8, window_line=35, plane_dot_share=1.0, plane_dot_slots=3, plane_dot_load=2.0,
    apart_share=1.0, apart_conflict_share=0.96, apart_far_share=1.0, apart_lines_share=0.85, apart_gone_share=1.0,
    plane_share=1.03, in_place_share=1.0, row_apart_share=1.0, sum_share=0.9,
    gather_run=22, gather_tile=50, pixel_dot_share=0.93, patch_far_share=0.82, dot=1.4, far_scatter_seconds=1e-9,
    masked_tap_seconds=0.0, transpose_seconds=0.15e-9, pack_turned_times=1.0,
    turn_seconds=0.1e-9, dot_far_seconds=0.04e-9,
)  # fmt: skip
"""A slot is twice as long here, but not a load, nor what begins and ends a tile, which it hides."""
_NARROW = _WHOLE._replace(
    stencil_tile=90, rolling_share=0.45, spilled_share=0.4, pixel_rolling_share=0.8, rolling_dot_share=0.55,
    line_share=0.85, line_dot_share=1.6, plane_dot_share=0.42, plane_dot_load=9.5,
    apart_share=0.7, apart_gone_share=0.6, plane_share=0.93, in_place_share=0.87, transpose_seconds=0.35e-9,
    masked_tap_seconds=4e-9, pack_turned_times=2.2, turn_seconds=0.42e-9, asks_planes=True, one_group_share=0.65,
)  # fmt: skip
"""Of 16 registers of 32 bytes, which hold masks as well (Zen 3): rolling sums and their weights leave no room."""


def costs() -> Costs:
    """Those of this CPU."""
    return of_this_cpu(_WHOLE, _HALVED, _NARROW)


def nominal_rate() -> float:
    """Slots a second of an ordinary core: to choose between passes, where only ratios matter, without a calibration."""
    return _CORE_HERTZ * (1 if halves_vectors() else 2)


def vector_slots(lanes: int, item: int) -> float:
    """Slots of a multiply-add of vectors of so many lanes, which may be narrower than the registers."""
    return 0.5 if halves_vectors() and lanes * item < vector_bytes() else 1.0


def launch_seconds(threads: int) -> float:
    """What a launch takes besides its work."""
    return _CALL_SECONDS + (_START_SECONDS if threads > 1 else 0.0)


def again_seconds(threads: int) -> float:
    """The same of another launch in one call."""
    return _AGAIN_SECONDS + (_START_SECONDS if threads > 1 else 0.0)


def planes_seconds(problem: ConvProblem) -> float:
    """Reading and writing both images of a problem, on one thread."""
    return (math.prod(problem.x_shape) + math.prod(problem.y_shape)) * problem.itemsize * PLANE_SECONDS


def far_seconds(problem: ConvProblem) -> float:
    """Reading an output gradient that stays in no cache, on one thread."""
    gradient = math.prod(problem.y_shape) * problem.itemsize
    return gradient * STREAM_SECONDS if gradient > FAR_BYTES else 0.0


def slot_rate(machine: Machine, lanes: int) -> float:
    """Slots a second of one thread."""
    return machine.peak_flops / machine.threads / (2 * lanes)


def tile_slots(channels: int, shape: Tile) -> float:
    """Slots of one step of all panels of a tile that has channels in its lanes, all panels alike."""
    panels = -(-channels // shape.NR)
    return panels * shape.NV / share_of(shape, GATHER_SHARE) * max(shape.MR, LATENCY_ROWS)


def balance(tasks: int, threads: int) -> float:
    """How much longer the last thread works than it would if tasks divided evenly."""
    return -(-tasks // threads) * threads / tasks if tasks else 1.0


def last_done(work: list[float], threads: int) -> float:
    """When the last of these tasks is done, by what each takes, as `fastconv.kernels.launch` hands them out."""
    shares = [deque(work[len(work) * t // threads : len(work) * (t + 1) // threads]) for t in range(threads)]
    clocks = [(0.0, t) for t in range(threads)]
    done = 0.0
    while clocks:
        clock, thread = heapq.heappop(clocks)
        left = next((share for share in shares[thread:] + shares[:thread] if share), None)
        if left is None:
            done = max(done, clock)
        else:
            heapq.heappush(clocks, (clock + left.popleft(), thread))
    return done


def filled(count: int, width: int) -> float:
    """Share of the lanes that `count` values fill in vectors or tiles `width` lanes wide."""
    return count / (-(-count // width) * width)


def describe(shape: Tile, lanes: str, share: float) -> str:
    """The tile in words."""
    return f"register tiles of {shape.MR} x {shape.NR} with {lanes} in the lanes, {share:.0%} of them in use"
