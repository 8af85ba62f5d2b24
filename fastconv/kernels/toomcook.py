"""The matrices of Winograd's minimal filtering F(m, r), from the points of the Toom-Cook algorithm.

    y = A ((G g) * (B d)),  y[i] = sum over k of d[i + k] g[k],  i < m, k < r

Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016, section 4; the construction from points:
Blahut, "Fast Algorithms for Signal Processing", 2010, section 5.2.
"""

from __future__ import annotations

import functools
from fractions import Fraction
from typing import NamedTuple

POINTS = {
    1: (),
    6: ("0", "3/4", "-3/4", "3/2", "-3/2"),
    8: ("0", "1/2", "-1/2", "1", "-1", "2", "-2"),
}
"""The points for n = m + r - 1, besides infinity. For n = 6 the textbook's 0, +-1, +-2 double the rounding error
(measured in docs/experiments.md); all of these and their squares are exact in binary."""

Matrix = tuple[tuple[float, ...], ...]


def transposed(matrix: Matrix) -> Matrix:
    """The matrix with rows and columns exchanged."""
    return tuple(zip(*matrix, strict=True))


class Filtering(NamedTuple):
    """F(m, r): m outputs along an axis, each the sum of r products."""

    m: int
    r: int

    @property
    def n(self) -> int:
        """Inputs, and multiplications."""
        return self.m + self.r - 1


class Transforms(NamedTuple):
    """A (m x n), G (n x r) and B (n x n) with n = m + r - 1."""

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


@functools.cache
def transforms(m: int, r: int) -> Transforms:
    """The matrices of F(m, r). B depends on the points alone: F(4, 3) and F(2, 5) share it."""
    points = [Fraction(point) for point in POINTS[m + r - 1]]
    output = [[point**i for point in points] + [Fraction(i == m - 1)] for i in range(m)]
    weights, inputs = [], []
    for point in points:
        others = [other for other in points if other != point]
        scale = Fraction(1)
        for other in others:
            scale *= point - other
        weights.append([point**k / scale for k in range(r)])
        inputs.append([*_polynomial(others), Fraction(0)])
    weights.append([Fraction(k == r - 1) for k in range(r)])
    inputs.append(_polynomial(points))

    def floats(matrix: list[list[Fraction]]) -> Matrix:
        return tuple(tuple(float(value) for value in row) for row in matrix)

    return Transforms(floats(output), floats(weights), floats(inputs))
