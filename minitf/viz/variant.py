"""One page about a variant of the catalogue: its pattern, and its cost against the number of tokens.

    study = mt.viz.study("softmax_attention", tokens=32, dim=32)
    mt.viz.variant_picture(study, save="softmax_attention.png")
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from minitf import registry
from minitf.engine import Array, MinitfError, Tensor, no_grad
from minitf.nn import Case, Position

from .mixing import Cost, Progress, channel_matrix, cost_against_length, mixing_matrix
from .picture import BLUE, GREY, INK, ORANGE, PALE, Picture

# What the first panel shows, by the kind of the card. Kinds that are not here have no such picture.
TOKEN_KINDS = ("attention", "mixer", "block", "tokens")
CHANNEL_KINDS = ("ffn", "norm", "adapter", "compress")
WHY_NOT = {
    "operation": "an operation has no tokens that it mixes",
    "decode": "it chooses or stores tokens, and has no map from tokens to tokens",
    "model": "a model is many layers: plot those that its config names",
    "embedding": "its inputs are numbers of tokens, which have no gradient",
}
LENGTHS = (16, 32, 64, 128, 256, 512)
# More heads than this are not drawn.
HEADS = 8


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

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        cost = self.cost or Cost((), (), ())
        powers = [None if math.isnan(p) else p for p in cost.slopes]
        return {
            "name": self.name, "title": self.title, "kind": self.kind, "complexity": self.complexity,
            "grid": list(self.grid), "dim": self.dim, "heads": self.heads, "seed": self.seed,
            "options": {key: repr(v) for key, v in self.options.items()}, "pattern": self.pattern,
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
    progress: Progress | None = None,
    **options: Any,
) -> Study:
    """Measure a variant of the catalogue.

    Args:
        name: a name or alias.
        tokens: N of the pattern; 32 if left out, and 64 on a grid, which is made as square as N allows.
        dim, heads, seed: of the layer and of its input, which is standard normal.
        lengths: N of the costs.
        progress: called with the share that is done.
        options: of `mt.build`.

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
    if heads is not None:
        options = {**options, "heads": heads}
    maker = Maker(name, cls, flat, dim, seed, options)
    layer, inputs = maker.make(tokens, "float64")
    facts: dict[str, Any] = {
        "name": name, "title": card.title, "kind": card.kind, "complexity": card.complexity,
        "grid": maker.grid(tokens), "dim": dim, "seed": seed, "heads": getattr(layer, "heads", heads),
        "options": {k: v for k, v in {**implied, **options}.items() if k != "heads"},
    }  # fmt: skip
    if card.kind == "position":
        return position_study(layer, tokens, dim, seed, facts)
    half = None if progress is None else lambda share: progress(share / 2)
    rest = None if progress is None else lambda share: progress((1 + share) / 2)
    x, others = inputs[0], inputs[1:]
    run = (lambda z: layer(z, *others)) if others else layer
    if card.kind in CHANNEL_KINDS:
        pattern, matrix, maps = "channels", channel_matrix(run, x), None
    else:
        # Other inputs have one example only.
        matrix = mixing_matrix(run, x, progress=half, **({"copies": 1} if others else {}))
        pattern, maps = "mixing", head_maps(layer, inputs)
    cost = cost_against_length(lambda n: maker.make(n, "float32"), lengths, progress=rest)
    return Study(**facts, pattern=pattern, matrix=matrix, maps=maps, cost=cost)


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

    def make(self, n: int, dtype: str) -> tuple[Any, tuple[Tensor, ...]]:
        """The layer in eval mode, and one example of its inputs with n tokens."""
        grid = self.grid(n)
        options = {"seed": self.seed, "dtype": dtype, **self.options}
        takes = registry.parameters(self.cls)
        if "dtype" not in takes:
            options.pop("dtype")
        # Weights for every place: made for this grid, or for at least so many tokens.
        if "grid" in takes and "grid" not in options:
            options["grid"] = grid if len(grid) > 1 else n
        if registry.is_count(default := takes.get("context")) and "context" not in options and n > default:
            options["context"] = n
        layer: Any = registry.build(self.name, self.dim, **options)
        layer.eval()
        if "dtype" not in takes:
            layer.to(dtype)
        heads = getattr(layer, "heads", 1)
        heads = heads if registry.is_count(heads) and self.dim % heads == 0 else 1
        case = Case(b=1, t=grid[0], w=grid[-1], h=heads, d=self.dim // heads, seed=self.seed)
        if hasattr(self.cls, "example_inputs"):
            inputs = self.cls.example_inputs(case)
        else:
            inputs = (case.tokens() if self.flat else case.image(),)
        return layer, tuple(v.astype(dtype) if v.dtype.kind == "f" else v for v in inputs)


def head_maps(layer: Any, inputs: Sequence[Tensor]) -> Array | None:
    """The attention weights (H, N, N) of a layer that can tell them, or None."""
    if not callable(getattr(layer, "weights", None)):
        return None
    with no_grad():
        weights = layer.weights(*inputs).numpy()
    return weights[0] if weights.ndim == 4 and len(weights) == 1 else None


def position_study(
    layer: Position, tokens: int, dim: int, seed: int, facts: Mapping[str, Any]
) -> Study:
    """What a position scheme does: its bias, its rotation, or the table that it adds."""
    n, rng = np.arange(tokens), np.random.default_rng(seed)
    bias = layer.bias(n, n)
    if bias is not None:
        maps = np.asarray(bias.numpy() if isinstance(bias, Tensor) else bias, dtype=np.float64)
        maps = maps.reshape(-1, tokens, tokens)
        return Study(**facts, pattern="bias", matrix=maps.mean(axis=0), maps=maps, cost=None)
    # 64 random vectors, each at every place
    width = dim - dim % 2
    q = Tensor(np.repeat(rng.standard_normal((1, 64, 1, width)), tokens, axis=2))
    with no_grad():
        turned = layer.rotate(q, n).numpy()
        added = layer.embed(Tensor(np.zeros((1, tokens, dim), dtype=np.float32)), n).numpy()[0]
    if not np.array_equal(turned, q.numpy()):
        # q_i . q_j / |q|^2, the mean over the vectors: (N, N)
        scores = turned[0] @ turned[0].swapaxes(-1, -2) / np.square(q.numpy()[0]).sum(-1)[..., None]
        return Study(**facts, pattern="rotation", matrix=scores.mean(axis=0), maps=None, cost=None)
    if added.any():
        unit = added / np.linalg.norm(added, axis=-1, keepdims=True)
        return Study(**facts, pattern="similarity", matrix=unit @ unit.T, maps=None, cost=None)
    raise PlotError(f"{facts['name']} leaves tokens, scores and values as they are: there is nothing to show")


def variant_picture(study: Study, *, save: str | Path | None = None) -> Picture:
    """Draw a study: its pattern, FLOPs and memory against N, and above them maps of heads or of a few tokens.

    Args:
        study: from `mt.viz.study`.
        save: where to write the picture.
    """
    strip = strip_of(study)
    narrow = study.cost is None
    columns = len(strip[0]) if strip else 0
    tall = 2.75 if columns <= 4 else 1.95
    picture = Picture((7.5 if narrow else 13.5), 4.9 + (tall if strip else 0))
    parts = picture.subfigures(2, 1, height_ratios=(tall, 4.2)) if strip else [None, picture.subfigures()]
    picture.suptitle(headline(study), fontsize=13, color=INK, parse_math=False)
    if strip:
        draw_strip(parts[0], study, *strip)
    axes = parts[1].subplots(1, 1 if narrow else 3, squeeze=False)[0]
    draw_pattern(axes[0], study)
    if study.cost is not None:
        power, memory_power = study.cost.slopes
        card = textwrap.shorten(study.complexity, 56, placeholder=" …")
        draw_cost(axes[1], study.cost.lengths, study.cost.flops, "FLOPs of a forward pass", "")
        axes[1].set_title(f"{grows('FLOPs', power)}\ncard: {card}", fontsize=11, parse_math=False)
        draw_cost(axes[2], study.cost.lengths, study.cost.peak_bytes, "peak memory of results", "B")
        axes[2].set_title(f"{grows('memory', memory_power)}\ncounted, float32", fontsize=11, parse_math=False)
    return picture.finish(save)


def headline(study: Study) -> str:
    """Two lines: what it is, and how it was built."""
    size = " × ".join(map(str, study.grid))
    facts = [f"{size} tokens", f"D = {study.dim}"]
    if registry.is_count(study.heads):
        facts.append(f"{study.heads} head{'s' if study.heads != 1 else ''}")
    facts += [f"{key}={value!r}" for key, value in study.options.items()]
    facts.append(f"seed {study.seed}")
    return f"{study.name}: {study.title}\n" + textwrap.shorten(",  ".join(facts), 110, placeholder=" …")


def grows(what: str, power: float) -> str:
    """A title: the power of N between the two largest."""
    return f"{what} against N" if math.isnan(power) else f"{what} grow{'s' * (what == 'memory')} like N^{power:.2f}"


PATTERNS = {
    "mixing": ("who influences whom", "input token", "output token", "size of ∂ output / ∂ input"),
    "channels": ("Jacobian of one token", "input channel", "output channel", "∂ output / ∂ input"),
    "bias": ("bias, mean over heads", "key", "query", "added to the scores"),
    "rotation": ("score of equal vectors", "place of the key", "place of the query", "q · k / |q|²"),
    "similarity": ("similarity of places", "place", "place", "cosine"),
}


def draw_pattern(axes: Axes, study: Study) -> None:
    title, across, down, words = PATTERNS[study.pattern]
    m = study.matrix
    largest = max(float(np.nanmax(np.abs(m))), 1e-12)
    style: dict[str, Any] = dict(cmap="RdBu_r", vmin=-largest, vmax=largest)
    if study.pattern == "mixing":
        # The square root keeps what is small visible.
        style = dict(cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=largest))
    elif study.pattern == "bias" and (m <= 0).all():
        style = dict(cmap="Blues_r", vmax=0)
    image = axes.imshow(m, interpolation="nearest", **style)
    if study.pattern == "mixing" and len(study.grid) == 2:
        across, down = (f"{words}, row by row" for words in (across, down))
        for line in range(study.grid[1], max(m.shape), study.grid[1]):
            axes.axvline(line - 0.5, color=GREY, linewidth=0.4)
            axes.axhline(line - 0.5, color=GREY, linewidth=0.4)
    axes.set_title(f"{title}\n{' × '.join(map(str, m.shape))}", fontsize=11)
    axes.set_xlabel(across)
    axes.set_ylabel(down)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.85, pad=0.03)
    bar.set_label(words)


