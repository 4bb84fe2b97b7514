"""One page about a variant of the catalogue: its pattern, and its cost against the number of tokens.

study = mt.viz.study("softmax_attention", tokens=32, dim=32)
mt.viz.variant_picture(study, save="softmax_attention.png")
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from minitf import registry
from minitf.engine import Array, MinitfError, Tensor, no_grad
from minitf.nn import Case, Position

from .mixing import Cost, Progress, channel_matrix, cost_against_length, mixing_matrix
from .picture import BLUE, GREY, INK, ORANGE, PALE, SLATE, Picture

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
        if "dtype" not in takes:
            options.pop("dtype")
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


def variant_picture(study: Study, *, save: str | Path | None = None) -> Picture:
    """Draw a study: its pattern, FLOPs and memory against N, and above them maps of heads or of a few tokens.

    Args:
        study: from `mt.viz.study`.
        save: where to write the picture.
    """
    strip = strip_of(study)
    # Inches: the headline, the row of small maps, the panels
    top, middle, low = 0.75, (0.0 if strip is None else 2.6 if len(strip) <= 4 else 2.0), 4.4
    picture = Picture(9.6 if study.cost is None else 13.5, top + middle + low)
    picture.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    heights = (top, middle, low) if strip else (top, low)
    head, *rows = picture.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    size = dict(ha="center", va="center", parse_math=False)
    head.text(0.5, 0.68, f"{study.name}: {study.title}", fontsize=14, weight="bold", color=INK, **size)
    head.text(0.5, 0.2, how_built(study), fontsize=10, color=SLATE, **size)
    if strip:
        draw_strip(rows[0], strip)
    axes = rows[-1].subplots(1, 2 if study.cost is None else 3)
    draw_pattern(axes[0], study)
    if study.cost is None:
        draw_distance(axes[1], study)
    else:
        cost = study.cost
        for place, words, values, unit, power, below in (
            (axes[1], "FLOPs grow", cost.flops, "", cost.slopes[0], f"card: {study.complexity}"),
            (axes[2], "memory grows", cost.peak_bytes, "B", cost.slopes[1], "peak of results, float32"),
        ):
            draw_cost(place, cost.lengths, values, unit)
            # No power where nothing is counted: views cost nothing.
            entitle(place, words.split()[0] if math.isnan(power) else f"{words} like N^{power:.2f}", below)
            place.set_xlabel("N, tokens;  the power is that from {} to {}".format(*cost.lengths[-2:]))
    return picture.finish(save)


def how_built(study: Study) -> str:
    """One line of facts."""
    facts = [] if study.pattern == "channels" else [f"{' × '.join(map(str, study.grid))} tokens"]
    facts.append(f"D = {study.dim}")
    if study.heads:
        facts.append(f"{study.heads} head{'' if study.heads == 1 else 's'}")
    facts += [f"{key}={value!r}" for key, value in study.options.items()]
    facts += ["weights that begin as zeros drawn"] if study.drawn else []
    return textwrap.shorten(",  ".join([*facts, f"seed {study.seed}"]), 120, placeholder=" …")


def entitle(axes: Axes, title: str, below: str) -> None:
    """A title, and a smaller line under it."""
    axes.annotate(
        textwrap.shorten(below, 80, placeholder=" …"), (0.5, 1), (0, 6), xycoords="axes fraction",
        textcoords="offset points", ha="center", va="bottom", color=SLATE, parse_math=False,
        fontsize=9 if len(below) <= 60 else 7,
    )  # fmt: skip
    axes.set_title(title, fontsize=11.5, color=INK, pad=20, parse_math=False)


# Of each pattern: title, what stands below it, names of the axes, what the colours are.
PATTERNS = {
    "mixing": ("who influences whom", "exact Jacobian, its size for every pair of tokens",
               "input token", "output token", "‖∂ output / ∂ input‖"),
    "channels": ("who influences whom in one token", "exact Jacobian, channel by channel",
                 "input channel", "output channel", "∂ output / ∂ input"),
    "bias": ("bias of head 0", "what is added to its scores", "key", "query", "bias"),
    "rotation": ("score of equal vectors", "mean over 64 random vectors",
                 "place of the key", "place of the query", "q · k / |q|²"),
    "similarity": ("similarity of places", "cosine of what is added to the tokens",
                   "place", "place", "cosine"),
}  # fmt: skip


def draw_pattern(axes: Axes, study: Study) -> None:
    """The matrix of the study as an image."""
    title, below, across, down, words = PATTERNS[study.pattern]
    m = study.maps[0] if study.pattern == "bias" and study.maps is not None else study.matrix
    # What is infinite, such as the bias of a hidden key, has no colour.
    m = np.where(np.isfinite(m), m, np.nan)
    image = axes.imshow(m, interpolation="nearest", **colours(m, root=study.pattern == "mixing"))
    if max(m.shape) > 2 * min(m.shape):
        # Few tokens come out of many: wide cells, because a thin strip cannot be read.
        axes.set_aspect("auto")
        axes.set_box_aspect(1)
    if study.pattern == "mixing" and len(study.grid) == 2:
        across = f"{across}, row by row"
        down = f"{down}, row by row" if m.shape[0] == m.shape[1] else down
        for line in range(study.grid[1], max(m.shape), study.grid[1]):
            for draw, length in ((axes.axvline, m.shape[1]), (axes.axhline, m.shape[0])):
                if line < length:
                    draw(line - 0.5, color=GREY, linewidth=0.4)
    entitle(axes, title, below)
    axes.set_xlabel(across)
    axes.set_ylabel(down)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.figure.colorbar(image, cax=axes.inset_axes((1.03, 0, 0.045, 1))).set_label(words)


def colours(m: Array, root: bool) -> dict[str, Any]:
    """How to colour values: white is 0, blue more, and red and blue the two signs where there are both.

    root: let the colour follow the square root, which keeps small values visible beside large ones.
    """
    low, high = float(np.nanmin(m)), float(np.nanmax(m))
    largest = max(abs(low), abs(high), 1e-12)
    if low < 0 < high:
        return dict(cmap="RdBu_r", vmin=-largest, vmax=largest)
    if low < 0:
        return dict(cmap="Blues_r", vmin=low, vmax=0)
    return dict(cmap="Blues", norm=PowerNorm(0.5 if root else 1.0, vmin=0, vmax=largest))


@dataclass(frozen=True)
class Small:
    """One of the small maps: what a head attends to, or what the token at `place` of a grid sees."""

    title: str
    values: Array
    place: tuple[int, int] | None = None


def strip_of(study: Study) -> list[Small] | None:
    """The small maps above the panels, if the variant has any."""
    if study.pattern != "mixing":
        return None
    if study.maps is not None:
        more = f" of {len(study.maps)}" if len(study.maps) > HEADS else ""
        return [Small(f"head {i}{more}", values) for i, values in enumerate(study.maps[:HEADS])]
    if len(study.grid) == 2 and len(study.matrix) == math.prod(study.grid):
        rows, columns = study.grid
        places = [(0, 0), (rows // 2, 0), (rows // 2, columns // 2), (rows - 1, columns - 1)]
        return [
            Small(f"seen from row {r}, column {c}", study.matrix[r * columns + c].reshape(study.grid), (r, c))
            for r, c in dict.fromkeys(places)
        ]
    return None


def draw_strip(part: Any, maps: Sequence[Small]) -> None:
    """One row of small maps in one scale of colours."""
    row = part.subplots(1, len(maps), squeeze=False)[0]
    style = colours(np.stack([small.values for small in maps]), root=True)
    for axes, small in zip(row, maps):
        image = axes.imshow(small.values, interpolation="nearest", **style)
        axes.set_title(small.title, fontsize=10, pad=4)
        axes.set_xticks([])
        axes.set_yticks([])
        if small.place is not None:
            corner = (small.place[1] - 0.5, small.place[0] - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=ORANGE, linewidth=1.8))
    row[0].set_ylabel("query" if maps[0].place is None else "row")
    row[0].set_xlabel("key" if maps[0].place is None else "column")
    words = "attention weight" if maps[0].place is None else "‖∂ output / ∂ input‖"
    part.colorbar(image, cax=row[-1].inset_axes((1.06, 0, 0.06, 1))).set_label(words)


def draw_distance(axes: Axes, study: Study) -> None:
    """The mean of every diagonal of a position scheme's maps: what it does to tokens at a distance."""
    maps = study.matrix[None] if study.maps is None else study.maps[:HEADS]
    n = study.matrix.shape[0]
    offsets = np.arange(1 - n, n)
    for i, values in enumerate(maps):
        line = [np.diagonal(values, o).mean() for o in offsets]
        colour = BLUE if len(maps) == 1 else colormaps["viridis"](i / len(maps))
        axes.plot(offsets, line, color=colour, linewidth=2, label=f"head {i}")
    if len(maps) > 1:
        axes.legend(frameon=False, fontsize=9)
    frame(axes)
    entitle(axes, "against distance", "mean over pairs at that distance")
    axes.set_xlabel("place of the key - place of the query")
    axes.set_ylabel(PATTERNS[study.pattern][-1])


