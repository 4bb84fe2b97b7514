"""Freeze what published code answers for linear attention and recurrent mixers.

Run in this folder with a Python that has requirements-linear.txt. The naive references of
flash-linear-attention (package fla-core) are loaded file by file, for the package itself wants a GPU. They
compute in float32.
"""

from __future__ import annotations

import importlib.util
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from oracle import from_torch

FLA = f"fla-core {version('fla-core')}"


def naive(name: str) -> ModuleType:
    """fla/ops/NAME/naive.py, without importing the package."""
    package = importlib.util.find_spec("fla")
    assert package is not None and package.submodule_search_locations is not None
    path = Path(package.submodule_search_locations[0]) / "ops" / name / "naive.py"
    spec = importlib.util.spec_from_file_location(f"naive_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def linear_attention(q: Any, k: Any, v: Any) -> Any:
    return naive("linear_attn").naive_recurrent_linear_attn(q, k, v, scale=1.0, normalize=True)[0]


def gla(q: Any, k: Any, v: Any, g: Any) -> Any:
    return naive("gla").naive_recurrent_gla(q, k, v, g)[0]


def main() -> None:
    rng = np.random.default_rng(0)
    # (B, N, H, d), as that package has it; 19 tokens are more than one chunk of 16.
    q, k = (rng.standard_normal((1, 19, 2, 4)) for _ in range(2))
    v = rng.standard_normal((1, 19, 2, 6))
    g = -rng.exponential(size=k.shape)
    positive = {"q": np.exp(q), "k": np.exp(k), "v": v}
    from_torch("linear_attention", f"{FLA} naive_recurrent_linear_attn", linear_attention, positive)
    from_torch("gla", f"{FLA} naive_recurrent_gla", gla, {"q": q, "k": k, "v": v, "g": g})


if __name__ == "__main__":
    main()
