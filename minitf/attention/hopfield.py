"""Modern Hopfield network: attention as the update rule of an associative memory, iterated if asked for.

    E(xi) = -1/beta log sum_j exp(beta x_j . xi) + |xi|^2 / 2 + 1/beta log S + M^2 / 2,   M = max_j |x_j|
    xi   <- sum_j softmax(beta x_j . xi)_j x_j                 one retrieval; E never rises

    layer:  q = LN(R) W_Q,  k = LN(Y) W_K,  v = LN(U) W_V      split into heads
            A_0 = softmax(beta q k^T)
            A_t = softmax(beta (A_{t-1} k) k^T),   t = 1 .. T
            y   = merge(A_T v) W_O

    x  (S, d) stored patterns, xi (..., d) states, and in the layer:
    R  (B, N, D)   states;  Y  (B, S, Dk)  stored patterns, R if left out
    U  (B, S, Dv)  their values, Y if left out
    q, k  (B, H, N or S, d)        v  (B, H, S, p)        A  (B, H, N, S)        y  (B, N, D_out)

T = 0 is one softmax, plain attention. A head stops before T when no example of the batch has moved by more
than eps: max over the batch of |A_t - A_{t-1}|, the Frobenius norm over queries and keys. T = None is no
limit. With T > 0 that makes an example depend a little on its batch, as in the published code; with eps = 0 a
head stops only once nothing moves. beta is 1 / sqrt(d) unless given, or 1 where nothing is projected. Weights
start normal with deviation 0.02.

Options: `static`, names of "state", "stored", "values" that are used as they are, by every head whole;
`connected`: v = (LN(U) W_K) W_V; `norm_space`: LN of each head of q and k; `learned_row`, `zero_row`: one
more stored pattern, the first with learned key and value, the second zero; both are always visible.

Cost: 8 N D^2 for the maps, and T times 4 N S D + 4 N S D for scores, retrievals and values.
Source: Hopfield Networks is All You Need, Ramsauer et al., arXiv:2008.02217, 2020.
Differs from published code: there the learned row is never used, because of a test that is always false.
Numerics: those of softmax attention. The test for stopping has no gradient; all iterations have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import ShapeError, Tensor, grad
from minitf.nn import Card, Case, Dropout, LayerNorm, Linear, Module, Paper, Parameter, identity, init
from minitf.nn.checked import positive

from .softmax import SoftmaxAttention

CARD = Card(
    name="hopfield",
    title="Modern Hopfield network",
    kind="attention",
    family="memory",
    papers=(Paper("Hopfield Networks is All You Need", "2008.02217", 2020),),
    causal=False,
    streams=False,
    grid="1d",
    complexity="8 N D^2 + 4 N^2 D + 4 T N^2 D",
    properties=("batch_independent", "row_stochastic", "permutation_equivariant"),
    basis="published code: ml-jku/hopfield-layers hflayers/functional.py, activation.py, __init__.py",
    parity=("ml-jku/hopfield-layers f56f929 Hopfield",),
)
PARTS = ("state", "stored", "values")


def energy(patterns: Tensor, state: Tensor, beta: float) -> Tensor:
    """E (...) of states (..., d) for stored patterns (S, d)."""
    largest = ops.max((patterns * patterns).sum(axis=-1))
    attraction = ops.logsumexp(beta * (state @ patterns.mT), axis=-1) / beta
    return (state * state).sum(axis=-1) / 2 - attraction + math.log(len(patterns.data)) / beta + largest / 2


def retrieve(patterns: Tensor, state: Tensor, beta: float) -> Tensor:
    """The next state, one step down in energy: (..., d)."""
    return ops.softmax(beta * (state @ patterns.mT)) @ patterns


def associate(q: Tensor, k: Tensor, mask: Any, beta: Any, steps: int | None, eps: float) -> Tensor:
    """A_T (B, H, N, S) of q (B, H, N, d) and k (B, H, S, d)."""
    a = ops.attention_weights(q * beta, k, mask, scale=1.0)
    active, t = np.ones((q.shape[1], 1, 1), dtype=bool), 0
    while active.any() and (steps is None or t < steps):
        new = ops.where(active, ops.attention_weights((a @ k) * beta, k, mask, scale=1.0), a)
        # max over the batch of |A_t - A_{t-1}| for each head
        moved = np.sqrt(((new.numpy() - a.numpy()) ** 2).sum(axis=(2, 3))).max(axis=0, initial=0.0)
        active = active & (moved > eps)[:, None, None]
        a, t = new, t + 1
    return a


class Hopfield(Module):
    """x (B, N, D) -> (B, N, D_out).

    Parameters: wq, wk (D, H d), wv (D, H p), wo (H p, D_out), with biases if `bias`, without those that are
    static; norm_state, norm_stored, norm_values if `norm`; row_k (H, 1, d), row_v (H, 1, p) if `learned_row`.

    Args:
        dim: D. heads: H. stored_dim, values_dim: Dk and Dv, D if left out. out_dim: D_out.
        head_dim: d, D // H if left out. pattern_dim: p, d if left out.
        beta: one number, or one for each head. steps: T. eps: when a head stops.
        norm: LN of R, Y and U. project: whether there is wo. dropout: rate on A_T in training mode.

    Raises:
        ValueError: heads that do not divide dim, static parts whose widths are not those of a head, unknown
            names, or options out of range.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        head_dim: int | None = None,
        pattern_dim: int | None = None,
        stored_dim: int | None = None,
        values_dim: int | None = None,
        out_dim: int | None = None,
        beta: float | Sequence[float] | None = None,
        steps: int | None = 0,
        eps: float = 1e-4,
        static: Sequence[str] = (),
        connected: bool = False,
        norm: bool = True,
        norm_space: bool = False,
        learned_row: bool = False,
        zero_row: bool = False,
        project: bool = True,
        bias: bool = True,
        dropout: float = 0.0,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        if not set(static) <= set(PARTS):
            raise ValueError(f"static={static} must hold some of: {', '.join(PARTS)}")
        if (steps is not None and steps < 0) or not eps >= 0:
            raise ValueError(f"steps={steps} must be None or at least 0, and eps={eps} at least 0")
        positive(dim=dim, heads=heads, head_dim=head_dim, pattern_dim=pattern_dim, out_dim=out_dim)
        positive(stored_dim=stored_dim, values_dim=values_dim)
        if beta is not None and not np.all(np.asarray(beta) >= 0):
            raise ValueError(f"beta={beta} must be 0 or more")
        stored_dim, values_dim = stored_dim or dim, values_dim or stored_dim or dim
        if head_dim is None:
            head_dim = dim if "state" in static else stored_dim if "stored" in static else dim // heads
            if head_dim * heads != dim and not {"state", "stored"} & set(static):
                raise ValueError(f"heads={heads} must divide dim={dim}")
        if connected and (stored_dim != values_dim or "stored" in static):
            raise ValueError("connected values go through W_K: they must be as wide as stored patterns")
        # Values that are used as they are, or as W_K gives them.
        raw = head_dim if connected else values_dim
        pattern_dim = pattern_dim or (raw if "values" in static else head_dim)
        asked, given = (head_dim, head_dim, pattern_dim), (dim, stored_dim, raw)
        if any(part in static and a != g for part, a, g in zip(PARTS, asked, given)):
            raise ValueError(f"static={static}: widths {given} of {PARTS} must be those of a head, {asked}")
        rng = init.generator(seed)

        def linear(n_in: int, n_out: int) -> Linear:
            return Linear(n_in, n_out, bias, values=init.normal(rng, (n_in, n_out), 0.02, dtype), dtype=dtype)

        self.heads, self.steps, self.eps, self.connected = heads, steps, eps, connected
        self.norm_space, self.zero_row = norm_space, zero_row
        self.norm_state: Any = LayerNorm(dim, dtype=dtype) if norm else None
        self.norm_stored: Any = LayerNorm(stored_dim, dtype=dtype) if norm else None
        self.norm_values: Any = LayerNorm(values_dim, dtype=dtype) if norm else None
        self.wq: Any = None if "state" in static else linear(dim, heads * head_dim)
        self.wk: Any = None if "stored" in static else linear(stored_dim, heads * head_dim)
        source = heads * head_dim if connected else values_dim
        self.wv: Any = None if "values" in static else linear(source, heads * pattern_dim)
        self.wo: Any = linear(heads * pattern_dim, out_dim or dim) if project else None
        self.row_k: Any = (
            Parameter(init.normal(rng, (heads, 1, head_dim), dtype=dtype)) if learned_row else None
        )
        self.row_v: Any = (
            Parameter(init.normal(rng, (heads, 1, pattern_dim), dtype=dtype)) if learned_row else None
        )
        nothing = len(set(static)) == 3 and not connected and not norm_space and not project
        default = 1.0 if nothing else 1.0 / math.sqrt(head_dim)
        self.beta = np.broadcast_to(np.asarray(default if beta is None else beta, dtype=dtype), (heads,))
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Any = None,
        context: Tensor | None = None,
        values: Tensor | None = None,
        rng: np.random.Generator | None = None,
    ) -> Tensor:
        """R = x (B, N, D), Y = context (B, S, Dk), U = values (B, S, Dv). mask: as for softmax attention."""
        a, v = self._associated(x, mask, context, values)
        y = ops.merge_heads(self.dropout(a, rng) @ v)
        return y if self.wo is None else self.wo(y)

    def weights(
        self, x: Tensor, *, mask: Any = None, context: Tensor | None = None, values: Tensor | None = None
    ) -> Tensor:
        """A_T (B, H, N, S), with a column more for each added row."""
        return self._associated(x, mask, context, values)[0]

    def _associated(self, x: Tensor, mask: Any, stored: Any, values: Any) -> tuple[Tensor, Tensor]:
        """A_T and v."""
        if x.ndim != 3:
            raise ShapeError(f"hopfield: x must be (B, N, D), not {x.shape}")
        stored = x if stored is None else stored
        values = stored if values is None else values
        q = self._split(self.wq, x if self.norm_state is None else self.norm_state(x))
        k = self._split(self.wk, stored if self.norm_stored is None else self.norm_stored(stored))
        values = values if self.norm_values is None else self.norm_values(values)
        if self.connected:
            # (U W_K) W_V, or U W_K alone
            v = self.wk(values) if self.wv is None else self.wv(self.wk(values))
            v = ops.split_heads(v, self.heads)
        else:
            v = self._split(self.wv, values)
        if self.norm_space:
            q, k = ops.layer_norm(q), ops.layer_norm(k)
        rows = [] if self.row_k is None else [(self.row_k, self.row_v)]
        if self.zero_row:
            rows.append((0.0 * k[0, :, :1], 0.0 * v[0, :, :1]))
        for row_k, row_v in rows:
            k, v = (
                ops.concat([a, ops.broadcast_to(row, (*a.shape[:2], 1, a.shape[3]))], axis=2)
                for a, row in ((k, row_k), (v, row_v))
            )
        if mask is not None and rows:
            mask = np.broadcast_to(
                mask.data if isinstance(mask, Tensor) else mask, (*q.shape[:3], k.shape[2] - len(rows))
            )
            mask = np.pad(mask, ((0, 0), (0, 0), (0, 0), (0, len(rows))), constant_values=True)
        return associate(q, k, mask, self.beta[:, None, None], self.steps, self.eps), v

    def _split(self, linear: Any, x: Tensor) -> Tensor:
        """Projected and split into heads, (B, H, S, d); where nothing is projected each head gets all."""
        if linear is not None:
            return ops.split_heads(linear(x), self.heads)
        return ops.broadcast_to(x[:, None], (x.shape[0], self.heads, *x.shape[1:]))


