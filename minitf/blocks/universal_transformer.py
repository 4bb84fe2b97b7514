"""Universal Transformer: one block applied T times, told each time where a token stands and which step it is.

    U_t = H_{t-1} + P_pos + P_step[t]              t = 1 .. T, the same weights every time
    A_t = Norm1(U_t + Mixer(U_t))
    C_t = Norm_c(A_t + Cross(A_t, c))              decoders only; else C_t = A_t
    H_t = Norm2(C_t + FFN(C_t))

    x = H_0, y = H_T  (B, N, D)     P_pos  (N, D)   sinusoids     P_step  (T, D)   sinusoids of t, or learned
    c  (B, M, Dc)   what a decoder reads: the last H of the encoder

`layout="pre"` normalises what each branch reads instead, as in U + Mixer(Norm1(U)). Positions enter at every
step, so embeddings must not hold them already. The number of weights does not depend on T, except for T
learned vectors.

Cost: T times that of its branches + 18 T N D.
Source: Universal Transformers, Dehghani et al., arXiv:1807.03819, 2018, section 2.1.
Differs from the paper: steps do not halt by themselves; that is `act_halting`. The transition is an FFN; any
module may stand in for it, a separable convolution as well. The published code normalises first and learns
its step vectors by default: `layout="pre", encoding="learned"`. UNSURE: the equations are from memory.
Numerics: those of its branches. Dropout acts on what a branch adds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from minitf import ops
from minitf.attention.softmax import SoftmaxAttention
from minitf.engine import Array, Tensor, no_grad
from minitf.ffn.relu_ffn import ReLUFFN
from minitf.nn import Card, Case, Dropout, Module, Paper, Parameter, as_norm, identity, init, positive
from minitf.nn.positions.sinusoidal_pos import sinusoids

from .post_norm import PostNorm
from .pre_norm import PreNorm

CARD = Card(
    name="universal_transformer",
    title="Universal Transformer: one block, many times",
    kind="block",
    family="recurrent depth",
    papers=(Paper("Universal Transformers", "1807.03819", 2018),),
    causal=True,
    streams=True,
    grid="1d",
    complexity="T times that of its branches + 18 T N D",
    properties=("causal", "streams", "batch_independent"),
    basis="published code: tensorflow/tensor2tensor "
    "tensor2tensor/models/research/universal_transformer_util.py; paper equations from memory",
)


class Steps(NamedTuple):
    """A stream: how many tokens there were, the mixer's state of each of the T steps, and c or None."""

    length: int
    states: tuple[Any, ...]
    context: Tensor | None


