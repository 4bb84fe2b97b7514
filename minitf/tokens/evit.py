"""EViT: keep the patches that the class token looks at, and fuse the others into one.

    P    = attention map of the block                           (B, H, N, N)
    x1   = x + MHA(LN(x))
    a_i  = mean over heads of P[0, i]        i = 1 .. N-1       what the class token sees
    kept = the K = ceil(rho (N - 1)) patches with the largest a, best first; the lower index wins a tie
    f    = sum over the other patches of a_i x1_i               not normalised
    x2   = [x1_0, kept, f]
    x3   = x2 + FFN(LN(x2))

    x  (B, N, D), the class token at place 0        x3  (B, 1 + K + 1, D), or (B, N, D) where K = N - 1

Kept patches come in the order of a: their positions must already be inside x. Later reducing blocks treat f
like any patch. rho is usually 0.7 in every fourth block, and falls to that during training: `keep_rate`.

Cost: that of a pre-norm block, with 2 + K tokens in the FFN and in all blocks after it, and 2 N D^2 for a.
Source: Not All Patches are What You Need, Liang et al., arXiv:2202.07800, 2022, section 3.
Differs from the paper: a is taken before dropout, so that the choice does not depend on it. A second special
token is not protected, as in the published code.
Numerics: which patches are kept is a constant in the backward pass; gradients pass through the a in f.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitf import ops
from minitf.attention.softmax import SoftmaxAttention
from minitf.engine import ShapeError, Tensor
from minitf.ffn.gelu_ffn import GELUFFN
from minitf.nn import Card, Case, LayerNorm, Module, Paper, identity, init

CARD = Card(
    name="evit",
    title="Keep attentive tokens, fuse the rest",
    kind="tokens",
    family="dropping",
    papers=(
        Paper(
            "Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations",
            "2202.07800",
            2022,
        ),
    ),
    causal=False,
    streams=False,
    grid="1d",
    complexity="10 N D^2 + 4 N^2 D + 16 rho N D^2",
    properties=("batch_independent",),
    basis="published code: youweiliang/evit evit.py, helpers.py",
    parity=("youweiliang/evit 5ca95a7 Block",),
)


def keep_rate(step: float, rho: float = 0.7, start: float = 10, steps: float = 100) -> float:
    """rho at a training step: 1 up to `start`, then rho + (1 - rho)(cos(pi t / steps) + 1) / 2, then rho.

    The defaults are the paper's, counted in epochs.
    """
    t = min(max(step - start, 0), steps)
    return rho + (1.0 - rho) * (math.cos(math.pi * t / steps) + 1.0) / 2.0


def reduce(x: Tensor, a: Tensor, keep: int, fuse: bool = True) -> Tensor:
    """[x_0, the `keep` patches with the largest a, f]: x (B, N, D), a (B, N - 1)."""
    order = ops.argsort(a, descending=True).data[..., None]
    patches = x[:, 1:]
    parts = [x[:, :1], ops.take_along_axis(patches, order[:, :keep], axis=1)]
    if fuse:
        weighted = patches * a[..., None]
        parts.append(ops.take_along_axis(weighted, order[:, keep:], axis=1).sum(axis=1, keepdims=True))
    return ops.concat(parts, axis=1)


class EViT(Module):
    """x (B, N, D) -> (B, M, D), M <= N: one pre-norm block that reduces its tokens.

    Parameters: norm1, mixer, norm2, ffn.

    Args:
        dim: D. heads: H. rho: share of the patches that stays. fuse: whether the others leave f.

    Raises:
        ValueError: rho outside (0, 1].
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        rho: float = 0.7,
        fuse: bool = True,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        if not 0.0 < rho <= 1.0:
            raise ValueError(f"rho={rho} must be above 0 and at most 1")
        rng = init.generator(seed)
        self.rho, self.fuse = rho, fuse
        self.norm1, self.norm2 = LayerNorm(dim, dtype=dtype), LayerNorm(dim, dtype=dtype)
        self.mixer = SoftmaxAttention(dim, heads=heads, causal=False, bias=True, seed=rng, dtype=dtype)
        self.ffn = GELUFFN(dim, seed=rng, dtype=dtype)

    def forward(self, x: Tensor, *, rng: np.random.Generator | None = None) -> Tensor:
        """One block on x (B, N, D)."""
        if x.ndim != 3:
            raise ShapeError(f"evit: x must be (B, N, D), not {x.shape}")
        h, patches = self.norm1(x), x.shape[1] - 1
        x = x + self.mixer(h, rng=rng)
        keep = math.ceil(self.rho * patches)
        # Where all stay, they stay in their order.
        if keep < patches:
            x = reduce(x, self.seen(h), keep, self.fuse)
        return x + self.ffn(self.norm2(x))

    def seen(self, h: Tensor) -> Tensor:
        """a (B, N - 1) for normed tokens h (B, N, D): only the row of the class token is computed."""
        return self.mixer.weights(h[:, :1], context=h).mean(axis=1)[:, 0, 1:]