def strip_of(study: Study) -> tuple[list[Array], list[str], list[tuple[int, int] | None]] | None:
    """Small maps above the page: those of the heads, or what a few tokens of a grid see; with their titles."""
    if study.maps is not None and (study.pattern == "mixing" or len(study.maps) > 1):
        shown = study.maps[:HEADS]
        more = f" of {len(study.maps)}" if len(study.maps) > HEADS else ""
        return list(shown), [f"head {i}{more}" for i in range(len(shown))], [None] * len(shown)
    if study.pattern == "mixing" and len(study.grid) == 2 and len(study.matrix) == math.prod(study.grid):
        rows, columns = study.grid
        places = [(0, 0), (rows // 2, 0), (rows // 2, columns // 2), (rows - 1, columns - 1)]
        fields = [study.matrix[r * columns + c].reshape(rows, columns) for r, c in places]
        return fields, [f"what output token {r}, {c} sees" for r, c in places], list(places)
    return None


def draw_strip(
    part: Any, study: Study, maps: Sequence[Array], titles: Sequence[str], places: Sequence[Any]
) -> None:
    """One row of small maps on one scale."""
    row = part.subplots(1, len(maps), squeeze=False)[0]
    low, high = (float(f(np.stack(maps))) for f in (np.min, np.max))
    scale = dict(cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=max(high, 1e-12)))
    words = "∂ output / ∂ input" if places[0] else "attention weight"
    if study.pattern == "bias" or low < 0:
        largest = max(abs(low), abs(high), 1e-12)
        scale = dict(cmap="RdBu_r", vmin=-largest, vmax=largest)
        if high <= 0:
            scale = dict(cmap="Blues_r", vmin=low, vmax=0)
        words = "bias" if study.pattern == "bias" else words
    for axes, values, title, place in zip(row, maps, titles, places):
        image = axes.imshow(values, interpolation="nearest", **scale)
        axes.set_title(title, fontsize=10, pad=4)
        axes.set_xticks([])
        axes.set_yticks([])
        if place is not None:
            r, c = place
            axes.add_patch(Rectangle((c - 0.5, r - 0.5), 1, 1, fill=False, edgecolor=ORANGE, linewidth=1.8))
    if places[0] is None:
        row[0].set_ylabel("query")
        row[0].set_xlabel("key")
    part.colorbar(image, ax=list(row), shrink=0.85, pad=0.01).set_label(words)


def draw_cost(axes: Axes, lengths: Sequence[int], values: Sequence[int], label: str, unit: str) -> None:
    """One curve on logarithmic axes, with slopes 1 and 2 through its first point to compare it with."""
    axes.set_xlabel("N, tokens")
    axes.set_ylabel(label)
    axes.grid(color=PALE)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_box_aspect(1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(list(lengths)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v, unit)))
    if min(values) > 0:
        axes.set_yscale("log")
        ends = np.array([lengths[0], lengths[-1]], dtype=float)
        for power, style in ((1, ":"), (2, "--")):
            line = values[0] * (ends / ends[0]) ** power
            axes.plot(ends, line, style, color=GREY, linewidth=1.2, label=f"N{'²' * (power == 2)}")
    axes.plot(lengths, values, color=BLUE, linewidth=2, marker="o", markersize=5, label="counted")
    axes.legend(frameon=False, loc="upper left")


def short(value: float, unit: str) -> str:
    """A number with k, M, G for thousands."""
    power = 0 if value <= 0 else min(4, int(math.log10(value) / 3 + 1e-9))
    return f"{value / 1000**power:g} {('', 'k', 'M', 'G', 'T')[max(0, power)]}{unit}".strip()
