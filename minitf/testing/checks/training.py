"""What training relies on: seeded randomness, and a gradient for every parameter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from minitf.engine import Array
from minitf.nn import Case, Module

from ..subject import Subject
from .core import LAYERS, MIXERS, check, close, gradients_of, run, trainable


def moved(layer: Any, rng: np.random.Generator) -> Any:
    """The layer with all parameters off the zeros that block the way at the start of training."""
    for p in layer.parameters() if isinstance(layer, Module) else ():
        p.data = p.data + 0.1 * rng.standard_normal(p.shape)
    return layer


@check(kinds=(*LAYERS, *MIXERS, "token_reducer"), share=0.2, size="medium")
def seeded_training(subject: Subject, case: Case) -> None:
    """In training mode all that is random comes from `rng` or the seed; dropout acts there and only there."""
    case = replace(case, b=2, t=max(case.t, 9 if subject.axes == 1 else 3))
    options: dict[str, Any] = {"dropout": 0.5} if "dropout" in subject.accepts else {}
    x, given = subject.inputs(case), "rng" in subject.keywords

    def outputs(seed: int) -> Array:
        layer = moved(subject.layer(case, **options), case.rng())
        if isinstance(layer, Module):
            layer.train()
        return run(layer, x, **({"rng": np.random.default_rng(seed)} if given else {})).data

    first = outputs(case.seed)
    assert np.array_equal(first, outputs(case.seed)), "in training mode, two runs of one seed differ"
    if options and given:
        assert not np.array_equal(first, outputs(case.seed + 1)), "dropout=0.5 drops nothing in training mode"
        resting, plain = run(subject.layer(case, **options), x), run(subject.layer(case), x)
        close(resting, plain, "in eval mode, dropout=0.5 and no dropout differ", 0.0)


def has_parameters(subject: Subject) -> str:
    layer = subject.layer(Case())
    return "" if isinstance(layer, Module) and layer.parameters() else "it has no parameters"


@check(kinds=(*LAYERS, "token_reducer"), needs=has_parameters, share=0.0)
def every_parameter_learns(subject: Subject, case: Case) -> None:
    """Every parameter gets a gradient from some input: what gets none should be a buffer, or is forgotten."""
    idle: set[str] | None = None
    for seed in range(4):
        here = replace(case, b=4, t=20 if subject.axes == 1 else 4, seed=seed)
        layer = moved(subject.layer(here), here.rng())
        x = trainable(subject.inputs(here))
        gradients_of(run(layer, x), x)
        found = {n for n, p in layer.named_parameters() if p.grad is None or not np.any(p.grad.data)}
        idle = found if idle is None else idle & found
        if not idle:
            return
    assert not idle, f"no gradient reaches {', '.join(sorted(idle))}"