def build(case: Case, **options: Any) -> Hopfield:
    layer = Hopfield(case.dim, heads=case.h, seed=case.seed, dtype="float64", **options)
    rng = case.rng()
    for p in layer.parameters():
        # Far from the small initial values, so that all weights matter.
        p.data = p.data + 0.5 * rng.standard_normal(p.shape)
    return layer


def memory(case: Case) -> tuple[Tensor, Tensor]:
    """Patterns (t + 2, d) and states (b, t, d)."""
    rng = case.rng()
    return Tensor(rng.standard_normal((case.t + 2, case.d))), Tensor(
        rng.standard_normal((case.b, case.t, case.d))
    )


@identity("no steps and no norms: softmax attention, with beta in place of 1/sqrt(d)")
def is_attention(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, norm=False, bias=False), case.tokens()
    other = SoftmaxAttention(case.dim, heads=case.h, causal=False, dtype="float64")
    other.load_state_dict(layer.state_dict())
    sharp = build(case, norm=False, bias=False, beta=0.7)
    q, k, v = (ops.split_heads(w(x), case.h) for w in (sharp.wq, sharp.wk, sharp.wv))
    o = ops.merge_heads(ops.softmax_attention(q, k, v, scale=0.7))
    return ops.stack([layer(x), sharp(x)]), ops.stack([other(x), o @ sharp.wo.weight + 0.0])


