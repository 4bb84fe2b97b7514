"""Who owns the threads.

BLAS and Numba each keep their own, and a BLAS thread that waits for work holds a core that the next kernel
needs (measured: 8 ms for each change from one to the other). So while this backend is in use BLAS runs
on one thread, kernels have the threads that BLAS had, and cut their own products into parts (`blas.py`).
"""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import Any

# Threads of NumPy's BLAS before `enter`, None while the backend is not in use.
_before: int | None = None


@cache
def blas_pool() -> Any:
    """What controls the threads of NumPy's BLAS, or None where threadpoolctl does not know it."""
    from threadpoolctl import ThreadpoolController

    pools = [pool for pool in ThreadpoolController().lib_controllers if pool.user_api == "blas"]
    # Several: NumPy's is the one that NumPy's own folder holds.
    pools.sort(key=lambda pool: "numpy" not in pool.filepath)
    return pools[0] if pools else None


def enter() -> None:
    """The backend is in use from here on: BLAS gives its threads to the kernels."""
    global _before
    pool = blas_pool()
    if pool is not None:
        _before = pool.get_num_threads()
        pool.set_num_threads(1)
    if "numba" in sys.modules:
        share()


def leave() -> None:
    """The backend is no longer in use: BLAS has its threads back."""
    global _before
    if _before is not None:
        blas_pool().set_num_threads(_before)
    _before = None


def count() -> int:
    """Threads for kernels: those that BLAS had, else one for each core."""
    return _before or os.cpu_count() or 1


def share() -> None:
    """Give Numba `count` threads."""
    import numba

    most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    numba.set_num_threads(min(count(), most))
