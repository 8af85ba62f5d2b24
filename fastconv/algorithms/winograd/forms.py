"""The forms of Winograd's minimal filtering that kernels of each size take, and what they cost."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

from fastconv.kernels.target import halves_vectors
from fastconv.kernels.toomcook import Filtering
from fastconv.problem import ConvProblem


@dataclass(frozen=True)
class Form:
    """F(m0 x m1, r0 x r1): tiles of m0 x m1 outputs of r0 x r1 kernels, by n0 x n1 products.

    Larger kernels are cut into `pieces` of that size along rows and columns, which are added up before the products are
    transformed back, and so are the `phases` of a stride. In an input gradient these have targets of their own instead,
    from the same inputs: it has `target_phases`.

    `*_slots` are the slots (`direct.model`) that transforming one vector of a tile takes, most of them for moving it
    between caches: the inputs, the weights, the products back, and for the weight gradient the output gradients and the
    sums.
    """

    rows: Filtering
    columns: Filtering
    input_slots: float
    weight_slots: float
    output_slots: float
    gradient_slots: float
    sums_slots: float
    kept_bytes: int
    """Transformed weights that a prepared layer keeps: from a slower cache more come later than they are made."""
    pieces: tuple[int, int] = (1, 1)
    phases: tuple[int, int] = (1, 1)
    target_phases: tuple[int, int] = (1, 1)

    def __str__(self) -> str:
        form = f"F({self.rows.m} x {self.columns.m}, {self.rows.r} x {self.columns.r})"
        if self.rows.stride != 1:
            form += f" of stride {abs(self.rows.stride)}"
        for parts, name in ((self.pieces, "pieces"), (self.target_phases, "phases")):
            if parts != (1, 1):
                form += f" for each of {parts[0]} x {parts[1]} {name}"
        return form

    @property
    def matrices(self) -> int:
        """Products of a tile."""
        return self.rows.n * self.columns.n

    @property
    def outputs(self) -> int:
        """Outputs of a tile."""
        return self.rows.outputs * self.columns.outputs

    @property
    def taps(self) -> int:
        """Weights of a piece."""
        return self.rows.r * self.columns.r

    @property
    def piece_count(self) -> int:
        """Pieces of a kernel that are added up."""
        return self.pieces[0] * self.pieces[1]

    @property
    def target_count(self) -> int:
        """Phases of the targets."""
        return self.target_phases[0] * self.target_phases[1]

    def fields(self, lanes: int, item: int) -> dict[str, int]:
        """What a kernel's record says of the form (`fastconv.kernels.winograd.FORM`), for vectors of so many lanes."""
        (m_r, r_r, s_r), (m_c, r_c, s_c) = self.rows, self.columns
        return {
            "m_r": m_r, "m_c": m_c, "r_r": r_r, "r_c": r_c, "s_r": s_r, "s_c": s_c,
            "matrices": self.matrices, "tile_inputs": self.rows.inputs * self.columns.inputs,
            "outputs_r": self.rows.outputs, "outputs_c": self.columns.outputs, "item": item, "vector": lanes * item,
        }  # fmt: skip

    @property
    def whole(self) -> bool:
        """Whether a kernel is one piece for all targets."""
        return self.piece_count * self.target_count == 1

    def taps_apart(self, stride: tuple[int, int]) -> tuple[int, int]:
        """The taps from one of a piece to the next along both axes, and pixels: in its phase of the stride."""
        return stride[0] // abs(self.rows.stride), stride[1] // abs(self.columns.stride)

    def describe(self, tiles: int, outputs: int, taps: int) -> str:
        """The form in words, with its share of the multiplications where so many tiles make outputs of `taps` each."""
        share = outputs * taps / (tiles * self.matrices * self.piece_count * self.target_count)
        return f"{self}, 1/{share:.1f} of the multiplications"


