"""Post-LN block, the original layout: normalise after each branch has been added to the skip path.

    x  <-  Norm1(x + Mixer(x))
    x  <-  Norm2(x + FFN(x))

    x  (B, N, D)   tokens;  Mixer mixes tokens, FFN acts on each

A stack of these needs no final norm, but a learning-rate warm-up: gradients of the lower layers shrink
with depth.

Cost: that of its branches and two norms, 16 N D.
Source: Attention Is All You Need, Vaswani et al., arXiv:1706.03762, 2017, section 3.1.
Dropout acts on what a branch adds, before the sum.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf.attention.softmax import SoftmaxAttention
from minitf.engine import Tensor
from minitf.ffn.gelu_ffn import GELUFFN
from minitf.nn import Card, Case, Dropout, Module, Paper, as_norm, identity, init

CARD = Card(
    name="post_norm",
    title="Post-LN residual block",
    kind="block",
    family="residual",
    papers=(Paper("Attention Is All You Need", "1706.03762", 2017),),
    causal=True,
    streams=True,
    grid="any",
    complexity="that of its branches + 16 N D",
    properties=("causal", "streams", "batch_independent"),
    basis="published code: ml-jku/hopfield-layers hflayers/transformer.py; memory (certain)",
    aliases={"post": {}},
    parity=("torch 2.13.0 nn.TransformerEncoderLayer",),
)


class PostNorm(Module):
    """x (B, N, D) -> (B, N, D). Parameters: norm1, mixer, norm2, ffn. Arguments as in `PreNorm`."""

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        mixer: Module | None = None,
        ffn: Module | None = None,
        norm: str = "layernorm",
        dropout: float = 0.0,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        rng = init.generator(seed)
        self.norm1 = as_norm(norm, dim, dtype=dtype)
        self.mixer: Any = (
            SoftmaxAttention(dim, heads=heads, seed=rng, dtype=dtype) if mixer is None else mixer
        )
        self.norm2 = as_norm(norm, dim, dtype=dtype)
        self.ffn: Any = GELUFFN(dim, seed=rng, dtype=dtype) if ffn is None else ffn
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, *, rng: np.random.Generator | None = None, **options: Any) -> Tensor:
        """`options` (mask, context, positions) go to the mixer."""
        x = self.norm1(x + self.dropout(self.mixer(x, rng=rng, **options), rng))
        return self.norm2(x + self.dropout(self.ffn(x), rng))

    def start(self, batch: int) -> Any:
        """The mixer's empty state."""
        return self.mixer.start(batch)

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One token (B, D) after those in `state`."""
        mixed, state = self.mixer.step(x, state)
        x = self.norm1(x + mixed)
        return self.norm2(x + self.ffn(x)), state

    def prefill(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Several tokens (B, n, D) after those in `state`."""
        mixed, state = self.mixer.prefill(x, state)
        x = self.norm1(x + mixed)
        return self.norm2(x + self.ffn(x)), state


def build(case: Case) -> PostNorm:
    return PostNorm(case.dim, heads=case.h, seed=case.seed, dtype="float64")


@identity("with silent branches the block is its norms, and a second norm adds nothing (eps = 0)")
def idempotent(case: Case) -> tuple[Tensor, Tensor]:
    block, x = build(case), case.tokens()
    block.norm1.eps = block.norm2.eps = 0.0
    block.mixer.wo.load_state_dict({"weight": np.zeros((case.dim, case.dim))})
    block.ffn.w2.load_state_dict({"weight": np.zeros((4 * case.dim, case.dim)), "bias": np.zeros(case.dim)})
    return block(x), block.norm1(x)


@identity("every token leaves with mean 0 and mean square 1 (unit gain, eps = 0)")
def unit_scale(case: Case) -> tuple[Any, Any]:
    block, x = build(case), case.tokens()
    block.norm2.eps = 0.0
    y = block(x).data
    return np.stack([y.mean(-1), (y * y).mean(-1)]), np.stack([np.zeros(y.shape[:2]), np.ones(y.shape[:2])])


@identity("each sub-layer is the norm of x + F(x), which is DeepNorm with its alpha = beta = 1")
def by_equations(case: Case) -> tuple[Tensor, Any]:
    block, x = build(case), case.tokens()

    def normed(v: Tensor) -> Tensor:
        mean = v.data.mean(axis=-1, keepdims=True)
        variance = ((v.data - mean) ** 2).mean(axis=-1, keepdims=True)
        return Tensor((v.data - mean) / np.sqrt(variance + 1e-5))

    a = normed(x + block.mixer(x))
    return block(x), normed(a + block.ffn(a))
