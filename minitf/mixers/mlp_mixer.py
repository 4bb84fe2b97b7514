"""MLP-Mixer: one MLP mixes the tokens of each channel, another the channels of each token.

    u  =  x + (gelu(LN1(x)^T T_1 + a_1) T_2 + a_2)^T             across tokens, the same for all channels
    y  =  u + gelu(LN2(u) W_1 + b_1) W_2 + b_2                   across channels, the same for all tokens

    x, u, y  (B, N, D)        T_1  (N, S), T_2  (S, N)        W_1  (D, F), W_2  (F, D)

S = D/2 and F = 4 D unless given. N is built into the weights: one grid, one number of tokens. It is a block
of its own; inside another block that block's norm and skip path come on top. A model norms the last y and
takes the mean over tokens.

Cost: 4 N S D + 4 N D F operations. Parameters: 2 N S + N + S, 2 D F + D + F, and 4 D for the norms.
Source: MLP-Mixer: An all-MLP Architecture for Vision, Tolstikhin et al., arXiv:2105.01601, 2021, equation 1.
Differs from the paper: GELU is the exact form with erf, as in PyTorch ports; the published code's default is
the tanh form, up to 5e-4 away.
Numerics: the norms add 1e-6 to the variance.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import ShapeError, Tensor
from minitf.nn import Card, Case, LayerNorm, Linear, Module, Paper, identity, init, positive

CARD = Card(
    name="mlp_mixer",
    title="MLP-Mixer block",
    kind="mixer",
    family="mlp",
    papers=(Paper("MLP-Mixer: An all-MLP Architecture for Vision", "2105.01601", 2021),),
    causal=False,
    streams=False,
    grid="1d",
    complexity="4 N S D + 4 N D F",
    properties=("batch_independent", "fixed_grid"),
    basis="published code: google-research/vision_transformer vit_jax/models_mixer.py, "
    "huggingface/pytorch-image-models timm/models/mlp_mixer.py",
    parity=("timm 1.0.31 MixerBlock",),
)


class MLPMixer(Module):
    """x (B, N, D) -> (B, N, D), for one N.

    Parameters: norm1, norm2; t1 (N, S), t2 (S, N), w1 (D, F), w2 (F, D), with biases.

    Args:
        dim: D. grid: the sizes of the grid of tokens, or N itself. token_hidden: S, default D / 2.
        hidden: F, default 4 D.

    Raises:
        ValueError: a size below 1. ShapeError: x with another number of tokens.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        grid: int | tuple[int, ...] = 196,
        token_hidden: int | None = None,
        hidden: int | None = None,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim)
        tokens = grid if isinstance(grid, int) else math.prod(grid)
        s = max(1, dim // 2) if token_hidden is None else token_hidden
        f = 4 * dim if hidden is None else hidden
        if min(tokens, s, f) < 1:
            raise ValueError(f"grid={grid}, token_hidden={s} and hidden={f} must be at least 1")
        rng = init.generator(seed)
        self.norm1, self.norm2 = (LayerNorm(dim, eps=1e-6, dtype=dtype) for _ in range(2))
        self.t1, self.t2 = (Linear(*sizes, True, rng, dtype=dtype) for sizes in ((tokens, s), (s, tokens)))
        self.w1, self.w2 = (Linear(*sizes, True, rng, dtype=dtype) for sizes in ((dim, f), (f, dim)))

    def forward(self, x: Tensor, *, rng: np.random.Generator | None = None) -> Tensor:
        """Mix tokens, then channels, of x (B, N, D)."""
        tokens = self.t1.weight.shape[0]
        if x.ndim != 3 or x.shape[1] != tokens:
            raise ShapeError(
                f"mlp_mixer: x must be (B, {tokens}, D), the grid that it was built for, not {x.shape}"
            )
        # u = x + MLP(LN(x)^T)^T: (B, N, D)
        u = x + self.mix_tokens(self.norm1(x))
        return u + self.w2(ops.gelu(self.w1(self.norm2(u))))

    def mix_tokens(self, x: Tensor) -> Tensor:
        """What the tokens tell each other: (B, N, D) -> (B, N, D)."""
        return self.t2(ops.gelu(self.t1(x.mT))).mT


def build(case: Case, **options: Any) -> Any:
    layer, rng = MLPMixer(case.dim, grid=case.t, seed=case.seed, dtype="float64", **options), case.rng()
    for p in layer.parameters():
        p.data = p.data + 0.3 * rng.standard_normal(p.shape)
    return layer


@identity("the equations in loops over channels and tokens")
def loops(case: Case) -> tuple[Tensor, Any]:
    layer, x = build(case), case.tokens()

    def mlp(row: Any, first: Any, second: Any) -> Any:
        hidden = ops.gelu(Tensor(row @ first.weight.data + first.bias.data)).data
        return hidden @ second.weight.data + second.bias.data

    y = x.data.copy()
    normed = layer.norm1(x).data
    for b, c in np.ndindex(case.b, case.dim):
        y[b, :, c] += mlp(normed[b, :, c], layer.t1, layer.t2)
    normed = layer.norm2(Tensor(y)).data
    for b, t in np.ndindex(case.b, case.t):
        y[b, t] += mlp(normed[b, t], layer.w1, layer.w2)
    return layer(x), y


@identity("T_2 = 0: each token on its own")
def token_wise(case: Case) -> tuple[Tensor, Tensor]:
    layer, alone, x = build(case), build(Case(case.b, 1, case.h, case.d, case.seed)), case.tokens()
    state = {k: v for k, v in layer.state_dict().items() if k[0] != "t"}
    alone.load_state_dict(state, strict=False)
    for p in (*layer.t2.parameters(), *alone.t2.parameters()):
        p.data = np.zeros(p.shape)
    return layer(x), ops.concat([alone(x[:, t : t + 1]) for t in range(case.t)], axis=1)


@identity("permuting tokens, rows of T_1 and columns of T_2 alike permutes the output")
def tokens_renamed(case: Case) -> tuple[Tensor, Tensor]:
    layer, other, x = build(case), build(case), case.tokens()
    order = case.rng().permutation(case.t)
    other.t1.weight.data = layer.t1.weight.data[order]
    other.t2.load_state_dict({"weight": layer.t2.weight.data[:, order], "bias": layer.t2.bias.data[order]})
    return other(x[:, order]), layer(x)[:, order]


@identity("permuting channels, with those of the norms and of W_1 and W_2, permutes the output")
def channels_renamed(case: Case) -> tuple[Tensor, Tensor]:
    layer, other, x = build(case), build(case), case.tokens()
    order = case.rng().permutation(case.dim)
    for p, q in zip(
        (*other.norm1.parameters(), *other.norm2.parameters(), other.w2.bias),
        (*layer.norm1.parameters(), *layer.norm2.parameters(), layer.w2.bias),
    ):
        p.data = q.data[order]
    other.w1.weight.data = layer.w1.weight.data[order]
    other.w2.weight.data = layer.w2.weight.data[:, order]
    return other(x[..., order]), layer(x)[..., order]


@identity("mixing tokens is mixing channels of the transposed x with the same weights")
def transposed(case: Case) -> tuple[Tensor, Tensor]:
    layer = build(case, token_hidden=4 * case.dim)
    # The channel half of a layer for x^T, whose channels are the tokens; its token half is silent.
    turned: Any = MLPMixer(case.t, grid=case.dim, hidden=4 * case.dim, dtype="float64")
    for p, q in zip(
        (*turned.w1.parameters(), *turned.w2.parameters()), (*layer.t1.parameters(), *layer.t2.parameters())
    ):
        p.data = q.data
    for p in (*turned.t2.parameters(), turned.norm2.bias):
        p.data = np.zeros(p.shape)
    x = case.tokens().mT
    return layer.mix_tokens(turned.norm2(x).mT), (turned(x) - x).mT
