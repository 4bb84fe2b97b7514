"""A backend whose kernels are the plain definitions: it proves the dispatch, not the arithmetic.

`pytest --backend loopback` runs any test through it, `--backend auto` with the kernels of the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from minitf.engine import Tensor, vjp
from minitf.ops import kernels
from minitf.ops.kernels import Kernel


def plain(value: Any) -> Any:
    return value.data if isinstance(value, Tensor) else value


def loopback(name: str, supports: Callable[..., str | None] = lambda *args: None) -> Kernel:
    """A kernel made of the plain definition of `name`."""
    body = kernels.DEFINITIONS[name][0]

    def forward(*args: Any) -> tuple[Any, Any]:
        assert not any(isinstance(a, Tensor) for a in args), "kernels work on plain arrays"
        with kernels.use("reference"):
            out = body(*args)
        return tuple(map(plain, out)) if isinstance(out, tuple) else plain(out), args

    def backward(args: Any, g: Any) -> tuple[Any, ...]:
        floats = [(i, a) for i, a in enumerate(args) if isinstance(a, np.ndarray) and a.dtype.kind in "fc"]
        # An array of more digits than the tensors have is a constant beside them.
        narrowest = min((a.real.itemsize for _, a in floats), default=0)
        chosen = [i for i, a in floats if a.real.itemsize == narrowest]
        arrived = [i for i, part in enumerate(g) if part is not None] if isinstance(g, list) else []

        def of_chosen(*given: Any) -> Any:
            full = list(args)
            for i, a in zip(chosen, given, strict=True):
                full[i] = a
            out = body(*full)
            return kernels.flat([out[i] for i in arrived]) if isinstance(out, tuple) else out

        with kernels.use("reference"):
            _, pull = vjp(of_chosen, *(args[i] for i in chosen))
            # Inside a walk a cotangent is the conjugate of what enters and leaves.
            pulled = pull(np.conj(kernels.flat([g[i] for i in arrived]) if isinstance(g, list) else g))
        found = dict(zip(chosen, pulled, strict=True))
        return tuple(np.conj(plain(found[i])) if i in found else None for i in range(len(args)))

    return Kernel(forward, backward, supports)


class EveryDefinition(dict[str, Kernel]):
    """A loopback kernel for whatever operation is asked for."""

    def __contains__(self, name: object) -> bool:
        return name in kernels.DEFINITIONS

    def __missing__(self, name: str) -> Kernel:
        self[name] = loopback(name)
        return self[name]


BACKEND = SimpleNamespace(KERNELS=EveryDefinition(), unavailable=lambda: None)
