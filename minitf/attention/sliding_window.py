"""Sliding-window attention: every token sees a fixed number of neighbours on each side, at linear cost.

    allow_ij = (i - j) mod g = 0  and  -wr g <= i - j <= wl g
    o_i = sum_j P_ij v_j,    P_ij = softmax over the allowed j of  q_i . k_j / sqrt(d)
    y   = merge(o) W_o

    x, y  (B, N, D)        q, k, v, o  (B, H, N, d)        allow  (N, N), or (H, N, N)

wl, wr: neighbours to the left and to the right; causal means wr = 0, and the token itself is always seen.
With dilation g only every g-th neighbour is seen, g times as far. A stack of L layers sees L wl g tokens
back.

Banded form: queries in chunks of C = wl + wr, each with the C + wl + wr keys around it. With dilation, the
tokens of one residue mod g are a sequence of their own.

Cost: 8 N D^2 for the maps and 4 N (C + wl + wr) D for the band, linear in N; decoding keeps wl g + 1 tokens.
Source: Longformer: The Long-Document Transformer, Beltagy et al., arXiv:2004.05150, 2020, section 3.1.
Differs from the paper: one projection for all tokens, no global tokens, and 64 causal keys unless given,
where the paper takes 256 on each side. "Window size" means three things in published code; `radii` turns
each into (wl, wr).
Numerics: those of softmax attention; only keys inside the band are ever multiplied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from minitf import ops
from minitf.engine import Array, ShapeError, Tensor, no_grad
from minitf.nn import Card, Case, Linear, Module, Paper, Position, as_position, identity, init, positive

from .softmax import SoftmaxAttention

CARD = Card(
    name="sliding_window",
    title="Sliding-window attention, optionally dilated",
    kind="attention",
    family="local",
    papers=(Paper("Longformer: The Long-Document Transformer", "2004.05150", 2020),),
    causal=True,
    streams=True,
    grid="1d",
    complexity="8 N D^2 + 8 N w D",
    properties=("causal", "streams", "batch_independent", "row_stochastic"),
    basis="published code: allenai/longformer longformer/longformer.py",
    aliases={"local_window": {"causal": False}},
    parity=("transformers 5.23.0 LongformerSelfAttention",),
)


def radii(window: int, counts: str = "causal") -> tuple[int, int]:
    """(wl, wr) of a window size: "causal" counts the keys up to the token itself, "side" those on each side,
    "total" all of them, the larger half to the right.

    Raises:
        ValueError: a size below 1 (0 for "side"), or an unknown way to count.
    """
    found = {
        "causal": (window - 1, 0),
        "side": (window, window),
        "total": (window - window // 2 - 1, window // 2),
    }
    if counts not in found:
        raise ValueError(f"counts must be one of {', '.join(found)}, not {counts!r}")
    if min(found[counts]) < 0:
        raise ValueError(f"a window of {window} tokens has no room for the token itself")
    return found[counts]


def allowed(n: int, left: int, right: int, dilation: int = 1) -> Array:
    """allow (N, N), as the equation says it."""
    distance = np.arange(n)[:, None] - np.arange(n)
    return (distance % dilation == 0) & (distance <= left * dilation) & (distance >= -right * dilation)


def banded(q: Tensor, k: Tensor, v: Tensor, left: int, right: int, dilation: int = 1) -> Tensor:
    """o (B, H, N, d), touching only keys near the band."""
    n, g = q.shape[2], min(dilation, q.shape[2])
    if g > 1:
        # Tokens i, i + g, i + 2g, ... one after the other; the last ones may be missing: (B, H, g, N/g, d).
        q, k, v = (by_residue(x, g) for x in (q, k, v))
        b, h, _, m, d = q.shape
        parts = []
        for r in range(g):
            # How many tokens have residue r.
            count = -((r - n) // g)
            parts.append(banded(q[:, :, r, :count], k[:, :, r, :count], v[:, :, r, :count], left, right))
        parts = [ops.pad(p, ((0, 0), (0, 0), (0, m - p.shape[2]), (0, 0))) for p in parts]
        return ops.stack(parts, axis=3).reshape((b, h, m * g, v.shape[-1]))[:, :, :n]
    left, right = min(left, n - 1), min(right, n - 1)
    size = max(1, min(left + right, n))
    chunks = -(-n // size)
    # Queries of chunk c, and keys from `left` before its first to `right` after its last.
    fill = chunks * size - n
    q = ops.pad(q, ((0, 0), (0, 0), (0, fill), (0, 0)))
    k, v = (ops.pad(x, ((0, 0), (0, 0), (left, fill + right), (0, 0))) for x in (k, v))
    # (B, H, chunks, wl + C + wr, d) -> (B, H chunks, wl + C + wr, d)
    width = left + size + right
    k, v = (
        ops.unfold(x, width, axis=2, step=size).mT.reshape((x.shape[0], -1, width, x.shape[-1]))
        for x in (k, v)
    )
    # Query i of a chunk sees keys i .. i + wl + wr of its window, where they exist: (chunks, C, wl + C + wr)
    i, j = np.arange(size)[:, None], np.arange(width)
    place = np.arange(chunks)[:, None, None] * size + j - left
    visible = (j >= i) & (j <= i + left + right) & (place >= 0) & (place < n)
    o = ops.softmax_attention(
        q.reshape((q.shape[0], -1, size, q.shape[-1])), k, v, mask=np.tile(visible, (q.shape[1], 1, 1))
    )
    return o.reshape((q.shape[0], q.shape[1], chunks * size, -1))[:, :, :n]


def by_residue(x: Tensor, g: int) -> Tensor:
    """(B, H, N, d) -> (B, H, g, ceil(N / g), d): token i goes to place i // g of row i mod g."""
    b, h, n, d = x.shape
    x = ops.pad(x, ((0, 0), (0, 0), (0, -n % g), (0, 0)))
    return x.reshape((b, h, -1, g, d)).permute_dims((0, 1, 3, 2, 4))


