"""What every layer promises its caller: shapes, seeds, batches, memory, defaults, saved state."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from minitf.engine import Array, Tensor, no_grad
from minitf.nn import Case, Module

from ..subject import Subject
from .core import (
    LAYERS,
    MIXERS,
    ROUNDING,
    check,
    close,
    flat,
    gradients_of,
    run,
    trainable,
)


@check()
def shapes_and_dtypes(subject: Subject, case: Case) -> None:
    """Output and gradients have the shape and dtype of the input, so that layers stack in any precision."""
    for dtype in ("float32", "float64"):
        inputs = trainable(subject.inputs(case, dtype))
        y = run(subject.layer(case, dtype), inputs, **everything_visible(subject, inputs))
        assert isinstance(y, Tensor), f"gave {type(y).__name__}, not a Tensor: no gradient can pass"
        x = inputs[0]
        if subject.kind == "token_reducer":
            (b, n, d), fits = x.shape, y.ndim == 3
            assert fits and y.shape[::2] == (b, d) and 1 <= y.shape[1] <= n, f"input {x.shape} gave {y.shape}"
        elif subject.kind != "operation":
            shape = inputs[-1].shape if subject.kind == "attention_function" else x.shape
            assert y.shape == shape, f"input {shape} gave {y.shape}"
        assert y.dtype == dtype, f"input of {dtype} gave {y.dtype}"
        for v, g in zip(inputs, gradients_of(y, inputs)):
            assert g.shape == v.shape, f"input {v.shape} has a gradient {g.shape}"


@check()
def deterministic(subject: Subject, case: Case) -> None:
    """Two runs, and two layers of one seed, agree bit for bit, whatever was computed between."""
    # NumPy's own generator belongs to the caller.
    before: Any = np.random.get_state()
    layer, x = subject.layer(case), subject.inputs(case)
    y = run(layer, x).data.copy()
    run(layer, tuple(v * 2.0 if v.dtype.kind == "f" else v for v in x))
    same = np.array_equal(run(layer, x).data, y, equal_nan=True)
    assert same, "a second run of one layer differs: it draws or remembers"
    again = subject.layer(case)
    # Another size first: what a layer keeps from a call must not fit that call alone.
    other = replace(case, b=case.b + 1, t=case.t + (0 if "fixed_grid" in subject.claims else 2))
    run(again, subject.inputs(other))
    assert np.array_equal(run(again, x).data, y, equal_nan=True), (
        "two layers of one seed differ, one of which has seen inputs of another size"
    )
    after: Any = np.random.get_state()
    assert after[2] == before[2] and np.array_equal(after[1], before[1]), (
        "it seeds or uses NumPy's global generator"
    )


@check()
def inputs_not_modified(subject: Subject, case: Case) -> None:
    """Inputs and parameters belong to the caller; forward and backward leave them as they are."""
    layer, x = subject.layer(case), trainable(subject.inputs(case))
    before = [v.data.copy() for v in x]
    state = layer.state_dict() if isinstance(layer, Module) else {}
    options = everything_visible(subject, x)
    for mask in options.values():
        mask[...] = case.rng().random(mask.shape) < 0.6
    kept = {key: mask.copy() for key, mask in options.items()}
    y = run(layer, x, **options)
    for key, mask in kept.items():
        assert np.array_equal(options[key], mask), f"forward changed the {key}"
    for i, (v, old) in enumerate(zip(x, before)):
        assert np.array_equal(v.data, old), f"forward changed input {i}"
    gradients_of(y, x)
    for i, (v, old) in enumerate(zip(x, before)):
        assert np.array_equal(v.data, old), f"backward changed input {i}"
    for key in state:
        assert np.array_equal(layer.state_dict()[key], state[key]), f"a run changed {key}"


@check()
def batch_independent(subject: Subject, case: Case) -> None:
    """Each example of a batch gives what it gives alone, and no gradient passes between them."""
    layer, x = subject.layer(case), trainable(subject.inputs(case))
    alone = np.concatenate([run(layer, tuple(v[i : i + 1] for v in x)).data for i in range(case.b)])
    y = run(layer, x)
    close(alone, y, "examples alone and in their batch differ")
    for g in gradients_of(y[:1], x):
        size = np.max(np.abs(g[1:]), initial=0.0)
        assert size <= ROUNDING, f"the gradient of the first example reaches others ({size:.2g})"


@check(kinds=("channel_mixer",))
def token_wise(subject: Subject, case: Case) -> None:
    """A token alone gives what it gives among others, and no gradient passes between them."""
    layer, x = subject.layer(case), trainable(subject.inputs(case))
    alone = np.stack([run(layer, (x[0][:, t],)).data for t in range(case.t)], axis=1)
    y = run(layer, x)
    close(alone, y, "tokens alone and among others differ")
    size = np.max(np.abs(gradients_of(y[:, :1], x)[0][:, 1:]), initial=0.0)
    assert size <= ROUNDING, f"the gradient of the first token reaches others ({size:.2g})"


def views(a: Array) -> list[tuple[str, Array]]:
    """The same values in other layouts of memory: words, and a view."""
    wide = np.zeros((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)
    wide[..., ::2] = a
    return [
        ("in Fortran order", np.asfortranarray(a)),
        ("with negative strides", np.ascontiguousarray(a[..., ::-1])[..., ::-1]),
        ("taken as every second element", wide[..., ::2]),
    ]


@check(share=0.3)
def memory_layout(subject: Subject, case: Case) -> None:
    """Transposed, reversed and strided views give what contiguous arrays give: values and gradients."""
    layer, x = subject.layer(case), trainable(subject.inputs(case))
    y = run(layer, x)
    expected = gradients_of(y, x)
    for i in range(3):
        words = views(x[0].data)[i][0]
        seen = tuple(
            Tensor(views(v.data)[i][1], requires_grad=True) if v.dtype.kind == "f" and v.ndim else v
            for v in x
        )
        y2 = run(layer, seen)
        close(y2, y, f"inputs {words} change the output")
        for k, g in enumerate(gradients_of(y2, seen)):
            if seen[k] is not x[k]:
                close(g, expected[k], f"inputs {words} change the gradient of input {k}")


def everything_visible(subject: Subject, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    """The mask that hides nothing, for subjects that take one."""
    if not subject.masks:
        return {}
    b, n = inputs[0].shape[0], flat(subject, inputs[0]).shape[subject.axis]
    return {"mask": np.ones((b, 1, 1 if "key_masks" in subject.claims else n, n), dtype=bool)}


@check(share=0.5)
def spelled_out_defaults(subject: Subject, case: Case) -> None:
    """A mask that hides nothing, positions from 0 on, an unused generator, no recording: nothing changes."""
    layer, x = subject.layer(case), subject.inputs(case)
    y = run(layer, x)
    with no_grad():
        close(run(layer, x), y, "under no_grad the output differs")
    options: list[tuple[str, dict[str, Any]]] = []
    if subject.kind in MIXERS and subject.masks:
        options.append(("with a mask that hides nothing", everything_visible(subject, x)))
    if subject.kind == "token_mixer" and subject.axes == 1 and "positions" in subject.keywords:
        options.append(("with positions 0, 1, 2, ...", {"positions": np.arange(x[0].shape[1])}))
    if "rng" in subject.keywords:
        options.append(("with a generator in eval mode", {"rng": np.random.default_rng(0)}))
    for words, option in options:
        close(run(layer, x, **option), y, f"{words} the output differs")


@check(kinds=(*LAYERS, "token_reducer", "operation", "position"), share=0.2)
def state_dict_round_trip(subject: Subject, case: Case) -> None:
    """What is saved is all there is: loaded into a layer of another seed it gives the same outputs."""
    one, two = subject.layer(case), subject.layer(replace(case, seed=case.seed + 1))
    assert isinstance(one, Module), f"{type(one).__name__} has no state_dict: derive it from minitf.nn.Module"
    state = one.state_dict()
    if subject.kind != "position":
        # What it keeps from a run must not outlive the parameters that it came from.
        run(two, subject.inputs(case))
    two.load_state_dict(state)
    for key, value in two.state_dict().items():
        assert np.array_equal(value, state[key]), f"{key} did not survive the round trip"
    if subject.kind != "position":
        x = subject.inputs(case)
        close(run(two, x), run(one, x), "with its state loaded another layer differs: not all is saved", 0.0)
