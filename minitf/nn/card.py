"""What a variant says about itself: a literal card, and identities that machines check.

Cards hold literals only, so that the catalogue's index is made by reading files, not by importing them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from minitf.engine import Tensor

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Paper:
    """A source: title, arXiv number (or "" if it has none), year."""

    title: str
    arxiv: str
    year: int


@dataclass(frozen=True)
class Card:
    """The catalogue entry of a variant.

    Attributes:
        name: how `mt.build` finds it.
        title: one line for people.
        kind: "attention", "mixer", "ffn", "block", "position", "norm", "tokens", "adapter", "compress",
            "embedding", "operation", "decode" or "model".
        family: the shelf inside the kind, such as "softmax" or "gated".
        papers: where it comes from.
        causal: whether outputs can be made to depend on the past only (True is also the default of `build`).
        streams: whether it has `start` and `step`.
        grid: the grids it takes: "1d" (B, N, D), "2d" (B, rows, columns, D), "nd" (any number of axes),
            "any" (token by token).
        complexity: floating-point operations, a multiply-add counting two, as a sum of terms; N is the number
            of tokens.
        properties: names of checks that must hold.
        basis: what the definition was checked against.
        aliases: other names, each with the options it stands for.
        expected_failures: checks that cannot hold, each with the reason in the mathematics.
        parity: independent implementations that its values and gradients were compared with.
    """

    name: str
    title: str
    kind: str
    family: str
    papers: tuple[Paper, ...]
    causal: bool
    streams: bool
    grid: str
    complexity: str
    properties: tuple[str, ...]
    basis: str
    aliases: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    expected_failures: Mapping[str, str] = field(default_factory=dict)
    parity: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """A test case: a few integers and a seed.

    Attributes:
        b: batch; t: tokens, or rows of a grid; h: heads; d: width of a head; seed: for everything random.
        w: columns of a grid.
    """

    b: int = 2
    t: int = 5
    h: int = 2
    d: int = 4
    seed: int = 0
    w: int = 3

    @property
    def dim(self) -> int:
        """The model width h * d."""
        return self.h * self.d

    def rng(self) -> np.random.Generator:
        """A fresh generator of this case's seed."""
        return np.random.default_rng(self.seed)

    def tokens(self) -> Tensor:
        """Standard normal input x (b, t, h * d), float64."""
        return Tensor(self.rng().standard_normal((self.b, self.t, self.dim)))

    def image(self) -> Tensor:
        """Standard normal input x (b, t, w, h * d), float64: a grid of t rows and w columns."""
        return Tensor(self.rng().standard_normal((self.b, self.t, self.w, self.dim)))


@dataclass(frozen=True)
class Identity:
    """Two computations that must agree.

    Attributes:
        words: what must hold.
        compute: case -> (left, right), arrays or tensors of one shape, in float64.
        tolerance: largest difference relative to the largest element; 1e-6 is "exact" in float64.
    """

    words: str
    compute: Callable[[Case], tuple[Any, Any]]
    tolerance: float

    def error(self, case: Case) -> float:
        """The relative difference of the two computations in this case. NaN if either has a NaN."""
        left, right = (np.asarray(v.data if isinstance(v, Tensor) else v) for v in self.compute(case))
        if left.shape != right.shape:
            raise ValueError(f"identity {self.words!r}: the sides have shapes {left.shape} and {right.shape}")
        if not left.size:
            return 0.0
        return float(np.max(np.abs(left - right)) / max(1.0, np.max(np.abs(right))))


def identity(words: str, tolerance: float = 1e-6) -> Callable[[F], F]:
    """Mark a function case -> (left, right) of a variant's file as one of its identities."""

    def mark(compute: F) -> F:
        compute.identity = Identity(words, compute, tolerance)  # type: ignore[attr-defined]
        return compute

    return mark


def identities(variant: Any) -> list[Identity]:
    """The identities beside a variant: those of the file that defines its class."""
    module = sys.modules[(variant if isinstance(variant, type) else type(variant)).__module__]
    return [f.identity for f in vars(module).values() if isinstance(getattr(f, "identity", None), Identity)]
