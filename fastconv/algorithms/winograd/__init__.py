"""winograd: convolutions of 3 taps and more along an axis, dilated or not, with a quarter to a half of the products.

The kernels are in `fastconv.kernels.winograd`; larger ones are cut into pieces, and strided ones into phases, which an
input gradient computes from the same transformed tiles, but for 3x3 of stride 2, whose tiles have all phases. Where too
few channels are read to fill vectors, tiles lie along rows (`fastconv.kernels.winograd_rows`).

Forward pass, and input gradient as the same kernel on the flipped weights; the weight gradient is the transposed
algorithm (`fastconv.kernels.winograd_weights`). The rounding error is about twice that of the plain sum, three times
for phases of a stride, and smaller for 3x3 of stride 2 (`fastconv.kernels.toomcook`), and a NaN or infinity reaches all
outputs of the tiles that read it: in the weight gradient all weights of its channel, with every channel of the other
side.
"""

from __future__ import annotations

from typing import Any

from fastconv.algorithms.banded import (
    BandPlanner,
    GroupBands,
    PackedIfPrepared,
    Stage,
    plan_banded,
    plan_banded_gradient,
)
from fastconv.algorithms.base import Algorithm, Operation
from fastconv.algorithms.cuts import bands_of, cut_of
from fastconv.algorithms.direct import model
from fastconv.algorithms.transposed import transposed
from fastconv.algorithms.winograd import rows
from fastconv.algorithms.winograd.forms import MOST_PIECES, STRIDED, form_for, has_form, strides_back
from fastconv.algorithms.winograd.pixels import WinogradOperation
from fastconv.algorithms.winograd.weights import WeightGradientOperation
from fastconv.kernels.target import vector_bytes
from fastconv.problem import CHANNELS_LAST, IMAGES_LAST, ConvProblem


def _gradient_of_band(problem: ConvProblem) -> WeightGradientOperation:
    return WeightGradientOperation(problem, 1)


def _band_rows(problem: ConvProblem, direction: str) -> int:
    """Target rows of which bands of an image are multiples, for its tiles to be those of the whole image."""
    form = form_for(problem, direction)
    return form.rows.outputs * form.target_phases[0] * problem.dilation[0]


def _layout_of_bands(problem: ConvProblem, direction: str) -> str:
    """Of NCHW problems: the taps of a piece do not lie side by side in weights that are not turned."""
    return IMAGES_LAST if form_for(problem, direction).whole else CHANNELS_LAST


