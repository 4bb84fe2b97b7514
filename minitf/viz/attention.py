"""Who looks at whom: attention maps and masks, queries down, keys across."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, PowerNorm
from matplotlib.patches import Patch

from minitf.engine import ShapeError, Tensor

from .picture import BLUE, PALE, Picture, readable_all


def attention_map(
    weights: Any,
    tokens: Sequence[Any] | None = None,
    titles: Sequence[str] | None = None,
    *,
    save: str | Path | None = None,
) -> Picture:
    """Attention weights as pictures: one row per layer, one column per head; dark means much attention.

    Args:
        weights: (Nq, Nk), (H, Nq, Nk) or (1, H, Nq, Nk), from 0 to 1; or a list of them, one per layer, as
            `model.attention_maps(tokens)` gives for one sequence.
        tokens: what stands at the N positions, for the axes, if Nq = Nk = N: a string, or a list of pieces.
        titles: one above each map, layer by layer. Default: "layer 0, head 0" and so on.
        save: where to write the picture.

    Raises:
        ShapeError: weights of another shape, or as many tokens or titles as do not fit.
    """
    many = isinstance(weights, list | tuple)
    layers = [maps_of(layer) for layer in (weights if many else [weights])]
    if not layers:
        raise ShapeError("attention_map: the list of layers is empty; this model's mixers may have no maps")
    names = [f"layer {i}, head {j}" for i, layer in enumerate(layers) for j in range(len(layer))]
    names = (
        list(titles)
        if titles is not None
        else names
        if many
        else [f"head {j}" for j in range(len(layers[0]))]
    )
    count = sum(len(layer) for layer in layers)
    if len(names) != count:
        raise ShapeError(f"attention_map: {len(names)} titles for {count} maps")
    rows, columns = len(layers), max(len(layer) for layer in layers)
    longest = max(max(layer.shape[1:]) for layer in layers)
    # Inches: a map has room for a label at each token, within what a page shows; labels stand outside.
    side = min(max(2.2, 0.14 * longest), max(2.2, 16 / columns), 8.0)
    outside = 0.5 + 0.08 * max(map(len, readable_all(tokens)), default=0) if tokens is not None else 0.7
    gap, right, top = 0.3, 1.1, 0.4
    width = outside + columns * (side + gap) + right
    height = outside + rows * (side + gap) + top
    # Placed by hand: matplotlib's own layout takes seconds where there are many labels.
    picture = Picture(width, height, layout=None)
    grid = picture.subplots(
        rows, columns, squeeze=False,
        gridspec_kw=dict(
            left=outside / width, right=1 - right / width, bottom=outside / height, top=1 - top / height,
            wspace=gap / side, hspace=gap / side,
        ),
    )  # fmt: skip
    image, titled = None, iter(names)
    for i, (row, layer) in enumerate(zip(grid, layers)):
        for axes in row[len(layer) :]:
            axes.set_axis_off()
        for j, (axes, weight) in enumerate(zip(row, layer)):
            # The square root keeps small weights visible beside a one.
            norm = PowerNorm(0.5, vmin=0, vmax=1)
            image = axes.imshow(weight, cmap="Blues", norm=norm, interpolation="nearest", aspect="auto")
            axes.set_title(next(titled), fontsize=10, pad=3, parse_math=False)
            # The lowest map of a column has labels below it, the first of a row labels on its left.
            lowest = i == rows - 1 or j >= len(layers[i + 1])
            label(axes, weight.shape, tokens, side, bottom=lowest, left=j == 0)
            if j == 0:
                axes.set_ylabel("query (looks)")
            if lowest:
                axes.set_xlabel("key (is looked at)")
    assert image is not None
    place = (1 - (right - 0.15) / width, outside / height, 0.15 / width, 1 - (outside + top) / height)
    bar = picture.colorbar(image, cax=picture.add_axes(place), ticks=[0, 0.05, 0.2, 0.5, 1])
    bar.set_label("attention weight")
    return picture.finish(save)


def mask_picture(
    mask: Any, tokens: Sequence[Any] | None = None, *, title: str = "", save: str | Path | None = None
) -> Picture:
    """Which key each query may see.

    Args:
        mask: boolean (Nq, Nk), True = visible; leading axes of length 1 may be there.
        tokens: what stands at the N positions, for the axes, if Nq = Nk = N.
        title: above the picture.
        save: where to write it.

    Raises:
        ShapeError: another shape, or elements that are not booleans.
    """
    visible = np.asarray(mask.numpy() if isinstance(mask, Tensor) else mask)
    while visible.ndim > 2 and visible.shape[0] == 1:
        visible = visible[0]
    if visible.ndim != 2 or visible.dtype != bool or not visible.size:
        raise ShapeError(
            f"mask_picture: a mask is boolean of shape (Nq, Nk), not {visible.dtype} of shape {visible.shape}"
        )
    queries, keys = visible.shape
    cell = min(0.35, 7 / max(queries, keys))
    picture = Picture(max(3.0, cell * keys + 1.2), max(2.2, cell * queries + 1.2))
    axes = picture.add_subplot()
    axes.imshow(visible, cmap=ListedColormap([PALE, BLUE]), vmin=0, vmax=1, interpolation="nearest")
    if max(queries, keys) <= 64:
        axes.set_xticks(np.arange(keys + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(queries + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1)
        axes.tick_params(which="minor", length=0)
    label(axes, (queries, keys), tokens, cell * max(queries, keys))
    axes.set_xlabel("key")
    axes.set_ylabel("query")
    picture.legend(
        handles=[Patch(color=BLUE, label="visible"), Patch(color=PALE, label="hidden")],
        loc="outside lower center", ncols=2, frameon=False, fontsize=9,
    )  # fmt: skip
    if title:
        axes.set_title(title, fontsize=10, parse_math=False)
    return picture.finish(save)


def maps_of(layer: Any) -> np.ndarray[Any, Any]:
    """One layer's maps as (H, Nq, Nk)."""
    maps = np.asarray(layer.numpy() if isinstance(layer, Tensor) else layer, dtype=np.float64)
    if maps.ndim == 4 and maps.shape[0] == 1:
        maps = maps[0]
    if maps.ndim == 2:
        maps = maps[None]
    if maps.ndim != 3 or not maps.size:
        raise ShapeError(
            f"attention_map: a layer has weights (H, N, N) of one sequence, not shape {maps.shape}; "
            "of a batch, pick one: [layer[0] for layer in maps]"
        )
    return maps


def label(
    axes: Axes,
    shape: tuple[int, int],
    tokens: Sequence[Any] | None,
    inches: float,
    bottom: bool = True,
    left: bool = True,
) -> None:
    """Write the tokens below and on the left, or leave the numbers where there are none."""
    axes.tick_params(labelbottom=bottom, labelleft=left)
    if tokens is None:
        return
    if shape != (len(tokens), len(tokens)):
        raise ShapeError(f"{len(tokens)} tokens do not label a map of {shape[0]} queries and {shape[1]} keys")
    names = readable_all(tokens)
    # Points per token, a little less than the pitch, so that neighbours do not touch.
    style: Any = dict(fontsize=min(9.0, 0.8 * 72 * inches / len(names)), family="monospace", parse_math=False)
    turned = 90 if max(map(len, names)) > 1 else 0
    axes.set_xticks(range(len(names)) if bottom else [], names if bottom else [], rotation=turned, **style)
    axes.set_yticks(range(len(names)) if left else [], names if left else [], **style)
    axes.tick_params(length=0, pad=2)
