"""Performer (FAVOR+): softmax attention estimated with positive random features, at linear cost.

    x'     = x d^(-1/4), for queries and keys                      so that q'.k' = q.k / sqrt(d)
    phi(x) = m^(-1/2) [exp(Om x' - |x'|^2 / 2 - c) + eps]          "softmax+": E phi(q).phi(k) = exp(q'.k')
    phi(x) = m^(-1/2) exp(|x'|^2 / 2 - c) [cos Om x', sin Om x']   "sincos": the same, with weights below 0
    phi(x) = max(x, 0) + eps,   phi(x) = max(Om x, 0) + eps        "relu" and "relu_om": not softmax at all
    o_i    = phi(q_i) sum_j phi(k_j)^T v_j / (phi(q_i) . sum_j phi(k_j))      j <= i if causal
    y      = merge(o) W_o

    x, y  (B, N, D)      q, k, v, o  (B, H, N, d)      phi  (B, H, N, m), 2 m for "sincos"      Om  (m, d)

Om: blocks of d orthogonal directions, the last one cut; row i has the length of a normal vector of its own
(scaling 0) or sqrt(d) (scaling 1). orthogonal=False: independent normal rows. All heads share it.
c: for each query the largest exponent, for keys one number for all: it cancels where eps = 0.

Causal: S_t = sum over j <= t of phi(k_j)^T [v_j, 1] is a recurrence. c is the largest exponent so far, and S
shrinks by exp(c_{t-1} - c_t) when it grows: a gated scan, in chunks.

Cost: 8 N D^2 for the maps, 4 N m D for the features, 6 N m (D + H) + 2 N C m H for the scan in chunks of C.
Source: Rethinking Attention with Performers, Choromanski et al., arXiv:2009.14794, 2020, lemma 1 and
theorem 2; eps, c and the length of rows as in google-research/performer.
Differs from the paper: published code takes c over all keys, future ones too, which leaks through eps: here the
causal form has eps = 0. Its Q of a QR factorisation has columns of a preferred sign, which biases the estimate
(14 % at d = 4, |q' + k'| = 0.75); here the signs are those that make R positive. Om stays unless redrawn.
Numerics: where eps = 0, c counts - |x'|^2 / 2 too. A denominator of at most 1e-6 gets 2e-6 added, as in
published code: queries whose features all vanish give zeros. Errors grow as exp(|q' + k'|^2 / 2).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from minitf import ops
from minitf.engine import Array, ShapeError, Tensor, no_grad
from minitf.nn import Buffer, Card, Case, Linear, Module, Paper, identity, init, visible_keys

CARD = Card(
    name="performer_favor",
    title="Performer: positive orthogonal random features (FAVOR+)",
    kind="attention",
    family="random features",
    papers=(Paper("Rethinking Attention with Performers", "2009.14794", 2020),),
    causal=True,
    streams=True,
    grid="1d",
    complexity="8 N D^2 + 10 N m D + 6 N m H + 2 N C m H",
    properties=("causal", "streams", "chunked", "batch_independent", "key_masks", "row_stochastic"),
    basis="published code: google-research/long-range-arena performer_attention.py; lucidrains/performer-pytorch",
    aliases={"performer": {}},
)

KERNELS = {"softmax+": 1e-4, "sincos": 0.0, "relu": 1e-3, "relu_om": 1e-3}
GUARD = 1e-6


def projection(rng: init.Seed, m: int, d: int, orthogonal: bool = True, scaling: int = 0) -> Array:
    """Om (m, d).

    Raises:
        ValueError: scaling other than 0 and 1.
    """
    rng = init.generator(rng)
    if scaling not in (0, 1):
        raise ValueError(f"scaling must be 0 (lengths of normal vectors) or 1 (sqrt(d)), not {scaling}")
    if not orthogonal:
        return rng.standard_normal((m, d))
    q, r = np.linalg.qr(rng.standard_normal((-(-m // d), d, d)))
    # Columns with the signs that make the diagonal of R positive are uniform on the sphere.
    directions = (q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None]).mT.reshape(-1, d)[:m]
    lengths = np.linalg.norm(rng.standard_normal((m, d)), axis=1) if scaling == 0 else math.sqrt(d)
    return directions * np.reshape(lengths, (-1, 1))


def exponents(x: Tensor, om: Tensor, kernel: str) -> Tensor:
    """What phi takes exp of, before c: (B, H, N, m), or (B, H, N, 1) for "sincos"."""
    x = x * x.shape[-1] ** -0.25
    half = 0.5 * (x * x).sum(axis=-1, keepdims=True)
    return half if kernel == "sincos" else x @ om.mT - half


def largest(x: Tensor, om: Tensor, kernel: str, eps: float) -> Tensor:
    """c of every token (B, H, N, 1). Only c that counts no - |x'|^2 / 2 matches eps of published code."""
    if kernel.startswith("relu"):
        return ops.zeros_like(x[..., :1])
    a = exponents(x, om, kernel) if eps == 0.0 or kernel == "sincos" else x @ om.mT * x.shape[-1] ** -0.25
    return a.max(axis=-1, keepdims=True)


