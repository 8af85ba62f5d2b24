"""Forward pass and input gradient of images of few channels, along rows: `fastconv.kernels.winograd_rows`, planned."""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.algorithms.base import PLAIN, Epilogue, Estimate, Operation
from fastconv.algorithms.direct import model
from fastconv.algorithms.direct.grids import Axis, Roles, met_share, roles, sub_problems, tap_order, workspace_offsets
from fastconv.cost import far_bytes, leaves_caches, traffic_seconds
from fastconv.kernels import winograd_rows as kernels
from fastconv.kernels.launch import Launch
from fastconv.kernels.params import LINE, Buffer, aligned, fill
from fastconv.kernels.target import TileRow, of_this_cpu, registers, tile_row, vector_bytes
from fastconv.kernels.toomcook import Filtering
from fastconv.problem import ConvProblem

if TYPE_CHECKING:
    from fastconv.machine import Machine

_FILTERINGS = (Filtering(4, 3), Filtering(5, 4), Filtering(4, 5))
"""Of 6 and 8 points: 3 kernels for all sizes, of no more taps than there are. F(3, 4) and F(6, 3) gained nothing on
them (docs/experiments.md)."""
_VALUE_BYTES = 256 << 10
"""Transformed source rows of a task: they stay in the second cache level."""
_MOST_BYTES = 1 << 20
"""Transformed weights, and the source rows of one target row, within what a call may take besides its arrays."""


class _Costs(NamedTuple):
    """Slots (`direct.model`), fitted to 36 layers on a Zen 4; the others follow from its cycles."""

    share: float
    """Share of the peak that the products reach."""
    tile: float
    """Transforming the sums of a register tile back, and storing them where channels lie side by side."""
    shuffle: float
    """Moving a vector, of which turning a square for planes takes as many as lanes times their bits."""
    points: float
    """Transforming the source pixels of a tile."""
    row: float
    """Copying a source row, besides."""
    packed: float
    """Transforming a vector of the weights of a piece."""
    packed_tap: float
    """Picking each of its taps where target channels lie apart."""


_WHOLE = _Costs(share=0.8, tile=130, shuffle=2.0, points=14, row=50, packed=100, packed_tap=60)
_NARROW = _WHOLE._replace(share=0.95)
_HALVED = _Costs(share=1.0, tile=65, shuffle=1.6, points=7.3, row=25, packed=50, packed_tap=30)


class _Cut(NamedTuple):
    """How a problem is done: the filtering, how kernel rows are cut, and what follows from both."""

    filtering: Filtering
    pieces: int
    phases: int
    tile: TileRow
    panels: int
    """Vectors of target channels."""
    tiles: int
    """Of a row: whole register tiles of them."""
    steps: int
    """Pieces of all phases and source channels: transformed tiles of a source row, for each of its tiles."""

    @property
    def points(self) -> int:
        """Multiplications of a tile for each kernel row and source channel."""
        return self.filtering.n * self.pieces * self.phases


class _Parts(NamedTuple):
    """A problem's axes, and what its arrays are to the pass."""

    rows: Axis
    columns: Axis
    roles: Roles


@functools.lru_cache(maxsize=256)
def _parts(problem: ConvProblem, direction: str) -> _Parts:
    ((rows, columns),) = sub_problems(problem, direction)
    return _Parts(rows, columns, roles(problem, direction))


def _source_rows(rows: Axis, count: int) -> int:
    """Source rows that so many target rows read."""
    return (count - 1) * rows.step + abs(rows.offsets[-1] - rows.offsets[0]) + 1


