"""What a synthetic task is: a generator of questions whose answers are known.

    x, y, w = task.sample(rng, batch)

    x  (batch, N)   integers in 0..V_in-1, what a model reads
    y  (batch, N)   integers in 0..V_out-1, what its output at this position must be; no further shift
    w  (batch, N)   1.0 where the output counts, else 0.0

A model is scored by its cross entropy and its accuracy at the positions that count.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

Sample = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]


class Task(Protocol):
    """One task. One generator state gives one sample, bit for bit.

    Attributes:
        V_in, V_out: how many symbols there are in x and in y. N: length.
        causal: whether no answer needs what comes after it, so that a language model can learn it.
        chance: accuracy of the best guess that does not look at x.
    """

    @property
    def V_in(self) -> int: ...
    @property
    def V_out(self) -> int: ...
    @property
    def N(self) -> int: ...
    @property
    def causal(self) -> bool: ...
    @property
    def chance(self) -> float: ...
    def sample(self, rng: np.random.Generator, batch: int) -> Sample:
        """A batch of questions, their answers, and where they count."""

    def oracle(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The answers (batch, N) to x (batch, N), found another way; 0 where none counts."""
