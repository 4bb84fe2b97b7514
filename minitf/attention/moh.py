"""Mixture-of-head attention: heads are experts, some always used, others chosen and weighed by each token.

    o_h = softmax(q_h k_h^T / sqrt(d)) v_h              as in softmax attention, for all H heads
    r   = softmax(x W_g)                                over the R = H - S routed heads
    T   = TopK(r, K)                                    for each token; the lower index wins a tie
    g_h = K r_h / sum_T r for h in T, 0 elsewhere       routed heads; their mean over T is 1
    s   = S softmax(x W_1)                              shared heads; their mean is 1
    (beta_0, beta_1) = 2 softmax(x W_0)
    y   = [beta_0 s_h o_h, ..., beta_1 g_h o_h, ...] W_o

    x, y  (B, N, D)      q, k, v, o  (B, H, N, d)      W_g  (D, R)      W_1  (D, S)      W_0  (D, 2)

Heads 0..S-1 are shared. S = 0: only g. R = 0: only s. W_1 is there from S = 2, W_g from R = 2, W_0 where both
kinds of head are: a softmax over one number is 1. T is a constant in the backward pass; with K = 1 the gate
of the chosen head is 1, and W_g learns from the balance loss alone.

router="norm", for models trained without routing: l_h = |q_h| before positions act, r = softmax(l / std(l))
over routed heads, the std dividing by R - 1; chosen heads and shared ones count 1, others 0. No parameters.

`skipping` computes a routed head for the tokens that chose it alone; keys and values of all heads are needed.
Balance loss: R sum_h mean(r_h) mean(h in T) over all tokens of a batch.

Cost: that of softmax attention, 8 N D^2 + 4 N^2 D, the products of heads times (S + K) / H where heads are
skipped, and 2 N D (R + S + 2).
Source: MoH: Multi-Head Attention as Mixture-of-Head Attention, Jin et al., arXiv:2410.11842, 2024.
Differs from the paper: no bias. Defaults are S = H/4 and half of the others, H/2 and half for router="norm".
UNSURE: training with router="norm" took a straight-through quantisation of the gate; here is the form for
inference.
Numerics: those of softmax attention.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Array, ShapeError, Tensor, array_module, no_grad
from minitf.nn import (
    Card,
    Case,
    KVCache,
    Linear,
    Module,
    Paper,
    Position,
    as_position,
    identity,
    init,
    not_negative,
    positive,
)

from .softmax import SoftmaxAttention

CARD = Card(
    name="moh",
    title="Mixture-of-head attention",
    kind="attention",
    family="experts",
    papers=(Paper("MoH: Multi-Head Attention as Mixture-of-Head Attention", "2410.11842", 2024),),
    causal=True,
    streams=True,
    grid="1d",
    complexity="8 N D^2 + 4 N^2 D + 2 N D H",
    properties=(
        "causal",
        "streams",
        "row_stochastic",
        "batch_independent",
        "permutation_equivariant_without_causal",
    ),
    basis=(
        "published code: SkyworkAI/MoH MoH-DiT/models.py, MoH-ViT/attention.py, "
        "MoH-LLaMA3/Inference_code/modeling_llama.py"
    ),
    parity=("SkyworkAI/MoH 2cefd57 MoH-DiT MoHAttention",),
)


def skipping(q: Tensor, k: Tensor, v: Tensor, weights: Array, visible: Array) -> Tensor:
    """o (B, H, N, d), 0 where a token's weight (B, N, H) for a head is 0; those queries are never formed.

    visible: boolean (N, N).
    """
    heads = []
    for b, h in np.ndindex(q.shape[:2]):
        rows = np.flatnonzero(weights[b, :, h])
        o = ops.softmax_attention(
            q[b : b + 1, h : h + 1, rows],
            k[b : b + 1, h : h + 1],
            v[b : b + 1, h : h + 1],
            mask=visible[rows],
        )
        heads.append(ops.put_along_axis(ops.zeros_like(q[b, h]), rows[:, None], o[0, 0], axis=0))
    return ops.stack(heads).reshape(q.shape)


def largest(scores: Tensor, k: int) -> Array:
    """T as booleans (..., R): True for the k largest scores (..., R)."""
    places = ops.topk(scores, k)[1].data
    return (places[..., None] == array_module(places).arange(scores.shape[-1])).any(axis=-2)


class MoH(Module):
    """x (B, N, D) -> (B, N, D).

    Parameters: wq, wk, wv, wo (D, D); as far as needed router.weight (D, R), shared_gate.weight (D, S),
    kinds_gate.weight (D, 2).

    Args:
        dim: D. heads: H. shared: S. routed: K.
        router: "softmax" or "norm". causal: hide later tokens. position: a scheme, or its name.
        balance: weight of the balance loss that `auxiliary_loss` gives to training.

    Raises:
        ValueError: heads that do not divide dim; shared outside 0..heads; routed not from 1 to the number of
            routed heads (0 if there are none); an unknown router; balance below 0.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        shared: int | None = None,
        routed: int | None = None,
        router: str = "softmax",
        causal: bool = True,
        position: Position | str = "nope",
        balance: float = 0.01,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, heads=heads)
        not_negative(balance=balance)
        if dim % heads:
            raise ValueError(f"heads={heads} must divide dim={dim}")
        if router not in ("softmax", "norm"):
            raise ValueError(f"router must be 'softmax' or 'norm', not {router!r}")
        s = max(1, heads // (4 if router == "softmax" else 2)) if shared is None else shared
        r = heads - s
        k = -(-r // 2) if routed is None else routed
        if not 0 <= s <= heads or not min(r, 1) <= k <= r:
            raise ValueError(
                f"shared={s} must be from 0 to heads={heads}, routed={k} from {min(r, 1)} to the rest, {r}"
            )
        rng = init.generator(seed)
        self.heads, self.shared, self.routed, self.causal, self.balance = heads, s, k, causal, balance
        self.wq, self.wk, self.wv, self.wo = (Linear(dim, dim, False, rng, dtype=dtype) for _ in range(4))
        learned = router == "softmax"

        def gate(n: int, needed: bool) -> Linear | None:
            return Linear(dim, n, False, rng, dtype=dtype) if learned and needed else None

        self.router, self.learned = gate(r, r > 1), learned
        self.shared_gate, self.kinds_gate = gate(s, s > 1), gate(2, s > 0 and r > 0)
        self.position = as_position(position, heads=heads)

    def forward(
        self, x: Tensor, *, mask: Any = None, positions: Any = None, rng: np.random.Generator | None = None
    ) -> Tensor:
        """Mix x (B, N, D). mask: boolean, broadcastable to (B, H, N, N); True = visible."""
        q, k, v, bias = self._heads(x, positions)
        o = ops.softmax_attention(q, k, v, mask=mask, causal=self.causal, bias=bias)
        return self._joined(o, x)

    def _joined(self, o: Tensor, x: Tensor) -> Tensor:
        """The heads o (B, H, N, d) of the tokens x, weighed and put together."""
        # (B, N, H) -> (B, H, N, 1)
        w = self.head_weights(x).permute_dims((0, 2, 1))[..., None]
        return self.wo(ops.merge_heads(w * o))

    def probabilities(self, x: Tensor) -> tuple[Tensor, Array]:
        """r (B, N, R) and T as booleans (B, N, R)."""
        if self.learned:
            n = self.heads - self.shared
            r = ops.softmax(self.router(x)) if self.router else ops.ones((*x.shape[:2], n), like=x)
            return r, largest(r, self.routed)
        q = ops.split_heads(self.wq(x), self.heads)[:, self.shared :]
        # |q_h| for routed heads: (B, N, R). The slope of the square root at 0 is infinite.
        square = ops.square(q).sum(axis=-1).permute_dims((0, 2, 1))
        zero = square.data == 0.0
        norm = ops.where(zero, 0.0, ops.sqrt(ops.where(zero, 1.0, square)))
        variance = ops.var(norm, axis=-1, keepdims=True) * (norm.shape[-1] / max(norm.shape[-1] - 1, 1))
        even = variance.data == 0.0
        std = ops.where(even, 1.0, ops.sqrt(ops.where(even, 1.0, variance)))
        return ops.softmax(norm / std), largest(norm, self.routed)

    def head_weights(self, x: Tensor) -> Tensor:
        """How much each head counts for each token: (B, N, H), 0 for those that were not chosen."""
        ones = ops.ones((*x.shape[:2], self.shared), like=x)
        if self.routed == 0:
            return ones if self.shared_gate is None else self.shared * ops.softmax(self.shared_gate(x))
        r, chosen = self.probabilities(x)
        if not self.learned:
            return ops.concat([ones, Tensor(chosen.astype(x.dtype))], axis=-1)
        # g = K r / sum_T r on T
        g = ops.where(chosen, r, 0.0)
        g = self.routed * g / g.sum(axis=-1, keepdims=True)
        if self.kinds_gate is None:
            return g
        s = ones if self.shared_gate is None else self.shared * ops.softmax(self.shared_gate(x))
        beta = 2.0 * ops.softmax(self.kinds_gate(x))
        return ops.concat([beta[..., :1] * s, beta[..., 1:] * g], axis=-1)

    def auxiliary_loss(self, x: Tensor) -> Tensor:
        """What training should add for x (B, N, D): balance * the balance loss of routed heads, a scalar."""
        if self.routed == 0:
            return ops.zeros((), like=x)
        r, chosen = self.probabilities(x)
        share = r.mean(axis=(0, 1)) * chosen.mean(axis=(0, 1)).astype(r.dtype)
        return self.balance * r.shape[-1] * share.sum()

    def weights(self, x: Tensor, *, mask: Any = None, positions: Any = None) -> Tensor:
        """P (B, H, N, N) of every head, before heads are weighed."""
        q, k, _, bias = self._heads(x, positions)
        return ops.attention_weights(q, k, mask, self.causal, bias=bias)

    def _heads(self, x: Tensor, positions: Any) -> tuple[Tensor, Tensor, Tensor, Any]:
        if x.ndim != 3:
            raise ShapeError(f"moh: x must be (B, N, D), not {x.shape}")
        here = np.arange(x.shape[1]) if positions is None else positions
        q, k, v = (ops.split_heads(w(x), self.heads) for w in (self.wq, self.wk, self.wv))
        q, k = self.position.rotate(q, here), self.position.rotate(k, here)
        return q, k, v, self.position.bias(here, here)

    def start(self, batch: int) -> KVCache:
        """The empty cache for `batch` sequences."""
        dim = self.wk.weight.shape[1]
        return KVCache.empty((batch, self.heads, 0, dim // self.heads), self.wk.weight)

    def step(self, x: Tensor, state: KVCache) -> tuple[Tensor, KVCache]:
        """One token x (B, D) after those in `state`: (B, D) and the new state. No gradients pass."""
        y, state = self.prefill(x.reshape((x.shape[0], 1, x.shape[1])), state)
        return y[:, 0], state

    def prefill(self, x: Tensor, state: KVCache) -> tuple[Tensor, KVCache]:
        """Several tokens x (B, n, D) at once after those in `state`: (B, n, D) and the new state."""
        if not self.causal:
            raise ValueError("only causal attention streams: build it with causal=True")
        with no_grad():
            here = np.arange(state.length, state.length + x.shape[1])
            q, k, v, _ = self._heads(x, here)
            state = state.append(k.data, v.data)
            bias = self.position.bias(here, np.arange(state.length))
            o = ops.softmax_attention(q, Tensor(state.k), Tensor(state.v), causal=True, bias=bias)
            return self._joined(o, x), state


def build(case: Case, **options: Any) -> Any:
    return MoH(case.dim, seed=case.seed, dtype="float64", **{"heads": case.h, **options})


def six_heads(case: Case, **options: Any) -> tuple[Any, Tensor]:
    """A layer of six heads, two shared and two of four routed unless told otherwise, and tokens for it."""
    x = Tensor(case.rng().standard_normal((case.b, case.t, 6 * case.d)))
    options = {"heads": 6, "shared": 2, "routed": 2, **options}
    return MoH(6 * case.d, seed=case.seed, dtype="float64", **options), x


@identity("zero routers and K = R: every head counts 1, multi-head attention")
def standard(case: Case) -> tuple[Tensor, Tensor]:
    left, right = [], []
    for causal in (True, False):
        layer, x = six_heads(case, routed=4, causal=causal)
        for gate in (layer.router, layer.shared_gate, layer.kinds_gate):
            gate.weight.data = np.zeros_like(gate.weight.data)
        other = SoftmaxAttention(6 * case.d, heads=6, causal=causal, dtype="float64")
        other.load_state_dict(
            {k: v for k, v in layer.state_dict().items() if k[:2] in ("wq", "wk", "wv", "wo")}
        )
        left.append(layer(x))
        right.append(other(x))
    return ops.stack(left), ops.stack(right)


@identity(
    "the weights of heads by their equations, token by token, for all mixtures of shared and routed heads"
)
def weights_by_loops(case: Case) -> tuple[Any, Any]:
    left, right = [], []

    def soft(v: Any) -> Any:
        return np.exp(v) / np.exp(v).sum()

    for s, k in ((2, 2), (1, 3), (0, 2), (5, 1), (6, 0)):
        layer, x = six_heads(case, shared=s, routed=k)
        left.append(layer.head_weights(x).data)
        for token in x.data.reshape(-1, 6 * case.d):
            shared = s * soft(token @ layer.shared_gate.weight.data) if s > 1 else np.ones(s)
            r = soft(token @ layer.router.weight.data) if s < 5 else np.ones(6 - s)
            best = np.argsort(-r, kind="stable")[:k]
            g = np.array([k * r[h] / sum(r[best]) if h in best else 0.0 for h in range(6 - s)])
            beta = 2 * soft(token @ layer.kinds_gate.weight.data) if 0 < s < 6 else np.ones(2)
            right.append(np.concatenate([beta[0] * shared, beta[1] * g]))
    return np.stack(left), np.reshape(right, (5, case.b, case.t, 6))


@identity(
    "routed weights sum to beta_1 K, shared ones to beta_0 S, beta_0 + beta_1 = 2; S + K for beta = (1, 1)"
)
def sums(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = six_heads(case)
    w, beta = layer.head_weights(x), 2.0 * ops.softmax(layer.kinds_gate(x))
    layer.kinds_gate.weight.data = np.zeros_like(layer.kinds_gate.weight.data)
    even = layer.head_weights(x).sum(axis=-1)
    two = ops.full(even.shape, 2.0, dtype="float64")
    left = [w[..., :2].sum(axis=-1), w[..., 2:].sum(axis=-1), beta.sum(axis=-1), even]
    return ops.stack(left), ops.stack([2.0 * beta[..., 0], 2.0 * beta[..., 1], two, 2.0 * two])


@identity("computing a head only for the tokens that chose it gives the same output")
def skipped(case: Case) -> tuple[Tensor, Tensor]:
    left, right = [], []
    for router in ("softmax", "norm"):
        layer, x = six_heads(case, router=router, position="rope")
        q, k, v, _ = layer._heads(x, None)
        o = skipping(q, k, v, layer.head_weights(x).data, np.tri(case.t, dtype=bool))
        left.append(layer._joined(o, x))
        right.append(layer(x))
    return ops.stack(left), ops.stack(right)


@identity("router 'norm': the K routed heads with the longest queries count 1, shared ones 1, others 0")
def longest_queries(case: Case) -> tuple[Tensor, Any]:
    layer, x = six_heads(case, router="norm")
    length = np.linalg.norm(layer.wq(x).data.reshape(case.b, case.t, 6, case.d), axis=-1)
    place = np.argsort(np.argsort(-length[..., 2:], axis=-1, kind="stable"), axis=-1, kind="stable")
    return layer.head_weights(x), np.concatenate([np.ones((case.b, case.t, 2)), place < 2], axis=-1)


@identity("the balance loss: R^2 times the mean over routed heads of mean probability and mean choice")
def balance(case: Case) -> tuple[Tensor, Any]:
    left, right = [], []
    for router in ("softmax", "norm"):
        layer, x = six_heads(case, router=router, balance=1.0)
        if router == "softmax":
            logits = x.data @ layer.router.weight.data
        else:
            logits = np.linalg.norm(layer.wq(x).data.reshape(case.b, case.t, 6, case.d), axis=-1)[..., 2:]
            logits = logits / logits.std(axis=-1, ddof=1, keepdims=True)
        r = (np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)).reshape(-1, 4)
        chosen = r >= np.sort(r, axis=-1)[:, 2:3]
        left.append(layer.auxiliary_loss(x))
        right.append(4**2 * np.mean(r.mean(axis=0) * chosen.mean(axis=0)))
    return ops.stack(left), np.array(right)
