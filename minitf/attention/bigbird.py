"""Big Bird: blocks of queries see global blocks, their neighbours, and a few blocks drawn at random.

    nb  = ceil(N / b)                                          blocks of b tokens, the last may be shorter
    L_I = {0, nb-1} and {I-1, I, I+1} and R_I                 for query block I = 1 .. nb-2; a set, not a list
    L_I = all blocks                                          for I = 0 and I = nb-1, the global blocks
    R_I = r blocks, drawn from those that L_I has not yet; all of them if fewer are left
    o_i = sum_j P_ij v_j,    P_ij = softmax over the tokens j of the blocks L_I of  q_i . k_j / sqrt(d)
    y   = merge(o) W_o

    x, y  (B, N, D)        q, k, v, o  (B, H, N, d)        R  (H, nb, r)   drawn for each head and each nb

Every token reaches every other in two layers, through the global blocks.

Cost: 8 N D^2 for the maps, 4 N b (5 + r) D for the blocks and 8 N b D for the global rows: linear in N.
Source: Big Bird: Transformers for Longer Sequences, Zaheer et al., arXiv:2007.14062, 2020, section 2 and
appendix D; the internal form (ITC), whose global tokens are those of the sequence.
Differs from the paper: b is 16 unless given, published code has 64 for 4096 tokens. Published code draws from
the first 1024 positions only, treats rows 1 and nb-2 apart, pads even full blocks and hides with -10000; here
the sets above are meant as they are written. Fewer than three blocks are full attention.
Numerics: those of softmax attention. The drawing depends on N through nb, so a sequence with hidden tokens
behind it may see other blocks than the sequence alone.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Array, ShapeError, Tensor
from minitf.nn import Buffer, Card, Case, Linear, Module, Paper, identity, init, positive

from .softmax import SoftmaxAttention

CARD = Card(
    name="bigbird",
    title="Big Bird: global, window and random blocks",
    kind="attention",
    family="block sparse",
    papers=(Paper("Big Bird: Transformers for Longer Sequences", "2007.14062", 2020),),
    causal=False,
    streams=False,
    grid="1d",
    complexity="8 N D^2 + 4 N b r D + 28 N b D",
    properties=("batch_independent", "row_stochastic"),
    basis="published code: google-research/long-range-arena models/bigbird/bigbird_attention.py",
    parity=("transformers 5.23.0 BigBirdBlockSparseAttention",),
)


@functools.lru_cache(maxsize=64)
def draw(seed: int, heads: int, blocks: int, count: int) -> Array:
    """R (H, nb, r): distinct blocks for each head and row, -1 where none is left, and in rows 0, nb-1."""
    rng = np.random.default_rng([seed, blocks])
    r = np.full((heads, blocks, count), -1)
    for h in range(heads):
        for i in range(1, blocks - 1):
            free = np.setdiff1d(np.arange(1, blocks - 1), [i - 1, i, i + 1])
            picked = np.sort(rng.permutation(free)[:count])
            r[h, i, : len(picked)] = picked
    r.setflags(write=False)
    return r


def block_mask(r: Array) -> Array:
    """(H, nb, nb), True where block J is in L_I, as the equations say it. r: (H, nb, r)."""
    heads, blocks, _ = r.shape
    j = np.arange(blocks)
    ends = (j == 0) | (j == blocks - 1)
    mask = np.tile(ends | ends[:, None] | (np.abs(j - j[:, None]) <= 1), (heads, 1, 1))
    h, i, n = np.nonzero(r >= 0)
    mask[h, i, r[h, i, n]] = True
    return mask


def token_mask(r: Array, block: int, n: int) -> Array:
    """(H, N, N), True where the block of token j is in L of the block of token i."""
    return block_mask(r).repeat(block, axis=1).repeat(block, axis=2)[:, :n, :n]


def gathered(q: Tensor, k: Tensor, v: Tensor, r: Array, block: int, mask: Any = None) -> Tensor:
    """o (B, H, N, d), touching the listed blocks only.

    r: random blocks (H, nb, r), nb = ceil(N / block). mask: boolean, broadcastable to (B, H, N, N), or None.
    """
    indptr, indices = ops.csr_of(block_mask(r)[None])
    return ops.block_sparse_attention(q, k, v, indptr, indices, block, block, mask=mask)


class BigBird(Module):
    """x (B, N, D) -> (B, N, D), bidirectional.

    Parameters: wq, wk, wv, wo (D, D), with biases if `bias`. Buffer: drawing, the seed of the random blocks.

    Args:
        dim: D. heads: H. block: b. random: r, blocks drawn for each query block.

    Raises:
        ValueError: heads that do not divide dim; block below 1 or random below 0.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        block: int = 16,
        random: int = 3,
        bias: bool = False,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, heads=heads)
        if dim % heads:
            raise ValueError(f"heads={heads} must divide dim={dim}")
        if block < 1 or random < 0:
            raise ValueError(f"block={block} must be 1 or more and random={random} 0 or more")
        rng = init.generator(seed)
        self.heads, self.block, self.random = heads, block, random
        self.wq, self.wk, self.wv, self.wo = (Linear(dim, dim, bias, rng, dtype=dtype) for _ in range(4))
        self.drawing = Buffer(np.array(rng.integers(2**31)))

    def blocks(self, n: int) -> Array:
        """R (H, nb, r) for n tokens."""
        return draw(self.drawing.item(), self.heads, -(-n // self.block), self.random)

    def forward(self, x: Tensor, *, mask: Any = None, rng: np.random.Generator | None = None) -> Tensor:
        """Mix x (B, N, D). mask: boolean, broadcastable to (B, H, N, N)."""
        q, k, v = self._heads(x)
        o = gathered(q, k, v, self.blocks(x.shape[1]), self.block, mask)
        return self.wo(ops.merge_heads(o))

    def weights(self, x: Tensor, *, mask: Any = None) -> Tensor:
        """P (B, H, N, N), zero between blocks that do not see each other."""
        q, k, _ = self._heads(x)
        allow = token_mask(self.blocks(x.shape[1]), self.block, x.shape[1])
        return ops.attention_weights(q, k, ops.joint_mask(mask, allow))

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if x.ndim != 3:
            raise ShapeError(f"bigbird: x must be (B, N, D), not {x.shape}")
        q, k, v = (ops.split_heads(w(x), self.heads) for w in (self.wq, self.wk, self.wv))
        return q, k, v


def build(case: Case, **options: Any) -> BigBird:
    return BigBird(case.dim, heads=case.h, seed=case.seed, dtype="float64", **options)


def heads_of(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    rng = case.rng()
    q, k, v = (Tensor(rng.standard_normal((case.b, case.h, case.t, case.d))) for _ in range(3))
    return q, k, v


def full(layer: BigBird, case: Case) -> Tensor:
    other = SoftmaxAttention(case.dim, heads=case.h, causal=False, dtype="float64")
    other.load_state_dict({key: value for key, value in layer.state_dict().items() if key != "drawing"})
    return other(case.tokens())


@identity("touching the listed blocks only equals attention under the mask, for blocks of all sizes")
def blocks_are_mask(case: Case) -> tuple[Tensor, Tensor]:
    heads, left, right = heads_of(case), [], []
    for block in (1, 2, 3):
        for count in (0, 1, 3):
            r = draw(case.seed, case.h, math.ceil(case.t / block), count)
            left.append(gathered(*heads, r, block))
            right.append(ops.softmax_attention(*heads, mask=token_mask(r, block, case.t)))
    return ops.stack(left), ops.stack(right)


@identity("the same with keys hidden at random")
def hidden_keys(case: Case) -> tuple[Tensor, Tensor]:
    heads, keys = heads_of(case), case.rng().random((case.b, 1, 1, case.t)) < 0.6
    r = draw(case.seed, case.h, math.ceil(case.t / 2), 1)
    mask = keys & token_mask(r, 2, case.t)
    return gathered(*heads, r, 2, keys), ops.softmax_attention(*heads, mask=mask)


@identity("as many random blocks as there are blocks: full attention")
def all_random(case: Case) -> tuple[Tensor, Tensor]:
    layer = build(case, block=2, random=case.t)
    return layer(case.tokens()), full(layer, case)


@identity("rows of the first and the last block are those of full attention, however few blocks are drawn")
def global_rows(case: Case) -> tuple[Tensor, Tensor]:
    layer = build(case, block=1, random=1)
    return layer(case.tokens())[:, [0, -1]], full(layer, case)[:, [0, -1]]


@identity("up to four blocks: full attention without any random block")
def few_blocks(case: Case) -> tuple[Tensor, Tensor]:
    layer = build(case, block=math.ceil(case.t / 4), random=0)
    return layer(case.tokens()), full(layer, case)


@identity("the map, zero between blocks that do not see each other, times the values is the output")
def map_times_values(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, block=2, random=1), case.tokens()
    v = ops.split_heads(layer.wv(x), case.h)
    return layer.wo(ops.merge_heads(layer.weights(x) @ v)), layer(x)


@identity("one token in a block, none at random: the two ends and the neighbours")
def single_tokens(case: Case) -> tuple[Tensor, Tensor]:
    layer = build(case, block=1, random=0)
    i = np.arange(case.t)
    ends = np.isin(i, [0, case.t - 1])
    mask = ends | ends[:, None] | (np.abs(i - i[:, None]) <= 1)
    other = SoftmaxAttention(case.dim, heads=case.h, causal=False, dtype="float64")
    other.load_state_dict({key: value for key, value in layer.state_dict().items() if key != "drawing"})
    return layer(case.tokens()), other(case.tokens(), mask=mask)
