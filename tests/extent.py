"""How much of their tables the tests take: a cross-section in minutes, or all (``make test-all``), in an hour or more.

Compiling is nearly all of that time, so what a cross-section takes of one case is the same in every test.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import TypeVar

from .cases import CASES, DTYPES, LAYOUTS, Case

ALL = os.environ.get("FASTCONV_TESTS") == "all"
Member = TypeVar("Member")


def cross_section(members: Sequence[Member], every: int, first: int = 0) -> Sequence[Member]:
    """Every so-manieth of them from the first on, or all."""
    return members if ALL else members[first::every]


def combinations(number: int) -> tuple[tuple[str, str], ...]:
    """The layouts and dtypes of the case with a number: float32 in one layout, float64 in the other one time in 24.

    All four of them where everything is asked for.
    """
    if ALL:
        return tuple(itertools.product(LAYOUTS, DTYPES))
    one, other = LAYOUTS[:: -1 if number % 2 else 1]
    return ((one, "float32"), (other, "float64"))[: 2 if number % 48 < 2 else 1]


COMBINATIONS: list[tuple[Case, str, str]] = [
    (case, layout, dtype) for number, case in enumerate(CASES) for layout, dtype in combinations(number)
]
"""Every case in its layouts and dtypes."""
