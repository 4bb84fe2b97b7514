"""Multi-query associative recall: read pairs of key and value, then name the value of keys that come again.

    x = k_1 v_1 ... k_K v_K   0 0 k_7 0 k_2 0 0 0 k_5 0 ...
    y =                           v_7   v_2       v_5            scored at the keys that come again

Ids: 0 fills, 1 .. V/2-1 are keys, V/2 .. V-1 are values. Keys and values are drawn without replacement. After
the pairs come slots of two tokens; each key stands first in a slot g of its own, drawn without replacement
with probability proportional to a (g+1)^(a-1): a = 1 is uniform, a small `a` prefers early slots. The value
is not shown again.

`rewritten`: so many of the keys get a second pair after all first ones; the later value is the answer.
`compositional`: a key is two tokens from a grid of sqrt(K) x sqrt(K), so that neither tells the value; pairs
and slots then have three tokens, and the answer stands at the second token of the key.
`random_fillers`: any ids in place of 0, as the published code has it; but none that is a key of its row,
which would be a question without an answer.

Chance is 1 / (number of values), or 1/K for a model that knows which values occur.
Source: Zoology, Arora et al., arXiv:2312.04927, 2023; HazyResearch/zoology zoology/data/multiquery_ar.py.
Differs from the code: fillers are 0 unless asked otherwise, and never equal a key of the row; the code also
wants V > N, which nothing needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minitf.tasks.task import Sample


@dataclass(frozen=True)
class MQAR:
    """The task with `k` pairs in `length` tokens of `vocab` ids. See `minitf.tasks.task.Task`.

    Raises:
        ValueError: numbers that do not fit; the message says which.
    """

    vocab: int = 8192
    length: int = 64
    k: int = 8
    a: float = 0.01
    rewritten: int = 0
    compositional: bool = False
    random_fillers: bool = False
    causal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        side = math.isqrt(self.k)
        if self.k < 1 or not self.a > 0.0 or not 0 <= self.rewritten <= self.k:
            raise ValueError(
                f"MQAR needs k >= 1, a > 0 and rewritten in 0..k, not k={self.k}, a={self.a}, "
                f"rewritten={self.rewritten}"
            )
        if self.length % 2 or self.slots < self.k:
            raise ValueError(
                f"MQAR needs an even length with room for the pairs and a slot for every key: "
                f"length={self.length} has {max(self.slots, 0)} slots after the pairs, and k={self.k} keys"
            )
        if self.compositional and side * side != self.k:
            raise ValueError(f"MQAR: compositional keys need a square number k, not {self.k}")
        tokens = 2 * side if self.compositional else self.k
        if self.first_value - 1 < tokens or self.vocab - self.first_value < self.k + self.rewritten:
            raise ValueError(
                f"MQAR needs {tokens} keys and {self.k + self.rewritten} values, and vocab={self.vocab} has "
                f"{self.first_value - 1} and {self.vocab - self.first_value}"
            )

    @property
    def width(self) -> int:
        """Tokens of a pair, and of a slot."""
        return 3 if self.compositional else 2

    @property
    def slots(self) -> int:
        """Slots after the pairs."""
        return (self.length - self.width * (self.k + self.rewritten)) // self.width

    @property
    def first_value(self) -> int:
        """The lowest id of a value."""
        return self.vocab // 2

    @property
    def V_in(self) -> int:
        """All ids."""
        return self.vocab

    @property
    def V_out(self) -> int:
        """All ids, though only values are answers."""
        return self.vocab

    @property
    def N(self) -> int:
        """The length."""
        return self.length

    @property
    def chance(self) -> float:
        """1 / (number of values)."""
        return 1.0 / (self.vocab - self.first_value)

    def sample(self, rng: np.random.Generator, batch: int) -> Sample:
        """x, y, w, each (batch, N)."""
        k, width, pairs = self.k, self.width, self.k + self.rewritten
        keys = self.keys(rng, batch)
        # The keys of all pairs (batch, pairs, width-1): those that are written again come last.
        written = np.concatenate([keys, keys[:, : self.rewritten]], axis=1)
        values = self.first_value + distinct(rng, batch, self.vocab - self.first_value, pairs)
        answers = values[:, :k].copy()
        answers[:, : self.rewritten] = values[:, k:]
        x = np.zeros((batch, self.length), dtype=np.int64)
        x[:, : width * pairs] = np.concatenate([written, values[..., None]], axis=2).reshape(batch, -1)
        # Drawing without replacement by weights p: the k largest of log p + Gumbel noise. (batch, slots)
        log_p = (self.a - 1.0) * np.log(np.arange(1, self.slots + 1))
        slot = np.argsort(-(log_p + rng.gumbel(size=(batch, self.slots))), axis=1)[:, :k]
        start = width * (pairs + slot)  # (batch, k)
        rows = np.arange(batch)[:, None]
        for i in range(width - 1):
            x[rows, start + i] = keys[:, :, i]
        if self.random_fillers:
            fill = rng.integers(0, self.vocab, size=x.shape)
            of_row = (fill[:, :, None] == keys.reshape(batch, 1, -1)).any(axis=2)
            x = np.where((x == 0) & ~of_row, fill, x)
        y, w = np.zeros_like(x), np.zeros(x.shape)
        y[rows, start + width - 2], w[rows, start + width - 2] = answers, 1.0
        return x, y, w

    def keys(self, rng: np.random.Generator, batch: int) -> np.ndarray[Any, Any]:
        """Different keys, (batch, k, width - 1)."""
        if not self.compositional:
            return 1 + distinct(rng, batch, self.first_value - 1, self.k)[..., None]
        side = math.isqrt(self.k)
        tokens = 1 + distinct(rng, batch, self.first_value - 1, 2 * side)
        # All k cells of the grid, in an order of its own for each row.
        cell = distinct(rng, batch, self.k, self.k)
        first = np.take_along_axis(tokens, cell // side, axis=1)
        return np.stack([first, np.take_along_axis(tokens, side + cell % side, axis=1)], axis=2)

    def oracle(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The answers by a dictionary for each row."""
        width, y = self.width, np.zeros_like(x)
        after = width * (self.k + self.rewritten)
        for row, ids in enumerate(x.tolist()):
            known = {tuple(ids[i : i + width - 1]): ids[i + width - 1] for i in range(0, after, width)}
            for i in range(after, self.length - width + 1, width):
                y[row, i + width - 2] = known.get(tuple(ids[i : i + width - 1]), 0)
        return y


def distinct(rng: np.random.Generator, batch: int, n: int, count: int) -> np.ndarray[Any, Any]:
    """`count` different integers in 0..n-1 for each row, (batch, count), uniform and in random order."""
    return np.argsort(rng.random((batch, n)), axis=1)[:, :count]