def _value_bytes(cut: _Cut, item: int) -> int:
    """Bytes of a transformed source row, and of the lanes that its last tile writes too many."""
    return -(-(cut.tiles * cut.steps * cut.filtering.n + kernels.POINTS) * item // LINE) * LINE


def _packed_bytes(problem: ConvProblem, direction: str, cut: _Cut) -> int:
    taps = len(_parts(problem, direction).rows.taps)
    return cut.panels * taps * cut.steps * cut.filtering.n * cut.tile.VL * problem.itemsize


def _cuts(problem: ConvProblem, direction: str) -> list[_Cut]:
    _, columns, part = _parts(problem, direction)
    taps = len(columns.taps)
    phases, of_phase = min(columns.step, taps), -(-taps // columns.step)
    found = []
    widest = vector_bytes() // problem.itemsize
    filterings = [filtering for filtering in _FILTERINGS if filtering.r <= max(of_phase, _FILTERINGS[0].r)]
    for filtering, lanes in itertools.product(filterings, (widest, widest // 2)):
        pieces = -(-of_phase // filtering.r)
        tile = tile_row(lanes, filtering.n)
        tiles = -(-columns.count // (tile.tiles * filtering.m)) * tile.tiles
        panels = -(-part.channels // lanes)
        found.append(_Cut(filtering, pieces, phases, tile, panels, tiles, part.reduction * pieces * phases))
    return found


def _fits(problem: ConvProblem, direction: str, cut: _Cut) -> bool:
    """Whether the transformed weights, and the rows that a target row reads, stay within the workspace."""
    source_rows = _source_rows(_parts(problem, direction).rows, 1)
    values = source_rows * _value_bytes(cut, problem.itemsize)
    return _packed_bytes(problem, direction, cut) + values <= _MOST_BYTES


def declines(problem: ConvProblem, direction: str) -> str | None:
    """Why a problem of few channels is not for tiles of rows; None if it is."""
    if problem.dilation[1] > 1:
        return "winograd for few channels has no dilation along rows"
    width = problem.kernel_size[1]
    cuts = _cuts(problem, direction)
    if all(cut.points >= width * cut.filtering.m for cut in cuts):
        return f"winograd for few channels saves no multiplications for rows of {width} taps, stride {problem.stride}"
    if not any(_fits(problem, direction, cut) for cut in cuts):
        return "winograd for few channels transforms more of these rows and weights than it may keep"
    return None


class RowsOperation(Operation):
    """Forward pass or input gradient by tiles of rows."""

    def __init__(self, problem: ConvProblem, direction: str, threads: int) -> None:
        self.problem = problem
        self.direction = direction
        self.threads = threads
        self._rows, self._columns, self._roles = _parts(problem, direction)
        self._costs = of_this_cpu(_WHOLE, _HALVED, _NARROW)
        self._met_taps = len(self._rows.taps) * met_share(self._rows, self._roles.source_size[0])
        # For an image, so that an output's bits depend on neither their number nor that of threads.
        fitting = [cut for cut in _cuts(problem, direction) if _fits(problem, direction, cut)]
        self._cut = cut = min(fitting, key=lambda cut: self._task_slots(cut, self._rows.count))
        self._row_block = self._block()
        dtype = problem.dtype
        self._zeros = np.zeros(cut.panels * cut.tile.VL, dtype)
        plan, workspace = self._record()
        pack = plan.copy()  # a launch on several threads writes into its plan
        tasks = problem.n * -(-self._rows.count // self._row_block)

        def compiled() -> CFunc:
            return kernels.winograd_rows(dtype, cut.filtering, cut.tile, problem.in_planes)

        self._launch = Launch(compiled, dtype, plan, tasks, threads, workspace)
        self._pack = Launch(
            lambda: kernels.pack(dtype, cut.filtering, cut.tile.VL), dtype, pack, cut.panels, 1, workspace
        )
        self._packed_bytes = _packed_bytes(problem, direction, cut)
        self.workspace_bytes = self._launch.workspace_bytes + self._packed_bytes
        self.prepared_key = (cut.filtering, cut.tile.VL)

    def _block(self) -> int:
        """Target rows of a task: the thread that works longest decides."""
        each, first = _value_bytes(self._cut, self.problem.itemsize), _source_rows(self._rows, 1)
        most = max(1, (_VALUE_BYTES // each - first) // self._rows.step + 1)
        counts = {-(-self._rows.count // block) for block in range(1, min(most, self._rows.count) + 1)}
        return min(sorted(-(-self._rows.count // count) for count in counts), key=self._thread_slots)

    def _thread_slots(self, block: int) -> float:
        tasks = self.problem.n * -(-self._rows.count // block)
        return -(-tasks // self.threads) * self._task_slots(self._cut, block)

    def _task_slots(self, cut: _Cut, block: int) -> float:
        costs, lanes = self._costs, cut.tile.VL
        products = cut.tile.tiles * cut.filtering.n * cut.steps * self._met_taps / costs.share
        if registers() == 16:  # of few tiles in a row each multiply-add waits for loads: of its weights, and a value
            products *= (cut.tile.tiles + 1) / cut.tile.tiles
        tile = costs.tile + products
        if self.problem.in_planes:
            squares = -(-cut.tile.tiles * cut.filtering.m // lanes)
            tile += squares * costs.shuffle * lanes * (lanes.bit_length() - 1)
        if model.vector_slots(lanes, self.problem.itemsize) < 1.0:  # of half vectors each multiply-add waits for a load
            tile *= (cut.tile.tiles + 1) / (2 * cut.tile.tiles)
        target = cut.panels * cut.tiles / cut.tile.tiles * tile
        source = costs.row + cut.tiles * cut.steps * costs.points
        return block * target + min(_source_rows(self._rows, block), self._roles.source_size[0]) * source

    def _pack_slots(self) -> float:
        """Slots of transforming the weights."""
        costs, apart = self._costs, self._roles.weights[3] != self.problem.itemsize
        each = costs.packed + (costs.packed_tap * self._cut.filtering.r if apart else 0.0)
        return self._cut.panels * len(self._rows.taps) * self._cut.steps * each

    def _record(self) -> tuple[np.ndarray, int]:
        problem, part, cut, item = self.problem, self._roles, self._cut, self.problem.itemsize
        (m, r, _), n, lanes, rows, columns = cut.filtering, cut.filtering.n, cut.tile.VL, self._rows, self._columns
        (first_r, w_r), (first_c, w_c) = tap_order(rows, part.weights[0]), tap_order(columns, part.weights[1])
        first_column = min(columns.offsets)
        strip = ((cut.tiles - 1) * m + n - 1 + (cut.pieces - 1) * r) * columns.step + cut.phases
        strip_c, strip_k = (item, strip * item) if problem.in_planes else (part.reduction * item, item)
        begin = max(0, -first_column)
        copied = max(0, min(part.source_size[1] - max(0, first_column), strip - begin))
        value_r = _value_bytes(cut, item)
        strip_at, values, offsets, sources, total = workspace_offsets(
            max(strip * part.reduction, r * lanes) * item, _source_rows(rows, self._row_block) * value_r,
            cut.steps * 8, (r + n) * 8,
        )  # fmt: skip
        return fill(
            kernels.WINOGRAD_ROWS,
            source_n=part.source[0], source_r=part.source[1], source_k=part.source[3], source_rows=part.source_size[0],
            target_n=part.target[0], target_r=part.target[1], target_c=part.target[2], target_d=part.target[3],
            rows=rows.count, columns=columns.count, row_block=self._row_block,
            blocks=-(-rows.count // self._row_block), tiles=cut.tiles, panels=cut.panels, channels=part.channels,
            row_step=rows.step, tap_rows=problem.dilation[0], first_row=min(rows.offsets),
            taps_r=len(rows.taps), taps_c=len(columns.taps),
            reduction=part.reduction, pieces=cut.pieces, phases=cut.phases, step=columns.step,
            weight_offset=first_r + first_c, weight_r=w_r, weight_c=w_c,
            weight_k=part.weights[2], weight_d=part.weights[3],
            panel_bytes=len(rows.taps) * cut.steps * n * lanes * item,
            source_start=max(0, first_column) * part.source[2], strip_start=begin * strip_c,
            strip_runs=part.reduction if problem.in_planes else 1,
            strip_run=copied * (1 if problem.in_planes else part.reduction),
            strip_values=strip * part.reduction, strip_c=strip_c, strip_k=strip_k,
            value_r=value_r, value_t=cut.steps * n * item,
            asks=not problem.in_planes and leaves_caches(problem),
            workspace_bytes=total, strip=strip_at, values=values, offsets=offsets, sources=sources,
        ), total  # fmt: skip

    def estimate(self, machine: Machine) -> Estimate:
        rate = model.slot_rate(machine, vector_bytes() // self.problem.itemsize)
        launches = model.launch_seconds(self.threads) + model.again_seconds(1)
        far = far_bytes(self.problem) * model.STREAM_SECONDS / self.threads
        seconds = launches + (self._thread_slots(self._row_block) + self._pack_slots()) / rate + far
        traffic = traffic_seconds(self.problem, self.direction, machine)
        return Estimate(max(seconds, traffic), self._describe())

    def _describe(self) -> str:
        (m, r, _), pieces = self._cut.filtering, self._cut.pieces * self._cut.phases
        share = len(self._columns.taps) * self._columns.count / (self._cut.points * self._cut.tiles)
        of_pieces = f" for each of {pieces} pieces" if pieces > 1 else ""
        return f"F(1 x {m}, 1 x {r}){of_pieces} along rows, 1/{share:.1f} of the multiplications"

    def prepare(self, w: np.ndarray) -> np.ndarray:
        packed = aligned((1, 1, 1, self._packed_bytes // self.problem.itemsize), self.problem.dtype)
        self._pack(w, w, self._zeros, packed)
        return packed

    def run(
        self, first: np.ndarray, second: np.ndarray, result: np.ndarray, epilogue: Epilogue = PLAIN,
        prepared: Any = None,
    ) -> None:  # fmt: skip
        start = epilogue.start(self._zeros, 1)
        if prepared is not None:
            self._launch(first, prepared, start, result, epilogue.end)
            return
        with Buffer(self._packed_bytes) as buffer:
            packed = buffer[: self._packed_bytes].view(self.problem.dtype).reshape(1, 1, 1, -1)
            self._pack(second, second, self._zeros, packed)
            self._launch(first, packed, start, result, epilogue.end)
