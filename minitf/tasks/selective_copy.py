"""Selective copy: pick the symbols out of blanks that stand between them at random, and repeat them in order.

    x = _ s_1 _ _ s_2 ... s_k _ | COPY _ _ ... _               slots="blank": k blanks after COPY
    x = _ s_1 _ _ s_2 ... s_k _ | COPY s_1 s_2 ... s_{k-1}     slots="previous": each answer is shown next
    x = _ s_1 _ _ s_2 ... s_k _ | COPY COPY ... COPY           slots="copy": k times COPY
    y =                           s_1  s_2  ... s_k            scored at the last k positions

T tokens stand before the bar. Symbols are 0..v-1, independent and uniform; the blank is v, COPY is v+1. The k
symbols stand at k of the T places, drawn without replacement. With `even` they stand at the same places in
every row, i T // k for i = 0 .. k-1: each answer is then found at a fixed distance, nothing needs selecting.

Chance is 1/v, a loss of ln v.
Source: Mamba, Gu and Dao, arXiv:2312.00752, 2023, section 4.1.1. slots="blank": athms/mad-lab
mad/data/instances.py (generate_copying_instance); slots="copy": state-spaces/s4
src/dataloaders/datasets/copying.py.
Differs from the code: MAD inserts blanks before random symbols, so that none follows the last; here every
choice of places is equally likely, as in that of S4, whose fixed places are the first k.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minitf.tasks.task import Sample

SLOTS = ("blank", "previous", "copy")


@dataclass(frozen=True)
class SelectiveCopy:
    """The task with `k` symbols of an alphabet of `v` at `T` places. See `minitf.tasks.task.Task`.

    Raises:
        ValueError: k or v below 1, T below k, or unknown slots.
    """

    k: int = 8
    v: int = 8
    T: int = 32
    slots: str = "blank"
    even: bool = False
    causal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.k < 1 or self.v < 1 or self.k > self.T:
            raise ValueError(
                f"selective copy needs k and v of at least 1 and T of at least k, not k={self.k}, "
                f"v={self.v} and T={self.T}"
            )
        if self.slots not in SLOTS:
            raise ValueError(
                f"the slots of selective copy must be one of: {', '.join(SLOTS)}; not {self.slots!r}"
            )

    @property
    def V_in(self) -> int:
        """The alphabet, the blank and COPY."""
        return self.v + 2

    @property
    def V_out(self) -> int:
        """As many as V_in, though the blank and COPY are never answers."""
        return self.v + 2

    @property
    def N(self) -> int:
        """T + 1 + k where blanks follow COPY, else T + k."""
        return self.T + self.k + (self.slots == "blank")

    @property
    def chance(self) -> float:
        """1 / v."""
        return 1.0 / self.v

    def sample(self, rng: np.random.Generator, batch: int) -> Sample:
        """x, y, w, each (batch, N)."""
        k, v, places = self.k, self.v, self.T
        s = rng.integers(0, v, size=(batch, k))
        if self.even:
            at = np.broadcast_to(np.arange(k) * places // k, (batch, k))
        else:
            # The first k of a random order, from left to right: (batch, k)
            at = np.sort(np.argsort(rng.random((batch, places)), axis=1)[:, :k], axis=1)
        x = np.full((batch, self.N), v)
        x[np.arange(batch)[:, None], at] = s
        x[:, places:] = v + 1
        if self.slots == "blank":
            x[:, places + 1 :] = v
        elif self.slots == "previous":
            x[:, places + 1 :] = s[:, :-1]
        y, w = np.zeros_like(x), np.zeros(x.shape)
        y[:, -k:], w[:, -k:] = s, 1.0
        return x, y, w

    def oracle(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Read from the left and skip the blanks."""
        y = np.zeros_like(x)
        for row, ids in enumerate(x.tolist()):
            symbols = [i for i in ids[: self.T] if i < self.v]
            for t, symbol in zip(range(self.N - self.k, self.N), symbols):
                y[row, t] = symbol
        return y
