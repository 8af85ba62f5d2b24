"""How Numba compiles kernels and their helpers: with the passes that these need, and machine code for kernels only.

Numba compiles every function as if Python or another library might call it, and looks in each for what kernels never
have: closures, contexts, comprehensions, loops over tuples of different types. A first call compiles some thirty
functions, most of them helpers that end up inside a kernel.
"""

from __future__ import annotations

from typing import Any

from numba import _dynfunc  # type: ignore[attr-defined]
from numba.core import typed_passes, untyped_passes
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, DefaultPassBuilder, _LowerResult
from numba.core.compiler_machinery import PassManager, register_pass

_NEEDLESS = {
    untyped_passes.WithLifting, untyped_passes.InlineClosureLikes, untyped_passes.RewriteDynamicRaises,
    untyped_passes.MakeFunctionToJitFunction, untyped_passes.InlineInlinables, untyped_passes.FindLiterallyCalls,
    untyped_passes.LiteralUnroll, untyped_passes.LiteralPropagationSubPipelinePass, typed_passes.InlineOverloads,
    typed_passes.AnnotateTypes, typed_passes.DumpParforDiagnostics,
}  # fmt: skip
"""Passes for what no kernel has; each makes Numba look anew at what every statement uses."""


class _HelperLibrary(JITCodeLibrary):
    """A helper's optimised code, to be inlined: no machine code is made of it."""

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class _HelperLowering(typed_passes.NativeLowering):
    """Lowers a helper to a library of its own kind."""

    _name = "helper_lowering"

    def run_pass(self, state: Any) -> bool:
        context, name = state.targetctx, state.func_id.func_qualname
        library = state.library = _HelperLibrary(context.codegen(), name)
        state.flags.no_compile = True
        super().run_pass(state)
        described, call_helper, _, env = state["cr"]
        # Callers find its code by this object, which has no code to run itself.
        handle = _dynfunc.make_function(described.lookup_module(), name, "", 0, env, (library,))
        context.insert_user_function(handle, described, [library])
        state["cr"] = _LowerResult(described, call_helper, cfunc=handle, env=env)
        return True


class KernelCompiler(Compiler):
    """Compiles kernels, and parts of them that are called by address."""

    _LOWERING: type = typed_passes.NativeLowering

    def define_pipelines(self) -> list[PassManager]:
        """The default passes, without those that find nothing in kernels."""
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        passes.passes = [
            (self._LOWERING if step is typed_passes.NativeLowering else step, purpose)
            for step, purpose in passes.passes
            if step not in _NEEDLESS
        ]
        passes.finalize()
        return [passes]


class HelperCompiler(KernelCompiler):
    """Compiles what is inlined into kernels."""

    _LOWERING = _HelperLowering
