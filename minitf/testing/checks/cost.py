"""What it costs, by counting, and whether the kernels of backends compute the same."""

from __future__ import annotations

import math
import re

import numpy as np

from minitf import ops
from minitf.engine import Array, no_grad
from minitf.nn import Case
from minitf.ops.kernels import BackendError
from minitf.profile import profile

from ..subject import Subject
from .core import CALLED, LAYERS, ROUNDING, check, difference, gradients_of, run, trainable


def growth(complexity: str, n: float) -> float:
    """The fastest growing factor of N in a complexity such as "8 N D^2 + 4 N w D", "N^2 d", "5 N log N D".

    Other letters are constants. 1 where N does not occur.
    """
    largest = 0.0
    for term in complexity.split("+"):
        value = 1.0
        for power in re.findall(r"\bN(?:\^([0-9.]+))?(?![\w^])", term):
            value *= n ** float(power or 1)
        if re.search(r"log2?\(? ?N\b", term):
            # The N inside the logarithm was counted as a factor.
            value *= math.log2(n) / n
        if re.search(r"sqrt\(? ?N\b", term):
            value *= n**-0.5
        largest = max(largest, value)
    return largest


def states_a_growth(subject: Subject) -> str:
    card = subject.card
    if card is None or not re.search(r"\bN\b", card.complexity):
        return "no card says how its cost grows with N"
    return "its card leaves the cost to its branches" if "branches" in card.complexity else ""


@check(kinds=LAYERS, needs=states_a_growth, share=0.0)
def cost_grows_as_stated(subject: Subject, case: Case) -> None:
    """Counted floating-point operations grow with the number of tokens as the card says."""
    assert subject.card is not None
    # Large against the width of 8, so that the highest power leads; whole windows of the usual sides.
    sides = (28, 56) if subject.axes == 2 else (256, 512)
    counted, tokens = [], []
    for side in sides:
        here = Case(1, side, 1, 8, case.seed, w=side)
        layer, x = subject.layer(here, "float32"), subject.inputs(here, "float32")
        with no_grad(), profile() as p:
            run(layer, x)
        counted.append(p.flops)
        tokens.append(side**subject.axes)
    factor = tokens[1] / tokens[0]
    measured = math.log(counted[1] / counted[0], factor)
    stated = math.log(
        growth(subject.card.complexity, tokens[1]) / growth(subject.card.complexity, tokens[0]), factor
    )
    assert abs(measured - stated) <= 0.2, (
        f"from N={tokens[0]} to {tokens[1]} the operations grow as N^{measured:.2f}, but the card's "
        f"{subject.card.complexity!r} as N^{stated:.2f}"
    )


def has_kernels(subject: Subject) -> str:
    able = [name for name, module in ops.kernels.backends().items() if not module.unavailable()]
    return "" if able else "no backend can run here"


@check(kinds=CALLED, needs=has_kernels, share=0.1)
def kernels(subject: Subject, case: Case) -> None:
    """Kernels of any backend give the plain results in float64, and in float32 at most twice their error."""

    def results(dtype: str, mode: str) -> list[Array]:
        with ops.kernels.use(mode):
            x = trainable(subject.inputs(case, dtype))
            y = run(subject.layer(case, dtype), x)
            return [y.data, *gradients_of(y, x)]

    exact, plain = results("float64", "reference"), results("float32", "reference")
    for name, module in ops.kernels.backends().items():
        if module.unavailable():
            continue
        try:
            fast, single = results("float64", name), results("float32", name)
        except BackendError:
            # This backend says why it cannot take such arguments; the plain code would run.
            continue
        for i, (a, b) in enumerate(zip(fast, exact)):
            what = "the output" if i == 0 else f"the gradient of input {i - 1}"
            error = difference(a, b)
            assert error <= ROUNDING, f"{name}: {what} differs from the plain code by {error:.2g}"
            error, allowed = difference(single[i], b), difference(plain[i], b)
            # A result that the plain code happens to round perfectly still leaves the kernel a few roundings.
            allowed = 2 * allowed + 16 * float(np.finfo("float32").eps)
            assert error <= allowed, f"{name}: {what} in float32 is off by {error:.2g}, allowed {allowed:.2g}"
