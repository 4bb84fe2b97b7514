"""Multi-head latent attention: keys and values come from one small vector per token, and only that is cached.

    q_n, q_r = split(x W_q)                     or  split(RMSNorm(x W_qa) W_qb)  with query compression
    c0, k_r0 = split(x W_kva)                   c = RMSNorm(c0)        the norm acts on the latent only
    q_r, k_r = rotate(q_r), rotate(k_r0)        one k_r for all heads
    k_n, v   = split(c W_kvb)                   a key and a value for each head

    naive:     S_h = (q_n k_n^T + q_r k_r^T) / sqrt(dn + dr),   o_h = softmax(S_h) v
    absorbed:  S_h = (q_n U_h^T c^T + q_r k_r^T) / sqrt(dn + dr),   o_h = (softmax(S_h) c) V_h
    y = concat_h(o_h) W_o

    x, y  (B, N, D)      q_n, k_n  (B, H, N, dn)     q_r  (B, H, N, dr)     v  (B, H, N, dv)
    c  (B, N, r)         k_r  (B, N, dr)             U_h  (r, dn)  and  V_h  (r, dv): the parts of W_kvb

The two forms are equal, because q_n . (c U_h) = (q_n U_h^T) . c. The naive one multiplies narrower matrices
and serves whole sequences; the absorbed one never forms keys and values and serves single steps: it is
multi-query attention with a head of width r + dr.

Cost: 2 N D (H dn + H dr + H dv + r + dr) and 2 N r H (dn + dv) for the maps, 2 N^2 H (dn + dr + dv) for
scores and values, naive; a step on n cached tokens takes 2 H n (2 r + dr) for these, absorbed. The cache
holds r + dr numbers for a token.
Source: DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model, DeepSeek-AI,
arXiv:2405.04434, 2024, section 2.1; DeepSeek-V3, arXiv:2412.19437, 2024.
Differs from the published model: unless given, sizes follow D / H (dn = dv = D / H, dr half of it,
r = 4 D / H but not more than D), and there is no query compression.
Numerics: the cache holds the latent after its norm and k_r after its rotation. The scale uses dn + dr. A YaRN
position multiplies all scores, not only those of the rotary part, by its factor.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from minitf import ops
from minitf.engine import Array, ShapeError, Tensor, no_grad
from minitf.nn import (
    Card,
    Case,
    Linear,
    Module,
    Paper,
    Position,
    RMSNorm,
    RoPE,
    as_position,
    identity,
    init,
    positive,
)

from .softmax import SoftmaxAttention, plain

CARD = Card(
    name="mla",
    title="Multi-head latent attention",
    kind="attention",
    family="latent",
    papers=(
        Paper(
            "DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model",
            "2405.04434",
            2024,
        ),
        Paper("DeepSeek-V3 Technical Report", "2412.19437", 2024),
    ),
    causal=True,
    streams=True,
    grid="1d",
    complexity="5 N D H d + 2 N D r + N D d + 4 N r H d + 5 N^2 H d",
    properties=("causal", "streams", "row_stochastic", "batch_independent"),
    basis="published code: deepseek-ai/DeepSeek-V3 inference/model.py (class MLA, naive and absorb); "
    "fla-org/flash-linear-attention fla/layers/mla.py",
    parity=("transformers 5.23.0 DeepseekV3Attention",),
)


def naive(q_n: Tensor, q_r: Tensor, c: Tensor, k_r: Tensor, w: Tensor, **options: Any) -> Tensor:
    """o (B, H, Nq, dv) through the keys and values of every head.

    q_n: (B, H, Nq, dn). q_r: (B, H, Nq, dr). c: (B, Nk, r). k_r: (B, Nk, dr). w: W_kvb (r, H (dn + dv)).
    options: mask, causal, bias, as in `ops.softmax_attention`.
    """
    b, h, _, dn = q_n.shape
    # k_n, v = split(c W_kvb): (B, H, Nk, dn + dv)
    kv = ops.split_heads(c @ w, h)
    k_r = ops.broadcast_to(k_r[:, None], (b, h, *k_r.shape[1:]))
    q, k = ops.concat([q_n, q_r], axis=-1), ops.concat([kv[..., :dn], k_r], axis=-1)
    return ops.softmax_attention(q, k, kv[..., dn:], **options)


def absorbed(q_n: Tensor, q_r: Tensor, c: Tensor, k_r: Tensor, w: Tensor, **options: Any) -> Tensor:
    """The same o, on the latents themselves."""
    h, dn, r = q_n.shape[1], q_n.shape[-1], c.shape[-1]
    # U (H, r, dn) and V (H, r, dv)
    u_v = w.reshape((r, h, -1)).permute_dims((1, 0, 2))
    u, v = u_v[..., :dn], u_v[..., dn:]
    # One key (B, 1, Nk, r + dr) and one value (B, 1, Nk, r) for all heads.
    q, k = ops.concat([q_n @ u.mT, q_r], axis=-1), ops.concat([c, k_r], axis=-1)[:, None]
    scale = 1.0 / math.sqrt(dn + q_r.shape[-1])
    # z = softmax(S) c: (B, H, Nq, r)
    z = ops.softmax_attention(q, k, c[:, None], scale=scale, **options)
    return z @ v


class Latents(NamedTuple):
    """The cache: c (B, n, r) after the norm and k_r (B, n, dr) after the rotation, of the n tokens so far."""

    c: Array
    k_r: Array

    @property
    def length(self) -> int:
        return int(self.c.shape[1])


class MLA(Module):
    """x (B, N, D) -> (B, N, D).

    Parameters: wq (D, H (dn + dr)), or wqa (D, rq), q_norm.weight (rq) and wqb (rq, H (dn + dr)); wkva
    (D, r + dr), kv_norm.weight (r), wkvb (r, H (dn + dv)), wo (H dv, D). No biases.

    Args:
        dim: D. heads: H. kv_rank: r, default 4 D / H but not more than D. q_rank: rq, 0 for no compression.
        nope_dim, rope_dim, value_dim: dn, dr (even, 0 for none) and dv; default D / H, half of it, D / H.
        position: a scheme, or its name; it turns q_r and k_r.

    Raises:
        ValueError: heads and sizes below 1 (rope_dim, q_rank: below 0), or an odd rope_dim.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        kv_rank: int | None = None,
        q_rank: int = 0,
        nope_dim: int | None = None,
        rope_dim: int | None = None,
        value_dim: int | None = None,
        causal: bool = True,
        position: Position | str = "rope",
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, heads=heads)
        d = max(1, dim // heads)
        dn, dv = (d if width is None else width for width in (nope_dim, value_dim))
        dr = max(2, d // 4 * 2) if rope_dim is None else rope_dim
        r = min(4 * d, dim) if kv_rank is None else kv_rank
        if min(dn, dv, r) < 1 or min(dr, q_rank) < 0 or dr % 2:
            raise ValueError(
                f"nope_dim={dn}, value_dim={dv} and kv_rank={r} must be 1 or more, q_rank={q_rank} and "
                f"rope_dim={dr} 0 or more, and rope_dim even"
            )
        rng = init.generator(seed)
        self.heads, self.dn, self.dr, self.dv, self.rank, self.causal = heads, dn, dr, dv, r, causal

        def linear(n_in: int, n_out: int) -> Linear:
            return Linear(n_in, n_out, False, rng, dtype=dtype)

        self.wq: Any = None
        if q_rank:
            self.wqa, self.q_norm = linear(dim, q_rank), RMSNorm(q_rank, dtype=dtype)
            self.wqb = linear(q_rank, heads * (dn + dr))
        else:
            self.wq = linear(dim, heads * (dn + dr))
        self.wkva = linear(dim, r + dr)
        self.kv_norm: Any = RMSNorm(r, dtype=dtype)
        self.wkvb = linear(r, heads * (dn + dv))
        self.wo = linear(heads * dv, dim)
        self.position = as_position(position, heads=heads)

    def forward(
        self, x: Tensor, *, mask: Any = None, positions: Any = None, rng: np.random.Generator | None = None
    ) -> Tensor:
        """Attend from x (B, N, D) to itself. mask: boolean, broadcastable to (B, H, N, N), True = visible."""
        here = np.arange(x.shape[1]) if positions is None else positions
        q_n, q_r = self._queries(x, here)
        o = self._attend(
            naive, q_n, q_r, *self._latents(x, here), mask=mask, bias=self.position.bias(here, here)
        )
        return self.wo(ops.merge_heads(o))

    def weights(self, x: Tensor, *, mask: Any = None, positions: Any = None) -> Tensor:
        """The attention map (B, H, N, N)."""
        here = np.arange(x.shape[1]) if positions is None else positions
        q_n, q_r = self._queries(x, here)
        c, k_r = self._latents(x, here)
        k_n = ops.split_heads(self.wkvb(c), self.heads)[..., : self.dn]
        scores = (q_n @ k_n.mT + q_r @ k_r[:, None].mT) / math.sqrt(self.dn + self.dr)
        bias = self.position.bias(here, here)
        scores = scores if bias is None else scores + bias
        visible = ops.joint_mask(mask, ops.causal_mask(x.shape[1], x.shape[1]) if self.causal else None)
        return ops.softmax(scores, axis=-1, mask=visible)

    def start(self, batch: int) -> Latents:
        """The empty cache."""
        c, k_r = (ops.zeros((batch, 0, d), like=self.wkva.weight).data for d in (self.rank, self.dr))
        return Latents(c, k_r)

    def step(self, x: Tensor, state: Latents) -> tuple[Tensor, Latents]:
        """One token x (B, D) after `state`, absorbed: (B, D) and the new state. No gradients pass."""
        y, state = self._continue(absorbed, x[:, None], state)
        return y[:, 0], state

    def prefill(self, x: Tensor, state: Latents) -> tuple[Tensor, Latents]:
        """Several tokens x (B, n, D) after `state`, naive: (B, n, D) and the new state."""
        return self._continue(naive, x, state)

    def _continue(self, form: Any, x: Tensor, state: Latents) -> tuple[Tensor, Latents]:
        if not self.causal:
            raise ValueError("only causal attention streams: build it with causal=True")
        with no_grad():
            here = np.arange(state.length, state.length + x.shape[1])
            (q_n, q_r), (c, k_r) = self._queries(x, here), self._latents(x, here)
            state = Latents(
                np.concatenate([state.c, c.data], axis=1), np.concatenate([state.k_r, k_r.data], axis=1)
            )
            bias = self.position.bias(here, np.arange(state.length))
            o = self._attend(form, q_n, q_r, Tensor(state.c), Tensor(state.k_r), bias=bias)
            return self.wo(ops.merge_heads(o)), state

    def _queries(self, x: Tensor, here: Any) -> tuple[Tensor, Tensor]:
        """q_n (B, H, N, dn) and q_r (B, H, N, dr), turned."""
        if x.ndim != 3:
            raise ShapeError(f"mla: x must be (B, N, D), not {x.shape}")
        q = self.wqb(self.q_norm(self.wqa(x))) if self.wq is None else self.wq(x)
        q = ops.split_heads(q, self.heads)
        q_n, q_r = q[..., : self.dn], q[..., self.dn :]
        if isinstance(self.position, RoPE):
            # rotate() puts the root of YaRN's factor on q_r and on k_r; q_n gets both.
            q_n = q_n * self.position.magnitude**2
        return q_n, self.position.rotate(q_r, here) if self.dr else q_r

    def _latents(self, x: Tensor, here: Any) -> tuple[Tensor, Tensor]:
        """c (B, N, r) after the norm and k_r (B, N, dr), turned."""
        c_k = self.wkva(x)
        c, k_r = self.kv_norm(c_k[..., : self.rank]), c_k[..., self.rank :]
        return c, self.position.rotate(k_r[:, None], here)[:, 0] if self.dr else k_r

    def _attend(self, form: Any, q_n: Tensor, q_r: Tensor, c: Tensor, k_r: Tensor, **options: Any) -> Tensor:
        return form(q_n, q_r, c, k_r, self.wkvb.weight, causal=self.causal, **options)


def build(case: Case, **options: Any) -> MLA:
    return MLA(case.dim, heads=case.h, seed=case.seed, dtype="float64", **options)


@identity("the layer equals the equations, head by head")
def by_equations(case: Case) -> tuple[Tensor, Tensor]:
    layer, x, n = build(case, q_rank=3, rope_dim=2), case.tokens(), np.arange(case.t)
    q = layer.wqb(layer.q_norm(layer.wqa(x)))
    c = layer.kv_norm(layer.wkva(x)[..., : layer.rank])
    k_r = ops.rope(layer.wkva(x)[:, None, :, layer.rank :], n)
    kv, heads = c @ layer.wkvb.weight, []
    visible = ops.causal_mask(case.t, case.t)
    for h in range(case.h):
        q_h = q[:, None, :, h * (case.d + 2) : (h + 1) * (case.d + 2)]
        kv_h = kv[:, None, :, h * 2 * case.d : (h + 1) * 2 * case.d]
        # plain divides by the root of the width, which is dn + dr here.
        query = ops.concat([q_h[..., : case.d], ops.rope(q_h[..., case.d :], n)], axis=-1)
        key = ops.concat([kv_h[..., : case.d], k_r], axis=-1)
        heads.append(plain(query, key, kv_h[..., case.d :], visible)[:, 0])
    return layer(x), layer.wo(ops.concat(heads, axis=-1))


def parts_of(case: Case) -> tuple[Any, ...]:
    """q_n, q_r, c, k_r and W_kvb: normal, all widths different, dv = d + 1."""
    rng, b, h, t, d = case.rng(), case.b, case.h, case.t, case.d
    shapes = ((b, h, t, d), (b, h, t, 2), (b, t, 3), (b, t, 2), (3, h * (2 * d + 1)))
    return tuple(Tensor(rng.standard_normal(shape)) for shape in shapes)


@identity("the naive and the absorbed form are equal, with and without a mask that hides whole rows")
def absorption(case: Case) -> tuple[Tensor, Tensor]:
    parts = parts_of(case)
    visible = case.rng().random((case.b, case.h, case.t, case.t)) < 0.5
    tries: list[dict[str, Any]] = [{"causal": True}, {"mask": visible}]
    return ops.stack([naive(*parts, **o) for o in tries]), ops.stack([absorbed(*parts, **o) for o in tries])


@identity("the attention map times the values is the output, with every position scheme and under a mask")
def map_times_values(case: Case) -> tuple[Tensor, Tensor]:
    x, left, right = case.tokens(), [], []
    mask = case.rng().random((case.b, case.h, case.t, case.t)) < 0.7
    for name in ("nope", "rope", "alibi"):
        layer = build(case, position=name, value_dim=3, causal=name != "nope")
        # c W_kvb, of which each head has its last dv columns
        kv = layer.kv_norm(layer.wkva(x)[..., : layer.rank]) @ layer.wkvb.weight
        v = ops.split_heads(kv, case.h)[..., case.d :]
        left.append(layer.wo(ops.merge_heads(layer.weights(x, mask=mask) @ v)))
        right.append(layer(x, mask=mask))
    return ops.stack(left), ops.stack(right)


@identity("token by token on the cached latents, absorbed, equals the naive form on the whole")
def streaming(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, q_rank=case.dim), case.tokens()
    state, rows = layer.start(case.b), []
    for t in range(case.t):
        y, state = layer.step(x[:, t], state)
        rows.append(y)
    return ops.stack(rows, axis=1), layer(x)


@identity("no rotary part, no norm, W_kva = [W_k, W_v] and W_kvb a selection: plain multi-head attention")
def multi_head(case: Case) -> tuple[Tensor, Tensor]:
    d, x = case.dim, case.tokens()
    layer, mha = build(case, rope_dim=0, kv_rank=2 * d), SoftmaxAttention(d, heads=case.h, dtype="float64")
    layer.kv_norm = lambda latent: latent
    layer.wq, layer.wo = mha.wq, mha.wo
    layer.wkva.weight.data = np.concatenate([mha.wk.weight.data, mha.wv.weight.data], axis=1)
    # Row i of the latent goes to key i of its head, row D + i to value i: (2 D, H, 2 d)
    select = np.zeros((2, case.h, case.d, case.h, 2, case.d))
    for h in range(case.h):
        for part in range(2):
            select[part, h, :, h, part] = np.eye(case.d)
    layer.wkvb.weight.data = select.reshape((2 * d, 2 * d))
    return layer(x), mha(x)


@identity("a shift of all positions changes nothing")
def shift(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.tokens()
    return layer(x, positions=np.arange(case.t) + 11), layer(x)


@identity("query compression by the identity, without its norm, is no compression")
def no_compression(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, q_rank=case.dim), case.tokens()
    one = build(case)
    layer.q_norm = lambda q: q  # type: ignore[assignment]
    layer.wqa.weight.data = np.eye(case.dim)
    layer.wqb = one.wq
    layer.wkva, layer.wkvb, layer.wo = one.wkva, one.wkvb, one.wo
    return layer(x), one(x)


@identity("scaling what W_kva writes to the latent changes nothing (eps = 0): the norm comes before W_kvb")
def norm_before(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.tokens()
    layer.kv_norm.eps = 0.0
    y = layer(x)
    weight = layer.wkva.weight.data.copy()
    weight[:, : layer.rank] *= 3.0
    layer.wkva.weight.data = weight
    return layer(x), y


@identity("a YaRN position multiplies all scores by its factor")
def yarn(case: Case) -> tuple[Tensor, Tensor]:
    n, position = np.zeros(case.t, dtype=int), RoPE(extension="yarn", factor=8.0)
    layer, x = build(case, position=position), case.tokens()
    one = build(case)
    # At one and the same position nothing turns; then the factor can be put on W_q.
    one.wq.weight.data = one.wq.weight.data * position.magnitude**2
    return layer(x, positions=n), one(x, positions=n)