def tiles_along(filtering: Filtering, count: int, dilation: int) -> int:
    """Tiles that `count` targets of an axis take: of each phase, the targets that lie `dilation` apart.

    Tile a is that of phase a % dilation whose first target is a // dilation * outputs * dilation + a % dilation.
    """
    whole, rest = divmod(count, filtering.outputs * dilation)
    return whole * dilation + min(rest, dilation)


def _square(m: int, r: int, **slots: Any) -> dict[tuple[int, int], Form]:
    return {(r, r): Form(Filtering(m, r), Filtering(m, r), **slots)}


def _flat(m: int, r: int, **slots: Any) -> dict[tuple[int, int], Form]:
    along, across = Filtering(m, r), Filtering(1, 1)
    return {(1, r): Form(across, along, **slots), (r, 1): Form(along, across, **slots)}


FORMS = {
    **_square(4, 3, input_slots=570, weight_slots=320, output_slots=150, gradient_slots=250, sums_slots=290,
              kept_bytes=3 << 19),
    **_square(2, 5, input_slots=460, weight_slots=1000, output_slots=50, gradient_slots=250, sums_slots=600,
              kept_bytes=8 << 20),
    **_flat(4, 3, input_slots=90, weight_slots=55, output_slots=55, gradient_slots=75, sums_slots=60,
            kept_bytes=3 << 19),
    **_flat(4, 5, input_slots=120, weight_slots=75, output_slots=35, gradient_slots=100, sums_slots=80,
            kept_bytes=3 << 19),
    **_flat(2, 7, input_slots=90, weight_slots=110, output_slots=40, gradient_slots=75, sums_slots=100,
            kept_bytes=3 << 19),
}  # fmt: skip
"""By the kernel's size: the largest tiles whose rounding errors stay small, which grow along both axes of a square."""
NARROW = _square(3, 3, input_slots=390, weight_slots=230, output_slots=110, gradient_slots=180, sums_slots=200,
                 kept_bytes=3 << 19)  # fmt: skip
"""By the kernel's size: tiles for few targets in a row, or few that lie a dilation apart, which fill no larger ones."""
STRIDED = {
    ((3, 3), (2, 2)): Form(Filtering(2, 3, 2), Filtering(2, 3, 2), input_slots=350, weight_slots=195, output_slots=90,
                           gradient_slots=175, sums_slots=200, kept_bytes=3 << 19),
}  # fmt: skip
"""By size and stride, where phases of unequal size are better not cut into pieces alike: 25 products for 36."""
GRADIENTS = {
    ((3, 3), (2, 2)): Form(Filtering(2, 3, -2), Filtering(2, 3, -2), input_slots=210, weight_slots=255,
                           output_slots=100, gradient_slots=0, sums_slots=0, kept_bytes=3 << 19),
}  # fmt: skip
"""The same of input gradients."""
_CUTS = {2: Filtering(5, 2), 3: Filtering(4, 3), 4: Filtering(3, 4), 5: Filtering(2, 5)}
"""What other kernels, and pieces of them, take along an axis, by taps: all of 6 inputs, and so of the same points."""
MOST_PIECES = 16
_HALVED_SHARES = {
    "input_slots": 0.65, "weight_slots": 0.65, "output_slots": 0.65, "gradient_slots": 0.45, "sums_slots": 0.45,
}  # fmt: skip
"""Slots over those above where the CPU multiplies halves of vectors: a slot is twice as long there, but not a load."""
_NARROW_SHARE = 0.9
"""Smaller tiles must take less than that of the products along a row: more of what they do is transforming."""
_INPUT_SLOTS = {36: 480, 6: 90}
"""What the others take, by the inputs of a tile."""


def strides_back(stride: tuple[int, int], direction: str) -> bool:
    """Whether a pass is the input gradient of a stride, whose phases are those of its targets."""
    return direction == "grad_input" and stride != (1, 1)


