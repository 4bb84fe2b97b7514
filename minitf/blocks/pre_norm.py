"""Pre-LN block: normalise what a branch reads, and leave the skip path a clean sum.

    x  <-  x + Mixer(Norm1(x))
    x  <-  x + FFN(Norm2(x))

    x  (B, N, D)   tokens;  Mixer mixes tokens, FFN acts on each

A stack of these needs one more norm before its output head; the model adds it. It trains without a warm-up,
but the skip path grows with depth: linearly at the start of training.

Cost: that of its branches and two norms, 16 N D.
Source: On Layer Normalization in the Transformer Architecture, Xiong et al., arXiv:2002.04745, 2020,
figure 1b. Dropout acts on what a branch adds.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.attention.softmax import SoftmaxAttention
from minitf.engine import Tensor
from minitf.ffn.gelu_ffn import GELUFFN
from minitf.nn import Card, Case, Dropout, Module, Paper, as_norm, identity, init

CARD = Card(
    name="pre_norm",
    title="Pre-LN residual block",
    kind="block",
    family="residual",
    papers=(Paper("On Layer Normalization in the Transformer Architecture", "2002.04745", 2020),),
    causal=True,
    streams=True,
    grid="any",
    complexity="that of its branches + 16 N D",
    properties=("causal", "streams", "batch_independent"),
    basis="published code: GuoTianYu2000/Active-Dormant-Attention BBM/model.py",
    aliases={"pre": {}},
    parity=("torch 2.13.0 nn.TransformerEncoderLayer",),
)


class PreNorm(Module):
    """x (B, N, D) -> (B, N, D). Parameters: norm1, mixer, norm2, ffn.

    Args:
        mixer, ffn: the branches; softmax attention with `heads` and a GELU network unless given.
        norm: "layernorm" or "rmsnorm".
        dropout: rate on the branches in training mode.
    """

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
        x = x + self.dropout(self.mixer(self.norm1(x), rng=rng, **options), rng)
        return x + self.dropout(self.ffn(self.norm2(x)), rng)

    def start(self, batch: int) -> Any:
        """The mixer's empty state."""
        return self.mixer.start(batch)

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One token (B, D) after those in `state`."""
        mixed, state = self.mixer.step(self.norm1(x), state)
        x = x + mixed
        return x + self.ffn(self.norm2(x)), state

    def prefill(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Several tokens (B, n, D) after those in `state`."""
        mixed, state = self.mixer.prefill(self.norm1(x), state)
        x = x + mixed
        return x + self.ffn(self.norm2(x)), state


def build(case: Case) -> PreNorm:
    return PreNorm(case.dim, heads=case.h, seed=case.seed, dtype="float64")


@identity("with the last weights of both branches zero the block is the identity")
def silent(case: Case) -> tuple[Tensor, Tensor]:
    block, x = build(case), case.tokens()
    block.mixer.wo.load_state_dict({"weight": np.zeros((case.dim, case.dim))})
    block.ffn.w2.load_state_dict({"weight": np.zeros((4 * case.dim, case.dim)), "bias": np.zeros(case.dim)})
    return block(x), x


@identity("the output is the input plus what the two branches add")
def residual_stream(case: Case) -> tuple[Tensor, Tensor]:
    block, x = build(case), case.tokens()
    first = block.mixer(block.norm1(x))
    return block(x), x + first + block.ffn(block.norm2(x + first))


@identity("a stack leaves its input plus the sum of what all branches add")
def sum_of_branches(case: Case) -> tuple[Tensor, Tensor]:
    blocks = [PreNorm(case.dim, heads=case.h, seed=case.seed + i, dtype="float64") for i in range(3)]
    x = h = case.tokens()
    added = []
    for block in blocks:
        for norm, branch in ((block.norm1, block.mixer), (block.norm2, block.ffn)):
            added.append(branch(norm(h)))
            h = h + added[-1]
    y = x
    for block in blocks:
        y = block(y)
    return y, x + ops.stack(added).sum(axis=0)


@identity("scaling x by a > 0 leaves what its sub-layer adds as it is (eps = 0)")
def scale_free(case: Case) -> tuple[Tensor, Tensor]:
    block, x = build(case), case.tokens()
    block.norm1.eps = block.norm2.eps = 0.0
    block.ffn.w2.load_state_dict({"weight": np.zeros((4 * case.dim, case.dim)), "bias": np.zeros(case.dim)})
    return block(x * 3.0) - x * 3.0, block(x) - x


@identity(
    "at the start, branches that do not depend on each other make the variance grow linearly: 16 random FFNs "
    "add twice what 8 add (4096 numbers: the ratio spreads by 7 %; quadratic growth would be 100 % off)",
    tolerance=0.45,
)
def linear_growth(case: Case) -> tuple[Any, Any]:
    rng = case.rng()
    h = Tensor(rng.standard_normal((64, 64)))
    variance = [h.data.var()]
    for _ in range(16):
        block = PreNorm(64, heads=1, seed=rng, dtype="float64")
        h = h + block.ffn(block.norm2(h))
        variance.append(h.data.var())
    return (variance[16] - variance[0]) / (2.0 * (variance[8] - variance[0])), np.ones(())