def draw_cost(axes: Axes, lengths: Sequence[int], values: Sequence[int], unit: str) -> None:
    """One curve on logarithmic axes, with powers 1 and 2 through its first point to compare it with."""
    frame(axes)
    axes.set_xscale("log", base=2)
    if min(values) > 0:
        axes.set_yscale("log")
        ends = np.array([lengths[0], lengths[-1]], dtype=float)
        for power, name, style in ((1, "N", ":"), (2, "N²", "--")):
            axes.plot(
                ends, values[0] * (ends / ends[0]) ** power, style, color=GREY, linewidth=1.2, label=name
            )
    axes.plot(lengths, values, color=BLUE, linewidth=2, marker="o", markersize=5, label="counted")
    axes.xaxis.set_major_locator(FixedLocator(list(lengths)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v, unit)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False, loc="upper left")


def frame(axes: Axes) -> None:
    """A square plot with a pale grid behind it."""
    axes.set_box_aspect(1)
    axes.grid(color=PALE)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def short(value: float, unit: str) -> str:
    """A number with k, M, G, T for thousands."""
    power = 0 if value < 1000 else min(4, int(math.log10(value) / 3 + 1e-9))
    return f"{value / 1000**power:g} {('', 'k', 'M', 'G', 'T')[power]}{unit}".strip()
