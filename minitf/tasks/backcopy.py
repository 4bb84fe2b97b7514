"""Bigram-Backcopy: text of a Markov chain, in which some symbols repeat what stood before them.

    x_0 = BOS    x_1 ~ pi without the triggers
    x_{t+1} = x_{t-1}       if x_t is a trigger: copy the symbol before it
    x_{t+1} ~ P[x_t]        otherwise
    y_t = x_{t+1}           scored everywhere but at BOS

Symbols are 0..v-1, BOS is v. Each row of P is drawn from a Dirichlet law, once for each `seed`: P is part of
the task, not of the sample. pi = pi P is its stationary law, and the triggers are the symbols of largest pi.
Two triggers never stand side by side, and none follows BOS.

What follows a trigger is certain; what follows another symbol is not, so that a loss of 0 is out of reach.
The least expected loss is the entropy H(P[x_t]) where x_t is no trigger, averaged over all scored positions:
`entropy`, without sampling. `predict` gives the probabilities that reach it. Chance is the accuracy of the
symbol that is most frequent as an answer.
Source: Active-Dormant Attention Heads, Guo et al., arXiv:2410.13835, 2024;
GuoTianYu2000/Active-Dormant-Attention BBM/data.py.
Differs from the code: a random table in place of the character pairs of a play.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from minitf.tasks.task import Sample

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class BigramBackcopy:
    """The task with `n` tokens of `v` symbols, of which `triggers` copy. See `minitf.tasks.task.Task`.

    `concentration` is the parameter of the Dirichlet law: small ones give rows with few likely symbols.

    Raises:
        ValueError: numbers out of range.
    """

    n: int = 64
    v: int = 16
    triggers: int = 3
    concentration: float = 0.3
    seed: int = 0
    causal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.n < 2 or not 0 <= self.triggers < self.v or not self.concentration > 0.0:
            raise ValueError(
                f"bigram backcopy needs n >= 2, triggers in 0..v-1 and concentration > 0, not n={self.n}, "
                f"triggers={self.triggers}, v={self.v}, concentration={self.concentration}"
            )

    @property
    def V_in(self) -> int:
        """The symbols and BOS."""
        return self.v + 1

    @property
    def V_out(self) -> int:
        """As many as V_in, though BOS is never an answer."""
        return self.v + 1

    @property
    def N(self) -> int:
        """n."""
        return self.n

    @cached_property
    def P(self) -> Array:
        """P[i, j] is the probability of j after i, where i is no trigger: (v, v)."""
        rng = np.random.default_rng(self.seed)
        return rng.dirichlet(np.full(self.v, self.concentration), size=self.v)

    @cached_property
    def pi(self) -> Array:
        """The stationary law of P, (v,): pi P = pi, and its sum is 1."""
        equations = np.vstack([self.P.T - np.eye(self.v), np.ones(self.v)])
        return np.linalg.lstsq(equations, np.append(np.zeros(self.v), 1.0), rcond=None)[0].clip(min=0.0)

    @cached_property
    def is_trigger(self) -> Array:
        """Which ids are triggers, BOS among the ids: (v + 1,)."""
        return np.isin(np.arange(self.v + 1), np.argsort(-self.pi, kind="stable")[: self.triggers])

    @cached_property
    def first(self) -> Array:
        """The law of x_1: pi without the triggers, (v,)."""
        law = np.where(self.is_trigger[: self.v], 0.0, self.pi)
        return law / law.sum()

    @cached_property
    def laws(self) -> Array:
        """The law of x_t for t = 1 .. n, exactly, (n, v)."""
        trigger = self.is_trigger[: self.v]
        # pairs[a, b]: the probability that x_{t-1} = a and x_t = b. What comes before x_1 is never copied.
        pairs, laws = np.outer(self.first, self.first), [self.first]
        for _ in range(self.n - 1):
            drawn = (pairs.sum(axis=0) * ~trigger)[:, None] * self.P
            pairs = drawn + (pairs * trigger).T  # a b a: the pair (a, b) becomes (b, a)
            laws.append(pairs.sum(axis=0))
        return np.stack(laws)

    @cached_property
    def entropy(self) -> float:
        """The least expected loss, in nats for each scored position."""
        surprise = -(self.P * np.log(np.where(self.P > 0.0, self.P, 1.0))).sum(axis=1)
        surprise[self.is_trigger[: self.v]] = 0.0
        return float((self.laws[:-1] @ surprise).mean())

    @property
    def chance(self) -> float:
        """The share of the most frequent answer."""
        return float(self.laws[1:].mean(axis=0).max())

    def sample(self, rng: np.random.Generator, batch: int) -> Sample:
        """x, y, w, each (batch, n)."""
        text = np.full((batch, self.n + 1), self.v)
        # An inverse of the cumulative law: the number of symbols whose cumulative probability u has passed.
        u = rng.random((batch, self.n, 1))
        text[:, 1] = (u[:, 0] >= np.cumsum(self.first)[:-1]).sum(axis=1)
        below = np.cumsum(self.P, axis=1)[:, :-1]
        for t in range(1, self.n):
            drawn = (u[:, t] >= below[text[:, t]]).sum(axis=1)
            text[:, t + 1] = np.where(self.is_trigger[text[:, t]], text[:, t - 1], drawn)
        x, y, w = text[:, :-1].copy(), text[:, 1:].copy(), np.ones((batch, self.n))
        y[:, 0], w[:, 0] = 0, 0.0
        return x, y, w

    def predict(self, x: Array) -> Array:
        """The true probabilities of what comes next, (batch, n, v + 1). No model can do better."""
        after = np.zeros((self.v + 1, self.v + 1))
        after[: self.v, : self.v], after[self.v, : self.v] = self.P, self.first
        p = after[x]
        copied = np.eye(self.v + 1)[np.roll(x, 1, axis=1)]  # at 0 stands BOS, which is no trigger
        return np.where(self.is_trigger[x][..., None], copied, p)

    def oracle(self, x: Array) -> Array:
        """The symbol to copy after a trigger, the most probable symbol elsewhere, 0 at BOS."""
        y = np.zeros_like(x)
        for row, ids in enumerate(x.tolist()):
            for t in range(1, self.n):
                y[row, t] = ids[t - 1] if self.is_trigger[ids[t]] else self.P[ids[t]].argmax()
        return y
