"""Copy: repeat a sequence of symbols after a separator.

    x = s_1 s_2 ... s_n SEP s_1 ... s_{n-1}
    y =                 s_1 s_2 ... s_n           scored from SEP on

Symbols are 0..v-1, independent and uniform; SEP is v. The last symbol is not in x: nothing follows it.
Chance is 1/v, a loss of ln v.
Source: a standard test of memory, as in Neural Turing Machines, Graves et al., arXiv:1410.5401, 2014.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minitf.tasks.task import Sample


@dataclass(frozen=True)
class Copy:
    """The task with `n` symbols of an alphabet of `v`. See `minitf.tasks.task.Task`.

    Raises:
        ValueError: n or v below 1.
    """

    n: int = 16
    v: int = 10
    causal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.n < 1 or self.v < 1:
            raise ValueError(f"copy needs n and v of at least 1, not n={self.n} and v={self.v}")

    @property
    def V_in(self) -> int:
        """The alphabet and the separator."""
        return self.v + 1

    @property
    def V_out(self) -> int:
        """As many as V_in, though the separator is never an answer."""
        return self.v + 1

    @property
    def N(self) -> int:
        """2 n."""
        return 2 * self.n

    @property
    def chance(self) -> float:
        """1 / v."""
        return 1.0 / self.v

    def sample(self, rng: np.random.Generator, batch: int) -> Sample:
        """x, y, w, each (batch, 2 n)."""
        n, v = self.n, self.v
        s = rng.integers(0, v, size=(batch, n))
        # s_1 .. s_n SEP s_1 .. s_{n-1}: (batch, 2 n)
        x = np.concatenate([s, np.full((batch, 1), v), s[:, :-1]], axis=1)
        y, w = np.zeros_like(x), np.zeros(x.shape)
        y[:, n:], w[:, n:] = s, 1.0
        return x, y, w

    def oracle(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The symbol n positions back."""
        y = np.zeros_like(x)
        for row in range(len(x)):
            for t in range(self.n, 2 * self.n):
                y[row, t] = x[row, t - self.n]
        return y
