"""Freeze what published code answers for hashed, axial, periodic, associative and programmable attention.

Run in this folder with a Python that has requirements-hashing.txt. Two repositories are on no package index:
give the folder that holds their checkouts, named owner+name, as the argument; without it they are left alone.
"""

from __future__ import annotations

import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from axial_attention import AxialAttention
from oracle import from_torch
from torch.func import functional_call
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers import AutoformerConfig, ReformerConfig
from transformers.models.autoformer.modeling_autoformer import (
    AutoformerAttention,
    AutoformerLayernorm,
    AutoformerSeriesDecompositionLayer,
)
from transformers.models.reformer.modeling_reformer import LSHSelfAttention

HF = f"transformers {version('transformers')}"
rng = np.random.default_rng(2001)


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    return scale * rng.standard_normal(shape)


def reformer(rounds: int, before: int, causal: bool) -> tuple[Any, np.ndarray]:
    """LSHSelfAttention on chunks of 4 with 6 buckets, and its rotations as (H, rounds, d, columns)."""
    layer = LSHSelfAttention(
        ReformerConfig(
            hidden_size=8, num_attention_heads=2, attention_head_size=4, lsh_attn_chunk_length=4,
            num_hashes=rounds, num_buckets=6, lsh_num_chunks_before=before, lsh_num_chunks_after=0,
            hash_seed=7, is_decoder=causal, lsh_attention_probs_dropout_prob=0.0,
        )
    ).double()  # fmt: skip
    torch.manual_seed(7)
    rotations = torch.randn((2, 4, rounds, 3), dtype=torch.float64).permute(0, 2, 1, 3)

    def f(x: Any, wqk: Any, wv: Any, rotations: Any) -> Any:
        weights = {"query_key.weight": wqk.T, "value.weight": wv.T}
        return functional_call(layer, weights, (x,)).hidden_states

    return f, rotations.numpy()


def axial(x: Any, wq: Any, wk: Any, wv: Any, wo: Any, bo: Any) -> Any:
    layer, weights = AxialAttention(8, num_dimensions=3, heads=2).double(), {}
    for a in range(3):
        name = f"axial_attentions.{a}.fn"
        weights[f"{name}.to_q.weight"] = wq[a].T
        weights[f"{name}.to_kv.weight"] = torch.cat([wk[a], wv[a]], dim=1).T
        weights[f"{name}.to_out.weight"], weights[f"{name}.to_out.bias"] = wo[a].T, bo[a]
    return functional_call(layer, weights, (x,))


def autoformer_training(x: Any, wq: Any, wk: Any, wv: Any, wo: Any, **biases: Any) -> Any:
    """In float32, which its sum over delays falls back to. One head: with more, that code gives the
    weights of one example to the heads of another.
    """
    layer = AutoformerAttention(8, 1, autocorrelation_factor=2).train()
    weights = {f"{n}_proj.weight": w.T for n, w in zip(("q", "k", "v", "out"), (wq, wk, wv, wo))}
    weights |= {f"{n}_proj.bias": biases[b] for n, b in zip(("q", "k", "v", "out"), ("bq", "bk", "bv", "bo"))}
    return functional_call(layer, {n: w.float() for n, w in weights.items()}, (x.float(),))[0]


def decomposition(x: Any, weight: Any, bias: Any) -> Any:
    """Season, trend, and the seasonal norm of x, side by side."""
    config = AutoformerConfig(d_model=4, moving_average=5)
    norm = AutoformerLayernorm(config).double()
    parts = AutoformerSeriesDecompositionLayer(config)(x)
    return torch.cat(
        [*parts, functional_call(norm, {"layernorm.weight": weight, "layernorm.bias": bias}, (x,))], -1
    )


