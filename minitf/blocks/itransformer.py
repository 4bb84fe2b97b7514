"""iTransformer: the whole past of a variable is one token; attention mixes variables, not times.

    x  <-  (x - mu) / sd                           mu, sd of each variable over time; mu is a constant
    t  =  [x; covariates]^T W_e + b_e              one token for each variable and covariate
    h  =  LN1(t + MHA(t))                          every layer: post-norm
    t  =  LN2(h + FFN(h))                          FFN: D -> F -> D
    y  =  sd * (LN(t) W_p + b_p)^T + mu            of the variables alone

    x  (B, L, V)   past      covariates  (B, L, M) or none      t  (B, V + M, D)      y  (B, S, V)   forecast

There are no positions: variables are a set, and a trained model takes any number of them.

Cost: 2 B V (L + S) D for the two maps and, for each layer, that of attention and FFN over V tokens.
Source: iTransformer: Inverted Transformers Are Effective for Time Series Forecasting, Liu et al.,
arXiv:2310.06625, 2023, equation 1.
Differs from the paper: defaults are smaller. As in the published code, a norm stands after the last post-norm
layer, and gradients pass through sd but not through mu.
Numerics: sd = sqrt(variance + 1e-5), so that a constant variable is forecast as itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.attention.softmax import SoftmaxAttention
from minitf.engine import ShapeError, Tensor, stop_gradient
from minitf.ffn.gelu_ffn import GELUFFN
from minitf.ffn.relu_ffn import ReLUFFN
from minitf.nn import Card, Case, LayerNorm, Linear, Module, Paper, identity, init, not_negative, positive

from .post_norm import PostNorm

CARD = Card(
    name="itransformer",
    title="Inverted tokens: one token per variable",
    kind="model",
    family="time series",
    papers=(
        Paper(
            "iTransformer: Inverted Transformers Are Effective for Time Series Forecasting",
            "2310.06625",
            2023,
        ),
    ),
    causal=False,
    streams=False,
    grid="1d",
    complexity="depth (24 V D^2 + 4 V^2 D) + 2 V (L + S) D, V variables",
    properties=("batch_independent",),
    basis="published code: thuml/iTransformer model/iTransformer.py, layers/Transformer_EncDec.py",
    parity=("thuml/iTransformer c2426e6 Model",),
    expected_failures={
        "gradients": "the mean of the past is a constant in the backward pass; tested with use_norm=False",
        "full_jacobian": "the mean of the past is a constant in the backward pass",
    },
)


FEED_FORWARD: dict[str, Any] = {"gelu": GELUFFN, "relu": ReLUFFN}


class ITransformer(Module):
    """Past (B, L, V) -> forecast (B, S, V).

    Parameters: embed (L, D), blocks.{i}, norm, project (D, S).

    Args:
        dim: D. heads: H. past: L. horizon: S. depth: layers. use_norm: subtract mu and divide by sd.
        hidden: F, default 4 D. act: "gelu" or "relu".

    Raises:
        ValueError: past or horizon below 1, depth below 0, heads that do not divide dim, another act.
        ShapeError: when called with a past that is not (B, L, V).
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        past: int = 96,
        horizon: int = 24,
        depth: int = 2,
        use_norm: bool = True,
        hidden: int | None = None,
        act: str = "gelu",
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, heads=heads, past=past, horizon=horizon)
        not_negative(depth=depth)
        if act not in FEED_FORWARD:
            raise ValueError(f"act must be one of: {', '.join(FEED_FORWARD)}, not {act!r}")
        rng = init.generator(seed)
        self.past, self.use_norm = past, use_norm
        self.embed = Linear(past, dim, True, rng, dtype=dtype)
        self.blocks = [
            PostNorm(
                dim,
                mixer=SoftmaxAttention(dim, heads=heads, causal=False, bias=True, seed=rng, dtype=dtype),
                ffn=FEED_FORWARD[act](dim, hidden=hidden, seed=rng, dtype=dtype),
                seed=rng,
                dtype=dtype,
            )
            for _ in range(depth)
        ]
        self.norm: Any = LayerNorm(dim, dtype=dtype)
        self.project = Linear(dim, horizon, True, rng, dtype=dtype)

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Forecast from x (B, L, V), and what else is known of the past (B, L, M)."""
        if x.ndim != 3 or x.shape[1] != self.past:
            raise ShapeError(f"itransformer: x must be (B, {self.past}, V), not {x.shape}")
        mu, sd = ops.zeros(1, like=x), ops.ones(1, like=x)
        if self.use_norm:
            mu = stop_gradient(x.mean(axis=1, keepdims=True))
            x = x - mu
            sd = ops.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
            x = x / sd
        variables = x.shape[2]
        # One token for each variable and covariate: (B, V + M, D)
        t = self.embed((x if covariates is None else ops.concat([x, covariates], axis=2)).mT)
        for block in self.blocks:
            t = block(t)
        # (B, S, V)
        return self.project(self.norm(t))[:, :variables].mT * sd + mu

    @staticmethod
    def example_inputs(case: Case) -> tuple[Tensor]:
        """A past of 96 steps of t variables."""
        return (Tensor(case.rng().standard_normal((case.b, 96, case.t))),)


def build(case: Case, **options: Any) -> ITransformer:
    return ITransformer(case.dim, heads=case.h, horizon=5, seed=case.seed, dtype="float64", **options)


@identity("permuting the variables permutes the forecasts; covariates stay out of them")
def variables_are_a_set(case: Case) -> tuple[Tensor, Tensor]:
    model, (x,), order = build(case), ITransformer.example_inputs(case), case.rng().permutation(case.t)
    more = Tensor(case.rng().standard_normal((case.b, 96, 2)))
    return model(x[..., order], more[..., ::-1]), model(x, more)[..., order]


@identity("a constant added to a variable is added to its forecast")
def shift(case: Case) -> tuple[Tensor, Tensor]:
    model, (x,) = build(case), ITransformer.example_inputs(case)
    by = case.rng().standard_normal(case.t)
    return model(x + by), model(x) + by


@identity("a variable scaled by s > 0 has its forecast scaled; x is large, so that the 1e-5 in sd is nothing")
def scale(case: Case) -> tuple[Tensor, Tensor]:
    model, x = build(case), 1e5 * ITransformer.example_inputs(case)[0]
    by = case.rng().uniform(0.5, 2.0, case.t)
    return model(x * by) * 1e-5, model(x) * by * 1e-5


@identity("normalising is the plain model on (x - mu) / sd, with sd that of L, not L - 1, and back")
def normalised(case: Case) -> tuple[Tensor, Tensor]:
    model, plain, (x,) = build(case), build(case, use_norm=False), ITransformer.example_inputs(case)
    x = 0.1 * x + 2.0
    mu = x.data.sum(axis=1, keepdims=True) / 96.0
    sd = np.sqrt(((x.data - mu) ** 2).sum(axis=1, keepdims=True) / 96.0 + 1e-5)
    return model(x), plain((x - mu) / sd) * sd + mu


@identity("without the output map of attention every variable is forecast from itself alone")
def independent(case: Case) -> tuple[Tensor, Tensor]:
    model, (x,) = build(case), ITransformer.example_inputs(case)
    for block in model.blocks:
        for p in block.mixer.wo.parameters():
            p.data = np.zeros(p.shape)
    return model(x), ops.concat([model(x[..., i : i + 1]) for i in range(case.t)], axis=-1)


@identity("one variable: attention is an affine map, so the model is a network on the channel")
def one_variable(case: Case) -> tuple[Tensor, Tensor]:
    left, right = [], []
    for act, f in (("gelu", ops.gelu), ("relu", ops.relu)):
        model = build(case, use_norm=False, act=act, hidden=3)
        x = ITransformer.example_inputs(case)[0][..., :1]
        t = model.embed(x.mT)
        for block in model.blocks:
            t = block.norm1(t + block.mixer.wo(block.mixer.wv(t)))
            t = block.norm2(t + block.ffn.w2(f(block.ffn.w1(t))))
        left.append(model(x))
        right.append(model.project(model.norm(t)).mT)
    return ops.stack(left), ops.stack(right)


@identity("without layers and norms, the linear forecast x^T W_e W_p")
def linear(case: Case) -> tuple[Tensor, Tensor]:
    model, (x,) = build(case, use_norm=False, depth=0), ITransformer.example_inputs(case)
    model.norm = lambda t: t
    e, p = model.embed, model.project
    return model(x), ((x.mT @ e.weight + e.bias) @ p.weight + p.bias).mT
