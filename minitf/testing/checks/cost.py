"""What it costs, by counting."""

from __future__ import annotations

import math
import re

from minitf.engine import no_grad
from minitf.nn import Case
from minitf.profile import profile

from ..subject import Subject
from .core import LAYERS, check, run


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


@check(kinds=(*LAYERS, "token_reducer"), needs=states_a_growth, share=0.0)
def cost_grows_as_stated(subject: Subject, case: Case) -> None:
    """Counted floating-point operations grow with the number of tokens as the card says."""
    assert subject.card is not None
    # Large against the width, so that the highest power leads; whole windows of the usual sides.
    sides, d = ((28, 56), 8) if subject.axes == 2 else ((1024, 2048), 4)
    counted, tokens = [], []
    for side in sides:
        here = Case(1, side, 1, d, case.seed, w=side)
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
    # Lower powers still pull a little at these sizes.
    assert abs(measured - stated) <= 0.25, (
        f"from N={tokens[0]} to {tokens[1]} the operations grow as N^{measured:.2f}, but the card's "
        f"{subject.card.complexity!r} as N^{stated:.2f}"
    )
