"""Activations: sizes around a piece of 1024, large and special values, every kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

KINDS = ("identity", "relu", "relu2", "gelu", "gelu_tanh", "silu", "sigmoid")


def arrays(rng: np.random.Generator) -> Iterator[tuple[str, Any]]:
    yield "one number", rng.standard_normal(1)
    yield "no rows", np.zeros((0, 4))
    yield "an empty axis", np.zeros((2, 0))
    for width in (1, 7, 8, 9, 33):
        yield f"width {width}", 3 * rng.standard_normal((3, width))
    for size in (1023, 1024, 1025, 2048):
        yield f"{size} in a row", 3 * rng.standard_normal(size)
    yield "many rows", 3 * rng.standard_normal((70, 9, 33))
    yield "large", rng.standard_normal((4, 9)) * 10.0 ** np.arange(9)
    yield "small", rng.standard_normal((4, 9)) * 10.0 ** -np.arange(9)
    yield "zeros", np.zeros((3, 8))
    yield "around the ends of the error function", np.linspace(-7.0, 7.0, 1000)
    yield "one row repeated", np.broadcast_to(rng.standard_normal(12), (6, 12))


def gelu_cases(rng: np.random.Generator) -> Iterator[tuple[str, dict[str, Any]]]:
    for form in ("none", "tanh"):
        for label, x in arrays(rng):
            yield f"{form} {label}", {"x": x, "approximate": form}


def silu_cases(rng: np.random.Generator) -> Iterator[tuple[str, dict[str, Any]]]:
    for label, x in arrays(rng):
        yield label, {"x": x}


def bias_cases(rng: np.random.Generator) -> Iterator[tuple[str, dict[str, Any]]]:
    for kind in KINDS:
        x = rng.standard_normal((5, 3, 1030))
        yield f"{kind} with a bias", {"x": x, "bias": rng.standard_normal(1030), "kind": kind}
        yield f"{kind} without", {"x": x[:, 0, :90], "bias": None, "kind": kind}
    for label, x in arrays(rng):
        if x.size:
            yield label, {"x": x, "bias": rng.standard_normal(x.shape[-1]), "kind": "gelu"}
    yield "no rows with a bias", {"x": np.zeros((0, 4)), "bias": np.ones(4), "kind": "silu"}


def gated_cases(rng: np.random.Generator) -> Iterator[tuple[str, dict[str, Any]]]:
    for kind in KINDS:
        yield kind, {"a": rng.standard_normal((3, 50)), "b": rng.standard_normal((3, 50)), "kind": kind}
    for label, x in arrays(rng):
        yield label, {"a": x, "b": rng.standard_normal(x.shape), "kind": "silu"}


CASES = {
    "gelu": gelu_cases,
    "silu": silu_cases,
    "bias_activation": bias_cases,
    "gated_activation": gated_cases,
}