def flex(q: Any, k: Any, v: Any, table: Any) -> Any:
    """ALiBi, a learned table and a soft cap, in a window inside packed documents; grouped heads."""
    ids = torch.tensor([0] * 9 + [1] * 7 + [2] * 5)

    def score_mod(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        score = score + (j - i) * torch.exp2(-8.0 * (h + 1) / 2) + table[h, (i - j).clip(-2, 2) + 2]
        return 1.5 * torch.tanh(score / 1.5)

    def mask_mod(b: Any, h: Any, i: Any, j: Any) -> Any:
        return (ids[i] == ids[j]) & (i >= j) & (i - j <= 4) & ((h > 0) | (i > 2))

    # Backward is refused on a CPU, where no compiled kernel has it; the eager code can do it.
    module = sys.modules[flex_attention.__module__]
    module._validate_device = lambda *tensors: None  # type: ignore[attr-defined]
    mask = create_block_mask(mask_mod, 1, 2, 21, 21, device="cpu", BLOCK_SIZE=8)
    return flex_attention(q, k, v, score_mod=score_mod, block_mask=mask, enable_gqa=True)


def commit(folder: Path) -> str:
    """owner/name, as the folder is called."""
    return folder.name.replace("+", "/")


def hopfield_weights(prefix: str, w: dict[str, Any], packed: bool) -> dict[str, Any]:
    """Ours under the names of hflayers."""
    core, found = f"{prefix}association_core.", {}
    if packed:
        found[f"{core}in_proj_weight"] = torch.cat([w["wq"].T, w["wk"].T, w["wv"].T])
    else:
        found |= {f"{core}{n}_proj_weight": w[f"w{n}"].T for n in "qkv"}
    found[f"{core}in_proj_bias"] = torch.cat([w["bq"], w["bk"], w["bv"]])
    found |= {f"{core}out_proj.weight": w["wo"].T, f"{core}out_proj.bias": w["bo"]}
    for part, name in (
        ("state", "state_pattern"),
        ("stored", "stored_pattern"),
        ("values", "pattern_projection"),
    ):
        found[f"{prefix}norm_{name}.weight"] = w[f"norm_{part}"]
        found[f"{prefix}norm_{name}.bias"] = w[f"shift_{part}"]
    return found


def hopfield_inputs(
    dim: int, width: int, pattern: int, out: int, source: int | None = None
) -> dict[str, np.ndarray]:
    """Weights of one Hopfield layer of `dim`, with heads that are `width` and `pattern` wide together."""
    found = {"wq": (dim, width), "wk": (dim, width), "wv": (source or dim, pattern), "wo": (pattern, out)}
    found |= {"bq": (width,), "bk": (width,), "bv": (pattern,), "bo": (out,)}
    found |= {f"shift_{part}": (dim,) for part in ("state", "stored", "values")}
    arrays = {k: normal(*shape, scale=0.7) for k, shape in found.items()}
    return arrays | {f"norm_{part}": 1.0 + normal(dim, scale=0.2) for part in ("state", "stored", "values")}


def hopfield(folder: Path) -> None:
    sys.path.insert(0, str(folder))
    from hflayers import Hopfield, HopfieldLayer, HopfieldPooling

    source = f"{commit(folder)} f56f929"
    mask = rng.random((3, 5)) < 0.3

    def association(x: Any, context: Any, values: Any, **w: Any) -> Any:
        """The second head stops after one step, the first after two."""
        layer = Hopfield(8, num_heads=2, update_steps_max=3, update_steps_eps=0.29).double().eval()
        options = {"association_mask": torch.tensor(mask)}
        return functional_call(layer, hopfield_weights("", w, True), ((context, x, values),), options)

    tokens = {"x": normal(2, 3, 8), "context": normal(2, 5, 8), "values": normal(2, 5, 8), "mask": ~mask}
    from_torch(
        "hopfield",
        f"{source} Hopfield",
        lambda mask, **v: association(**v),
        tokens | hopfield_inputs(8, 8, 8, 8),
    )

    def options(x: Any, **w: Any) -> Any:
        """Wider heads, values connected with keys, layer norms in Hopfield space, a zero row, no limit.

        One beta: a list of them is repeated over the features of all heads there, not head by head.
        """
        layer = Hopfield(
            8, hidden_size=6, output_size=5, pattern_size=6, num_heads=2, scaling=0.9, update_steps_max=None,
            update_steps_eps=1e-3, normalize_hopfield_space=True, pattern_projection_as_connected=True,
            add_zero_association=True,
        ).double().eval()  # fmt: skip
        return functional_call(layer, hopfield_weights("", w, False), (x,))

    arrays = {"x": normal(2, 4, 8)} | hopfield_inputs(8, 12, 12, 5, source=12)
    from_torch("hopfield_options", f"{source} Hopfield with options", options, arrays)

    def pooling(x: Any, states: Any, **w: Any) -> Any:
        layer = HopfieldPooling(8, num_heads=2, quantity=3, update_steps_max=1).double().eval()
        weights = hopfield_weights("hopfield.", w, True) | {"pooling_weights": states[None]}
        padding = {"stored_pattern_padding_mask": torch.tensor([[False] * 5, [False] * 3 + [True] * 2])}
        return functional_call(layer, weights, (x,), padding)

    arrays = {"x": normal(2, 5, 8), "states": normal(3, 8)} | hopfield_inputs(8, 8, 8, 8)
    from_torch("hopfield_pooling", f"{source} HopfieldPooling", pooling, arrays)

    def lookup(x: Any, patterns: Any, targets: Any, **w: Any) -> Any:
        layer = HopfieldLayer(8, num_heads=2, quantity=6, lookup_weights_as_separated=True).double().eval()
        weights = hopfield_weights("hopfield.", w, True)
        weights |= {"lookup_weights": patterns[None], "target_weights": targets[None]}
        return functional_call(layer, weights, (x,))

    arrays = {"x": normal(2, 5, 8), "patterns": normal(6, 8), "targets": normal(6, 8)}
    from_torch("hopfield_layer", f"{source} HopfieldLayer", lookup, arrays | hopfield_inputs(8, 8, 8, 8))


def linear_weights(prefix: str, w: dict[str, Any], tag: str = "") -> dict[str, Any]:
    """Auto-correlation's wq, bq, ... under the names of Autoformer."""
    found = {}
    for letter, name in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out")):
        found[f"{prefix}{name}_projection.weight"] = w[f"{tag}w{letter}"].T
        found[f"{prefix}{name}_projection.bias"] = w[f"{tag}b{letter}"]
    return found


def linear_inputs(tag: str = "") -> dict[str, np.ndarray]:
    found = {f"{tag}w{letter}": normal(8, 8, scale=0.4) for letter in "qkvo"}
    return found | {f"{tag}b{letter}": normal(8) for letter in "qkvo"}


def autoformer(folder: Path) -> None:
    sys.path.insert(0, str(folder))
    from layers.AutoCorrelation import AutoCorrelation, AutoCorrelationLayer
    from layers.Autoformer_EncDec import DecoderLayer, EncoderLayer

    source = f"{commit(folder)} 51c7d41"

    def mixer(factor: int) -> Any:
        return AutoCorrelationLayer(AutoCorrelation(factor=factor, attention_dropout=0.0), 8, 2)

    def cross(x: Any, context: Any, **w: Any) -> Any:
        """Inference mode, with fewer keys than queries."""
        return functional_call(mixer(2).double().eval(), linear_weights("", w), (x, context, context, None))[
            0
        ]

    arrays = {"x": normal(3, 20, 8), "context": normal(3, 13, 8)}
    from_torch("auto_correlation_cross", f"{source} AutoCorrelationLayer", cross, arrays | linear_inputs())

    def encoder(x: Any, w1: Any, w2: Any, **w: Any) -> Any:
        layer = EncoderLayer(mixer(1), 8, 16, moving_avg=5, dropout=0.0, activation="gelu").double().eval()
        weights = linear_weights("attention.", w) | {
            "conv1.weight": w1.T[..., None],
            "conv2.weight": w2.T[..., None],
        }
        return functional_call(layer, weights, (x,))[0]

    ffn = {"w1": normal(8, 16, scale=0.4), "w2": normal(16, 8, scale=0.4)}
    arrays = {"x": normal(2, 11, 8)} | ffn | linear_inputs()
    from_torch("series_decomposition_encoder", f"{source} EncoderLayer", encoder, arrays)

    def decoder(x: Any, context: Any, w1: Any, w2: Any, taps: Any, **w: Any) -> Any:
        """x and what is added to the trend, side by side."""
        layer = DecoderLayer(mixer(1), mixer(1), 8, 3, 16, moving_avg=5, dropout=0.0, activation="gelu")
        weights = linear_weights("self_attention.", w) | linear_weights("cross_attention.", w, "cross_")
        weights |= {"conv1.weight": w1.T[..., None], "conv2.weight": w2.T[..., None]}
        weights["projection.weight"] = taps.permute(2, 1, 0)
        return torch.cat(functional_call(layer.double().eval(), weights, (x, context)), -1)

    arrays = {"x": normal(1, 9, 8), "context": normal(1, 7, 8), "taps": normal(3, 8, 3, scale=0.4)} | ffn
    arrays |= linear_inputs() | linear_inputs("cross_")
    from_torch("series_decomposition_decoder", f"{source} DecoderLayer", decoder, arrays)


def main() -> None:
    for name, (rounds, before, causal) in {
        "reformer_lsh": (1, 1, True),
        "reformer_lsh_rounds": (3, 0, False),
    }.items():
        f, rotations = reformer(rounds, before, causal)
        arrays = {"x": normal(2, 24, 8), "wqk": normal(8, 8), "wv": normal(8, 8), "rotations": rotations}
        from_torch(name, f"{HF} LSHSelfAttention", f, arrays)
    arrays = {f"w{n}": normal(3, 8, 8, scale=0.4) for n in "qkvo"} | {"bo": normal(3, 8)}
    package = f"axial-attention {version('axial-attention')}"
    from_torch("axial_attention", f"{package} AxialAttention", axial, {"x": normal(2, 3, 4, 2, 8)} | arrays)
    arrays = {"x": normal(3, 16, 8)} | linear_inputs()
    from_torch("auto_correlation", f"{HF} AutoformerAttention", autoformer_training, arrays)
    arrays = {"x": normal(2, 9, 4), "weight": normal(4), "bias": normal(4)}
    from_torch("series_decomposition", f"{HF} decomposition layer and seasonal norm", decomposition, arrays)
    arrays = {
        "q": normal(2, 2, 21, 6),
        "k": normal(2, 1, 21, 6),
        "v": normal(2, 1, 21, 6),
        "table": normal(2, 5),
    }
    with warnings.catch_warnings():
        # It says that without compilation it is slow.
        warnings.simplefilter("ignore")
        from_torch("score_mod", "torch.nn.attention.flex_attention, eager", flex, arrays)
    if len(sys.argv) > 1:
        hopfield(Path(sys.argv[1]) / "ml-jku+hopfield-layers")
        autoformer(Path(sys.argv[1]) / "thuml+Autoformer")


if __name__ == "__main__":
    main()