def has_form(size: tuple[int, int], stride: tuple[int, int], direction: str) -> bool:
    """Whether kernels of that size take one: a single tap gains nothing, and two of stride 1 would err too much."""
    taps = _taps_of_phases(size, stride)
    if max(taps) == 1 or (stride == (1, 1) and 2 in taps):
        return False
    pieces = form_of(size, stride, direction).piece_count
    if strides_back(stride, direction):
        return pieces == 1 and size[0] >= stride[0] and size[1] >= stride[1]  # else no window reads some of the pixels
    return pieces <= MOST_PIECES


def _taps_of_phases(size: tuple[int, int], stride: tuple[int, int]) -> tuple[int, int]:
    """The most taps that a phase of the stride has along each axis."""
    return -(-size[0] // stride[0]), -(-size[1] // stride[1])


@functools.lru_cache(maxsize=256)
def form_of(size: tuple[int, int], stride: tuple[int, int], direction: str) -> Form:
    """The form of kernels of a size, which needs more than a tap along an axis in a phase of the stride."""
    return _with_slots((_form_of_gradient if strides_back(stride, direction) else _form_of)(size, stride))


def form_for(problem: ConvProblem, direction: str) -> Form:
    """The form of a problem's kernel, or the one of smaller tiles where these take fewer products.

    Rows alone decide, because bands of rows of an image take the same form.
    """
    usual = form_of(problem.kernel_size, problem.stride, direction)
    if problem.stride != (1, 1) or problem.kernel_size not in NARROW:
        return usual
    narrow = _with_slots(NARROW[problem.kernel_size])
    targets = (problem.input_size if direction == "grad_input" else problem.output_size)[1]

    def products(form: Form) -> int:
        return form.columns.n * tiles_along(form.columns, targets, problem.dilation[1])

    return narrow if products(narrow) < _NARROW_SHARE * products(usual) else usual


def _with_slots(form: Form) -> Form:
    """The form with the slots that it takes on this CPU."""
    if not halves_vectors():
        return form
    return replace(form, **{name: share * getattr(form, name) for name, share in _HALVED_SHARES.items()})


def _form_of(size: tuple[int, int], stride: tuple[int, int]) -> Form:
    if size in FORMS and stride == (1, 1):
        return FORMS[size]
    if (size, stride) in STRIDED:
        return STRIDED[size, stride]
    (rows, pieces_r), (columns, pieces_c) = map(_cut, _taps_of_phases(size, stride))
    phases = min(size[0], stride[0]), min(size[1], stride[1])
    flat = 1 in (rows.n, columns.n)
    taps, outputs = rows.r * columns.r, rows.m * columns.m
    return Form(
        rows, columns, input_slots=_INPUT_SLOTS[rows.n * columns.n],
        weight_slots=10 + 15 * taps if flat else max(140, 42 * taps - 60),
        output_slots=15 + (10 if flat else 8) * outputs,
        gradient_slots=75 if flat else 100 + 10 * outputs, sums_slots=60 + 5 * taps if flat else 240 + 7 * taps,
        kept_bytes=3 << 19, pieces=(phases[0] * pieces_r, phases[1] * pieces_c), phases=phases,
    )  # fmt: skip


def _form_of_gradient(size: tuple[int, int], stride: tuple[int, int]) -> Form:
    """That of an input gradient of a stride: a kernel of each phase's taps for the targets of that phase."""
    if (size, stride) in GRADIENTS:
        return GRADIENTS[size, stride]
    return replace(_form_of(_taps_of_phases(size, stride), (1, 1)), target_phases=stride)


def _cut(taps: int) -> tuple[Filtering, int]:
    """The filtering along an axis with so many taps, and the pieces: those with the fewest multiplications."""
    if taps == 1:
        return Filtering(1, 1), 1
    cuts = [(filtering, -(-taps // r)) for r, filtering in _CUTS.items() if r > 2 or taps == 2]
    return min(cuts, key=lambda cut: (cut[1] * cut[0].n / cut[0].m, cut[1]))