class Winograd(Algorithm):
    """F(4 x 4, 3 x 3) and its like on blocks of tiles that stay in the second cache level."""

    name = "winograd"
    exact = False

    def declines(self, problem: ConvProblem, direction: str) -> str | None:
        lanes = vector_bytes() // problem.itemsize
        if self._along_rows(problem, direction) and (direction == "forward" or problem.stride == (1, 1)):
            return rows.declines(problem, direction)
        if problem.stride != (1, 1) and problem.dilation != (1, 1):
            return f"winograd has strides without dilation, not {problem.stride} with {problem.dilation}"
        formed = has_form(problem.kernel_size, problem.stride, direction)
        if not formed and strides_back(problem.stride, direction):
            few = "kernels of at least the stride with 2 to 5 taps in a phase, or 1 along one axis"
            return f"winograd has input gradients of strides for {few}, not {problem.kernel_size} of {problem.stride}"
        if not formed:
            few = f"at most {MOST_PIECES} pieces of 3 or 4 taps along each axis, or 1 along one"
            return f"winograd is for kernels of {few}, not {problem.kernel_size}"
        read = {"forward": problem.ic_per_group, "grad_input": problem.oc_per_group}
        least = read.get(direction, min(problem.ic_per_group, problem.oc_per_group))
        if least < lanes:
            return f"winograd needs {lanes} channels in a group to read, not {least}"
        if problem.layout == "NCHW" and not self._transposes(problem, direction):
            return "winograd in layout 'NCHW' transposes images, and these are too large for that"
        return None

    def errs_more(self, problem: ConvProblem, direction: str) -> bool:
        # The coefficients of these forms are all 0 and +-1, and their sums have fewer terms.
        return (problem.kernel_size, problem.stride) not in STRIDED or self._along_rows(problem, direction)

    @staticmethod
    def _along_rows(problem: ConvProblem, direction: str) -> bool:
        """Whether too few channels are read to fill vectors, in a direction that then takes tiles of rows."""
        read = {"forward": problem.ic, "grad_input": problem.oc}
        return problem.groups == 1 and direction in read and read[direction] < vector_bytes() // problem.itemsize

    @staticmethod
    def _transposes(problem: ConvProblem, direction: str) -> bool:
        """Whether NCHW images can be transposed in parts."""
        if direction == "grad_weight":
            return cut_of(problem) is not None
        layout, rows = _layout_of_bands(problem, direction), _band_rows(problem, direction)
        return bands_of(problem, direction, layout, rows) is not None

    def plan(self, problem: ConvProblem, direction: str, threads: int) -> Operation:
        if self._along_rows(problem, direction):
            return rows.RowsOperation(problem, direction, threads)
        if problem.layout == "NCHW" and direction == "grad_weight":
            in_groups = problem.groups > 1
            banded = plan_banded_gradient(problem, _gradient_of_band, "NHWC", True, threads) if in_groups else None
            gradient = banded or transposed(problem, direction, CHANNELS_LAST, self, threads)
            assert gradient is not None  # or it would have declined
            return gradient
        if problem.layout == "NCHW":
            layout = _layout_of_bands(problem, direction)
            ways: list[Any] = [transposed(problem, direction, layout, self, threads, _band_rows(problem, direction))]
            packed = alone = None
            if self._has_bands(problem, direction):
                packed, alone = (
                    plan_banded(problem, direction, self._band_planner(problem, direction, packs), threads)
                    for packs in (True, False)
                )
                ways += [packed, alone]
                if problem.groups > 1:
                    ways.append(plan_banded(problem, direction, self._group_planner(problem, direction), threads))
            best = min((way for way in ways if way), key=lambda way: way.seconds(model.nominal_rate()))
            return PackedIfPrepared(alone, packed) if alone and packed and best is alone else best
        if direction == "grad_weight":
            return WeightGradientOperation(problem, threads)
        return WinogradOperation(problem, direction, threads)

    @staticmethod
    def _has_bands(problem: ConvProblem, direction: str) -> bool:
        """Whether one thread can compute bands of NCHW images from weights as they lie, with the bits of the whole.

        Tiles of a strided input gradient reach over the edges of bands.
        """
        back = strides_back(problem.stride, direction)
        return _layout_of_bands(problem, direction) == IMAGES_LAST and not back

    @staticmethod
    def _band_planner(problem: ConvProblem, direction: str, packs: bool) -> BandPlanner:
        """How bands of NCHW images are computed: with as many channels held as in the first, as weights lie so.

        These are transformed once for all bands where it `packs` them, else by each band.
        """
        first: list[WinogradOperation] = []

        def stages(band: ConvProblem) -> tuple[Stage, ...]:
            as_first = (first[0].held, first[0].tile) if first else ()
            operation = WinogradOperation(band, direction, 1, *as_first)
            first.append(operation)
            return (operation.stage(packs),)

        return BandPlanner(IMAGES_LAST, _band_rows(problem, direction), str(form_for(problem, direction)), stages)

    @staticmethod
    def _group_planner(problem: ConvProblem, direction: str) -> BandPlanner:
        """The same in bands of some groups, each of which transforms its weights."""

        def stages(band: ConvProblem) -> tuple[Stage, ...]:
            return (WinogradOperation(band, direction, 1).stage(packs=False),)

        return BandPlanner(IMAGES_LAST, 1, str(form_for(problem, direction)), stages, GroupBands(dense=True))
