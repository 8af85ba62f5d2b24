"""What Numba compiles for a kernel: each helper once, and none with machine code of its own."""

import importlib
import pkgutil

import pytest
from numba import types
from numba.core.dispatcher import Dispatcher

import fastconv.kernels
from fastconv.kernels import gather, jit
from fastconv.kernels.simd import array_at


@pytest.fixture(autouse=True)
def nothing_is_on_the_disk(monkeypatch):
    monkeypatch.setattr(jit, "_package_cache", lambda py_func: None)


def helpers():
    """All helpers of all kernels."""
    for module in pkgutil.iter_modules(fastconv.kernels.__path__, "fastconv.kernels."):
        members = vars(importlib.import_module(module.name)).values()
        yield from (member for member in members if isinstance(member, Dispatcher))


def test_helper_is_compiled_once_for_a_counter_and_its_beginning():
    gather.trace.__wrapped__()
    compiled = [helper for helper in set(helpers()) if helper.overloads]
    assert gather.trace_tile in compiled
    for helper in compiled:
        names = helper.py_func.__code__.co_varnames
        for signature in helper.overloads:
            literals = {name for name, kind in zip(names, signature, strict=False) if isinstance(kind, types.Literal)}
            assert all(name.isupper() for name in literals), (helper, literals)


def test_helpers_have_no_machine_code():
    @jit.inline
    def twice(value):
        return 2 * value

    def write(address):
        array_at(address, 1, types.int64)[0] = twice(21)

    jit.part(write)
    (compiled,) = twice.overloads.values()
    engine = compiled.library.codegen._engine
    assert not engine.is_symbol_defined(compiled.fndesc.llvm_func_name)
