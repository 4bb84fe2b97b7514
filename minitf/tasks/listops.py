"""ListOps: the value of a nested expression of MIN, MAX, MED and SM over digits.

    tree(depth)  = digit                              with probability `leaf`, and always at max_depth
                   [op tree ... tree X                else: 2 .. max_args arguments, each at depth + 1
    MED = int(median), SM = sum modulo 10

    x = CLS [MAX 2 9 [MIN 4 7 X 0 X PAD PAD          y_0 = 9, scored at CLS only

Ids: PAD 0, digits 1..10, MIN MAX MED SM 11..14, X (the end of an operator) 15, CLS 16. The length counts
digits, operators and ends, not CLS; trees are drawn until one has a length in min_length..max_length. The
root is an operator. The answer needs what comes after CLS, so the model must not be causal.

The defaults are a small version that a laptop learns: expressions of depth 2, most of them nested. The
published one is ListOps(max_depth=10, max_args=10, leaf=0.75, min_length=501, max_length=1999,
operator_root=False).
Chance is the share of the most frequent value, which is not 1/10: it is counted over 10,000 samples.
Source: Long Range Arena, Tay et al., arXiv:2011.04006, 2020; google-research/long-range-arena
lra_benchmarks/data/listops.py. ListOps itself: Nangia and Bowman, arXiv:1804.06028, 2018.
Differs from the code: the small defaults; an operator as root; length limits belong to the range.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any, ClassVar

import numpy as np

from minitf.tasks.task import Sample

PAD, DIGIT, OPERATOR, END, CLS = 0, 1, 11, 15, 16
OPERATORS: dict[str, Callable[[list[int]], int]] = {
    "MIN": min,
    "MAX": max,
    # The mean of the two middle values, cut to an integer.
    "MED": lambda values: int(median(values)),
    "SM": lambda values: sum(values) % 10,
}
FUNCTIONS = tuple(OPERATORS.values())
# An expression that was drawn: its tokens and its value.
Tree = tuple[list[int], int]


@dataclass(frozen=True)
class ListOps:
    """The task with these limits. See `minitf.tasks.task.Task`.

    Raises:
        ValueError: limits that leave no expression.
    """

    max_depth: int = 3
    max_args: int = 2
    leaf: float = 0.5
    min_length: int = 4
    max_length: int = 10
    operator_root: bool = True
    V_in: ClassVar[int] = 17
    V_out: ClassVar[int] = 10
    causal: ClassVar[bool] = False

    def __post_init__(self) -> None:
        longest = 1
        for _ in range(self.max_depth - 1):
            longest = 2 + self.max_args * longest
        least = 4 if self.operator_root else 1
        if self.max_depth < 2 or self.max_args < 2 or not 0.0 <= self.leaf < 1.0:
            raise ValueError(
                "ListOps needs max_depth >= 2, max_args >= 2 and leaf in [0, 1), not "
                f"max_depth={self.max_depth}, max_args={self.max_args}, leaf={self.leaf}"
            )
        if not self.min_length <= self.max_length or self.min_length > longest or self.max_length < least:
            raise ValueError(
                f"ListOps: no expression has {self.min_length}..{self.max_length} tokens; at this depth and "
                f"with so many arguments they have {least}..{longest}"
            )

    @property
    def N(self) -> int:
        """CLS and the longest expression."""
        return 1 + self.max_length

    @cached_property
    def chance(self) -> float:
        """The share of the most frequent value."""
        values = self.sample(np.random.default_rng(0), 10_000)[1][:, 0]
        return float(np.bincount(values).max() / len(values))

    def sample(self, rng: np.random.Generator, batch: int) -> Sample:
        """x, y, w, each (batch, N)."""
        x = np.full((batch, self.N), PAD)
        y, w = np.zeros_like(x), np.zeros(x.shape)
        for row in range(batch):
            tokens, y[row, 0] = self.expression(rng)
            x[row, : 1 + len(tokens)] = [CLS, *tokens]
        w[:, 0] = 1.0
        return x, y, w

    def expression(self, rng: np.random.Generator) -> Tree:
        """One expression whose length is in range."""
        while True:
            found = self.tree(rng, 1, self.operator_root)
            if self.min_length <= len(found[0]) <= self.max_length:
                return found

    def tree(self, rng: np.random.Generator, depth: int, operator: bool = False) -> Tree:
        """One expression whose root is at `depth`; with `operator`, it is not a digit."""
        if not operator and (depth >= self.max_depth or rng.random() < self.leaf):
            digit = int(rng.integers(10))
            return [DIGIT + digit], digit
        parts = [self.tree(rng, depth + 1) for _ in range(int(rng.integers(2, self.max_args + 1)))]
        which = int(rng.integers(len(FUNCTIONS)))
        tokens = [OPERATOR + which, *(token for part, _ in parts for token in part), END]
        return tokens, FUNCTIONS[which]([value for _, value in parts])

    def oracle(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The values by a stack, read from left to right."""
        y = np.zeros_like(x)
        for row, ids in enumerate(x.tolist()):
            stack: list[list[int]] = [[]]
            for token in ids:
                if DIGIT <= token < OPERATOR:
                    stack[-1].append(token - DIGIT)
                elif OPERATOR <= token < END:
                    stack.append([token - OPERATOR])
                elif token == END:
                    which, *values = stack.pop()
                    stack[-1].append(FUNCTIONS[which](values))
            y[row, 0] = stack[0][0]
        return y


def to_words(ids: Any) -> str:
    """The expression as people write it: `[MAX 2 9 ]`."""
    names = ["", *map(str, range(10)), *(f"[{name}" for name in OPERATORS), "]", ""]
    return " ".join(names[i] for i in ids if names[i])
