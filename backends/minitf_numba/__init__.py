"""Numba kernels for the CPU. Importing compiles nothing: a file is imported when its kernel is needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import Any

# Operation -> the file here that has its kernel.
FILES = {
    "layer_norm": "norms",
    "linear": "linear",
    "rms_norm": "norms",
}


class Kernels(Mapping[str, Any]):
    """Operation -> kernel."""

    def __getitem__(self, name: str) -> Any:
        return import_module(f".{FILES[name]}", __name__).KERNELS[name]

    def __iter__(self) -> Iterator[str]:
        return iter(FILES)

    def __len__(self) -> int:
        return len(FILES)


KERNELS = Kernels()


@cache
def unavailable() -> str | None:
    """None, or a sentence saying why no kernel can run here."""
    try:
        import numba  # noqa: F401
    except Exception as error:
        return (
            f"Numba cannot be imported ({type(error).__name__}: {error}); install it with `pip install numba`"
        )
    return None


def enter() -> None:
    """The backend is in use from here on."""
    from .threads import enter

    enter()


def leave() -> None:
    """The backend is no longer in use."""
    from .threads import leave

    leave()