def features(x: Tensor, om: Tensor, kernel: str, eps: float, c: Any) -> Tensor:
    """phi (B, H, N, m)."""
    if kernel.startswith("relu"):
        return ops.relu(x if kernel == "relu" else x @ om.mT) + eps
    scale = ops.exp(exponents(x, om, kernel) - c)
    if kernel == "sincos":
        turned = x @ om.mT * x.shape[-1] ** -0.25
        return scale * ops.concat([ops.cos(turned), ops.sin(turned)], axis=-1) / math.sqrt(om.shape[0])
    return (scale + eps) / math.sqrt(om.shape[0])


def with_ones(v: Tensor) -> Tensor:
    """[v, 1]: the sum of weights is one more channel."""
    return ops.pad(v, ((0, 0), (0, 0), (0, 0), (0, 1)), value=1.0)


def divided(sums: Tensor) -> Tensor:
    """Numerators by denominators, which are the last channel."""
    r = sums[..., -1:]
    return sums[..., :-1] / ops.where(ops.abs(r) <= GUARD, r + 2.0 * GUARD, r)


def plain(q: Tensor, k: Tensor, v: Tensor, om: Tensor, kernel: str, eps: float, causal: bool) -> Tensor:
    """o (B, H, N, d) with all N^2 weights, as the equations say it, without c."""
    a = features(q, om, kernel, eps, 0.0) @ features(k, om, kernel, eps, 0.0).mT
    a = ops.tril(a) if causal else a
    return a @ v / a.sum(axis=-1, keepdims=True)


class Memory(NamedTuple):
    """S (B, H, m, d + 1), and the largest exponent of a key so far (B, H, 1, 1)."""

    sums: Tensor
    largest: Array


