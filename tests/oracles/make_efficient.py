"""Freeze what published code answers for sparse, low-rank and random-feature attention.

Run in this folder with a Python that has requirements-efficient.txt. Two repositories are on no package
index: give the folder that holds their checkouts, named owner+name, as the argument; without it they are
left alone.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

# A mean over blocks needs no compiler.
os.environ["TORCH_COMPILE_DISABLE"] = "1"

import numpy as np
import torch
from linformer import LinformerSelfAttention
from oracle import from_torch
from performer_pytorch import performer_pytorch as performer
from torch.func import functional_call
from transformers import BigBirdConfig
from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention, BigBirdModel

HF = f"transformers {version('transformers')}"
LUCID = f"performer-pytorch {version('performer-pytorch')}"
rng = np.random.default_rng(4001)


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    return scale * rng.standard_normal(shape)


def file_of(path: Path) -> ModuleType:
    """One file of a checkout, without the package around it."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Twelve blocks of two tokens, two of them at random. It draws in training mode only.
big = BigBirdBlockSparseAttention(
    BigBirdConfig(
        hidden_size=8, num_attention_heads=2, block_size=2, num_random_blocks=2, use_bias=False,
        max_position_embeddings=32,
    ), seed=5,
).double().train()  # fmt: skip
drawn = {}
plan = big._bigbird_block_rand_mask_with_head


def watched(*args: Any, **kwargs: Any) -> Any:
    drawn["blocks"] = plan(*args, **kwargs)
    return drawn["blocks"]


big._bigbird_block_rand_mask_with_head = watched


def bigbird(x: Any, wq: Any, wk: Any, wv: Any, blocks: Any = None) -> Any:
    blocked, band, rows, columns = BigBirdModel.create_masks_for_block_sparse_attn(
        torch.ones(x.shape[:2], dtype=x.dtype), 2
    )
    weights = {"query.weight": wq.T, "key.weight": wk.T, "value.weight": wv.T}
    return functional_call(big, weights, (x, band, rows, columns, blocked, blocked))[0]


inputs = {"x": normal(2, 24, 8)} | {name: normal(8, 8, scale=0.6) for name in ("wq", "wk", "wv")}
bigbird(**{name: torch.tensor(value) for name, value in inputs.items()})
# (H, nb - 2, r)
inputs["blocks"] = np.stack([np.asarray(head) for head in drawn["blocks"]]).astype(np.int64)
from_torch("bigbird", f"{HF}, BigBirdBlockSparseAttention", bigbird, inputs)


low = LinformerSelfAttention(8, 12, k=4, heads=2).double()


def linformer(x: Any, wq: Any, wk: Any, wv: Any, wo: Any, ek: Any, ev: Any) -> Any:
    weights = {f"to_{name}.weight": w.T for name, w in (("q", wq), ("k", wk), ("v", wv), ("out", wo))}
    bias = {"to_out.bias": torch.zeros(8, dtype=x.dtype)}
    return functional_call(low, weights | bias | {"proj_k": ek, "proj_v": ev}, (x,))


from_torch(
    "linformer",
    f"linformer {version('linformer')}, LinformerSelfAttention",
    linformer,
    {"x": normal(2, 9, 8)}
    | {name: normal(8, 8, scale=0.6) for name in ("wq", "wk", "wv", "wo")}
    | {name: normal(12, 4, scale=0.5) for name in ("ek", "ev")},
)


def favor(q: Any, k: Any, v: Any, om: Any, eps: float = 0.0, causal: bool = False) -> Any:
    phi_q = performer.softmax_kernel(q, projection_matrix=om, is_query=True, eps=eps)
    phi_k = performer.softmax_kernel(k, projection_matrix=om, is_query=False, eps=eps)
    if causal:
        return performer.causal_linear_attention_noncuda(phi_q, phi_k, v, chunk_size=3, eps=0.0)
    return performer.linear_attention(phi_q, phi_k, v)


def favor_eps(q: Any, k: Any, v: Any, om: Any) -> Any:
    # It lets no gradient through the largest exponent, which matters where eps does: values only.
    return favor(q.detach(), k.detach(), v, om.detach(), eps=1e-4)