class UniversalTransformer(Module):
    """x (B, N, D) -> (B, N, D).

    Parameters: norm1, mixer, norm2, ffn; norm_cross, cross of a decoder; step_vectors (T, D) if learned.

    Args:
        mixer, ffn: the branches; causal softmax attention with `heads` and a ReLU network unless given.
        steps: T. layout: "post" or "pre". encoding: of the steps, "sinusoidal" or "learned".
        context_dim: Dc; makes it a decoder, whose calls take `context`.
        random_start: in training mode, number the tokens from a random place below N, so that longer
            sequences bring no new positions.
        norm: "layernorm" or "rmsnorm". dropout: rate on the branches in training mode.

    Raises:
        ValueError: steps or context_dim below 1, or another layout or encoding.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        mixer: Module | None = None,
        ffn: Module | None = None,
        steps: int = 6,
        layout: str = "post",
        encoding: str = "sinusoidal",
        context_dim: int | None = None,
        random_start: bool = False,
        norm: str = "layernorm",
        dropout: float = 0.0,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, context_dim=context_dim)
        if steps < 1:
            raise ValueError(f"steps must be 1 or more, not {steps}")
        if layout not in ("post", "pre"):
            raise ValueError(f"layout must be 'post' or 'pre', not {layout!r}")
        if encoding not in ("sinusoidal", "learned"):
            raise ValueError(f"encoding must be 'sinusoidal' or 'learned', not {encoding!r}")
        rng = init.generator(seed)
        self.steps, self.layout, self.random_start = steps, layout, random_start
        self.norm1 = as_norm(norm, dim, dtype=dtype)
        self.mixer: Any = (
            SoftmaxAttention(dim, heads=heads, seed=rng, dtype=dtype) if mixer is None else mixer
        )
        self.norm2 = as_norm(norm, dim, dtype=dtype)
        self.ffn: Any = ReLUFFN(dim, seed=rng, dtype=dtype) if ffn is None else ffn
        self.cross: Any = None
        if context_dim is not None:
            self.norm_cross = as_norm(norm, dim, dtype=dtype)
            self.cross = SoftmaxAttention(dim, heads=heads, context_dim=context_dim, seed=rng, dtype=dtype)
        # As large as sinusoids are.
        self.step_vectors = (
            Parameter(init.normal(rng, (steps, dim), 1.0, dtype)) if encoding == "learned" else None
        )
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        *,
        context: Tensor | None = None,
        positions: Any = None,
        rng: np.random.Generator | None = None,
        **options: Any,
    ) -> Tensor:
        """Apply the block T times. context: c (B, M, Dc) of a decoder. `options` (mask) go to the mixer."""
        here, h = self.places(x, positions, rng), x
        for t in range(self.steps):
            h = self.once(self.encoded(h, t, here), context, rng, **options)
        return h

    def places(self, x: Tensor, positions: Any = None, rng: np.random.Generator | None = None) -> Any:
        """The positions of the tokens of x: (N,), or as given."""
        here = np.arange(x.shape[1]) if positions is None else positions
        if self.random_start and self.training:
            if rng is None:
                raise ValueError("a random start in training mode needs a generator: call with rng=")
            here = here + rng.integers(x.shape[1])
        return here

    def encoded(self, h: Tensor, t: int, here: Any) -> Tensor:
        """U of step t, counted from 0: h with the vectors of its places and of the step."""
        dim = h.shape[-1]
        step: Any = sinusoids(t + 1, dim) if self.step_vectors is None else self.step_vectors[t]
        return h + sinusoids(here, dim).astype(h.dtype) + step.astype(h.dtype)

    def once(
        self, u: Tensor, context: Tensor | None = None, rng: np.random.Generator | None = None, **options: Any
    ) -> Tensor:
        """The block, once: U (B, N, D) -> H (B, N, D)."""
        return self._branches(u, lambda v: self.mixer(v, rng=rng, **options), context, rng)

    def _branches(
        self, u: Tensor, mix: Callable[[Tensor], Tensor], context: Tensor | None, rng: Any = None
    ) -> Tensor:
        def added(norm: Any, branch: Any, v: Tensor) -> Tensor:
            if self.layout == "post":
                return norm(v + self.dropout(branch(v), rng))
            return v + self.dropout(branch(norm(v)), rng)

        if (context is None) != (self.cross is None):
            raise ValueError("context goes with context_dim: a decoder needs both, other blocks take neither")
        u = added(self.norm1, mix, u)
        if context is not None:
            u = added(self.norm_cross, lambda v: self._look(v, context), u)
        return added(self.norm2, self.ffn, u)

    def _look(self, v: Tensor, context: Tensor | None) -> Tensor:
        """Cross(v, c) for v (B, N, D), or for one token (B, D)."""
        return self.cross(v.reshape((v.shape[0], -1, v.shape[-1])), context=context).reshape(v.shape)

    def start(self, batch: int, context: Tensor | None = None) -> Steps:
        """The empty states of all T steps; a decoder needs its context (B, M, Dc) here."""
        return Steps(0, tuple(self.mixer.start(batch) for _ in range(self.steps)), context)

    def step(self, x: Tensor, state: Steps) -> tuple[Tensor, Steps]:
        """One token (B, D) after those in `state`."""
        return self._continue(x, state, self.mixer.step, np.array(state.length), 1)

    def prefill(self, x: Tensor, state: Steps) -> tuple[Tensor, Steps]:
        """Several tokens (B, n, D) after those in `state`."""
        n = x.shape[1]
        return self._continue(x, state, self.mixer.prefill, np.arange(state.length, state.length + n), n)

    def _continue(self, x: Tensor, state: Steps, advance: Any, here: Array, n: int) -> tuple[Tensor, Steps]:
        states = []
        with no_grad():
            for t in range(self.steps):
                x, after = self.once_after(self.encoded(x, t, here), state.states[t], advance, state.context)
                states.append(after)
        return x, Steps(state.length + n, tuple(states), state.context)

    def once_after(
        self, u: Tensor, before: Any, advance: Any, context: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """The block, once, in a stream: H of the new tokens and the mixer's state after them."""
        after = [before]

        def mix(v: Tensor) -> Tensor:
            y, after[0] = advance(v, before)
            return y

        return self._branches(u, mix, context), after[0]


def build(case: Case, **options: Any) -> UniversalTransformer:
    options = {"steps": 3, **options}
    return UniversalTransformer(case.dim, heads=case.h, seed=case.seed, dtype="float64", **options)


def unshared(block: UniversalTransformer, case: Case) -> list[Any]:
    """T separate blocks with copies of the weights."""
    kind = PostNorm if block.layout == "post" else PreNorm
    blocks = []
    for _ in range(block.steps):
        ffn = ReLUFFN(case.dim, dtype="float64")
        one = kind(case.dim, heads=case.h, ffn=ffn, dtype="float64")
        one.load_state_dict(block.state_dict(), strict=False)
        blocks.append(one)
    return blocks