class Ring(NamedTuple):
    """The last tokens: token t lies in slot t mod R. keys, values (B, H, R, d); length: tokens so far."""

    keys: Array
    values: Array
    length: int


class SlidingWindow(Module):
    """x (B, N, D) -> (B, N, D). Parameters: wq, wk, wv, wo (D, D), with biases if `bias`.

    Args:
        dim: D. heads: H. left, right: wl and wr; right is 0 if causal, else as left.
        dilation: g for all heads, or one for each.
        position: a scheme that rotates, or its name; keys enter the ring rotated.

    Raises:
        ValueError: heads that do not divide dim; radii below 0; a dilation below 1 or not one per head; a
            causal window that looks right.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        left: int = 63,
        right: int | None = None,
        dilation: int | Sequence[int] = 1,
        causal: bool = True,
        bias: bool = False,
        position: Position | str = "nope",
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, heads=heads)
        if dim % heads:
            raise ValueError(f"heads={heads} must divide dim={dim}")
        right = (0 if causal else left) if right is None else right
        dilations = (dilation,) * heads if isinstance(dilation, int) else tuple(dilation)
        if left < 0 or right < 0 or (causal and right):
            raise ValueError(f"left={left} and right={right} must be 0 or more, and right 0 if causal")
        if len(dilations) != heads or min(dilations) < 1:
            raise ValueError(
                f"dilation={dilation} must be one number from 1 on, or one for each of {heads} heads"
            )
        rng = init.generator(seed)
        self.heads, self.left, self.right, self.dilations, self.causal = heads, left, right, dilations, causal
        self.wq, self.wk, self.wv, self.wo = (Linear(dim, dim, bias, rng, dtype=dtype) for _ in range(4))
        self.position = as_position(position, heads=heads)
        if type(self.position).bias is not Position.bias:
            raise ValueError("a sliding window takes position schemes that rotate, not biases on the scores")

    def forward(
        self, x: Tensor, *, mask: Any = None, positions: Any = None, rng: np.random.Generator | None = None
    ) -> Tensor:
        """Mix x (B, N, D). mask: boolean, broadcastable to (B, H, N, N); with one, all N^2 scores form."""
        q, k, v = self._heads(x, positions)
        if mask is not None:
            o = ops.softmax_attention(q, k, v, mask=ops.joint_mask(mask, self._allowed(x.shape[1])))
        elif len(set(self.dilations)) == 1:
            o = banded(q, k, v, self.left, self.right, self.dilations[0])
        else:
            heads = [
                banded(q[:, h : h + 1], k[:, h : h + 1], v[:, h : h + 1], self.left, self.right, g)
                for h, g in enumerate(self.dilations)
            ]
            o = ops.concat(heads, axis=1)
        return self.wo(ops.merge_heads(o))

    def weights(self, x: Tensor, *, mask: Any = None, positions: Any = None) -> Tensor:
        """P (B, H, N, N), zero outside the band."""
        q, k, _ = self._heads(x, positions)
        allow = self._allowed(x.shape[1])
        return ops.attention_weights(q, k, ops.joint_mask(mask, allow))

    def start(self, batch: int) -> Ring:
        """The empty ring of R = wl g + 1 slots, g the largest dilation."""
        shape = (
            batch,
            self.heads,
            self.left * max(self.dilations) + 1,
            self.wq.weight.shape[1] // self.heads,
        )
        empty = ops.zeros(shape, like=self.wq.weight).data
        return Ring(empty, empty, 0)

    def step(self, x: Tensor, state: Ring) -> tuple[Tensor, Ring]:
        """One token x (B, D) after those in `state`: (B, D) and the new state. No gradients pass."""
        if not self.causal:
            raise ValueError("only a causal window streams: build it with causal=True")
        t, size = state.length, state.keys.shape[2]
        with no_grad():
            q, k, v = self._heads(x.reshape((x.shape[0], 1, x.shape[1])), np.array([t]))
            keys, values = state.keys.copy(), state.values.copy()
            keys[:, :, t % size], values[:, :, t % size] = k.data[:, :, 0], v.data[:, :, 0]
            # How long ago the token in each slot came: (R,). Slots that are still empty are older than t.
            age, g = (t - np.arange(size)) % size, np.array(self.dilations)[:, None]
            # (1, H, 1, R)
            visible = (age <= t) & (age % g == 0) & (age <= self.left * g)
            o = ops.softmax_attention(q, Tensor(keys), Tensor(values), mask=visible[None, :, None])
            return self.wo(ops.merge_heads(o))[:, 0], Ring(keys, values, t + 1)

    def _heads(self, x: Tensor, positions: Any) -> tuple[Tensor, Tensor, Tensor]:
        if x.ndim != 3:
            raise ShapeError(f"sliding_window: x must be (B, N, D), not {x.shape}")
        here = np.arange(x.shape[1]) if positions is None else positions
        q, k, v = (ops.split_heads(w(x), self.heads) for w in (self.wq, self.wk, self.wv))
        return self.position.rotate(q, here), self.position.rotate(k, here), v

    def _allowed(self, n: int) -> Array:
        """allow (H, N, N)."""
        return np.stack([allowed(n, self.left, self.right, g) for g in self.dilations])


def build(case: Case, **options: Any) -> SlidingWindow:
    return SlidingWindow(case.dim, heads=case.h, seed=case.seed, dtype="float64", **options)


def full(layer: SlidingWindow, case: Case, causal: bool) -> SoftmaxAttention:
    other = SoftmaxAttention(case.dim, heads=case.h, causal=causal, dtype="float64")
    other.load_state_dict(layer.state_dict())
    return other


@identity(
    "the banded form equals attention under the mask of the equation, for radii and dilations of all sizes"
)
def band_is_mask(case: Case) -> tuple[Tensor, Tensor]:
    rng = case.rng()
    q, k, v = (Tensor(rng.standard_normal((case.b, case.h, case.t, case.d))) for _ in range(3))
    tries = [(wl, wr, g) for wl in (0, 1, 2, 5) for wr in (0, 3) for g in (1, 2, 3)]
    left = [banded(q, k, v, *radius) for radius in tries]
    return ops.stack(left), ops.stack(
        [ops.softmax_attention(q, k, v, mask=allowed(case.t, *r)) for r in tries]
    )


@identity("a window over the whole sequence is full attention, causal and not")
def covers_all(case: Case) -> tuple[Tensor, Tensor]:
    x, left, right = case.tokens(), [], []
    for causal in (True, False):
        layer = build(case, left=case.t - 1, causal=causal)
        left.append(layer(x))
        right.append(full(layer, case, causal)(x))
    return ops.stack(left), ops.stack(right)


@identity("radius 0, and a dilation beyond the sequence, see the token alone: y = x W_v W_o")
def alone(case: Case) -> tuple[Tensor, Tensor]:
    x, layer = case.tokens(), build(case, left=0)
    far = build(case, left=2, causal=False, dilation=case.t)
    return ops.stack([layer(x), far(x)]), ops.stack([layer.wo(layer.wv(x)), far.wo(far.wv(x))])


@identity("a dilation for each head equals the mask of each head")
def dilated_heads(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, left=2, dilation=tuple(range(1, case.h + 1)), causal=False), case.tokens()
    return layer(x), layer(x, mask=np.ones((1, 1), dtype=bool))


@identity("the map, zero outside the band, times the values is the output")
def map_times_values(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, left=2, right=1, causal=False, dilation=2, position="rope"), case.tokens()
    v = ops.split_heads(layer.wv(x), case.h)
    return layer.wo(ops.merge_heads(layer.weights(x) @ v)), layer(x)


@identity("the ring, dilated for each head and rotary, equals the parallel form")
def streaming(case: Case) -> tuple[Tensor, Tensor]:
    layer = build(case, left=2, dilation=tuple(range(1, case.h + 1)), position="rope")
    x, rows, state = case.tokens(), [], layer.start(case.b)
    for t in range(case.t):
        y, state = layer.step(x[:, t], state)
        rows.append(y)
    return ops.stack(rows, axis=1), layer(x)


@identity("away from the border, tokens put in front of the sequence change nothing")
def translation(case: Case) -> tuple[Tensor, Tensor]:
    layers = [build(case, left=1, dilation=2), build(case, left=1)]
    x = case.tokens()
    longer = ops.concat([Tensor(case.rng().standard_normal((case.b, 3, case.dim))), x], axis=1)
    for layer in layers:
        x, longer = layer(x), layer(longer)
    # Two layers look 2 + 1 tokens back.
    return longer[:, 6:], x[:, 3:]