def favor_relu(q: Any, k: Any, v: Any, om: Any) -> Any:
    phi_q, phi_k = (
        performer.generalized_kernel(x, projection_matrix=om, normalize_data=False) for x in (q, k)
    )
    return performer.linear_attention(phi_q, phi_k, v)


inputs = {name: normal(2, 2, 7, 4) for name in ("q", "k", "v")} | {"om": normal(10, 4)}
from_torch("performer_favor", f"{LUCID}, softmax_kernel and linear_attention, eps = 0", favor, inputs)
from_torch(
    "performer_favor_causal",
    f"{LUCID}, causal_linear_attention_noncuda, eps = 0",
    lambda **given: favor(**given, causal=True),
    inputs,
)
from_torch(
    "performer_favor_eps", f"{LUCID}, softmax_kernel and linear_attention, eps = 1e-4", favor_eps, inputs
)
from_torch("performer_favor_relu", f"{LUCID}, generalized_kernel and linear_attention", favor_relu, inputs)

CHECKOUTS = Path(sys.argv[1]) if len(sys.argv) > 1 else None
if CHECKOUTS is None:
    sys.exit(0)

streaming = CHECKOUTS / "mit-han-lab+streaming-llm" / "streaming_llm"
caches = file_of(streaming / "kv_cache.py")
llama = file_of(streaming / "pos_shift" / "modify_llama.py")


def rotary(values: Any, seq_len: int) -> tuple[Any, Any]:
    """cos and sin (1, 1, seq_len, 4), as the transformers of its time gave them."""
    angles = torch.arange(seq_len, dtype=values.dtype)[:, None] * torch.tensor(
        [1.0, 0.01], dtype=values.dtype
    )
    angles = torch.cat([angles, angles], dim=-1)[None, None]
    return angles.cos(), angles.sin()


def sinks(x: Any, wq: Any, wk: Any, wv: Any, wo: Any) -> Any:
    """Token by token through a cache of 2 + 3."""
    layer = SimpleNamespace(
        config=SimpleNamespace(pretraining_tp=1), num_heads=2, head_dim=4, num_key_value_heads=2,
        num_key_value_groups=1, hidden_size=8, rotary_emb=rotary, q_proj=lambda y: y @ wq,
        k_proj=lambda y: y @ wk, v_proj=lambda y: y @ wv, o_proj=lambda y: y @ wo,
    )  # fmt: skip
    evict, past, rows = caches.StartRecentKVCache(start_size=2, recent_size=3), None, []
    for t in range(x.shape[1]):
        if past is not None:
            (past,) = evict.evict_for_space([past], 1)
        place = torch.tensor([[0 if past is None else past[0].shape[2]]])
        y, _, past = llama.llama_pos_shift_attention_forward(
            layer, x[:, t : t + 1], position_ids=place, past_key_value=past, use_cache=True
        )
        rows.append(y)
    return torch.cat(rows, dim=1)


from_torch(
    "attention_sinks",
    "mit-han-lab/streaming-llm 2e50426, StartRecentKVCache and llama_pos_shift_attention_forward",
    sinks,
    {"x": normal(2, 12, 8)} | {name: normal(8, 8, scale=0.6) for name in ("wq", "wk", "wv", "wo")},
)

fla = file_of(CHECKOUTS / "fla-org+native-sparse-attention" / "native_sparse_attention" / "ops" / "naive.py")


def nsa(q: Any, k: Any, v: Any, gates: Any) -> Any:
    return fla.naive_nsa_with_compression(
        q, k, v, *gates.unbind(-1), block_counts=3, block_size=4, window_size=5
    )[0]


from_torch(
    "nsa",
    "fla-org/native-sparse-attention bd67af5, naive_nsa_with_compression",
    nsa,
    {"q": normal(1, 22, 4, 4), "k": normal(1, 22, 2, 4), "v": normal(1, 22, 2, 4)}
    | {"gates": rng.uniform(0.1, 1.0, (1, 22, 4, 3))},
)