@identity("T steps are T retrievals of every head, and then values, by hand")
def steps_by_hand(case: Case) -> tuple[Tensor, Tensor]:
    layer, x, left, right = build(case, steps=3, eps=0.0), case.tokens(), [], []
    stored = Tensor(case.rng().standard_normal((case.b, case.t + 1, case.dim)))
    r, y, u = layer.norm_state(x), layer.norm_stored(stored), layer.norm_values(stored)
    q, k, v = (ops.split_heads(w(a), case.h) for w, a in ((layer.wq, r), (layer.wk, y), (layer.wv, u)))
    beta = 1.0 / math.sqrt(case.d)
    for b, h in np.ndindex(case.b, case.h):
        xi = q[b, h]
        for _ in range(3):
            xi = retrieve(k[b, h], xi, beta)
        right.append(ops.softmax(beta * (xi @ k[b, h].mT)) @ v[b, h])
    o = ops.stack(right).reshape((case.b, case.h, case.t, case.d))
    left.append(layer(x, context=stored))
    return left[0], layer.wo(ops.merge_heads(o))


@identity("a retrieval never raises the energy, which stays between (M - |xi|)^2 / 2 and, inside M, 2 M^2")
def energy_falls(case: Case) -> tuple[Tensor, Any]:
    x, xi = memory(case)
    m = float(np.sqrt((x.data**2).sum(axis=-1).max()))
    violations = []
    for beta in (0.3, 1.0, 5.0):
        now, then = energy(x, xi, beta), energy(x, retrieve(x, xi, beta), beta)
        length = ops.sqrt((xi * xi).sum(axis=-1))
        inside = ops.where(length <= m, now - 2 * m * m, 0.0)
        violations += [then - now, 0.5 * (m - length) ** 2 - now, inside]
    return ops.relu(ops.stack(violations)), np.zeros((9, case.b, case.t))


