"""What every kernel shares: how it is compiled, and into how many parts it is cut.

Parts depend on sizes and on the machine's cores only, never on the number of threads, and partial sums are
merged in the order of the parts: results are bit-equal on any number of threads.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numba import njit
from numba.core import event

from .launch import share_out
from .linked import LinkedCompiler
from .threads import share

__all__ = ["CORES", "contiguous", "inner", "jit", "parts", "share_out"]

# Elementary operations below which a kernel stays on one thread: about 20 microseconds of work.
SERIAL = 1 << 15
CORES = os.cpu_count() or 1

# Options of functions that only compiled code calls.
LINKED: Any = {"pipeline_class": LinkedCompiler, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def parts(count: int, work: int, most: int = 4 * CORES) -> int:
    """Into how many parts to cut `count` items that cost `work` elementary operations together."""
    return 1 if work < SERIAL or count < 2 else max(1, min(count, most, work // (SERIAL // 2)))


def contiguous(a: Any) -> Any:
    """`a` in C order and writeable, itself where it is: a kernel is compiled anew for every other layout."""
    return a if a.flags.carray else np.array(a, order="C")


def jit(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Compile a function that Python calls: on first use, kept on disk, dividing by zero as NumPy does."""
    return _compiler(function, {"cache": True, "no_cfunc_wrapper": True, **options})


def inner(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Compile a function that only compiled code calls, as a part of each function that does."""
    return _compiler(function, {**LINKED, **options})


def _compiler(function: Callable[..., Any] | None, options: dict[str, Any]) -> Any:
    decorate = njit(error_model="numpy", **options)
    return decorate if function is None else decorate(function)


class Note(event.Listener):  # type: ignore[misc]
    """Tells whoever sits at a terminal which kernels are compiled: a first use takes seconds."""

    said: ClassVar[set[str]] = set()

    def on_start(self, found: Any) -> None:
        module = found.data["dispatcher"].py_func.__module__
        if module.startswith(__package__) and module not in self.said and sys.stderr.isatty():
            self.said.add(module)
            name = module.rpartition(".")[2]
            print(f"minitf: compiling the {name} kernels, once for this machine ...", file=sys.stderr)

    def on_end(self, found: Any) -> None:
        """Nothing to say."""


def forget_stale() -> None:
    """Delete compiled kernels older than a file of this package.

    Numba looks at the age of a kernel's own file only, not at that of the functions it calls.
    """
    here = Path(__file__).parent
    newest = max(file.stat().st_mtime for file in here.glob("*.py"))
    for index in (here / "__pycache__").glob("*.nbi"):
        # Another process may do the same at this moment.
        with contextlib.suppress(FileNotFoundError):
            if index.stat().st_mtime < newest:
                index.unlink()


share()
event.register("numba:compile", Note())
forget_stale()
