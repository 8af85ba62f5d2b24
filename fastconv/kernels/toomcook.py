"""The matrices of Winograd's minimal filtering F(m, r), from the points of the Toom-Cook algorithm.

    y = A ((G g) * (B d)),  y[i] = sum over k of d[i + k] g[k],  i < m, k < r, n = m + r - 1

Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016, section 4; the construction from points:
Blahut, "Fast Algorithms for Signal Processing", 2010, section 5.2.
"""

from __future__ import annotations

import functools
from fractions import Fraction
from typing import NamedTuple

POINTS = {
    3: ("0", "1"),
    5: ("0", "3/4", "-3/4", "-2"),
    6: ("0", "3/4", "-3/4", "3/2", "-3/2"),
    8: ("0", "1/2", "-1/2", "1", "-1", "2", "-2"),
}
"""The points for n = m + r - 1, besides infinity. For n = 6 the textbook's 0, +-1, +-2 double the rounding error, for 5
its 0, +-1, 2 add half to it (docs/experiments.md); all of these and their squares are exact in binary."""

Matrix = tuple[tuple[float, ...], ...]


def transposed(matrix: Matrix) -> Matrix:
    """The matrix with rows and columns exchanged."""
    return tuple(zip(*matrix, strict=True))


class Filtering(NamedTuple):
    """F(m, r): m outputs along an axis, each the sum of r products, from inputs `stride` further on than the last.

    A negative stride is that of what the input gradient does: -stride outputs for each of m, one of every phase of the
    taps, from inputs that follow each other.
    """

    m: int
    r: int
    stride: int = 1

    @property
    def n(self) -> int:
        """Multiplications."""
        return (self.m - 1) * abs(self.stride) + self.r

    @property
    def inputs(self) -> int:
        """Inputs: as many, but for negative strides."""
        return self.n if self.stride > 0 else self.m - 1 - self.r // self.stride

    @property
    def outputs(self) -> int:
        """Outputs."""
        return self.m * max(1, -self.stride)


class Transforms(NamedTuple):
    """A (outputs x n), G (n x r) and B (n x inputs)."""

    output: Matrix
    weights: Matrix
    input: Matrix


def _polynomial(roots: list[Fraction]) -> list[Fraction]:
    """Coefficients of the product of (x - root), the constant first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted, scaled = [Fraction(0), *coefficients], [*(root * c for c in coefficients), Fraction(0)]
        coefficients = [a - b for a, b in zip(shifted, scaled, strict=True)]
    return coefficients


def _phase(m: int, r: int) -> list[list[list[Fraction]]]:
    """A transposed, G and B of F(m, r): each has a row for each product."""
    if r == 1:  # as many products as outputs: nothing is transformed
        unit = [[Fraction(i == j) for j in range(m)] for i in range(m)]
        return [unit, [[Fraction(1)]] * m, unit]
    points = [Fraction(point) for point in POINTS[m + r - 1]]
    output, weights, inputs = [], [], []
    for point in points:
        others = [other for other in points if other != point]
        scale = Fraction(1)
        for other in others:
            scale *= point - other
        output.append([point**i for i in range(m)])
        weights.append([point**k / scale for k in range(r)])
        inputs.append([*_polynomial(others), Fraction(0)])
    output.append([Fraction(i == m - 1) for i in range(m)])
    weights.append([Fraction(k == r - 1) for k in range(r)])
    inputs.append(_polynomial(points))
    return [output, weights, inputs]


def _spread(rows: list[list[Fraction]], phase: int, stride: int, width: int) -> list[tuple[float, ...]]:
    """The rows with a phase's values at their places among those of all phases."""
    spread = []
    for row in rows:
        values = [0.0] * width
        values[phase::stride] = map(float, row)
        spread.append(tuple(values))
    return spread


@functools.cache
def transforms(m: int, r: int, stride: int = 1) -> Transforms:
    """The matrices of F(m, r). B depends on the points alone: F(4, 3) and F(2, 5) share it.

    Every `stride`-th tap meets every `stride`-th input only: the products are those of a filtering of stride 1 for each
    of these phases, one after another. With a negative stride each phase has outputs of its own instead, from the last
    inputs.
    """
    output: list[tuple[float, ...]] = []
    weights, inputs = [], []
    sizes, apart = Filtering(m, r, stride), abs(stride)
    for phase in range(min(apart, r)):
        taps = -(-(r - phase) // apart)
        of_phase = _phase(m, taps)
        weights += _spread(of_phase[1], phase, apart, r)
        if stride > 0:
            output += _spread(of_phase[0], 0, 1, m)
            inputs += _spread(of_phase[2], phase, stride, sizes.inputs)
        else:
            output += _spread(of_phase[0], phase, apart, sizes.outputs)
            inputs += _spread(of_phase[2], sizes.inputs - (m + taps - 1), 1, sizes.inputs)
    return Transforms(transposed(tuple(output)), tuple(weights), tuple(inputs))