@identity("the gradient of the energy is xi minus its retrieval")
def energy_gradient(case: Case) -> tuple[Tensor, Tensor]:
    x, xi = memory(case)
    slopes = [grad(lambda s, beta=beta: energy(x, s, beta).sum())(xi) for beta in (0.3, 2.0)]
    return ops.stack(slopes), ops.stack([xi - retrieve(x, xi, beta) for beta in (0.3, 2.0)])


@identity("beta = 0 retrieves the mean of all patterns; a large beta the one nearest by dot product")
def limits(case: Case) -> tuple[Tensor, Tensor]:
    x, xi = memory(case)
    scores = xi.data @ x.data.T
    best = np.sort(scores, axis=-1)
    # Large enough for the closest call.
    beta = 40.0 / float((best[..., -1] - best[..., -2]).min())
    left = [retrieve(x, xi, 0.0), retrieve(x, xi, beta)]
    return ops.stack(left), ops.stack([x.mean(axis=0) + 0.0 * xi, x[scores.argmax(axis=-1)]])


@identity("ten orthogonal patterns of length 6: one step from a noisy copy (deviation 0.1) gives each back")
def noisy_copies(case: Case) -> tuple[Tensor, Any]:
    rng = case.rng()
    patterns = 6.0 * np.linalg.qr(rng.standard_normal((64, 10)))[0].T
    noisy = patterns + 0.1 * rng.standard_normal(patterns.shape)
    # The right pattern leads by 36 - 6 * 0.1 * 8 or more (8 deviations): wrong ones weigh less than e^-31.
    return retrieve(Tensor(patterns), Tensor(noisy), 1.0), patterns


