"""Parallel block: both branches read the same normalised tokens, and their outputs are added at once.

    h = Norm(x)
    x  <-  x + Mixer(h) + FFN(h)

    x  (B, N, D)   tokens;  Mixer mixes tokens, FFN acts on each

Source: GPT-J, 2021; PaLM, Chowdhery et al., arXiv:2204.02311, 2022, section 2.
Differs from fused code: the projections of the two branches are separate matrices.
Dropout acts on what each branch adds.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf.attention.softmax import SoftmaxAttention
from minitf.engine import Tensor
from minitf.ffn.gelu_ffn import GELUFFN
from minitf.nn import Card, Case, Dropout, Module, Paper, as_norm, identity, init

CARD = Card(
    name="parallel_block",
    title="Parallel attention and FFN block",
    kind="block",
    family="residual",
    papers=(Paper("PaLM: Scaling Language Modeling with Pathways", "2204.02311", 2022),),
    causal=True,
    streams=True,
    grid="any",
    complexity="that of its branches + 8 N D",
    properties=("causal", "streams", "batch_independent"),
    basis="published code: huggingface/pytorch-image-models vision_transformer.py (ParallelScalingBlock)",
    aliases={"parallel": {}},
)


class ParallelBlock(Module):
    """x (B, N, D) -> (B, N, D). Parameters: norm, mixer, ffn. Arguments as in `PreNorm`."""

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
        self.norm = as_norm(norm, dim, dtype=dtype)
        self.mixer: Any = (
            SoftmaxAttention(dim, heads=heads, seed=rng, dtype=dtype) if mixer is None else mixer
        )
        self.ffn: Any = GELUFFN(dim, seed=rng, dtype=dtype) if ffn is None else ffn
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, *, rng: np.random.Generator | None = None, **options: Any) -> Tensor:
        """`options` (mask, context, positions) go to the mixer."""
        h = self.norm(x)
        return x + self.dropout(self.mixer(h, rng=rng, **options), rng) + self.dropout(self.ffn(h), rng)

    def start(self, batch: int) -> Any:
        """The mixer's empty state."""
        return self.mixer.start(batch)

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One token (B, D) after those in `state`."""
        h = self.norm(x)
        mixed, state = self.mixer.step(h, state)
        return x + mixed + self.ffn(h), state

    def prefill(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Several tokens (B, n, D) after those in `state`."""
        h = self.norm(x)
        mixed, state = self.mixer.prefill(h, state)
        return x + mixed + self.ffn(h), state


def build(case: Case) -> ParallelBlock:
    return ParallelBlock(case.dim, heads=case.h, seed=case.seed, dtype="float64")


@identity("with a silent FFN it is a pre-norm attention block")
def attention_only(case: Case) -> tuple[Tensor, Tensor]:
    block, x = build(case), case.tokens()
    block.ffn.w2.load_state_dict({"weight": np.zeros((4 * case.dim, case.dim)), "bias": np.zeros(case.dim)})
    return block(x), x + block.mixer(block.norm(x))


@identity("with a silent mixer it is a pre-norm FFN block")
def ffn_only(case: Case) -> tuple[Tensor, Tensor]:
    block, x = build(case), case.tokens()
    block.mixer.wo.load_state_dict({"weight": np.zeros((case.dim, case.dim))})
    return block(x), x + block.ffn(block.norm(x))
