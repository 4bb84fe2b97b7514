"""Score and mask functions: one attention routine that two small functions turn into most published variants.

    s_ij = scale q_i . k_j                        scale = 1 / sqrt(d) unless given
    s_ij = score_mod(s_ij, b, h, i, j)            any function of one score and its place
    s_ij = -inf  where not mask_mod(b, h, i, j)
    o_i  = sum_j softmax(s)_ij v_j                0 where i sees nothing
    lse_i = log sum_j exp(s_ij)
    y    = merge(o) W_o

    q, o  (B, H, N, d)    k, v  (B, G, S, d), head h uses h // (H / G)    lse  (B, H, N)
    x, y  (B, N, D)

The functions are called with integer arrays b (B, 1, 1, 1), h (1, H, 1, 1), i (1, 1, N, 1), j (1, 1, 1, S),
or with parts of them, and with the scores as a Tensor (B, H, N, S); they give what broadcasts to that shape.
A score_mod that is a Module is trained with the rest. Ready-made ones stand below the layer, each with its
identities: alibi, soft_cap, relative_bias, graph_bias; causal, sliding_window, dilated, prefix_lm, document,
neighbourhood, and_masks, or_masks.

Block form: the plane of i and j is cut in tiles. A tile is EMPTY if no pair in it is visible, FULL if all
are, else PARTIAL. Only tiles that are not empty are computed, row block by row block, in an online softmax;
only partial ones apply the mask. Any tile size gives the same result.

Cost: 8 N D^2 for the maps and 4 D for each pair in a tile that is not empty: 2 N^2 D for the causal mask.
Which tiles are empty is found by asking mask_mod about each pair once.
Source: Flex Attention: A Programming Model for Generating Optimized Attention Kernels, Dong et al.,
arXiv:2412.05496, 2024. The functions: meta-pytorch/attention-gym.
Differs from published code: there, tiles of 128 and a table of tiles for each batch and head; here a tile is
computed if any batch or head needs it. sliding_window(w) sees w tokens back and itself, w + 1 keys; other
libraries count w keys in all.
Numerics: those of softmax attention; score_mod sees the scaled score.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Array, ShapeError, Tensor, no_grad, to_device
from minitf.nn import ALiBi, Card, Case, KVCache, Linear, Module, Paper, identity, init

from .sliding_window import allowed
from .softmax import SoftmaxAttention

CARD = Card(
    name="score_mod",
    title="Attention with score and mask functions",
    kind="attention",
    family="softmax",
    papers=(
        Paper(
            "Flex Attention: A Programming Model for Generating Optimized Attention Kernels",
            "2412.05496",
            2024,
        ),
    ),
    causal=True,
    streams=True,
    grid="1d",
    complexity="8 N D^2 + 2 N^2 D",
    properties=(
        "causal",
        "streams",
        "row_stochastic",
        "batch_independent",
        "permutation_equivariant_without_causal",
    ),
    basis="published code: meta-pytorch/attention-gym attn_gym/mods, masks; the block mask from memory",
    aliases={"flex_attention": {}},
    parity=("torch 2.13.0 flex_attention, eager",),
)
ScoreMod = Callable[..., Tensor]
MaskMod = Callable[..., Any]
EMPTY, PARTIAL, FULL = 0, 1, 2


def causal(b: Array, h: Array, i: Array, j: Array) -> Any:
    """j <= i"""
    return j <= i


def and_masks(*masks: MaskMod) -> MaskMod:
    """Visible where all of them say so."""
    return lambda b, h, i, j: np.logical_and.reduce(np.broadcast_arrays(*(m(b, h, i, j) for m in masks)))


def unchanged(s: Tensor, b: Array, h: Array, i: Array, j: Array) -> Tensor:
    return s


def everything(b: Array, h: Array, i: Array, j: Array) -> Any:
    return np.ones((1, 1, i.size, j.size), dtype=bool)


def places(shape: tuple[int, ...], queries: range, keys: range) -> tuple[Array, ...]:
    """b (B, 1, 1, 1), h (1, H, 1, 1), i (1, 1, N, 1), j (1, 1, 1, S) for heads of `shape` (B, H, ...)."""
    return np.ix_(range(shape[0]), range(shape[1]), queries, keys)


def dense_scores(
    q: Tensor, k: Tensor, score_mod: ScoreMod, mask_mod: MaskMod, scale: float | None = None, at: Any = None
) -> Tensor:
    """s (B, H, N, S), -inf where hidden. at: `places`, if q does not start at 0."""
    at = places(q.shape, range(q.shape[2]), range(k.shape[2])) if at is None else at
    return ops.where(mask_mod(*at), score_mod(ops.attention_scores(q, k, scale=scale), *at), -math.inf)


def dense(
    q: Tensor, k: Tensor, v: Tensor, score_mod: ScoreMod, mask_mod: MaskMod, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """o (B, H, N, d) and lse (B, H, N), as the equations say it."""
    s = dense_scores(q, k, score_mod, mask_mod, scale)
    return ops.apply_weights(ops.softmax(s), v), ops.logsumexp(s, axis=-1)


def block_mask(mask_mod: MaskMod, shape: tuple[int, int, int, int], tile: int) -> Array:
    """EMPTY, PARTIAL or FULL for each tile of a mask of `shape` (B, H, N, S): (N / tile, S / tile), up."""
    n, s = shape[2:]
    kinds = np.zeros((-(-n // tile), -(-s // tile)), dtype=int)
    for row, column in np.ndindex(kinds.shape):
        visible = np.asarray(mask_mod(*places(shape, span(row, tile, n), span(column, tile, s))))
        kinds[row, column] = FULL if visible.all() else PARTIAL if visible.any() else EMPTY
    return kinds


def span(block: int, tile: int, n: int) -> range:
    """The tokens of a block; the last may be short."""
    return range(block * tile, min(block * tile + tile, n))


def tiled(
    q: Tensor, k: Tensor, v: Tensor, score_mod: ScoreMod, mask_mod: MaskMod, tile: int, scale: Any = None
) -> tuple[Tensor, Tensor]:
    """The same o and lse, from the tiles that are not empty."""
    (b, h, n, _), s_len = q.shape, k.shape[2]
    kinds = block_mask(mask_mod, (b, h, n, s_len), tile)
    outputs, sums = [], []
    for row in range(len(kinds)):
        queries = span(row, tile, n)
        q_tile = q[:, :, queries.start : queries.stop]
        shape = (b, h, len(queries), 1)
        # The largest score so far, sum of exp(s - m), and that sum with values.
        m, z = ops.full(shape, -math.inf, like=q).data, ops.zeros(shape, like=q)
        o = ops.zeros((b, h, len(queries), v.shape[-1]), like=q)
        for column in np.flatnonzero(kinds[row]):
            keys = span(int(column), tile, s_len)
            k_tile, v_tile = (x[:, :, keys.start : keys.stop] for x in (k, v))
            mask = everything if kinds[row, column] == FULL else mask_mod
            s = dense_scores(q_tile, k_tile, score_mod, mask, scale, places(q.shape, queries, keys))
            m_new = np.maximum(m, s.data.max(axis=-1, keepdims=True))
            safe = np.where(m_new == -np.inf, 0.0, m_new).astype(q.dtype)
            # What was summed before shrinks by exp(m - m').
            shrink, p = np.exp(m - safe), ops.exp(s - safe)
            z = z * shrink + p.sum(axis=-1, keepdims=True)
            o = o * shrink + ops.apply_weights(p, v_tile)
            m = m_new
        nothing = z.data == 0.0
        z = ops.where(nothing, 1.0, z)
        outputs.append(o / z)
        sums.append(ops.where(nothing, -math.inf, ops.log(z) + np.where(nothing, 0.0, m))[..., 0])
    return ops.concat(outputs, axis=2), ops.concat(sums, axis=2)


class ScoreModAttention(Module):
    """x (B, N, D) -> (B, N, D). Parameters: wq, wo (D, D), wk, wv (D, G d), and those of score_mod, if any.

    Args:
        dim: D. heads: H. kv_heads: G, H if left out.
        score_mod, mask_mod: the two functions; scores as they are and all pairs visible, if left out.
        causal: hide later keys too; never from a query of another sequence, as with `context`.
        tile: side of a tile. scale: factor on q . k. bias: biases on the four maps.

    Raises:
        ValueError: heads that do not divide dim, or kv_heads heads; sizes below 1; a scale of NaN.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        kv_heads: int | None = None,
        score_mod: ScoreMod | None = None,
        mask_mod: MaskMod | None = None,
        causal: bool = True,
        tile: int = 64,
        scale: float | None = None,
        bias: bool = False,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        kv_heads = heads if kv_heads is None else kv_heads
        if min(dim, heads, kv_heads, tile) < 1 or dim % heads or heads % kv_heads:
            raise ValueError(
                f"dim={dim} must be a multiple of heads={heads}, those of kv_heads={kv_heads}; "
                f"they and tile={tile} at least 1"
            )
        if scale is not None and math.isnan(scale):
            raise ValueError("scale must be a number, not NaN")
        rng = init.generator(seed)
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, dim // heads
        self.score_mod = unchanged if score_mod is None else score_mod
        self.mask_mod = everything if mask_mod is None else mask_mod
        self.causal, self.tile, self.scale = causal, tile, scale
        self.wq = Linear(dim, dim, bias, rng, dtype=dtype)
        width = kv_heads * self.head_dim
        self.wk, self.wv = (Linear(dim, width, bias, rng, dtype=dtype) for _ in range(2))
        self.wo = Linear(dim, dim, bias, rng, dtype=dtype)

    def forward(
        self, x: Tensor, *, mask: Any = None, context: Tensor | None = None, rng: Any = None
    ) -> Tensor:
        """Mix x (B, N, D). context: (B, S, D), whose tokens are the keys. mask: as for softmax attention."""
        q, k, v = self._heads(x, x if context is None else context)
        visible = self._visible(mask, context is None, (*q.shape[:3], k.shape[2]))
        o, _ = tiled(q, k, v, self.score_mod, visible, self.tile, self.scale)
        return self.wo(ops.merge_heads(o))

    def weights(self, x: Tensor, *, mask: Any = None, context: Tensor | None = None) -> Tensor:
        """softmax(s) (B, H, N, S)."""
        q, k, _ = self._heads(x, x if context is None else context)
        visible = self._visible(mask, context is None, (*q.shape[:3], k.shape[2]))
        return ops.softmax(dense_scores(q, k, self.score_mod, visible, self.scale))

    def _heads(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if x.ndim != 3:
            raise ShapeError(f"score_mod: x must be (B, N, D), not {x.shape}")
        k, v = (ops.split_heads(w(source), self.kv_heads) for w in (self.wk, self.wv))
        return ops.split_heads(self.wq(x), self.heads), k, v

    def _visible(self, mask: Any, same: bool, shape: tuple[int, ...]) -> MaskMod:
        """mask_mod, the causal rule and the mask of a call as one function."""
        masks = [self.mask_mod] + [causal] * (self.causal and same)
        if mask is not None:
            # Places are on the CPU, so this is too.
            shown = np.broadcast_to(to_device(mask.data if isinstance(mask, Tensor) else mask, "cpu"), shape)
            masks.append(lambda b, h, i, j: shown[b, h, i, j])
        return and_masks(*masks)

    def start(self, batch: int) -> KVCache:
        """The empty cache for `batch` sequences."""
        return KVCache.empty((batch, self.kv_heads, 0, self.head_dim), self.wk.weight)

    def step(self, x: Tensor, state: KVCache) -> tuple[Tensor, KVCache]:
        """One token x (B, D) after those in `state`: (B, D) and the new state. No gradients pass."""
        y, state = self.prefill(x.reshape((x.shape[0], 1, x.shape[1])), state)
        return y[:, 0], state

    def prefill(self, x: Tensor, state: KVCache) -> tuple[Tensor, KVCache]:
        """Several tokens x (B, n, D) at once after those in `state`: (B, n, D) and the new state."""
        if not self.causal:
            raise ValueError("only causal attention streams: build it with causal=True")
        with no_grad():
            q, k, v = self._heads(x, x)
            state = state.append(k.data, v.data)
            at = places(q.shape, range(state.length - x.shape[1], state.length), range(state.length))
            mask = and_masks(self.mask_mod, causal)
            s = dense_scores(q, Tensor(state.k), self.score_mod, mask, self.scale, at)
            return self.wo(ops.merge_heads(ops.apply_weights(ops.softmax(s), Tensor(state.v)))), state


def build(case: Case, **options: Any) -> ScoreModAttention:
    return ScoreModAttention(case.dim, heads=case.h, seed=case.seed, dtype="float64", **options)


@identity("the layer without functions is softmax attention, causal and not, and with a context")
def layer_is_reference(case: Case) -> tuple[Tensor, Tensor]:
    x, left, right = case.tokens(), [], []
    context = Tensor(case.rng().standard_normal((case.b, case.t + 2, case.dim)))
    for rule in (True, False):
        options: dict[str, Any] = {"heads": case.h, "kv_heads": 1, "causal": rule, "dtype": "float64"}
        layer = ScoreModAttention(case.dim, seed=case.seed, tile=3, **options)
        other = SoftmaxAttention(case.dim, **options)
        other.load_state_dict(layer.state_dict())
        left += [layer(x), layer(x, context=context)]
        right += [other(x), other(x, context=context)]
    return ops.stack(left), ops.stack(right)


def heads_of(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """q (b, h, t, d), and k, v (b, 1, t + 1, d): grouped heads, and one key more than queries."""
    rng = case.rng()
    q = Tensor(rng.standard_normal((case.b, case.h, case.t, case.d)))
    k, v = (Tensor(rng.standard_normal((case.b, 1, case.t + 1, case.d))) for _ in range(2))
    return q, k, v


def random_mask(case: Case) -> tuple[Array, MaskMod]:
    """A mask (b, h, t, t + 1) with an empty row, and the function that reads it."""
    visible = case.rng().random((case.b, case.h, case.t, case.t + 1)) < 0.5
    visible[:, :, 0] = False
    return visible, lambda b, h, i, j: visible[b, h, i, j]


def seen(case: Case, mask_mod: MaskMod) -> Array:
    """The mask (t, t) of a function that does not look at b and h."""
    return np.broadcast_to(mask_mod(*places((1, 1), range(case.t), range(case.t))), (1, 1, case.t, case.t))[
        0, 0
    ]


def joined(o: Tensor, lse: Tensor) -> Tensor:
    """o and lse in one vector; exp(lse), so that rows that see nothing can be compared."""
    return ops.concat([o.reshape((-1,)), ops.exp(lse).reshape((-1,))])


@identity("no score function and no mask function: the reference, with grouped heads and its log-sum-exp")
def plain(case: Case) -> tuple[Tensor, Tensor]:
    q, k, v = heads_of(case)
    expected = joined(ops.softmax_attention(q, k, v), ops.attention_logsumexp(q, k))
    return joined(*dense(q, k, v, unchanged, everything)), expected


@identity("tiles of every size give the dense result, with an empty row, a soft cap and grouped heads")
def tiles(case: Case) -> tuple[Tensor, Tensor]:
    heads, (_, mask), sizes = heads_of(case), random_mask(case), range(1, min(case.t, 20) + 3)
    masks = [mask, sliding_window(2), prefix_lm(3)]
    left = [joined(*tiled(*heads, soft_cap(2.0), m, size)) for m in masks for size in sizes]
    right = [joined(*dense(*heads, soft_cap(2.0), m)) for m in masks for _ in sizes]
    return ops.stack(left), ops.stack(right)


@identity("EMPTY, PARTIAL and FULL tiles, by loops over the pairs")
def tile_kinds(case: Case) -> tuple[Array, Array]:
    visible, mask = random_mask(case)
    n, s, found, expected = case.t, case.t + 1, [], []
    for size in (1, 2, 3):
        for m, shown in ((mask, visible), (causal, np.tri(n, s, dtype=bool)[None, None])):
            kinds = block_mask(m, (case.b, case.h, n, s), size)
            for row, column in np.ndindex(-(-n // size), -(-s // size)):
                part = shown[..., row * size : row * size + size, column * size : column * size + size]
                found.append(kinds[row, column])
                expected.append({True: FULL, False: PARTIAL if part.any() else EMPTY}[bool(part.all())])
    return np.array(found), np.array(expected)


@identity("a mask function is a score function that gives -inf where it is false; a mask says the same")
def mask_is_score(case: Case) -> tuple[Tensor, Tensor]:
    (q, k, v), (visible, mask) = heads_of(case), random_mask(case)

    def hiding(s: Tensor, b: Array, h: Array, i: Array, j: Array) -> Tensor:
        return ops.where(mask(b, h, i, j), s, -math.inf)

    left = [dense(q, k, v, unchanged, mask)[0], dense(q, k, v, hiding, everything)[0]]
    return ops.stack(left), ops.stack([ops.softmax_attention(q, k, v, mask=visible)] * 2)


@identity("streaming with functions of the place equals the parallel form, tile by tile")
def streaming(case: Case) -> tuple[Tensor, Tensor]:
    x = case.tokens()
    layer = build(case, score_mod=alibi(case.h), mask_mod=or_masks(sliding_window(2), dilated(9, 3)), tile=3)
    state, rows = layer.start(case.b), []
    for t in range(case.t):
        y, state = layer.step(x[:, t], state)
        rows.append(y)
    return ops.stack(rows, axis=1), layer(x)


def alibi(heads: int) -> ScoreMod:
    """s + (j - i) 2^(-8 (h + 1) / H): later keys nearer, under a causal mask."""
    return lambda s, b, h, i, j: s + (j - i) * 2.0 ** (-8.0 * (h + 1) / heads)


def relative_bias(table: Tensor) -> ScoreMod:
    """s + table[h, i - j], distances cut at R on both sides: table (H, 2 R + 1), distance 0 in the middle."""
    reach = table.shape[1] // 2
    return lambda s, b, h, i, j: s + table[h, np.clip(i - j, -reach, reach) + reach]


def graph_bias(table: Tensor, distances: Array) -> ScoreMod:
    """s + table[distances[i, j]]: table (L,), distances (N, N) integers such as shortest paths."""
    return lambda s, b, h, i, j: s + table[distances[i, j]]


@identity("ALiBi and tables of relative positions and of graph distances equal a bias on the scores")
def biases(case: Case) -> tuple[Tensor, Tensor]:
    q, rng, n = heads_of(case)[0], case.rng(), np.arange(case.t)
    table, lengths = Tensor(rng.standard_normal((case.h, 5))), rng.integers(0, 4, (case.t, case.t))
    per_length = Tensor(rng.standard_normal(4))
    by_distance = np.zeros((case.h, case.t, case.t))
    for h, i, j in np.ndindex(by_distance.shape):
        by_distance[h, i, j] = table.data[h, 2 + max(-2, min(2, i - j))]
    mods = [alibi(case.h), relative_bias(table), graph_bias(per_length, lengths)]
    expected = [ALiBi(heads=case.h).bias(n, n), by_distance, per_length.data[lengths]]
    left = [tiled(q, q, q, mod, causal, 4)[0] for mod in mods]
    return ops.stack(left), ops.stack([ops.softmax_attention(q, q, q, causal=True, bias=a) for a in expected])


def soft_cap(cap: float) -> ScoreMod:
    """cap tanh(s / cap): between -cap and cap."""
    return lambda s, b, h, i, j: cap * ops.tanh(s / cap)


@identity("a soft cap bends scores as its formula says; a very high one leaves them alone")
def capped(case: Case) -> tuple[Tensor, Tensor]:
    q, k, v = heads_of(case)
    s = ops.attention_scores(q, k)
    e = ops.exp(s * 2.0)
    # tanh(s) = (e^2s - 1) / (e^2s + 1)
    bent = ops.apply_weights(ops.softmax(1.0 * (e - 1.0) / (e + 1.0)), v)
    left = [dense(q, k, v, soft_cap(1.0), everything)[0], dense(q, k, v, soft_cap(1e6), everything)[0]]
    return ops.stack(left), ops.stack([bent, ops.softmax_attention(q, k, v)])


def or_masks(*masks: MaskMod) -> MaskMod:
    """Visible where one of them says so."""
    return lambda b, h, i, j: np.logical_or.reduce(np.broadcast_arrays(*(m(b, h, i, j) for m in masks)))


def sliding_window(width: int) -> MaskMod:
    """0 <= i - j <= width: the token itself and `width` before it."""
    return lambda b, h, i, j: (j <= i) & (i - j <= width)


def dilated(width: int, step: int) -> MaskMod:
    """|i - j| <= width, and a multiple of `step`."""
    return lambda b, h, i, j: (abs(i - j) <= width) & (abs(i - j) % step == 0)


def prefix_lm(prefix: int) -> MaskMod:
    """j < prefix or j <= i"""
    return lambda b, h, i, j: (j < prefix) | (j <= i)


@identity("the masks are what their words say, by loops; a window is that of sliding-window attention")
def masks_by_loops(case: Case) -> tuple[Array, Array]:
    n, left, right = case.t, [], []
    rules: list[tuple[MaskMod, Callable[[int, int], bool]]] = [
        (causal, lambda i, j: j <= i),
        (dilated(4, 3), lambda i, j: i - j in (-3, 0, 3)),
        (prefix_lm(3), lambda i, j: j < 3 or j <= i),
    ]
    for mask, rule in rules:
        left.append(seen(case, mask))
        right.append([[rule(i, j) for j in range(n)] for i in range(n)])
    for width in (0, 1, 3):
        left.append(seen(case, sliding_window(width)))
        right.append(allowed(n, width, 0))
    return np.stack(left) + 0.0, np.stack(right) + 0.0


@identity("and_masks and or_masks are logic on the masks")
def logic(case: Case) -> tuple[Array, Array]:
    one, two, three = sliding_window(3), dilated(4, 2), prefix_lm(2)
    a, b, c = (seen(case, m) for m in (one, two, three))
    left = [seen(case, and_masks(one, two, three)), seen(case, or_masks(and_masks(one, two), three))]
    return np.stack(left) + 0.0, np.stack([a & b & c, (a & b) | c]) + 0.0


def document(ids: Array, inner: MaskMod = causal) -> MaskMod:
    """ids[i] == ids[j], and `inner` at positions counted inside each document; ids (N,)."""
    inside = np.array([np.count_nonzero(ids[:t] == ids[t]) for t in range(len(ids))], dtype=int)
    return lambda b, h, i, j: (ids[i] == ids[j]) & inner(b, h, inside[i], inside[j])


@identity("packed documents give what each gives alone")
def documents(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.tokens()
    ids = np.sort(case.rng().integers(0, 3, case.t))
    inner = or_masks(prefix_lm(2), dilated(3, 2))
    packed = build(case, mask_mod=document(ids, inner), causal=False)
    alone = build(case, mask_mod=inner, causal=False)
    causal_packed = build(case, mask_mod=document(ids), causal=False)
    parts = [np.flatnonzero(ids == one) for one in np.unique(ids)]
    return ops.stack([packed(x), causal_packed(x)]), ops.stack(
        [ops.concat([one(x[:, part]) for part in parts], axis=1) for one in (alone, layer)]
    )


def neighbourhood(rows: int, columns: int, size: int) -> MaskMod:
    """On a grid of rows x columns cells, the size x size cells around cell i, moved inwards at the border."""
    half = size // 2

    def mask(b: Array, h: Array, i: Array, j: Array) -> Any:
        row, column = (np.clip(at, half, n - 1 - half) for at, n in zip(divmod(i, columns), (rows, columns)))
        return (abs(row - j // columns) <= half) & (abs(column - j % columns) <= half)

    return mask


@identity("a 3 x 3 neighbourhood holds nine cells everywhere, the nearest ones that exist, by loops")
def nine_cells(case: Case) -> tuple[Array, Array]:
    rows, columns = case.w + 2, 4
    mask = neighbourhood(rows, columns, 3)(*places((1, 1), range(rows * columns), range(rows * columns)))[
        0, 0
    ]
    expected = np.zeros(mask.shape)
    for r, c in np.ndindex(rows, columns):
        near_r = sorted(range(rows), key=lambda a: (abs(a - r), a))
        near_c = sorted(range(columns), key=lambda a: (abs(a - c), a))
        # At a border the third nearest is two steps inwards.
        for a in near_r[:3]:
            for e in near_c[:3]:
                expected[r * columns + c, a * columns + e] = 1.0
    return mask + 0.0, expected