def vectors(case: Case, t: int) -> Array:
    """P_pos + P_step[t] (N, D) by the formula, t from 1."""
    p = np.zeros((case.t, case.dim))
    for n, j in np.ndindex(p.shape):
        wave = np.sin if j % 2 == 0 else np.cos
        w = 10000.0 ** (-(j - j % 2) / case.dim)
        p[n, j] = wave(n * w) + wave(t * w)
    return p


@identity("T = 1 is one transformer block with positions added, in both layouts")
def one_step(case: Case) -> tuple[Tensor, Tensor]:
    x, left, right = case.tokens(), [], []
    for layout in ("post", "pre"):
        block = build(case, steps=1, layout=layout)
        left.append(block(x))
        right.append(unshared(block, case)[0](x + vectors(case, 1)))
    return ops.stack(left), ops.stack(right)


@identity("T steps equal a stack of T separate blocks with equal weights and the same vectors before each")
def stack(case: Case) -> tuple[Tensor, Tensor]:
    x, left, right = case.tokens(), [], []
    for layout in ("post", "pre"):
        block, h = build(case, layout=layout), x
        for t, one in enumerate(unshared(block, case)):
            h = one(h + vectors(case, t + 1))
        left.append(block(x))
        right.append(h)
    return ops.stack(left), ops.stack(right)


@identity("the gradient of a shared weight is the sum over the steps of the separate gradients")
def shared_gradient(case: Case) -> tuple[Any, Any]:
    block, h = build(case), case.tokens()
    blocks, c = unshared(block, case), case.rng().standard_normal((case.b, case.t, case.dim))
    block(h).backward(c)
    for t, one in enumerate(blocks):
        h = one(h + vectors(case, t + 1))
    h.backward(c)
    left, right = [], []
    for name, p in block.named_parameters():
        grads = [dict(one.named_parameters())[name].grad for one in blocks]
        assert p.grad is not None
        left.append(p.grad.data.ravel())
        right.append(sum(g.data for g in grads if g is not None).ravel())
    return np.concatenate(left), np.concatenate(right)


@identity("the number of weights does not depend on T")
def few_weights(case: Case) -> tuple[Any, Any]:
    counts = [build(case, steps=steps).count_parameters() for steps in (1, 2, 7)]
    return np.array(counts), np.full(3, unshared(build(case), case)[0].count_parameters())


@identity("learned step vectors that hold the sinusoids are the sinusoids")
def learned(case: Case) -> tuple[Tensor, Tensor]:
    one, two, x = build(case), build(case, encoding="learned"), case.tokens()
    # Position 0 has the vector 0, 1, 0, 1, ...
    table = [vectors(case, t)[0] - np.arange(case.dim) % 2 for t in (1, 2, 3)]
    state = {**one.state_dict(), "step_vectors": np.stack(table)}
    two.load_state_dict(state)
    return two(x), one(x)


@identity("a decoder whose cross-attention writes zeros is the block without it (pre layout)")
def silent_cross(case: Case) -> tuple[Tensor, Tensor]:
    decoder, x = build(case, layout="pre", context_dim=3), case.tokens()
    decoder.cross.wo.weight.data = np.zeros((case.dim, case.dim))
    plain = build(case, layout="pre")
    plain.load_state_dict(decoder.state_dict(), strict=False)
    return decoder(x, context=Tensor(case.rng().standard_normal((case.b, 4, 3)))), plain(x)


@identity("a decoder, token by token, equals the equations over the whole: cross-attention in the middle")
def decoder(case: Case) -> tuple[Tensor, Tensor]:
    x, left, right = case.tokens(), [], []
    context = Tensor(case.rng().standard_normal((case.b, 4, 3)))
    for layout in ("post", "pre"):
        block = build(case, layout=layout, context_dim=3)
        state, rows = block.start(case.b, context), []
        for t in range(case.t):
            y, state = block.step(x[:, t], state)
            rows.append(y)
        left.append(ops.stack(rows, axis=1))
        h = x
        for t in (1, 2, 3):
            h = h + vectors(case, t)
            if layout == "post":
                h = block.norm1(h + block.mixer(h))
                h = block.norm_cross(h + block.cross(h, context=context))
                h = block.norm2(h + block.ffn(h))
            else:
                h = h + block.mixer(block.norm1(h))
                h = h + block.cross(block.norm_cross(h), context=context)
                h = h + block.ffn(block.norm2(h))
        right.append(h)
    return ops.stack(left), ops.stack(right)