class PerformerFavor(Module):
    """x (B, N, D) -> (B, N, D).

    Parameters: wq, wk, wv, wo (D, D), with biases if `bias`. Buffer: om (m, d).

    Args:
        dim: D. heads: H. features: m. kernel: one of `KERNELS`; "relu" has m = d and no projection.
        eps: added to features; 0 if causal, else 1e-4 ("softmax+"), always 1e-3 ("relu", "relu_om").
        orthogonal, scaling: how Om is drawn. chunk: tokens of the causal form that are computed at once.

    Raises:
        ValueError: heads that do not divide dim; features or chunk below 1; an unknown kernel or scaling; eps
            where the causal form or the kernel cannot have it.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        features: int = 256,
        kernel: str = "softmax+",
        eps: float | None = None,
        orthogonal: bool = True,
        scaling: int = 0,
        causal: bool = True,
        chunk: int = 16,
        bias: bool = False,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        if dim % heads:
            raise ValueError(f"heads={heads} must divide dim={dim}")
        if features < 1 or chunk < 1:
            raise ValueError(f"features={features} and chunk={chunk} must be 1 or more")
        if kernel not in KERNELS:
            raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, not {kernel!r}")
        exact = kernel == "sincos" or (causal and kernel == "softmax+")
        self.eps = (0.0 if exact else KERNELS[kernel]) if eps is None else eps
        if self.eps < 0.0 or (exact and self.eps):
            raise ValueError(f"eps={eps} must be 0 or more, and 0 for sincos and for causal softmax+")
        rng = init.generator(seed)
        self.heads, self.kernel, self.causal, self.chunk = heads, kernel, causal, chunk
        self.orthogonal, self.scaling = orthogonal, scaling
        self.wq, self.wk, self.wv, self.wo = (Linear(dim, dim, bias, rng, dtype=dtype) for _ in range(4))
        self.om = Buffer(projection(rng, features, dim // heads, orthogonal, scaling).astype(dtype))

    def redraw(self, seed: init.Seed) -> None:
        """Draw Om anew, as training does at intervals. A memory of earlier features is of no use then."""
        drawn = projection(seed, *self.om.shape, self.orthogonal, self.scaling)
        self.om.data = drawn.astype(self.om.dtype)

    def forward(self, x: Tensor, *, mask: Any = None, rng: np.random.Generator | None = None) -> Tensor:
        """Mix x (B, N, D). mask: boolean (B, 1, 1, N), True = visible; hidden tokens have no features."""
        q, k, v = self._heads(x)
        visible = visible_keys(mask, x.shape[0], x.shape[1])
        if self.causal:
            return self._out(self._scan(q, k, v, visible, self._nothing(x.shape[0]))[0])
        phi_q, phi_k = self._queries(q), self._keys(k, visible, self._largest_of_all(k, visible))
        return self._out(phi_q @ (phi_k.mT @ with_ones(v)))

    def weights(self, x: Tensor, *, mask: Any = None) -> Tensor:
        """The weights A (B, H, N, N) that the features stand for, which `forward` never forms."""
        q, k, _ = self._heads(x)
        visible = visible_keys(mask, x.shape[0], x.shape[1])
        if self.causal:
            c, _, _ = self._running(k, visible, self._nothing(x.shape[0]).largest)
            # exp(c_j - c_i) where j <= i
            a = ops.tril(self._queries(q) @ self._keys(k, visible, c).mT) * np.exp(np.minimum(c.mT - c, 0.0))
        else:
            a = self._queries(q) @ self._keys(k, visible, self._largest_of_all(k, visible)).mT
        return divided(ops.concat([a, a.sum(axis=-1, keepdims=True)], axis=-1))

    def start(self, batch: int) -> Memory:
        """The empty memory."""
        return self._nothing(batch)

    def step(self, x: Tensor, state: Memory) -> tuple[Tensor, Memory]:
        """One token x (B, D) after those in `state`: (B, D) and the new state. No gradients pass."""
        y, state = self.prefill(x.reshape((x.shape[0], 1, x.shape[1])), state)
        return y[:, 0], state

    def prefill(self, x: Tensor, state: Memory) -> tuple[Tensor, Memory]:
        """Several tokens x (B, n, D) at once after those in `state`: (B, n, D) and the new state."""
        if not self.causal:
            raise ValueError("only causal attention streams: build it with causal=True")
        with no_grad():
            sums, state = self._scan(*self._heads(x), None, state)
            return self._out(sums), state

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if x.ndim != 3:
            raise ShapeError(f"performer_favor: x must be (B, N, D), not {x.shape}")
        q, k, v = (ops.split_heads(w(x), self.heads) for w in (self.wq, self.wk, self.wv))
        return q, k, v

    def _nothing(self, batch: int) -> Memory:
        m, d = self.om.shape
        width = {"sincos": 2 * m, "relu": d}.get(self.kernel, m)
        empty = ops.zeros((batch, self.heads, width, d + 1), dtype=self.om.dtype)
        return Memory(empty, np.full((batch, self.heads, 1, 1), -np.inf, self.om.dtype))

    def _queries(self, q: Tensor) -> Tensor:
        return features(q, self.om, self.kernel, self.eps, largest(q, self.om, self.kernel, self.eps))

    def _keys(self, k: Tensor, visible: Array | None, c: Any) -> Tensor:
        if visible is not None:
            k = ops.where(visible, k, 0.0)
        phi = features(k, self.om, self.kernel, self.eps, c)
        return phi if visible is None else ops.where(visible, phi, 0.0)

    def _largest_of_all(self, k: Tensor, visible: Array | None) -> Tensor:
        c = largest(k, self.om, self.kernel, self.eps)
        c = c if visible is None else ops.where(visible, c, -math.inf)
        c = c.max(axis=-2, keepdims=True)
        return ops.where(c == -math.inf, 0.0, c)

    def _running(self, k: Tensor, visible: Array | None, before: Array) -> tuple[Array, Array, Array]:
        """c_t and c_{t-1} - c_t (B, H, N, 1), both 0 where no key is visible yet, and the last c_t."""
        own = largest(k.detach(), self.om, self.kernel, self.eps).data
        own = own if visible is None else np.where(visible, own, -np.inf)
        c = np.maximum.accumulate(np.concatenate([before, own], axis=2), axis=2)
        known = np.isfinite(c)
        level = np.where(known, c, 0.0)
        gap = np.where(known[:, :, :-1], level[:, :, :-1] - level[:, :, 1:], 0.0)
        return level[:, :, 1:], gap, c[:, :, -1:]

    def _scan(
        self, q: Tensor, k: Tensor, v: Tensor, visible: Array | None, state: Memory
    ) -> tuple[Tensor, Memory]:
        """Numerators and denominators (B, H, N, d + 1), and the memory after the last token."""
        c, gap, last = self._running(k, visible, state.largest)
        phi_q, phi_k = self._queries(q), self._keys(k, visible, c)
        o, sums = ops.gated_scan(phi_q, phi_k, with_ones(v), Tensor(gap), state.sums, self.chunk)
        return o, Memory(sums, last)

    def _out(self, sums: Tensor) -> Tensor:
        return self.wo(ops.merge_heads(divided(sums)))


def build(case: Case, **options: Any) -> PerformerFavor:
    return PerformerFavor(case.dim, heads=case.h, seed=case.seed, dtype="float64", **options)


def mixed(q: Tensor, k: Tensor, v: Tensor, layer: PerformerFavor) -> Tensor:
    """o of a layer whose maps are units: x is given as heads already."""
    if layer.causal:
        return divided(layer._scan(q, k, v, None, layer._nothing(q.shape[0]))[0])
    phi_k = layer._keys(k, None, layer._largest_of_all(k, None))
    return divided(layer._queries(q) @ (phi_k.mT @ with_ones(v)))
