"""Draws patterns.png: which tokens act on which, in sixteen variants. Run `python docs/patterns.py`.

Every panel is a matrix of 32 x 32 tokens: row i, column j shows how strongly output i depends on input j, as
the norm of the Jacobian, exact. The layers are new; the input is random.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

import minitf as mt
from minitf.viz.picture import INK, SLATE, Picture

TOKENS, DIM = 32, 16
# Variant, options that make its pattern visible at this size, and what to see.
PANELS = [
    ("softmax_attention", {}, "all of the past"),
    ("sliding_window", {"left": 5}, "six tokens"),
    ("attention_sinks", {"window": 5, "sinks": 2}, "a window and the first two"),
    ("bigbird", {"block": 2, "random": 1}, "blocks: global, near, random"),
    ("nsa", {"length": 4, "stride": 2, "block": 4, "picks": 3, "window": 4}, "compressed, chosen, near"),
    ("combiner_fixed", {"block": 6}, "near, and summaries"),
    ("reformer_lsh", {"chunk": 4, "rounds": 1, "same_bucket": True}, "whoever hashes alike"),
    ("linformer", {"rank": 4, "context": 32}, "four mixtures of all"),
    ("performer_favor", {}, "softmax, estimated"),
    ("gla", {"tau": 1.0}, "a memory that forgets"),
    ("delta_net", {}, "a memory that corrects"),
    ("mamba_block", {}, "selective state space"),
    ("s4d", {"states": 4}, "one response to an impulse"),
    ("auto_correlation", {}, "whole shifts"),
    ("series_decomposition", {}, "trend and season"),
    ("hopfield", {"beta": 4.0}, "retrieval of what is alike"),
]


def pattern(name: str, options: dict[str, object]) -> np.ndarray:
    """The mixing matrix (N, N), each row scaled to a largest element of 1."""
    layer = mt.build(name, dim=DIM, heads=2, dtype="float64", **options).eval()
    x = np.random.default_rng(0).standard_normal((1, TOKENS, DIM))
    m = mt.viz.mixing_matrix(layer, x)
    # What a token adds to itself through a skip path would outshine the rest.
    if mt.catalogue[name].card.kind == "block":
        m = np.where(np.eye(len(m), dtype=bool), 0.0, m)
    return m / np.maximum(m.max(axis=1, keepdims=True), 1e-300)


def main(folder: Path) -> None:
    picture = Picture(9.6, 10.6)
    picture.suptitle("Who listens to whom: 32 tokens, one layer", fontsize=15, color=INK)
    for axes, (name, options, words) in zip(picture.subplots(4, 4).flat, PANELS, strict=True):
        # The square root, so that weak influence can be seen.
        axes.imshow(np.sqrt(pattern(name, options)), cmap="viridis", vmin=0.0, vmax=1.0)
        axes.set_title(name, fontsize=10, color=INK)
        axes.set_xlabel(words, fontsize=8.5, color=SLATE)
        axes.set_xticks([])
        axes.set_yticks([])
    picture.finish(folder / "patterns.png")


if __name__ == "__main__":
    main(Path(__file__).parent)