def build(case: Case, **options: Any) -> EViT:
    block, rng = EViT(case.dim, heads=case.h, seed=case.seed, dtype="float64", **options), case.rng()
    for p in (*block.norm1.parameters(), *block.norm2.parameters()):
        p.data = rng.standard_normal(p.shape)
    return block


@identity("rho = 1 is the plain pre-norm block")
def keeps_all(case: Case) -> tuple[Tensor, Tensor]:
    block, x = build(case, rho=1.0), case.tokens()
    h = x + block.mixer(block.norm1(x))
    return block(x), h + block.ffn(block.norm2(h))


@identity("the patches and the fused token are those of a loop")
def loops(case: Case) -> tuple[Tensor, Any]:
    rng = case.rng()
    x, a = case.tokens(), rng.integers(0, 3, (case.b, case.t - 1)).astype(float)
    keep, rows = case.t // 2, []
    for i in range(case.b):
        ranked = sorted(range(case.t - 1), key=lambda j: (-a[i, j], j))
        fused = sum((a[i, j] * x.data[i, j + 1] for j in ranked[keep:]), np.zeros(case.dim))
        rows.append([x.data[i, 0], *(x.data[i, j + 1] for j in ranked[:keep]), fused])
    return reduce(x, Tensor(a), keep), np.array(rows)


@identity("the equations of the whole block: attention, what the class token sees, the fused token, the FFN")
def equations(case: Case) -> tuple[Tensor, Any]:
    block, x = build(case, rho=0.5), case.tokens()
    h = block.norm1(x)
    x1, p = (x + block.mixer(h)).data, block.mixer.weights(h).data
    keep, rows = math.ceil(0.5 * (case.t - 1)), []
    for one, a in zip(x1, p.mean(axis=1)[:, 0, 1:]):
        ranked = 1 + np.argsort(-a, kind="stable")
        fused = [sum(a[j - 1] * one[j] for j in ranked[keep:])] if keep < case.t - 1 else []
        kept = ranked[:keep] if fused else range(1, case.t)
        rows.append(np.stack([one[0], *(one[j] for j in kept), *fused]))
    x2 = Tensor(np.stack(rows))
    return block(x), x2 + block.ffn(block.norm2(x2))


@identity("without fusing, the block gathers the kept patches before the FFN")
def gathers(case: Case) -> tuple[Tensor, Tensor]:
    block, x = build(case, rho=0.5, fuse=False), case.tokens()
    h = block.norm1(x)
    order = np.argsort(-block.seen(h).data, axis=-1, kind="stable")[:, : math.ceil(0.5 * (case.t - 1))]
    rows = np.concatenate([np.zeros((case.b, 1), int), 1 + order], axis=1)
    if order.shape[1] == case.t - 1:
        rows = np.tile(np.arange(case.t), (case.b, 1))
    y = ops.take_along_axis(x + block.mixer(h), rows[..., None], axis=1)
    return block(x), y + block.ffn(block.norm2(y))


@identity(
    "permuting the patches leaves what is kept and fused as it is, and all that a second block makes of it"
)
def patches_are_a_set(case: Case) -> tuple[Tensor, Tensor]:
    # From two patches on at least one goes, and what stays comes in the order of a.
    first, second, x = build(case, rho=0.5), build(case, rho=0.9), case.tokens()
    order = np.concatenate([[0], 1 + case.rng().permutation(case.t - 1)])
    one, two = first(x[:, order]), first(x)
    return ops.concat([one, second(one)], axis=1), ops.concat([two, second(two)], axis=1)


@identity("what the class token sees of the patches is all but what it sees of itself")
def shares(case: Case) -> tuple[Tensor, Tensor]:
    block, x = build(case), case.tokens()
    return block.seen(x).sum(axis=-1), 1.0 - block.mixer.weights(x)[:, :, 0, 0].mean(axis=1)


@identity("patches that are all equal to u fuse to u times what is seen of them")
def equal_rest(case: Case) -> tuple[Tensor, Tensor]:
    rng = case.rng()
    u, a = rng.standard_normal(case.dim), Tensor(rng.random((case.b, case.t)))
    x = Tensor(np.broadcast_to(u, (case.b, case.t + 1, case.dim)).copy())
    keep = case.t // 2
    rest = np.sort(a.data, axis=-1)[:, : case.t - keep].sum(axis=-1)
    return reduce(x, a, keep)[:, -1], rest[:, None] * u
