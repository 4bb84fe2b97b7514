"""Memory layer (MemoryFormer): a matrix product replaced by tables that the signs of the input look up.

    z_k     = chunk k of x                                    K chunks of tau numbers
    code_k  = sum_j bit_kj 2^(tau - 1 - j),  bit_kj = 1 where z_kj >= 0
    p_k     = prod_j sigmoid(2 |z_kj|)
    score_k = p_k                    mode="paper": the softmax probability of that corner among all 2^tau
    score_k = p_k sum_j |z_kj|       mode="code": as released, the default
    y       = sum_k score_k T[k, code_k] + b

    x  (..., D), D = K tau        T  (K, 2^tau, O)        b  (O,)        y  (..., O)

The first number of a chunk is the most significant bit. The code is a constant in the backward pass:
gradients reach x through the score alone, and each token touches K rows of T.

Cost: 2 N K O + 6 N D operations instead of 2 N D O; K 2^tau O + O parameters, 32 times those of a matrix at
tau = 8. With `project` a matrix (D, K tau) stands in front and learns what to hash.
Source: MemoryFormer: Minimize Transformer Computation by Removing Fully-Connected Layers, Ding et al.,
arXiv:2411.12992, 2024.
Differs from the paper: the default score is that of the released code; tau is the largest divisor of D up
to 8 unless given.
Numerics: a number that is exactly 0 has bit 1 (the released CPU code gives it 0), and slope 0. The product is
the exponential of a sum of logarithms. Stacked layers need a norm between them, or signs lose their balance.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Array, ShapeError, Tensor, array_module
from minitf.engine import grad as gradient
from minitf.nn import Card, Case, Linear, Module, Paper, Parameter, identity, init, positive

CARD = Card(
    name="memory_layer",
    title="Hashed lookup tables in place of a linear map",
    kind="ffn",
    family="memory",
    papers=(
        Paper(
            "MemoryFormer: Minimize Transformer Computation by Removing Fully-Connected Layers",
            "2411.12992",
            2024,
        ),
    ),
    causal=True,
    streams=False,
    grid="any",
    complexity="2 N K D + 6 N D",
    properties=("token_wise",),
    basis="published code: C0-Design/MemoryFormer memory_module/memory.py, compute_code_score",
    parity=("C0-Design/MemoryFormer 5968673 MemoryLayer",),
)


def codes(z: Tensor) -> Array:
    """code (..., K) of chunks z (..., K, tau): their signs as bits, the first the most significant."""
    place = 2 ** array_module(z.data).arange(z.shape[-1] - 1, -1, -1)
    return ((z.data >= 0) * place).sum(axis=-1)


def confidence(z: Tensor, mode: str) -> Tensor:
    """score (..., K) of chunks z (..., K, tau)."""
    size = ops.abs(z)
    # log sigmoid(2 |z|) = -softplus(-2 |z|)
    p = ops.exp(-ops.softplus(-2.0 * size).sum(axis=-1))
    return p * size.sum(axis=-1) if mode == "code" else p


def lookup(z: Tensor, tables: Tensor, mode: str) -> Tensor:
    """sum_k score_k T[k, code_k] (..., O), for z (..., K, tau) and T (K, 2^tau, O)."""
    rows = tables[array_module(z.data).arange(z.shape[-2]), codes(z)]
    # (..., 1, K) times (..., K, O)
    return (confidence(z, mode)[..., None, :] @ rows)[..., 0, :]


class MemoryLayer(Module):
    """(..., D) -> (..., O).

    Parameters: tables (K, 2^tau, O), bias (O,); project.weight (D, K tau) if asked for.

    Args:
        dim: D. out: O, default D. bits: tau. mode: "code" or "paper".
        project: learn what to hash; K = ceil(D / tau) then.

    Raises:
        ValueError: out below 1; bits outside 1..16, or not a divisor of dim without `project`; an unknown
            mode.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        out: int | None = None,
        bits: int | None = None,
        mode: str = "code",
        project: bool = False,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, out=out)
        bits = max(b for b in range(1, 9) if dim % b == 0) if bits is None else bits
        if not 1 <= bits <= 16 or (dim % bits and not project):
            raise ValueError(f"bits={bits} must be from 1 to 16, and divide dim={dim} unless project=True")
        if mode not in ("code", "paper"):
            raise ValueError(f"mode must be 'code' or 'paper', not {mode!r}")
        rng, out, count = init.generator(seed), dim if out is None else out, -(-dim // bits)
        self.bits, self.mode, self.dim = bits, mode, dim
        self.project = Linear(dim, count * bits, False, rng, dtype=dtype) if project else None
        self.tables = Parameter(init.normal(rng, (count, 2**bits, out), 0.02, dtype))
        self.bias = Parameter(init.normal(rng, (out,), 0.001, dtype))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.dim:
            raise ShapeError(f"memory_layer: x {x.shape} must end in {self.dim}")
        z = x if self.project is None else self.project(x)
        return lookup(z.reshape((*x.shape[:-1], -1, self.bits)), self.tables, self.mode) + self.bias


def build(case: Case, **options: Any) -> MemoryLayer:
    layer = MemoryLayer(case.dim, seed=case.seed, dtype="float64", **options)
    rng = case.rng()
    for p in layer.parameters():
        p.data = rng.standard_normal(p.shape)
    return layer


@identity("by loops: bits, scores and rows of every chunk, in both modes")
def loops(case: Case) -> tuple[Tensor, Any]:
    x, left, right = case.tokens(), [], []
    for mode in ("code", "paper"):
        layer, rows = build(case, mode=mode), []
        for token in x.data.reshape(-1, case.dim):
            y = layer.bias.data
            for k, z in enumerate(token.reshape(-1, layer.bits)):
                code, score = 0, 1.0
                for v in z:
                    code = 2 * code + (1 if v >= 0 else 0)
                    score /= 1.0 + np.exp(-2.0 * abs(v))
                score *= sum(abs(v) for v in z) if mode == "code" else 1.0
                y = y + score * layer.tables.data[k, code]
            rows.append(y)
        left.append(layer(x))
        right.append(np.reshape(rows, x.shape))
    return ops.stack(left), np.stack(right)


@identity("the lookup equals the product of one-hot codes and tables")
def one_hot(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.tokens()
    z = x.reshape((*x.shape[:-1], -1, layer.bits))
    chosen = (codes(z)[..., None] == np.arange(2**layer.bits)) * confidence(z, "code")[..., None]
    return layer(x), ops.einsum("btkc,kco->bto", chosen, layer.tables) + layer.bias


@identity("with a matrix in front, the layer of what the matrix gives")
def projected(case: Case) -> tuple[Tensor, Tensor]:
    # Chunks of 3, as many as D needs: the last one may go beyond D.
    layer = build(case, bits=3, project=True)
    w: Any = layer.project
    plain = MemoryLayer(w.weight.shape[1], out=case.dim, bits=layer.bits, dtype="float64")
    plain.load_state_dict({"tables": layer.tables.data, "bias": layer.bias.data})
    x = case.tokens()
    return layer(x), plain(x @ w.weight)


@identity("c x has the codes of x, for c > 0")
def scaled(case: Case) -> tuple[Any, Any]:
    z = case.tokens().reshape((case.b, case.t, case.dim // 2, 2))
    return codes(0.1 * z), codes(z)


@identity("where all numbers have one size m, tables of signed sums of W's rows give x W")
def linear_on_corners(case: Case) -> tuple[Tensor, Tensor]:
    rng, m, left, right = case.rng(), 0.7, [], []
    x = Tensor(m * np.where(rng.random((case.b, case.t, case.dim)) < 0.5, -1.0, 1.0))
    w = rng.standard_normal((case.dim, case.dim))
    for mode in ("code", "paper"):
        layer = build(case, mode=mode)
        tau = layer.bits
        # The signs that code c stands for: (2^tau, tau)
        bits = np.arange(2**tau)[:, None] >> np.arange(tau - 1, -1, -1) & 1
        score = confidence(Tensor(np.full((1, tau), m)), mode).item()
        layer.tables.data = (
            np.einsum("cj,kjo->kco", 2.0 * bits - 1.0, w.reshape(-1, tau, case.dim)) * m / score
        )
        left.append(layer(x) - layer.bias)
        right.append(x @ w)
    return ops.stack(left), ops.stack(right)


@identity("mode 'paper': the scores of all 2^tau corners with the sizes of z are a softmax, and sum to 1")
def probabilities(case: Case) -> tuple[Tensor, Any]:
    z = case.tokens().reshape((-1, case.dim // 2, 2))
    corners = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    # The logit of a corner is its product with z; the chosen corner has the largest.
    p = ops.softmax(z @ corners.T)
    return ops.stack([p.sum(axis=-1), p.max(axis=-1)]), ops.stack(
        [ops.ones(p.shape[:-1], dtype="float64"), confidence(z, "paper")]
    )


@identity(
    "slopes by z_j: sign(z_j) u p for 'paper', sign(z_j) (1 + A u) p for 'code', u = 2 (1 - sigmoid(2|z_j|))"
)
def slopes(case: Case) -> tuple[Tensor, Any]:
    z = case.tokens().reshape((-1, case.dim))
    size = np.abs(z.data)
    sigma = 1.0 / (1.0 + np.exp(-2.0 * size))
    p, total = np.prod(sigma, axis=-1, keepdims=True), size.sum(axis=-1, keepdims=True)
    paper = np.sign(z.data) * 2.0 * (1.0 - sigma) * p
    code = np.sign(z.data) * (p + total * 2.0 * (1.0 - sigma) * p)
    found = [gradient(lambda v, m=mode: confidence(v, m).sum())(z) for mode in ("paper", "code")]
    return ops.stack(found), np.stack([paper, code])


@identity("between 2^-tau at 0 and 1 far out")
def bounds(case: Case) -> tuple[Tensor, Any]:
    ends = Tensor(np.array([[0.0] * case.dim, [50.0] * case.dim]))
    return confidence(ends, "paper"), np.array([2.0**-case.dim, 1.0])
