"""Hashed, axial, periodic, associative and programmable attention against published code."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import Tensor, ops
from minitf.attention.axial_attention import AxialAttention
from minitf.attention.hopfield import Hopfield
from minitf.attention.hopfield_layer import HopfieldLayer
from minitf.attention.hopfield_pooling import HopfieldPooling
from minitf.attention.reformer_lsh import ReformerLSH
from minitf.attention.score_mod import (
    alibi,
    and_masks,
    causal,
    document,
    relative_bias,
    sliding_window,
    soft_cap,
    tiled,
)
from minitf.blocks.series_decomposition import SeasonalNorm, SeriesDecoder, SeriesDecomposition, decompose
from minitf.mixers.auto_correlation import AutoCorrelation
from minitf.nn import Buffer, Module
from tests.oracles.oracle import compare

EXACT = 1e-10
# The training form of transformers adds up its copies in float32.
SINGLE = 1e-4


def put(layer: Module, **values: Any) -> Module:
    """The layer with tensors in place of parameters; "a.b" stands for attribute b of attribute a."""
    for path, value in values.items():
        owner: Any = layer
        *names, last = path.split(".")
        for name in names:
            owner = owner[int(name)] if name.isdigit() else getattr(owner, name)
        setattr(owner, last, value)
    return layer


def linears(w: dict[str, Tensor], prefix: str = "", tag: str = "") -> dict[str, Tensor]:
    """wq, bq, ... of the answers as weights and biases of four maps."""
    found = {f"{prefix}w{n}.weight": w[f"{tag}w{n}"] for n in "qkvo"}
    return found | {f"{prefix}w{n}.bias": w[f"{tag}b{n}"] for n in "qkvo"}


def reformer(name: str, **options: Any) -> None:
    def run(x: Tensor, wqk: Tensor, wv: Tensor, rotations: Tensor) -> Any:
        layer = ReformerLSH(8, heads=2, chunk=4, buckets=6, dtype="float64", **options)
        weights = {"wqk.weight": wqk, "wv.weight": wv, "wo.weight": Tensor(np.eye(8))}
        return put(layer, **weights, rotations=Buffer(rotations.data))(x)

    compare(name, run, EXACT)


def test_reformer_one_round_and_the_chunk_before() -> None:
    reformer("reformer_lsh", rounds=1, causal=True)


def test_reformer_rounds_in_chunks_alone() -> None:
    """With more rounds that code wraps around from one to the next: compared where no chunk looks back."""
    reformer("reformer_lsh_rounds", rounds=3, back=0)


def test_axial_attention() -> None:
    def run(x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, wo: Tensor, bo: Tensor) -> Any:
        layer = AxialAttention(8, heads=2, axes=(0, 1, 2), bias=False, dtype="float64")
        for a in range(3):
            maps = zip("qkvo", (wq, wk, wv, wo))
            put(layer, **{f"layers.{a}.w{n}.weight": w[a] for n, w in maps}, **{f"layers.{a}.wo.bias": bo[a]})
        return layer(x)

    compare("axial_attention", run, EXACT)


def test_auto_correlation_in_training_mode() -> None:
    def run(x: Tensor, **w: Tensor) -> Any:
        layer = AutoCorrelation(8, heads=1, factor=2.0, mode="training", dtype="float64")
        return put(layer, **linears(w))(x)

    compare("auto_correlation", run, SINGLE)


def test_auto_correlation_with_fewer_keys() -> None:
    def run(x: Tensor, context: Tensor, **w: Tensor) -> Any:
        layer = AutoCorrelation(8, heads=2, factor=2.0, mode="inference", dtype="float64")
        return put(layer, **linears(w))(x, context=context)

    compare("auto_correlation_cross", run, EXACT)


def test_decomposition_and_seasonal_norm() -> None:
    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Any:
        norm = put(SeasonalNorm(4, dtype="float64"), **{"norm.weight": weight, "norm.bias": bias})
        return ops.concat([*decompose(x, 5), norm(x)], axis=-1)

    compare("series_decomposition", run, EXACT)


def test_decomposition_encoder() -> None:
    def run(x: Tensor, w1: Tensor, w2: Tensor, **w: Tensor) -> Any:
        layer = SeriesDecomposition(8, heads=2, kernel=5, dtype="float64").eval()
        return put(layer, **linears(w, "mixer."), **{"ffn.w1.weight": w1, "ffn.w2.weight": w2})(x)

    compare("series_decomposition_encoder", run, EXACT)


def test_decomposition_decoder() -> None:
    def run(x: Tensor, context: Tensor, w1: Tensor, w2: Tensor, taps: Tensor, **w: Tensor) -> Any:
        layer = SeriesDecoder(8, 3, heads=2, kernel=5, dtype="float64").eval()
        put(layer, **linears(w, "mixer."), **linears(w, "cross.", "cross_"), trend=taps)
        put(layer, **{"ffn.w1.weight": w1, "ffn.w2.weight": w2})
        return ops.concat(layer(x, context, ops.zeros((*x.shape[:2], 3), dtype="float64")), axis=-1)

    compare("series_decomposition_decoder", run, EXACT)


def test_score_mod() -> None:
    ids = np.repeat([0, 1, 2], [9, 7, 5])

    def run(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Any:
        def score_mod(s: Tensor, *at: Any) -> Tensor:
            return soft_cap(1.5)(relative_bias(table)(alibi(2)(s, *at), *at), *at)

        def not_in_head_0(b: Any, h: Any, i: Any, j: Any) -> Any:
            return (h > 0) | (i > 2)

        mask = and_masks(document(ids), causal, sliding_window(4), not_in_head_0)
        return tiled(q, k, v, score_mod, mask, 8)[0]

    compare("score_mod", run, EXACT)


def hopfield_weights(w: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    norms = {f"{prefix}norm_{part}.weight": w[f"norm_{part}"] for part in ("state", "stored", "values")}
    shifts = {f"{prefix}norm_{part}.bias": w[f"shift_{part}"] for part in ("state", "stored", "values")}
    return linears(w, prefix) | norms | shifts


def test_hopfield() -> None:
    def run(x: Tensor, context: Tensor, values: Tensor, mask: Any, **w: Tensor) -> Any:
        layer = Hopfield(8, heads=2, steps=3, eps=0.29, dtype="float64")
        return put(layer, **hopfield_weights(w))(x, context=context, values=values, mask=mask)

    compare("hopfield", run, EXACT)


def test_hopfield_options() -> None:
    def run(x: Tensor, **w: Tensor) -> Any:
        layer = Hopfield(
            8, heads=2, head_dim=6, out_dim=5, beta=0.9, steps=None, eps=1e-3, connected=True,
            norm_space=True, zero_row=True, dtype="float64",
        )  # fmt: skip
        return put(layer, **hopfield_weights(w))(x)

    compare("hopfield_options", run, EXACT)


def test_hopfield_pooling() -> None:
    def run(x: Tensor, states: Tensor, **w: Tensor) -> Any:
        layer = HopfieldPooling(8, heads=2, quantity=3, steps=1, dtype="float64")
        mask = (np.arange(5) < np.array([5, 3])[:, None])[:, None, None]
        return put(layer, **hopfield_weights(w, "hopfield."), states=states).flat(x, mask=mask)  # type: ignore[attr-defined]

    compare("hopfield_pooling", run, EXACT)


def test_hopfield_layer() -> None:
    def run(x: Tensor, patterns: Tensor, targets: Tensor, **w: Tensor) -> Any:
        layer = HopfieldLayer(8, heads=2, quantity=6, separate=True, dtype="float64")
        return put(layer, **hopfield_weights(w, "hopfield."), patterns=patterns, targets=targets)(x)

    compare("hopfield_layer", run, EXACT)
