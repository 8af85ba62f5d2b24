"""Compilation of the kernels: the only place that knows Numba's options and the kernels' signature.

A kernel is a function ``(params, begin, end, thread)`` of four integers: the address of a record that describes the
work (`fastconv.kernels.params`), the half-open range of tasks to do, and the number of the thread that does them. It
is compiled to a C function, so that one compiled launcher (`fastconv.kernels.launch`) runs every kernel: compiling
each one under ``parallel=True`` took 3 to 5 times as long, and a serial twin would have doubled that again.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

from numba import njit, types
from numba.core.caching import FunctionCache
from numba.core.ccallback import CFunc

from fastconv.kernels.compiler import HelperCompiler, KernelCompiler
from fastconv.kernels.disk import KernelFiles

KERNEL_SIGNATURE = types.void(types.intp, types.intp, types.intp, types.intp)

# "contract" lets a*b+c become one FMA, "reassoc" and "nsz" let a sum over a vector's lanes be a vector operation.
# Nothing here lets the compiler assume that NaN and inf never occur.
_OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": {"contract", "reassoc", "nsz"}, "error_model": "numpy"}

_counts = {"compiled": 0, "loaded": 0}
_compiled: list[Any] = []
"""Everything compiled, for good. Threads that ask for a kernel at once may compile it twice, and of these the caches of
its callers keep one: the other's address is in a plan already, and its code must not go."""


def statistics() -> dict[str, int]:
    """How many kernels this process compiled, and how many it loaded from the disk cache."""
    return dict(_counts)


class _PackageCache(FunctionCache):
    """Numba's disk cache with files of our own, which are fresh only while the whole package is unchanged."""

    def __init__(self, py_func: Callable[..., Any]) -> None:
        super().__init__(py_func)
        self._cache_file = KernelFiles(self._cache_path, self._impl.filename_base)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The cached kernel, or None, also where a file cannot be used: it is written anew."""
        try:
            return super().load_overload(sig, target_context)
        except Exception:
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a kernel where the disk takes it."""
        with contextlib.suppress(OSError):
            super().save_overload(sig, data)


def _package_cache(py_func: Callable[..., Any]) -> _PackageCache | None:
    try:
        return _PackageCache(py_func)
    except RuntimeError:  # no writable cache directory: compile in every process
        return None


def _count(loaded: bool) -> None:
    _counts["loaded" if loaded else "compiled"] += 1


def kernel(py_func: Callable[..., None]) -> CFunc:
    """Compile a kernel, or load it from the disk cache. Its `address` is what `launch.run` takes."""
    return _c_function(py_func, KERNEL_SIGNATURE)


def part(py_func: Callable[..., None]) -> CFunc:
    """Compile what several kernels have in common, once for all: they call it by its `address`, with integers only.

    `fastconv.kernels.simd.call_part` does that.
    """
    return _c_function(py_func, types.void(*[types.intp] * py_func.__code__.co_argcount))


def _c_function(py_func: Callable[..., None], signature: Any) -> CFunc:
    compiled = CFunc(py_func, (signature.args, signature.return_type), {}, _OPTIONS, pipeline_class=KernelCompiler)
    cache = _package_cache(py_func)
    if cache is not None:
        compiled._cache = cache  # type: ignore[attr-defined]
    compiled.compile()
    _compiled.append(compiled)
    _count(compiled.cache_hits > 0)
    return compiled


def native(signature: Any, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a function that Python calls, at its first call, under the package's cache.

    What is called is the compiled wrapper itself: Numba's dispatcher would look at every argument first, which takes
    0.1 us. So arrays must be of the signature's dtypes, ranks and orders; nothing checks them any more.
    """

    def decorate(py_func: Callable[..., Any]) -> Callable[..., Any]:
        @functools.cache
        def entry_point() -> Any:
            compiled = njit(**_OPTIONS, **options)(py_func)
            cache = _package_cache(py_func)
            if cache is not None:
                compiled._cache = cache
            compiled.compile(signature)
            _count(sum(compiled.stats.cache_hits.values()) > 0)
            _compiled.append(compiled)
            return compiled.overloads[signature.args].entry_point

        return entry_point

    return decorate


_HELPER_OPTIONS: dict[str, Any] = {
    **_OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True, "pipeline_class": HelperCompiler
}  # fmt: skip


def inline(py_func: Callable[..., Any]) -> Any:
    """Compile a helper into the kernels that call it; nobody else can.

    What it takes in parameters with names in capitals is known when it is compiled. Numba would take what others begin
    with as known too, and compile the helper once for a counter's 0 and once more for what follows.
    """
    helper = njit(**_HELPER_OPTIONS)(py_func)
    code = py_func.__code__
    known = [name.isupper() for name in code.co_varnames[: code.co_argcount]]
    template = helper.get_call_template

    def get_call_template(args: Any, kws: Any) -> Any:
        return template([arg if keep else types.unliteral(arg) for keep, arg in zip(known, args, strict=True)], kws)

    helper.get_call_template = get_call_template
    return helper
