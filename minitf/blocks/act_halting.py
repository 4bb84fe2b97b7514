"""Adaptive computation time: every token decides for itself how often the shared block is applied to it.

    s = x, h = R = n = out = 0, running = true                   for every token
    repeat while any token is running, at most T times (step t):
        u = s + P_pos + P_step[t]
        prob  = sigmoid(u w + b)
        halts = running and h + prob > 1 - eps                   now
        goes  = running and not halts                            on
        weight = prob where it goes on, R = 1 - h where it halts, 0 where it had halted before
        h += weight;  n += running;  running = goes
        s = Block(u) where it was running, s elsewhere
        out = weight s + (1 - weight) out                        "basic";  out + weight s  is "accumulated"
    y = out,  loss += 0.01 mean(n + R)

    x, s, u, out  (B, N, D)     prob, weight, h, R, n, running  (B, N)     w  (D,), b  a scalar, starts at 1

The weights of a token sum to 1 if it halts within T steps, and to less if it does not. n has no gradient; R
does, through the probabilities before it.

Cost: that of its branches times the largest number of steps of any token.
Source: Universal Transformers, Dehghani et al., arXiv:1807.03819, 2018, section 2.2; Adaptive Computation
Time for Recurrent Neural Networks, Graves, arXiv:1603.08983, 2016, which is "accumulated".
Differs from the published code: there tokens that have halted go on to change in s, where others see them
(`halted="evolve"`); the paper says that their state is copied, as here (`"copy"`). The code's blend reads
s weight + out - weight, without the parentheses that (1 - weight) out needs. UNSURE: copied tokens still get
the vectors of place and step when others look at them.
Numerics: whether a token is running is a boolean of its own and not h < 1, which could be missed by rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from minitf import ops
from minitf.engine import Tensor, array_module, no_grad
from minitf.nn import Card, Case, Linear, Module, Paper, identity, init, not_negative

from .universal_transformer import Steps, UniversalTransformer

CARD = Card(
    name="act_halting",
    title="Adaptive computation time for each token",
    kind="block",
    family="recurrent depth",
    papers=(
        Paper("Universal Transformers", "1807.03819", 2018),
        Paper("Adaptive Computation Time for Recurrent Neural Networks", "1603.08983", 2016),
    ),
    causal=True,
    streams=True,
    grid="1d",
    complexity="that of its branches times the largest number of steps",
    properties=("causal", "streams", "batch_independent"),
    basis="published code: tensorflow/tensor2tensor "
    "tensor2tensor/models/research/universal_transformer_util.py (universal_transformer_act)",
)


class Halting(NamedTuple):
    """What happened: out (B, N, D); n and R (B, N); the weights and the states s of each step."""

    out: Tensor
    steps: Tensor
    remainders: Tensor
    weights: list[Tensor]
    states: list[Tensor]


class ACTHalting(Module):
    """x (B, N, D) -> (B, N, D).

    Parameters: block, a `UniversalTransformer`; halt.weight (D, 1) and halt.bias (1,).

    Args:
        mixer, ffn, layout, encoding, norm, dropout: of the block.
        max_steps: T. eps: how close to 1 the sum of probabilities must come.
        halted: "copy" or "evolve", what becomes of tokens that have halted.
        update: "basic" or "accumulated". scope: "position", or "sequence" for one probability, the mean over
            the tokens, by which a whole sequence halts; then a token sees later ones.
        loss_weight: of n + R in `auxiliary_loss`.

    Raises:
        ValueError: max_steps below 1, eps outside (0, 1), another halted, update or scope, or loss_weight
            below 0.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        mixer: Module | None = None,
        ffn: Module | None = None,
        max_steps: int = 8,
        eps: float = 0.01,
        halted: str = "copy",
        update: str = "basic",
        scope: str = "position",
        loss_weight: float = 0.01,
        layout: str = "post",
        encoding: str = "sinusoidal",
        norm: str = "layernorm",
        dropout: float = 0.0,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        not_negative(loss_weight=loss_weight)
        if max_steps < 1 or not 0.0 < eps < 1.0:
            raise ValueError(f"max_steps={max_steps} must be 1 or more, and eps={eps} between 0 and 1")
        for option, value, allowed in (
            ("halted", halted, ("copy", "evolve")),
            ("update", update, ("basic", "accumulated")),
            ("scope", scope, ("position", "sequence")),
        ):
            if value not in allowed:
                raise ValueError(f"{option} must be one of: {', '.join(allowed)}, not {value!r}")
        rng = init.generator(seed)
        self.max_steps, self.eps, self.loss_weight = max_steps, eps, loss_weight
        self.halted, self.update, self.scope = halted, update, scope
        self.block = UniversalTransformer(
            dim,
            heads=heads,
            mixer=mixer,
            ffn=ffn,
            steps=max_steps,
            layout=layout,
            encoding=encoding,
            norm=norm,
            dropout=dropout,
            seed=rng,
            dtype=dtype,
        )
        self.halt = Linear(dim, 1, True, rng, dtype=dtype)
        self.halt.load_state_dict({"bias": np.ones(1)}, strict=False)

    @property
    def mixer(self) -> Any:
        """The token mixer of the block."""
        return self.block.mixer

    def forward(
        self, x: Tensor, *, positions: Any = None, rng: np.random.Generator | None = None, **options: Any
    ) -> Tensor:
        """Apply the block to each token as often as it asks for. `options` (mask) go to the mixer."""
        return self.ponder(x, positions=positions, rng=rng, **options).out

    def ponder(
        self, x: Tensor, *, positions: Any = None, rng: np.random.Generator | None = None, **options: Any
    ) -> Halting:
        """The output together with the steps, the remainders and the weights of every token."""
        here = self.block.places(x, positions, rng)
        return self._loop(x, here, lambda t, u: self.block.once(u, None, rng, **options))

    def auxiliary_loss(self, x: Tensor) -> Tensor:
        """loss_weight * mean(n + R), for the model to keep small. Dropout does not act in it."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            found = self.ponder(x)
        finally:
            for module, mode in modes:
                module.training = mode
        return self.loss_weight * (found.steps + found.remainders).mean()

    def _loop(
        self, x: Tensor, here: Any, apply: Callable[[int, Tensor], Tensor], every_step: bool = False
    ) -> Halting:
        """x (..., D); apply: (step, u) -> Block(u). every_step: go on to T even if no token is running."""
        tokens = x.shape[:-1]
        xp = array_module(x.data)
        running = xp.ones(tokens, dtype=bool)
        h = remainders = ops.zeros(tokens, like=x)
        n, out, s = xp.zeros(tokens, dtype=x.dtype), ops.zeros_like(x), x
        weights, states = [], []
        for t in range(self.max_steps):
            if not (every_step or running.any()):
                break
            u = self.block.encoded(s, t, here)
            # prob = sigmoid(u w + b): (B, N)
            prob = ops.sigmoid(self.halt(u))[..., 0]
            if self.scope == "sequence":
                prob = ops.broadcast_to(prob.mean(axis=-1, keepdims=True), prob.shape)
            halts = running & ((h + prob).data > 1.0 - self.eps)
            goes = running & ~halts
            remainders = ops.where(halts, 1.0 - h, remainders)
            weight = ops.where(goes, prob, 0.0) + ops.where(halts, 1.0 - h, 0.0)
            h, n = h + weight, n + running
            after = apply(t, u)
            s = after if self.halted == "evolve" else ops.where(running[..., None], after, s)
            kept = out if self.update == "accumulated" else (1.0 - weight)[..., None] * out
            out = weight[..., None] * s + kept
            running = goes
            weights.append(weight)
            states.append(s)
        return Halting(out, Tensor(n), remainders, weights, states)

    def start(self, batch: int) -> Steps:
        """The empty states of the mixer at all T steps."""
        return self.block.start(batch)

    def step(self, x: Tensor, state: Steps) -> tuple[Tensor, Steps]:
        """One token (B, D) after those in `state`. All T steps run: a later token may take more than this."""
        return self._continue(x, state, self.mixer.step, np.array(state.length), 1)

    def prefill(self, x: Tensor, state: Steps) -> tuple[Tensor, Steps]:
        """Several tokens (B, n, D) after those in `state`."""
        n = x.shape[1]
        return self._continue(x, state, self.mixer.prefill, np.arange(state.length, state.length + n), n)

    def _continue(self, x: Tensor, state: Steps, advance: Any, here: Any, n: int) -> tuple[Tensor, Steps]:
        if self.scope == "sequence":
            raise ValueError("a sequence that halts as a whole does not stream: build with scope='position'")
        states = []

        def apply(t: int, u: Tensor) -> Tensor:
            y, after = self.block.once_after(u, state.states[t], advance)
            states.append(after)
            return y

        with no_grad():
            out = self._loop(x, here, apply, every_step=True).out
        return out, Steps(state.length + n, tuple(states), None)


def build(case: Case, bias: float = 0.0, **options: Any) -> ACTHalting:
    """With this bias tokens take different numbers of steps, often all of them."""
    options = {"max_steps": 4, **options}
    layer = ACTHalting(case.dim, heads=case.h, seed=case.seed, dtype="float64", **options)
    assert layer.halt.bias is not None
    layer.halt.bias.data = np.array([bias])
    return layer


def constant(layer: ACTHalting, prob: float) -> ACTHalting:
    """Give every token this probability at every step."""
    assert layer.halt.bias is not None
    layer.halt.weight.data = np.zeros(layer.halt.weight.shape)
    layer.halt.bias.data = np.array([math.log(prob) - math.log1p(-prob)])
    return layer


@identity("the loop equals one that follows each token alone, with numbers instead of arrays")
def by_tokens(case: Case) -> tuple[Any, Any]:
    left, right = [], []
    for halted in ("copy", "evolve"):
        layer, x = build(case, bias=-0.5, halted=halted), case.tokens()
        # Probabilities far apart, so that some tokens halt well before others.
        layer.halt.weight.data = 2.0 * case.rng().standard_normal((case.dim, 1))
        s, out = x.data.copy(), np.zeros_like(x.data)
        total, steps = np.zeros((case.b, case.t)), np.zeros((case.b, case.t))
        done = np.zeros((case.b, case.t), dtype=bool)
        for t in range(4):
            if done.all():
                break
            u = layer.block.encoded(Tensor(s), t, np.arange(case.t))
            after, old = layer.block.once(u).data, done.copy()
            for b, i in np.ndindex(done.shape):
                if not old[b, i]:
                    score = u.data[b, i] @ layer.halt.weight.data[:, 0] - 0.5
                    prob = 1.0 / (1.0 + math.exp(-score))
                    done[b, i] = total[b, i] + prob > 0.99
                    weight = 1.0 - total[b, i] if done[b, i] else prob
                    total[b, i] += weight
                    steps[b, i] += 1
                    out[b, i] = weight * after[b, i] + (1.0 - weight) * out[b, i]
                if not old[b, i] or halted == "evolve":
                    s[b, i] = after[b, i]
        found = layer.ponder(x)
        left.append(
            np.concatenate([found.out.data, found.states[-1].data, found.steps.data[..., None]], axis=-1)
        )
        right.append(np.concatenate([out, s, steps[..., None]], axis=-1))
    return np.stack(left), np.stack(right)


@identity("weights are 0 or more, 0 once a token has halted, and sum to 1 if it halts within the steps")
def sums(case: Case) -> tuple[Any, Any]:
    found = build(case, bias=1.0, max_steps=9).ponder(case.tokens())
    weights, n = np.stack([w.data for w in found.weights]), found.steps.data
    late = np.arange(len(weights))[:, None, None] >= n
    halted = found.remainders.data > 0.0
    wrong = np.minimum(weights, 0.0) + np.where(late, weights, 0.0)
    total = np.where(halted, weights.sum(axis=0), 1.0)
    return np.concatenate([wrong.ravel(), total.ravel()]), np.repeat([0.0, 1.0], [wrong.size, total.size])


@identity("a probability of 1 at once: one step, and the output is that of the block")
def at_once(case: Case) -> tuple[Any, Any]:
    layer, x = build(case, bias=60.0), case.tokens()
    layer.halt.weight.data = np.zeros_like(layer.halt.weight.data)
    found, expected = layer.ponder(x), layer.block.once(layer.block.encoded(x, 0, np.arange(case.t)))
    return np.append(found.out.data, found.steps.data.mean()), np.append(expected.data, 1.0)


@identity("accumulated, with a probability of 1/T at every step: the mean of the T states")
def mean_of_states(case: Case) -> tuple[Any, Any]:
    layer = constant(build(case, max_steps=7, update="accumulated"), 0.25)
    found = layer.ponder(case.tokens())
    return found.out, np.mean([s.data for s in found.states[:4]], axis=0)


@identity("basic: out = sum over steps of weight_t s_t times the product of (1 - weight) of the later steps")
def closed_form(case: Case) -> tuple[Any, Any]:
    found = build(case).ponder(case.tokens())
    weights = [w.data[..., None] for w in found.weights]
    terms = [
        w * s.data * np.prod([1.0 - later for later in weights[t + 1 :]] or [np.ones_like(w)], axis=0)
        for t, (w, s) in enumerate(zip(weights, found.states))
    ]
    return found.out, sum(terms)


@identity("one probability for each sequence: all its tokens take the same steps, by the mean probability")
def whole_sequences(case: Case) -> tuple[Any, Any]:
    layer, x = build(case, scope="sequence"), case.tokens()
    found = layer.ponder(x)
    prob = ops.sigmoid(layer.halt(layer.block.encoded(x, 0, np.arange(case.t)))).data.mean(axis=1)
    first = np.where(prob > 0.99, 1.0, prob)
    spread = found.steps.data.max(axis=1) - found.steps.data.min(axis=1)
    return np.append(found.weights[0].data, spread), np.append(
        np.broadcast_to(first, (case.b, case.t)), np.zeros(case.b)
    )


@identity("the remainder carries the gradient: dR/dprob = -1 for each step before the last")
def remainder_gradient(case: Case) -> tuple[Any, Any]:
    layer, x = constant(build(case), 0.4), case.tokens()
    # 0.4 + 0.4, then 0.2 remain: R = 1 - 2 prob, and prob' = prob (1 - prob) by the bias.
    layer.ponder(x).remainders.mean().backward()
    assert layer.halt.bias is not None and layer.halt.bias.grad is not None
    return layer.halt.bias.grad.data, np.array([-2.0 * 0.4 * 0.6])


@identity("the loss is its weight times the mean of the steps and remainders")
def loss(case: Case) -> tuple[Any, Any]:
    layer = constant(build(case, loss_weight=0.5), 0.4)
    return layer.auxiliary_loss(case.tokens()), np.array(0.5 * (3 + 0.2))
