"""How the core is compiled: its functions are parts, and what Python calls is optimised as a whole.

numba optimises every function with all that it calls and makes machine code of it. Of functions
that call each other ten deep each is then compiled ten times, and all but the last are thrown away:
more than half of what compiling cost. Nothing allocates, so that reference counts are left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit
from numba.core import typed_passes, untyped_passes
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase
from numba.core.compiler_machinery import FunctionPass, PassManager, register_pass

DIGEST = hashlib.sha256(
    b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("_*.py")))
).hexdigest()[:12]

Compiled = TypeVar("Compiled", bound=Callable[..., Any])


class _Part(JITCodeLibrary):  # type: ignore[misc]
    """Code that is only linked into other code: neither optimised nor made to run by itself."""

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """None is there."""
        self._ensure_finalized()
        return 0

    @property
    def codegen(self) -> Any:
        """Itself: what is linked in has no objects of Python to be told of."""
        return self

    def set_env(self, name: str, env: Any) -> None:
        """Nothing to tell."""


@register_pass(mutates_CFG=False, analysis_only=True)
class _IntoPart(FunctionPass):  # type: ignore[misc]
    """What comes next puts its code into a part."""

    _name = "into_part"

    def __init__(self) -> None:
        FunctionPass.__init__(self)

    def run_pass(self, state: Any) -> bool:
        """Nothing of the function changes."""
        state.library = _Part(state.targetctx.codegen(), state.func_id.func_qualname)
        return False


class _PartCompiler(CompilerBase):  # type: ignore[misc]
    """numba's passes less those for what the core has not: closures, array expressions, literals."""

    def define_pipelines(self) -> list[PassManager]:
        """The passes in order."""
        pm = PassManager("part")
        for made in (
            untyped_passes.TranslateByteCode,
            untyped_passes.FixupArgs,
            untyped_passes.IRProcessing,
            untyped_passes.ReconstructSSA,
            typed_passes.NopythonTypeInference,
            typed_passes.PreLowerStripPhis,
            _IntoPart,
            typed_passes.IRLegalization,
            typed_passes.AnnotateTypes,
            typed_passes.NativeLowering,
            typed_passes.NoPythonBackend,
        ):
            pm.add_pass(made, made.__name__)
        pm.finalize()
        return [pm]


def compiled(function: Compiled) -> Compiled:
    """Compile when it is first called by compiled code; Python cannot call it."""
    return cast(
        Compiled,
        njit(
            error_model="numpy",
            no_cpython_wrapper=True,
            no_cfunc_wrapper=True,
            _nrt=False,
            pipeline_class=_PartCompiler,
        )(function),
    )


def entry(function: Compiled) -> Compiled:
    """Compile when Python first calls it; the machine code is kept where NUMBA_CACHE_DIR says.

    numba notices that a function's own file changed, not that one it calls did: the digest of all
    of them in the name keeps a warm cache from serving old code.
    """
    function.__qualname__ = f"{function.__name__}_{DIGEST}"
    return cast(
        Compiled,
        njit(cache=True, error_model="numpy", no_cfunc_wrapper=True, _nrt=False)(function),
    )