@identity("permuting stored patterns and their values together changes nothing, at any number of steps")
def order_of_the_stored(case: Case) -> tuple[Tensor, Tensor]:
    x, rng, left, right = case.tokens(), case.rng(), [], []
    stored, values = (Tensor(rng.standard_normal((case.b, case.t + 2, case.dim))) for _ in range(2))
    order, hidden = rng.permutation(case.t + 2), rng.random((case.b, 1, case.t, case.t + 2)) < 0.7
    for steps in (0, 2):
        layer = build(case, steps=steps, eps=0.0)
        left.append(layer(x, context=stored[:, order], values=values[:, order], mask=hidden[..., order]))
        right.append(layer(x, context=stored, values=values, mask=hidden))
    return ops.stack(left), ops.stack(right)


@identity("nothing projected: each head retrieves from the patterns themselves, as the equation says")
def static_mode(case: Case) -> tuple[Tensor, Tensor]:
    layer = build(case, static=("state", "stored", "values"), norm=False, project=False, steps=1, eps=0.0)
    x, stored = case.tokens(), Tensor(case.rng().standard_normal((case.b, case.t + 1, case.dim)))
    twice = [retrieve(stored[b], retrieve(stored[b], x[b], 1.0), 1.0) for b in range(case.b)]
    return layer(x, context=stored), ops.concat([ops.stack(twice)] * case.h, axis=-1)


@identity("a zero row is one more hidden-proof pattern of score 0; a learned row one that any token could be")
def added_rows(case: Case) -> tuple[Tensor, Tensor]:
    x, mask = case.tokens(), case.rng().random((case.b, 1, case.t, case.t)) < 0.5
    zero, learned = build(case, zero_row=True, bias=False), build(case, learned_row=True, bias=False)
    left, right = [zero(x, mask=mask), learned(x, mask=mask)], []
    for layer in (zero, learned):
        r = [norm(x) for norm in (layer.norm_state, layer.norm_stored, layer.norm_values)]
        q, k, v = (ops.split_heads(w(a), case.h) for w, a in zip((layer.wq, layer.wk, layer.wv), r))
        e = ops.where(mask, ops.exp(q @ k.mT / math.sqrt(case.d)), 0.0)
        row_k, row_v = (0.0 * k[0, :, :1], 0.0 * v[0, :, :1]) if layer is zero else (layer.row_k, layer.row_v)
        extra = ops.exp(q @ row_k.mT / math.sqrt(case.d))
        o = (e @ v + extra @ row_v) / (e.sum(axis=-1, keepdims=True) + extra)
        right.append(layer.wo(ops.merge_heads(o)))
    return ops.stack(left), ops.stack(right)
