"""Rotary position embedding: queries and keys turn with their position, so that scores see distances only.

    w_j = base^(-2j/dr)                              j = 0 .. dr/2 - 1
    (x_2j, x_2j+1)  <-  (x_2j cos(n w_j) - x_2j+1 sin(n w_j),  x_2j sin(n w_j) + x_2j+1 cos(n w_j))

    x  (B, H, N, d)   queries or keys, not values;  n  (N,) or (B, N)   positions
    dr <= d           the first dr coordinates turn, the others stay; dr = d unless given

A model that was trained on L0 tokens reaches s L0 by turning slower (`extension`, with factor s):
    "linear"   n <- n / s
    "ntk"      base <- base * s^(dr / (dr - 2)): the slowest pair turns s times slower, the fastest as before
    "yarn"     w_j <- (1 - m_j) w_j / s + m_j w_j, where m_j = 1 - clip((j - low) / (high - low), 0, 1);
               low and high are the floor at r = 32 and the ceiling at r = 1 of the pair that turns r times in
               L0 tokens, dr log(L0 / (2 pi r)) / (2 log base). Scores grow by (0.1 log s + 1)^2.

Cost: 3 N H d operations for each of queries and keys.
Source: RoFormer, Su et al., arXiv:2104.09864, 2021, equation 34. Linear: Chen et al., arXiv:2306.15595, 2023.
YaRN and NTK: YaRN: Efficient Context Window Extension of Large Language Models, Peng et al.,
arXiv:2309.00071, 2023.
Differs from the paper: `interleaved=False` pairs (j, j + dr/2) instead, as LLaMA-type code does. The two
differ by a fixed permutation of the columns of W_q and W_k. YaRN's factor on the scores is put on queries and
keys, the root on each.
Numerics: angles in float64; the rotation in the dtype of x. Where all w_j are those of a base, the rotation
is the operation `ops.rope`, which has kernels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Array, ShapeError, Tensor

from ..card import Card, Case, Paper, identity
from ..checked import positive
from .base import Position, as_positions

CARD = Card(
    name="rope",
    title="Rotary position embedding",
    kind="position",
    family="rotary",
    papers=(
        Paper("RoFormer: Enhanced Transformer with Rotary Position Embedding", "2104.09864", 2021),
        Paper("YaRN: Efficient Context Window Extension of Large Language Models", "2309.00071", 2023),
    ),
    causal=True,
    streams=False,
    grid="1d",
    complexity="6 N H d",
    properties=("norm_preserving",),
    basis="published code: deepseek-ai/DeepSeek-V3 inference/model.py; lucidrains/x-transformers",
    parity=(
        "x-transformers 2.31.10 RotaryEmbedding: all, linear, NTK, partial",
        "transformers 5.23.0 LlamaRotaryEmbedding: default, linear, YaRN",
        "transformers 5.23.0 apply_rotary_pos_emb_interleave of DeepSeek-V3",
    ),
)
EXTENSIONS = ("none", "linear", "ntk", "yarn")


def frequencies(d: int, base: float = 10000.0) -> Array:
    """w (d/2,), float64."""
    return base ** (-np.arange(0, d, 2) / d)


def yarn_frequencies(d: int, base: float, factor: float, trained: int) -> Array:
    """w (d/2,) of YaRN for a context `factor` times as long as the `trained` L0, float64."""
    w, j = frequencies(d, base), np.arange(d // 2)

    def pair(turns: int) -> float:
        # The pair, as a real number, that turns this often in L0 tokens.
        return d * math.log(trained / (2 * math.pi * turns)) / (2 * math.log(base))

    low, high = max(math.floor(pair(32)), 0), min(math.ceil(pair(1)), d - 1)
    # m = 1 for pairs that turn fast and stay as they are, 0 for slow ones, which are interpolated.
    m = 1.0 - np.clip((j - low) / max(high - low, 0.001), 0.0, 1.0)
    return (1.0 - m) * w / factor + m * w


def turn(x: Tensor, positions: Any, w: Array, interleaved: bool = True) -> Tensor:
    """(B, H, N, d) turned by the angles n w_j, w (d/2,), as the equations say it."""
    # (N, d/2), or (B, 1, N, d/2) for positions (B, N)
    angle = as_positions(positions)[..., None] * w
    angle = angle if angle.ndim == 2 else angle[:, None]
    cos, sin = np.cos(angle).astype(x.dtype), np.sin(angle).astype(x.dtype)
    d = x.shape[-1]
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., : d // 2], x[..., d // 2 :])
    first, second = a * cos - b * sin, a * sin + b * cos
    if interleaved:
        return ops.stack([first, second], axis=-1).reshape(x.shape)
    return ops.concat([first, second], axis=-1)


class RoPE(Position):
    """Rotates (B, H, N, d). No parameters.

    Args:
        base: 10000; larger turns slower. interleaved: pairs (2j, 2j+1), or else (j, j + dr/2).
        rotary_dim: dr, how many coordinates turn; all by default.
        extension: "none", "linear", "ntk" or "yarn". factor: s. trained: L0, for YaRN.

    Attributes:
        magnitude: what queries and keys are multiplied by: 0.1 log s + 1 for YaRN, else 1.

    Raises:
        ValueError: an odd rotary_dim, an unknown extension, a factor below 1, or one without an extension; a
            base or trained of 0 or less.
    """

    card = CARD

    def __init__(
        self,
        dim: int = 0,
        *,
        heads: int = 1,
        context: int = 0,
        base: float = 10000.0,
        interleaved: bool = True,
        rotary_dim: int | None = None,
        extension: str = "none",
        factor: float = 1.0,
        trained: int = 2048,
        seed: Any = 0,
        dtype: Any = "float32",
    ):
        positive(base=base, trained=trained)
        if rotary_dim is not None and (rotary_dim < 2 or rotary_dim % 2):
            raise ValueError(f"rotary_dim must be even, from 2 on, or None for all, not {rotary_dim}")
        if extension not in EXTENSIONS:
            raise ValueError(f"extension must be one of {', '.join(EXTENSIONS)}, not {extension!r}")
        if not factor >= 1.0 or (factor != 1.0 and extension == "none"):
            raise ValueError(f"factor={factor} must be 1 or more, and needs an extension if it is more")
        self.base, self.interleaved, self.rotary_dim = base, interleaved, rotary_dim
        self.extension, self.factor, self.trained = extension, factor, trained
        self.magnitude = 0.1 * math.log(factor) + 1.0 if extension == "yarn" else 1.0

    def forward(self, x: Tensor, positions: Any) -> Tensor:
        """(B, H, N, d) -> (B, H, N, d). Raises ShapeError for odd d, or d below rotary_dim."""
        d = x.shape[-1]
        dr = d if self.rotary_dim is None else self.rotary_dim
        if dr > d:
            raise ShapeError(f"rope: rotary_dim={dr} is more than the width {d} of x {x.shape}")
        if dr < d:
            x = ops.concat([self._turned(x[..., :dr], positions), x[..., dr:]], axis=-1)
        else:
            x = self._turned(x, positions)
        return x if self.magnitude == 1.0 else x * self.magnitude

    rotate = forward

    def _turned(self, x: Tensor, positions: Any) -> Tensor:
        dr = x.shape[-1]
        if self.extension == "yarn":
            w = yarn_frequencies(dr, self.base, self.factor, self.trained)
            return turn(x, positions, w, self.interleaved)
        base = self.base
        if self.extension == "linear":
            positions = as_positions(positions) / self.factor
        elif self.extension == "ntk" and dr > 2:
            # A single pair has w = 1 for any base.
            base = base * self.factor ** (dr / (dr - 2))
        return ops.rope(x, positions, base, self.interleaved)


def queries(case: Case) -> Tensor:
    return Tensor(case.rng().standard_normal((case.b, case.h, case.t, 2 * case.d)))


@identity("the operation equals the plain rotation, in both pairings")
def operation(case: Case) -> tuple[Tensor, Tensor]:
    q, n, w = queries(case), np.arange(case.t), frequencies(2 * case.d)
    left = [ops.rope(q, n, interleaved=pairs) for pairs in (True, False)]
    return ops.stack(left), ops.stack([turn(q, n, w, pairs) for pairs in (True, False)])


@identity("scores do not change when all positions shift by the same number")
def shift(case: Case) -> tuple[Tensor, Tensor]:
    q, n = queries(case), np.arange(case.t)
    k = q[:, :, ::-1]
    return ops.rope(q, n) @ ops.rope(k, n).mT, ops.rope(q, n + 9) @ ops.rope(k, n + 9).mT


@identity("the rotation keeps the length of every vector")
def isometry(case: Case) -> tuple[Tensor, Tensor]:
    q = queries(case)
    turned = ops.rope(q, np.arange(case.t))
    return (turned * turned).sum(axis=-1), (q * q).sum(axis=-1)


@identity("turning by m and then by n is turning by m + n")
def composition(case: Case) -> tuple[Tensor, Tensor]:
    q, n = queries(case), np.arange(case.t)
    return ops.rope(ops.rope(q, n), 3 * n), ops.rope(q, 4 * n)


@identity("both pairings give the same scores once the columns are permuted")
def pairings(case: Case) -> tuple[Tensor, Tensor]:
    q, n = queries(case), np.arange(case.t)
    # Column 2j goes to j, column 2j+1 to j + d/2.
    order = np.r_[0 : 2 * case.d : 2, 1 : 2 * case.d : 2]
    half = ops.rope(q[..., order], n, interleaved=False)
    whole = ops.rope(q, n)
    return half @ half.mT, whole @ whole.mT


@identity("with all positions equal, and with all frequencies 0, the scores are those without positions")
def nowhere(case: Case) -> tuple[Tensor, Tensor]:
    q, n = queries(case), np.arange(case.t)
    k = q[:, :, ::-1]
    same, zero = np.full(case.t, 7), np.zeros(case.d)
    left = [ops.rope(q, same) @ ops.rope(k, same).mT, turn(q, n, zero) @ turn(k, n, zero).mT]
    return ops.stack(left), ops.stack([q @ k.mT, q @ k.mT])


@identity("keys that are turned one by one as they come, and kept, give the causal attention of the whole")
def cached(case: Case) -> tuple[Tensor, Tensor]:
    q, layer, kept, rows = queries(case), RoPE(), [], []
    v = q * q
    for t in range(case.t):
        here = np.array([t])
        kept.append(layer.rotate(q[:, :, t : t + 1], here))
        rows.append(ops.softmax_attention(kept[-1], ops.concat(kept, axis=2), v[:, :, : t + 1]))
    turned = layer.rotate(q, np.arange(case.t))
    return ops.concat(rows, axis=2), ops.softmax_attention(turned, turned, v, causal=True)


@identity("the backward pass turns the other way")
def backward(case: Case) -> tuple[Tensor, Tensor]:
    q, n = queries(case), np.arange(case.t)
    q = Tensor(q.data, requires_grad=True)
    c = case.rng().standard_normal(q.shape)
    ops.rope(q, n).backward(c)
    assert q.grad is not None
    return q.grad, ops.rope(Tensor(c), -n)


@identity("a partial rotation turns the first coordinates and leaves the others")
def partial(case: Case) -> tuple[Tensor, Tensor]:
    q, n = queries(case), np.arange(case.t)
    expected = ops.concat([ops.rope(q[..., :2], n), q[..., 2:]], axis=-1)
    return RoPE(rotary_dim=2).rotate(q, n), expected


@identity("factor 1 extends nothing, in all three ways")
def no_extension(case: Case) -> tuple[Tensor, Tensor]:
    q, n = queries(case), np.arange(case.t)
    left = [RoPE(extension=name).rotate(q, n) for name in EXTENSIONS]
    return ops.stack(left), ops.stack([ops.rope(q, n)] * len(left))


@identity("linear extension by s: every s-th position turns as it did in training")
def linear(case: Case) -> tuple[Tensor, Tensor]:
    q, n = queries(case), np.arange(case.t)
    return RoPE(extension="linear", factor=4.0).rotate(q, 4 * n), ops.rope(q, n)


@identity("NTK by s: the first pair turns as before, the last s times slower")
def ntk(case: Case) -> tuple[Tensor, Tensor]:
    q, n, d = queries(case), np.arange(case.t), 2 * case.d
    left = RoPE(extension="ntk", factor=4.0).rotate(q, n)
    plain, slow = ops.rope(q, n), ops.rope(q, n / 4.0)
    return ops.concat([left[..., :2], left[..., d - 2 :]], axis=-1), ops.concat(
        [plain[..., :2], slow[..., d - 2 :]], axis=-1
    )


@identity("YaRN: fast pairs turn as before, slow ones as linear; scores are (0.1 log s + 1)^2 as large")
def yarn(case: Case) -> tuple[Any, Any]:
    s, d = 8.0, 64
    w, plain = yarn_frequencies(d, 10000.0, s, 4096), frequencies(d)
    # 4096 tokens hold 32 turns of pair 10.5 and one turn of pair 22.5.
    left = np.concatenate([w[:11] / plain[:11], w[23:] / plain[23:]])
    right = np.concatenate([np.ones(11), np.full(9, 1 / s)])
    # At position 0 nothing turns: what is left is the factor.
    q = queries(case)
    turned = RoPE(extension="yarn", factor=s).rotate(q, np.zeros(case.t))
    scores = (turned @ turned.mT).data.ravel(), (q @ q.mT).data.ravel()
    larger = (0.1 * math.log(s) + 1.0) ** 2
    return np.concatenate([left, scores[0]]), np.concatenate([right, larger * scores[1]])
