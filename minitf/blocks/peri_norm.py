"""Peri-LN block: normalise what a branch reads and what it adds, so that all branches add equal sizes.

    x  <-  x + Norm1_out(Mixer(Norm1(x)))
    x  <-  x + Norm2_out(FFN(Norm2(x)))

    x  (B, N, D)   tokens;  Mixer mixes tokens, FFN acts on each

The recipe also normalises the embeddings, and once more before the output head; the model adds both. With
unit gains each branch adds a vector of mean square 1, so that the root mean square of x grows by at most 1
with each. `norm_in=False` leaves out the norms of what branches read: the layout of OLMo 2.

Cost: that of its branches and four norms, 32 N D.
Source: Peri-LN: Revisiting Layer Normalization in the Transformer Architecture, Kim et al.,
arXiv:2502.02732, 2025. Without the norm of the embeddings this is Sandwich-LN (CogView, arXiv:2105.13290,
2021). The out-norm acts on the branch, not on the sum. Dropout acts after it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.attention.softmax import SoftmaxAttention
from minitf.engine import Tensor
from minitf.ffn.gelu_ffn import GELUFFN
from minitf.nn import Card, Case, Dropout, Module, Paper, as_norm, identity, init

from .pre_norm import PreNorm

CARD = Card(
    name="peri_norm",
    title="Peri-LN residual block",
    kind="block",
    family="residual",
    papers=(
        Paper("Peri-LN: Revisiting Layer Normalization in the Transformer Architecture", "2502.02732", 2025),
    ),
    causal=True,
    streams=True,
    grid="any",
    complexity="that of its branches + 32 N D",
    properties=("causal", "streams", "batch_independent"),
    basis="paper text (through public summaries and the abstract)",
    aliases={"peri": {}},
)


def plain(x: Tensor) -> Tensor:
    """What stands in for a norm that is left out."""
    return x


class PeriNorm(Module):
    """x (B, N, D) -> (B, N, D). Parameters: norm1, mixer, norm1_out, norm2, ffn, norm2_out.

    Args:
        norm_in: whether branches read normalised tokens; without it there are no norm1 and norm2.
        mixer, ffn, norm, dropout: as in `PreNorm`.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        mixer: Module | None = None,
        ffn: Module | None = None,
        norm: str = "rmsnorm",
        norm_in: bool = True,
        dropout: float = 0.0,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        rng = init.generator(seed)
        self.norm1: Any = as_norm(norm, dim, dtype=dtype) if norm_in else plain
        self.mixer: Any = (
            SoftmaxAttention(dim, heads=heads, seed=rng, dtype=dtype) if mixer is None else mixer
        )
        self.norm1_out = as_norm(norm, dim, dtype=dtype)
        self.norm2: Any = as_norm(norm, dim, dtype=dtype) if norm_in else plain
        self.ffn: Any = GELUFFN(dim, seed=rng, dtype=dtype) if ffn is None else ffn
        self.norm2_out = as_norm(norm, dim, dtype=dtype)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, *, rng: np.random.Generator | None = None, **options: Any) -> Tensor:
        """`options` (mask, context, positions) go to the mixer."""
        x = x + self.dropout(self.norm1_out(self.mixer(self.norm1(x), rng=rng, **options)), rng)
        return x + self.dropout(self.norm2_out(self.ffn(self.norm2(x))), rng)

    def start(self, batch: int) -> Any:
        """The mixer's empty state."""
        return self.mixer.start(batch)

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One token (B, D) after those in `state`."""
        mixed, state = self.mixer.step(self.norm1(x), state)
        x = x + self.norm1_out(mixed)
        return x + self.norm2_out(self.ffn(self.norm2(x))), state

    def prefill(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Several tokens (B, n, D) after those in `state`."""
        mixed, state = self.mixer.prefill(self.norm1(x), state)
        x = x + self.norm1_out(mixed)
        return x + self.norm2_out(self.ffn(self.norm2(x))), state


def build(case: Case, **options: Any) -> PeriNorm:
    return PeriNorm(case.dim, heads=case.h, seed=case.seed, dtype="float64", **options)


@identity("with the out-gains zero the block is the identity")
def silent(case: Case) -> tuple[Tensor, Tensor]:
    block, x = build(case), case.tokens()
    for norm in (block.norm1_out, block.norm2_out):
        norm.load_state_dict({"weight": np.zeros(case.dim)})
    return block(x), x


@identity("scaling the last weights of a branch by a > 0 changes nothing (eps = 0)")
def scale_free(case: Case) -> tuple[Tensor, Tensor]:
    block, x = build(case), case.tokens()
    block.norm1_out.eps = block.norm2_out.eps = 0.0
    y = block(x)
    block.mixer.wo.weight.data = block.mixer.wo.weight.data * 3.0
    return block(x), y


@identity("each branch adds a vector of mean square 1 (unit gain, eps = 0)")
def unit_branch(case: Case) -> tuple[Tensor, Any]:
    block, x = build(case), case.tokens()
    block.norm1_out.eps = 0.0
    added = block.norm1_out(block.mixer(block.norm1(x)))
    return (added * added).mean(axis=-1), np.ones(x.shape[:2])


@identity("without the out-norms it is the pre-norm block")
def no_out(case: Case) -> tuple[Tensor, Tensor]:
    block, x = build(case), case.tokens()
    other = PreNorm(case.dim, heads=case.h, norm="rmsnorm", dtype="float64")
    other.load_state_dict(block.state_dict(), strict=False)
    block.norm1_out = block.norm2_out = plain
    return block(x), other(x)


@identity("without the in-norms: x + Norm(Mixer(x)), then x + Norm(FFN(x))")
def no_in(case: Case) -> tuple[Tensor, Tensor]:
    block, x = build(case, norm_in=False), case.tokens()
    a = x + ops.rms_norm(block.mixer(x), eps=1e-6)
    return block(x), a + ops.rms_norm(block.ffn(a), eps=1e-6)


@identity("three blocks: x is the first x plus six vectors of root mean square 1, so it grows by at most 6")
def bounded_growth(case: Case) -> tuple[Any, Any]:
    x = h = case.tokens()
    for i in range(3):
        h = PeriNorm(case.dim, heads=case.h, seed=case.seed + i, dtype="float64")(h)

    def size(v: Tensor) -> Any:
        return np.sqrt((v.data * v.data).mean(axis=-1))

    excess = np.maximum(size(h) - size(x) - 6.0, 0.0)
    return excess, np.zeros_like(excess)


@identity("the larger the last weights of a branch, the smaller their gradient: 3 times and 1/3 (eps = 0)")
def self_damping(case: Case) -> tuple[Any, Any]:
    block, x, found = build(case), case.tokens(), []
    block.norm1_out.eps = 0.0
    c, w = case.rng().standard_normal(x.shape), block.mixer.wo.weight
    for scale in (1.0, 3.0):
        w.data, w.grad = w.data * scale, None
        block(x).backward(c)
        assert w.grad is not None
        found.append(w.grad.data * scale)
    return found[1], found[0]
