"""DiT block: a pre-norm block whose norms are steered by a condition, and that starts as the identity.

    (b1, a1, g1, b2, a2, g2) = silu(c) W_c + b_c                   W_c = 0, b_c = 0 at the start
    x  <-  x + g1 * MHA(LN(x) * (1 + a1) + b1)
    x  <-  x + g2 * MLP(LN(x) * (1 + a2) + b2)

    x  (B, N, D)   tokens      c  (B, D)   condition: noise level and class      a, b, g  (B, 1, D) each

LN has no weights. MLP is D -> 4D -> D with the tanh form of GELU. The first step of training moves only W_c:
the branches learn once the gates g have left 0.

Around the blocks: `TimestepEmbedding` makes c from noise levels, `DiTOutput` reads the result, `guided` mixes
two predictions.

Cost: 24 N D^2 + 4 N^2 D operations, and 12 D^2 for each c. Parameters: 18 D^2, a third of them in W_c.
Source: Scalable Diffusion Models with Transformers, Peebles and Xie, arXiv:2212.09748, 2022, section 3.2.
Differs from the paper: none known.
Numerics: the norms add 1e-6 to the variance.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitf import ops
from minitf.attention.softmax import SoftmaxAttention
from minitf.engine import ShapeError, Tensor
from minitf.ffn.gelu_ffn import GELUFFN
from minitf.nn import Card, Case, Linear, Module, Paper, identity, init, positive

CARD = Card(
    name="dit_block",
    title="DiT block with AdaLN-Zero",
    kind="block",
    family="conditioned",
    papers=(Paper("Scalable Diffusion Models with Transformers", "2212.09748", 2022),),
    causal=False,
    streams=False,
    grid="1d",
    complexity="24 N D^2 + 4 N^2 D + 12 D^2",
    properties=("batch_independent", "permutation_equivariant"),
    basis="published code: facebookresearch/DiT models.py",
    aliases={"adaln_zero": {}},
    parity=("facebookresearch/DiT ed81ce2 DiTBlock",),
)


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """LN(x) * (1 + a) + b: (B, N, D), with a and b (B, 1, D)."""
    return ops.layer_norm(x, eps=1e-6) * (1.0 + scale) + shift


class DiTBlock(Module):
    """x (B, N, D), c (B, D) -> (B, N, D).

    Parameters: wc (D, 6 D) with bias, zero; mixer and ffn, Xavier uniform, with zero biases.

    Args:
        dim: D. heads: H. hidden: width of the MLP, default 4 D.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        hidden: int | None = None,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim)
        rng = init.generator(seed)
        self.wc = zero_linear(dim, 6 * dim, dtype)
        self.mixer = SoftmaxAttention(dim, heads=heads, causal=False, bias=True, seed=rng, dtype=dtype)
        self.ffn = GELUFFN(dim, hidden=hidden, approximate="tanh", seed=rng, dtype=dtype)
        for linear in (self.ffn.w1, self.ffn.w2):
            n_in, n_out = linear.weight.shape
            linear.weight.data = init.xavier_uniform(rng, (n_in, n_out), dtype=dtype)

    def forward(
        self, x: Tensor, condition: Tensor, *, mask: Any = None, rng: np.random.Generator | None = None
    ) -> Tensor:
        """One block on x (B, N, D) under the condition c (B, D). mask: as attention takes it."""
        b1, a1, g1, b2, a2, g2 = chunks(self.wc, x, condition, 6)
        x = x + g1 * self.mixer(modulate(x, a1, b1), mask=mask)
        return x + g2 * self.ffn(modulate(x, a2, b2))

    @staticmethod
    def example_inputs(case: Case) -> tuple[Tensor, Tensor]:
        """x (b, t, dim) and c (b, dim)."""
        rng = case.rng()
        x, c = rng.standard_normal((case.b, case.t, case.dim)), rng.standard_normal((case.b, case.dim))
        return Tensor(x), Tensor(c)


class DiTOutput(Module):
    """What reads the last block, zero at first: (LN(x) * (1 + a) + b) W, (B, N, D) -> (B, N, out)."""

    def __init__(self, dim: int, out: int, dtype: Any = "float32"):
        self.wc, self.wo = zero_linear(dim, 2 * dim, dtype), zero_linear(dim, out, dtype)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        b, a = chunks(self.wc, x, condition, 2)
        return self.wo(modulate(x, a, b))


