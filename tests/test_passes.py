"""Every kind of pass on the problems that it can do, whether or not the cost model would choose it for them."""

import pytest

from fastconv.kernels.target import vector_bytes

from .cases import CASES
from .passes import KINDS, compare_all

_EVERY = 4
"""Of the cases, whose other kinds and tails the other tests and the mutation check meet."""
_RARE = ("plan_spread", "plan_abreast", "plan_exchanged")
"""Kinds that few of the cases are for."""


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_of_pass_is_exact(name):
    first = list(KINDS).index(name) % _EVERY
    done = compare_all(name, CASES if name in _RARE else CASES[first::_EVERY])
    assert done >= 5 or vector_bytes() == 16  # where some need masked loads
