"""Functions that are compiled as a part of those that call them.

Numba optimises every function by itself and makes machine code of it, and again, with all that it calls, for
each function that calls it. Most of the time goes there. A `Linked` library does neither: its functions are
optimised once, inside the function that Python calls.
"""

from __future__ import annotations

from typing import Any

from numba import _dynfunc  # type: ignore[attr-defined]
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler


class Linked(JITCodeLibrary):  # type: ignore[misc]
    """Code that waits for the library which links it."""

    def finalize(self) -> None:
        """Only gather what this code calls."""
        self._raise_if_finalized()
        for library in dict.fromkeys(self._linking_libraries):
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalized = True


class LinkedCompiler(Compiler):  # type: ignore[misc]
    """Numba's compiler, for functions that only compiled code calls; they may not print or call Python."""

    def define_pipelines(self) -> Any:
        self.state.library = Linked(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
        self.state.flags.no_compile = True
        return super().define_pipelines()

    def compile_extra(self, func: Any) -> Any:
        result = super().compile_extra(func)
        module, name = result.fndesc.lookup_module(), func.__name__
        # Numba finds the code of a function by this object, which nobody calls: its address is 0.
        entry = _dynfunc.make_function(module, name, "", 0, result.environment, (result.library,))
        self.state.targetctx.insert_user_function(entry, result.fndesc, [result.library])
        return result._replace(entry_point=entry)