class TimestepEmbedding(Module):
    """Noise levels t (B,) and classes (B,) -> c (B, D): silu(waves(t) W_1 + b_1) W_2 + b_2 + E[class].

    waves(t) = [cos(t f), sin(t f)] with f_i = 10000^(-i / (W/2)), W = `width`. E has one row more than there
    are classes, for "no class"; training needs it for `guided`: called with a generator in training mode, a
    class becomes "no class" with probability `dropout`. Weights are normal with std 0.02, biases zero.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        width: int = 256,
        dropout: float = 0.1,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        rng = init.generator(seed)
        self.classes, self.dropout = classes, dropout
        self.w1, self.w2, self.table = (
            Linear(*sizes, bias, values=init.normal(rng, sizes, dtype=dtype), dtype=dtype)
            for sizes, bias in (((width, dim), True), ((dim, dim), True), ((classes + 1, dim), False))
        )

    def forward(self, t: Any, classes: Any, rng: np.random.Generator | None = None) -> Tensor:
        classes = np.asarray(classes)
        if self.training and rng is not None:
            classes = np.where(rng.random(classes.shape) < self.dropout, self.classes, classes)
        half = self.w1.weight.shape[0] // 2
        angle = np.asarray(t, dtype=float)[:, None] * np.exp(-math.log(10000.0) * np.arange(half) / half)
        waves = Tensor(np.concatenate([np.cos(angle), np.sin(angle)], axis=-1).astype(self.w1.weight.dtype))
        return self.w2(ops.silu(self.w1(waves))) + ops.embedding(classes, self.table.weight)


def guided(conditional: Tensor, unconditional: Tensor, weight: float) -> Tensor:
    """Classifier-free guidance: u + w (c - u), for the predictions with and without a class."""
    return unconditional + weight * (conditional - unconditional)


def zero_linear(n_in: int, n_out: int, dtype: Any) -> Linear:
    return Linear(n_in, n_out, values=np.zeros((n_in, n_out), dtype), dtype=dtype)


def chunks(wc: Linear, x: Tensor, condition: Tensor, count: int) -> list[Tensor]:
    """silu(c) W_c + b_c in `count` parts (B, 1, D). Raises ShapeError where c is not (B, D)."""
    if condition.shape != (x.shape[0], x.shape[2]):
        raise ShapeError(f"dit_block: the condition must be (B, D) for x {x.shape}, not {condition.shape}")
    return list(ops.split(wc(ops.silu(condition))[:, None], count, axis=-1))


def build(case: Case, moved: bool = True) -> DiTBlock:
    """A block; `moved` off its start, so that the condition acts."""
    block = DiTBlock(case.dim, heads=case.h, seed=case.seed, dtype="float64")
    if moved:
        rng = case.rng()
        for p in block.wc.parameters():
            p.data = rng.standard_normal(p.shape)
    return block


@identity("at the start the block is the identity, and the output zero, whatever the condition")
def starts_silent(case: Case) -> tuple[Tensor, Any]:
    x, c = DiTBlock.example_inputs(case)
    read = DiTOutput(case.dim, case.dim, "float64")
    return ops.stack([build(case, moved=False)(x, c), read(x, c)]), np.stack([x.data, np.zeros(x.shape)])


@identity("the equations, with the parts of the condition cut one by one: shift, scale, gate, twice")
def equations(case: Case) -> tuple[Tensor, Tensor]:
    block, (x, c) = build(case), DiTBlock.example_inputs(case)
    read, rng = DiTOutput(case.dim, case.dim, "float64"), case.rng()
    for p in read.parameters():
        p.data = rng.standard_normal(p.shape)

    def parts(wc: Linear) -> list[Tensor]:
        m = (c / (1.0 + ops.exp(-c))) @ wc.weight + wc.bias
        return [m[:, None, i : i + case.dim] for i in range(0, m.shape[1], case.dim)]

    def norm(v: Tensor) -> Tensor:
        v = v - v.mean(axis=-1, keepdims=True)
        return v / ops.sqrt((v * v).mean(axis=-1, keepdims=True) + 1e-6)

    b1, a1, g1, b2, a2, g2 = parts(block.wc)
    h = x + g1 * block.mixer(norm(x) * (1.0 + a1) + b1)
    y = h + g2 * block.ffn(norm(h) * (1.0 + a2) + b2)
    b, a = parts(read.wc)
    z = (norm(y) * (1.0 + a) + b) @ read.wo.weight + read.wo.bias
    return ops.stack([block(x, c), read(block(x, c), c)]), ops.stack([y, z])


@identity("without shift and scale, and with gates of 1, the plain pre-norm block")
def plain_block(case: Case) -> tuple[Tensor, Tensor]:
    block, (x, c) = build(case, moved=False), DiTBlock.example_inputs(case)
    gates = np.zeros((6, case.dim))
    gates[[2, 5]] = 1.0
    block.wc.load_state_dict({"weight": np.zeros((case.dim, 6 * case.dim)), "bias": gates.reshape(-1)})
    h = x + block.mixer(ops.layer_norm(x, eps=1e-6))
    return block(x, c), h + block.ffn(ops.layer_norm(h, eps=1e-6))


@identity("with one condition for all, shift and scale fold into the next map: LN(x) diag(1 + a) W + b W")
def folds(case: Case) -> tuple[Tensor, Tensor]:
    rng, x = case.rng(), case.tokens()
    a, b, w = (Tensor(rng.standard_normal(s)) for s in ((case.dim,), (case.dim,), (case.dim, 3)))
    left = modulate(x, a[None, None], b[None, None]) @ w
    return left, ops.layer_norm(x, eps=1e-6) @ ((1.0 + a)[:, None] * w) + b @ w


@identity("guidance of weight 1 is the conditional prediction, of weight 0 the unconditional one")
def guidance(case: Case) -> tuple[Tensor, Tensor]:
    c, u = DiTBlock.example_inputs(case)[0], case.tokens() * 2.0
    return ops.stack([guided(c, u, 1.0), guided(c, u, 0.0)]), ops.stack([c, u])
