"""The numbers behind the picture of a variant: its pattern, and its cost against the number of tokens.

study = mt.viz.study("softmax_attention", tokens=32, dim=32)
study.matrix, study.cost.flops, study.to_dict()
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minitf import registry
from minitf.engine import Array, MinitfError, Tensor, no_grad
from minitf.nn import Case, Position

from .mixing import Cost, Progress, channel_matrix, cost_against_length, mixing_matrix

# What the first panel shows, by the kind of the card. Kinds that are not here have no such picture.
TOKEN_KINDS = ("attention", "mixer", "block", "tokens")
CHANNEL_KINDS = ("ffn", "norm", "adapter", "compress")
WHY_NOT = {
    "operation": "an operation has no tokens that it mixes",
    "decode": "it chooses or stores tokens, and has no map from tokens to tokens",
    "model": "a model is many layers: plot those that its config names",
    "embedding": "it makes tokens, and mixes none",
}
# Options that say how far a token looks, and the share of the tokens that they have at most: of a sequence,
# and of the shorter side of a grid. Where a default reaches further, a small picture would show no pattern.
REACH = {"window": (4, 2), "left": (4, 2), "stripe": (4, 4), "chunk": (8, 2), "block": (32, 2)}
LENGTHS = (16, 32, 64, 128, 256, 512)


class PlotError(MinitfError, ValueError):
    """A variant that this picture cannot show; the message says why."""


@dataclass(frozen=True)
class Study:
    """The numbers behind the picture of one variant.

    Attributes:
        name, title, kind, complexity: from its card.
        grid: of the tokens: (N,) or (rows, columns). dim, heads, seed, options: how it was built.
        pattern: what `matrix` is: "mixing" (M, N), "channels" (D', D), "bias" (N, N), the mean over heads,
            "rotation" or "similarity" (N, N).
        maps: one picture for each head, (H, N, N): attention weights or biases; or None.
        cost: FLOPs and memory against N; None for position schemes, which act inside other layers.
        drawn: whether weights that begin as zeros were drawn, because with them no token influences another.
    """

    name: str
    title: str
    kind: str
    complexity: str
    grid: tuple[int, ...]
    dim: int
    heads: int | None
    seed: int
    options: Mapping[str, Any]
    pattern: str
    matrix: Array
    maps: Array | None
    cost: Cost | None
    drawn: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        cost = self.cost or Cost((), (), ())
        powers = [None if math.isnan(p) else p for p in cost.slopes]
        return {
            "name": self.name, "title": self.title, "kind": self.kind, "complexity": self.complexity,
            "grid": list(self.grid), "dim": self.dim, "heads": self.heads, "seed": self.seed,
            "options": {key: repr(v) for key, v in self.options.items()}, "drawn": self.drawn,
            "pattern": self.pattern,
            "matrix": self.matrix.tolist(), "maps": None if self.maps is None else self.maps.tolist(),
            "lengths": list(cost.lengths), "flops": list(cost.flops), "bytes": list(cost.peak_bytes),
            "flops_power": powers[0], "bytes_power": powers[1],
        }  # fmt: skip


def study(
    name: str,
    *,
    tokens: int | None = None,
    dim: int = 32,
    heads: int | None = None,
    seed: int = 0,
    lengths: Sequence[int] = LENGTHS,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Study:
    """Measure a variant of the catalogue.

    Args:
        name: a name or alias.
        tokens: N of the pattern; 32 if left out, and 64 on a grid, which is made as square as N allows.
        dim, heads, seed: of the layer and of its input, which is standard normal.
        lengths: N of the costs, two or more, ascending.
        options: more of what `mt.build` takes.
        progress: called with the share that is done.

    Raises:
        PlotError: a kind without tokens, such as an operation.
        UnknownVariantError, OptionError, ValueError: as `mt.build`.
    """
    own, implied = registry.resolve(name)
    cls, card = registry.variant_class(own), registry.variant_class(own).card
    if card.kind not in (*TOKEN_KINDS, *CHANNEL_KINDS, "position"):
        raise PlotError(f"{name} is of kind {card.kind!r}: {WHY_NOT.get(card.kind, 'it has no picture')}")
    flat = card.grid not in ("2d", "nd") or card.kind in CHANNEL_KINDS
    tokens = (32 if flat else 64) if tokens is None else tokens
    given = {**implied, **(options or {}), **({} if heads is None else {"heads": heads})}
    maker = Maker(name, cls, flat, dim, seed, given)
    maker = maker.narrowed(tokens) if card.kind in ("attention", "mixer") else maker
    options = maker.options
    layer, inputs = maker.make(tokens, "float64")
    facts: dict[str, Any] = {
        "name": name, "title": card.title, "kind": card.kind, "complexity": card.complexity,
        "grid": maker.grid(tokens), "dim": dim, "seed": seed, "heads": heads_of(layer, heads),
        "options": {k: v for k, v in options.items() if k != "heads"},
    }  # fmt: skip
    if card.kind == "position":
        return position_study(layer, tokens, dim, seed, facts)
    half = None if progress is None else lambda share: progress(share / 2)
    rest = None if progress is None else lambda share: progress((1 + share) / 2)
    x, others = inputs[0], inputs[1:]

    def run(z: Tensor) -> Tensor:
        # As many examples of the other inputs as there are of the tokens.
        more = (Tensor(np.repeat(v.data, len(z), axis=0)) for v in others)
        return tensor_of(layer(z, *more), name)

    drawn = False
    if card.kind in CHANNEL_KINDS:
        pattern, matrix, maps = "channels", channel_matrix(run, x), None
    else:
        # Other inputs without an axis of examples cannot be repeated.
        alone = any(v.ndim == 0 or len(v) != 1 for v in others)
        how: dict[str, Any] = {"progress": half, **({"copies": 1} if alone else {})}
        matrix = mixing_matrix(run, x, **how)
        if (
            tokens > 1
            and card.kind in ("attention", "block")
            and not (matrix * (1.0 - np.eye(*matrix.shape))).any()
        ):
            drawn = draw_zeros(layer, seed)
            matrix = mixing_matrix(run, x, **how) if drawn else matrix
        pattern, maps = "mixing", head_maps(layer, inputs)
    cost = cost_against_length(lambda n: maker.make(n, "float32"), lengths, progress=rest)
    return Study(**facts, pattern=pattern, matrix=matrix, maps=maps, cost=cost, drawn=drawn)


def draw_zeros(layer: Any, seed: int) -> bool:
    """Fill the parameters that begin as zeros, such as the gates of a block that begins as the identity.

    Matrices (n, m) are normal with std 1 / sqrt(n), vectors with std 1. Whether there were any.
    """
    rng = np.random.default_rng(seed)
    zeros = [p for p in layer.parameters() if not p.numpy().any()]
    for p in zeros:
        p.data[...] = rng.standard_normal(p.shape) / (math.sqrt(p.shape[0]) if p.ndim > 1 else 1.0)
    return bool(zeros)


def heads_of(layer: Any, asked: int | None) -> int | None:
    """The number of heads that a layer tells, or else what was asked for; some keep a list of heads."""
    told: Any = getattr(layer, "heads", asked)
    return int(told) if registry.is_count(told) else asked


@dataclass(frozen=True)
class Maker:
    """Builds one variant, and inputs for it, for any number of tokens."""

    name: str
    cls: Any
    flat: bool
    dim: int
    seed: int
    options: Mapping[str, Any]

    def grid(self, n: int) -> tuple[int, ...]:
        """(n,), or rows and columns as equal as can be, never more rows than columns."""
        if self.flat:
            return (n,)
        rows = next(r for r in range(math.isqrt(n), 0, -1) if n % r == 0)
        return rows, n // rows

    def narrowed(self, n: int) -> Maker:
        """The same with options of `REACH` small enough for n tokens, where the variant takes such values."""
        takes, card = registry.parameters(self.cls), self.cls.card
        # Chunks of any size give the same result, and other blocks are summarised: nothing is out of reach.
        free = {"chunk"} if "chunked" in card.properties else set()
        free |= set() if card.family == "block sparse" else {"block"}
        narrow = self
        for option in REACH.keys() & takes.keys() - free - self.options.keys():
            flat, grid = REACH[option]
            most = max(1 if option == "block" else 2, n // flat if self.flat else self.grid(n)[0] // grid)
            if not registry.is_count(takes[option]) or takes[option] <= most:
                continue
            for value in range(most, max(0, most - 2), -1):
                smaller = replace(narrow, options={**narrow.options, option: value})
                try:
                    smaller.make(n, "float64")
                except ValueError:
                    # Such as an even window where it must be odd.
                    continue
                narrow = smaller
                break
        return narrow

    def make(self, n: int, dtype: str) -> tuple[Any, tuple[Tensor, ...]]:
        """The layer in eval mode, and one example of its inputs with n tokens."""
        grid = self.grid(n)
        options = {"seed": self.seed, "dtype": dtype, **self.options}
        takes = registry.parameters(self.cls)
        # Weights for every place: made for this grid, or for at least so many tokens.
        if "grid" in takes and "grid" not in options:
            options["grid"] = grid if len(grid) > 1 else n
        default = takes.get("context")
        if isinstance(default, int) and 0 < default < n and "context" not in options:
            options["context"] = n
        layer: Any = registry.build(self.name, self.dim, **options)
        layer.eval()
        if "dtype" not in takes:
            layer.to(dtype)
        heads = heads_of(layer, None) or 1
        heads = heads if self.dim % heads == 0 else 1
        # Other inputs of a sequence, such as maps (t, w) to look at, must not grow with its square.
        width = grid[1] if len(grid) > 1 else 8
        case = Case(b=1, t=grid[0], w=width, h=heads, d=self.dim // heads, seed=self.seed)
        if hasattr(self.cls, "example_inputs"):
            inputs = self.cls.example_inputs(case)
        else:
            inputs = (case.tokens() if self.flat else case.image(),)
        return layer, tuple(v.astype(dtype) if v.dtype.kind == "f" else v for v in inputs)


def tensor_of(y: Any, name: str) -> Tensor:
    """The output, or the first part of an output of several, such as tokens and their sizes."""
    first = y[0] if isinstance(y, tuple) and y else y
    if not isinstance(first, Tensor) or first.ndim < 3:
        raise PlotError(f"{name} gives {type(y).__name__}, which holds no tokens (B, N, D) to look at")
    return first


def head_maps(layer: Any, inputs: Sequence[Tensor]) -> Array | None:
    """The attention weights (H, N, N) of a layer that can tell them, or None."""
    if not callable(getattr(layer, "weights", None)):
        return None
    with no_grad():
        weights = layer.weights(*inputs).numpy()
    return weights[0] if weights.ndim == 4 and len(weights) == 1 else None


def position_study(layer: Position, tokens: int, dim: int, seed: int, facts: Mapping[str, Any]) -> Study:
    """What a position scheme does: its bias, its rotation, or the table that it adds."""
    n, heads = np.arange(tokens), facts["heads"] or 1
    # 64 random vectors, each at every place: (64, H, N, d)
    q = np.random.default_rng(seed).standard_normal((64, heads, 1, dim // heads)).repeat(tokens, axis=2)
    try:
        with no_grad():
            bias = layer.bias(n, n)
            turned = layer.rotate(Tensor(q), n).numpy()
            added = layer.embed(Tensor(np.zeros((1, tokens, dim))), n).numpy()[0]
    except TypeError as error:
        raise PlotError(
            f"{facts['name']} needs more than positions, so its picture cannot be drawn"
        ) from error
    if bias is not None:
        maps = np.asarray(bias.numpy() if isinstance(bias, Tensor) else bias, dtype=np.float64)
        maps = maps.reshape(-1, tokens, tokens)
        return Study(**facts, pattern="bias", matrix=maps.mean(axis=0), maps=maps, cost=None)
    if not np.array_equal(turned, q):
        # q_i . q_j / |q|^2, the mean over the vectors: (N, N)
        scores = turned @ turned.swapaxes(-1, -2) / np.square(q).sum(axis=-1, keepdims=True)
        return Study(**facts, pattern="rotation", matrix=scores.mean(axis=(0, 1)), maps=None, cost=None)
    if added.any():
        unit = added / np.linalg.norm(added, axis=-1, keepdims=True)
        return Study(**facts, pattern="similarity", matrix=unit @ unit.T, maps=None, cost=None)
    raise PlotError(f"{facts['name']} leaves tokens and scores as they are: there is nothing to show")
