"""ViT block: global attention and an MLP, each on what a norm gives and beside a skip path.

    u  =  x + g1 * MHA(LN1(x))
    y  =  u + g2 * MLP(LN2(u))                  MLP: D -> 4D -> D with GELU

    x, u, y  (B, N, D)   tokens        g1, g2  (D,)   LayerScale; 1 unless asked for

After the last block of a stack comes one more LN. There is no position inside: tokens are a set. No token is
hidden from another, unless a mask says so.

Cost: 24 N D^2 + 4 N^2 D operations. Parameters: 12 D^2 + 13 D, and 2 D for LayerScale.
Source: An Image is Worth 16x16 Words, Dosovitskiy et al., arXiv:2010.11929, 2020, equations 2 and 3.
LayerScale: CaiT, Touvron et al., arXiv:2103.17239, 2021.
Differs from the paper: GELU is the exact form with erf, as in PyTorch ports; the published code's default is
the tanh form, up to 5e-4 away: `approximate="tanh"`. No dropout.
Numerics: the norms add 1e-6 to the variance.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.attention.softmax import SoftmaxAttention
from minitf.engine import ShapeError, Tensor
from minitf.ffn.gelu_ffn import GELUFFN
from minitf.nn import Card, Case, LayerNorm, Module, Paper, Parameter, identity, init, not_negative, positive

CARD = Card(
    name="vit_block",
    title="Pre-norm ViT encoder block",
    kind="block",
    family="residual",
    papers=(
        Paper(
            "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", "2010.11929", 2020
        ),
        Paper("Going deeper with Image Transformers", "2103.17239", 2021),
    ),
    causal=False,
    streams=False,
    grid="1d",
    complexity="24 N D^2 + 4 N^2 D",
    properties=("batch_independent", "permutation_equivariant"),
    basis="published code: google-research/vision_transformer vit_jax/models_vit.py",
    parity=("timm 1.0.31 Block",),
)


class ViTBlock(Module):
    """x (B, N, D) -> (B, N, D).

    Parameters: norm1, norm2; mixer and ffn with biases, Xavier uniform, the biases of ffn normal with std
    1e-6; g1, g2 (D,) with LayerScale.

    Args:
        dim: D. heads: H. hidden: width of the MLP, default 4 D. approximate: form of GELU, "none" or "tanh".
        layer_scale: first value of g1 and g2, usually 1e-4 to 1e-6; None leaves them out.

    Raises:
        ValueError: heads that do not divide dim, hidden below 1, another form of GELU, layer_scale below 0.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        hidden: int | None = None,
        approximate: str = "none",
        layer_scale: float | None = None,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, hidden=hidden)
        not_negative(layer_scale=layer_scale)
        rng = init.generator(seed)
        self.norm1, self.norm2 = (LayerNorm(dim, eps=1e-6, dtype=dtype) for _ in range(2))
        self.mixer = SoftmaxAttention(dim, heads=heads, causal=False, bias=True, seed=rng, dtype=dtype)
        self.ffn = GELUFFN(dim, hidden=hidden, approximate=approximate, seed=rng, dtype=dtype)
        for linear in (self.ffn.w1, self.ffn.w2):
            n_in, n_out = linear.weight.shape
            values = init.xavier_uniform(rng, (n_in, n_out), dtype=dtype)
            linear.load_state_dict({"weight": values, "bias": init.normal(rng, (n_out,), 1e-6, dtype)})
        self.g1, self.g2 = (
            None if layer_scale is None else Parameter(np.full(dim, layer_scale, dtype)) for _ in range(2)
        )

    def forward(self, x: Tensor, *, mask: Any = None, rng: np.random.Generator | None = None) -> Tensor:
        """One block on x (B, N, D). mask: as attention takes it, (B, 1, 1, N) to hide keys."""
        if x.ndim != 3:
            raise ShapeError(f"vit_block: x must be (B, N, D), not {x.shape}")
        u = x + scaled(self.g1, self.mixer(self.norm1(x), mask=mask))
        return u + scaled(self.g2, self.ffn(self.norm2(u)))


def scaled(gain: Tensor | None, branch: Tensor) -> Tensor:
    return branch if gain is None else gain * branch


def build(case: Case, **options: Any) -> Any:
    block, rng = ViTBlock(case.dim, heads=case.h, seed=case.seed, dtype="float64", **options), case.rng()
    for p in block.parameters():
        p.data = p.data + 0.3 * rng.standard_normal(p.shape)
    return block


@identity("the equations, with loops over heads and tokens")
def loops(case: Case) -> tuple[Tensor, Any]:
    block, x = build(case, layer_scale=0.5), case.tokens()

    def norm(a: Any, layer: Any) -> Any:
        a = a - a.mean(axis=-1, keepdims=True)
        return a / np.sqrt((a * a).mean(axis=-1, keepdims=True) + 1e-6) * layer.weight.data + layer.bias.data

    def linear(a: Any, layer: Any) -> Any:
        return a @ layer.weight.data + layer.bias.data

    h = norm(x.data, block.norm1)
    q, k, v = (linear(h, w) for w in (block.mixer.wq, block.mixer.wk, block.mixer.wv))
    o = np.zeros(x.shape)
    for i, j, n in np.ndindex(case.b, case.h, case.t):
        own = slice(j * case.d, (j + 1) * case.d)
        e = np.exp(k[i, :, own] @ q[i, n, own] / case.d**0.5)
        o[i, n, own] = e / e.sum() @ v[i, :, own]
    u = x.data + block.g1.data * linear(o, block.mixer.wo)
    hidden = ops.gelu(Tensor(linear(norm(u, block.norm2), block.ffn.w1))).data
    return block(x), u + block.g2.data * linear(hidden, block.ffn.w2)


@identity("with the last maps of both branches zero, or LayerScale zero, the identity")
def silent(case: Case) -> tuple[Tensor, Tensor]:
    block, scaled_block, x = build(case), build(case, layer_scale=1e-4), case.tokens()
    for p in (*block.mixer.wo.parameters(), *block.ffn.w2.parameters(), scaled_block.g1, scaled_block.g2):
        p.data = np.zeros(p.shape)
    return ops.stack([block(x), scaled_block(x)]), ops.stack([x, x])


@identity("one token: attention is (LN(x) W_v + b_v) W_o + b_o")
def alone(case: Case) -> tuple[Tensor, Tensor]:
    block, x = build(case), case.tokens()[:, :1]
    u = x + block.mixer.wo(block.mixer.wv(block.norm1(x)))
    return block(x), u + block.ffn(block.norm2(u))


@identity("the order of the patches does not change what the class token gets, through two blocks")
def class_token(case: Case) -> tuple[Tensor, Tensor]:
    first, second, x = build(case), build(case, layer_scale=0.5), case.tokens()
    order = np.concatenate([[0], 1 + case.rng().permutation(case.t - 1)])
    return second(first(x[:, order]))[:, 0], second(first(x))[:, 0]


@identity("every token twice: each gives what it gave")
def doubled(case: Case) -> tuple[Tensor, Tensor]:
    block, x = build(case), case.tokens()
    y = block(x)
    return block(ops.concat([x, x], axis=1)), ops.concat([y, y], axis=1)


@identity("LayerScale of 1 is a block without it")
def unit_scale(case: Case) -> tuple[Tensor, Tensor]:
    plain, one, x = build(case), build(case, layer_scale=1.0), case.tokens()
    one.load_state_dict({**plain.state_dict(), "g1": np.ones(case.dim), "g2": np.ones(case.dim)})
    return one(x), plain(x)
