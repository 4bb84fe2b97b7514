"""What every variant must do: build, keep its card true, hold its identities, differentiate, stream."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minitf as mt
from minitf.nn import Case

ENTRIES = mt.catalogue.find()
NAMES = [e.name for e in ENTRIES]
MIXERS = [e.name for e in ENTRIES if e.card.kind in ("attention", "mixer", "block")]
TOKEN_WISE = [e.name for e in ENTRIES if e.card.kind in ("ffn", "norm")]
IDENTITIES = [(e.name, i) for e in ENTRIES for i in e.identities()]

cases = st.builds(
    Case,
    b=st.integers(1, 3),
    t=st.integers(1, 9),
    h=st.sampled_from([1, 2, 4]),
    d=st.integers(1, 4).map(lambda n: 2 * n),
    seed=st.integers(0, 2**32 - 1),
)


def make(name: str, case: Case, **options: object) -> mt.nn.Module:
    return mt.build(name, case.dim, heads=case.h, seed=case.seed, dtype="float64", **options).eval()


@pytest.mark.parametrize(("name", "identity"), IDENTITIES, ids=[f"{n}: {i.words}" for n, i in IDENTITIES])
@settings(max_examples=12)
@given(case=cases)
def test_identity(name: str, identity: mt.nn.Identity, case: Case) -> None:
    error = identity.error(case)
    assert error <= identity.tolerance, (
        f"{name}: {identity.words}: the sides differ by {error:.2g} for {case}"
    )


@pytest.mark.parametrize("entry", ENTRIES, ids=NAMES)
def test_card_is_complete(entry: mt.catalogue.Entry) -> None:
    assert len(entry.identities()) >= 2, f"{entry.name} needs at least two identities"
    cls = entry.load()
    assert cls.card == entry.card, (
        f"the index does not agree with the card of {entry.name}: run minitf.catalogue.generate"
    )
    assert entry.card.streams == hasattr(cls, "step"), (
        f"{entry.name}: streams and the step method must go together"
    )
    source = entry.source()
    assert "Source:" in entry.doc(), f"the docstring of {entry.name} names no source"
    definition = source.split("@identity(")[0].count("\n")
    assert definition <= 260, (
        f"{entry.name}: {definition} lines before its identities are too many for one sitting"
    )


@pytest.mark.parametrize("name", MIXERS + TOKEN_WISE)
@settings(max_examples=15)
@given(case=cases)
def test_shape_dtype_purity(name: str, case: Case) -> None:
    for dtype in ("float32", "float64"):
        layer = mt.build(name, case.dim, heads=case.h, seed=case.seed, dtype=dtype)
        x = case.tokens().astype(dtype)
        before = x.data.copy()
        y = layer(x)
        assert y.shape == x.shape and y.dtype == x.dtype, (
            f"{name}: {x.shape} {x.dtype} became {y.shape} {y.dtype}"
        )
        assert np.array_equal(x.data, before), f"{name} changed its input"
        assert np.array_equal(layer(x).data, y.data), f"{name}: two runs differ"
        again = mt.build(name, case.dim, heads=case.h, seed=case.seed, dtype=dtype)
        assert np.array_equal(again(x).data, y.data), f"{name}: two layers of one seed differ"


@pytest.mark.parametrize("name", MIXERS + TOKEN_WISE)
@settings(max_examples=15)
@given(case=cases)
def test_batch_independence(name: str, case: Case) -> None:
    layer, x = make(name, case), case.tokens()
    rows = np.concatenate([layer(x[i : i + 1]).data for i in range(case.b)])
    error = np.max(np.abs(rows - layer(x).data))
    assert error <= 1e-12, f"{name}: examples of a batch influence each other by {error:.2g}"


@pytest.mark.parametrize("name", [n for n in MIXERS if mt.catalogue[n].card.causal])
@settings(max_examples=15)
@given(case=cases, data=st.data())
def test_no_leak_from_the_future(name: str, case: Case, data: st.DataObject) -> None:
    t = data.draw(st.integers(0, case.t - 1))
    layer, x = make(name, case), case.tokens()
    changed = x.data.copy()
    changed[:, t:] = 9.0 - changed[:, t:]
    error = np.max(np.abs(layer(mt.tensor(changed))[:, :t].data - layer(x)[:, :t].data), initial=0.0)
    assert error == 0.0, f"{name}: outputs before token {t} moved by {error:.2g} when it changed"
    x = mt.tensor(x.data, requires_grad=True)
    (layer(x)[:, :t] * 1.5).sum().backward()
    late = np.max(np.abs(x.grad.data[:, t:]), initial=0.0)
    assert late == 0.0, f"{name}: gradients of outputs before {t} reach later tokens"


@pytest.mark.parametrize("name", TOKEN_WISE)
@given(case=cases)
def test_token_wise(name: str, case: Case) -> None:
    layer, x = make(name, case), case.tokens()
    alone = np.stack([layer(x[:, t]).data for t in range(case.t)], axis=1)
    error = np.max(np.abs(alone - layer(x).data))
    assert error <= 1e-12, f"{name}: tokens influence each other by {error:.2g}"


@pytest.mark.parametrize("name", [n for n in MIXERS if mt.catalogue[n].card.streams])
@settings(max_examples=15)
@given(case=cases, data=st.data())
def test_streaming(name: str, case: Case, data: st.DataObject) -> None:
    split = data.draw(st.integers(0, case.t))
    layer, x = make(name, case), case.tokens()
    rows, state = [], layer.start(batch=case.b)
    if split:
        y, state = layer.prefill(x[:, :split], state)
        rows = [y[:, i] for i in range(split)]
    branch = state
    for i in range(split, case.t):
        y, state = layer.step(x[:, i], state)
        rows.append(y)
    error = np.max(np.abs(mt.ops.stack(rows, axis=1).data - layer(x).data))
    assert error <= 1e-10, (
        f"{name}: {split} tokens prefilled, then steps, differ from the parallel form by {error:.2g}"
    )
    if split < case.t:
        # A state may be continued twice: the first continuation must not have written into it.
        y, _ = layer.step(x[:, split], branch)
        error = np.max(np.abs(y.data - rows[split].data))
        assert error <= 1e-12, f"{name}: continuing a state a second time differs by {error:.2g}"


@pytest.mark.parametrize("name", MIXERS + TOKEN_WISE)
@pytest.mark.parametrize("case", [Case(2, 3, 2, 2, 1), Case(1, 1, 1, 4, 2)], ids=str)
def test_gradients(name: str, case: Case) -> None:
    layer = make(name, case)
    parameters = layer.parameters()

    def f(x: mt.Tensor, *values: mt.Tensor) -> mt.Tensor:
        for (owner, key), value in zip(slots, values, strict=True):
            setattr(owner, key, value)
        return layer(x)

    # The module's parameters become arguments, so that every one of them is checked.
    slots = [
        (module, key)
        for module in layer.modules()
        for key, value in vars(module).items()
        if isinstance(value, mt.nn.Parameter)
    ]
    arrays = [getattr(owner, key).data.copy() for owner, key in slots]
    assert len(arrays) == len(parameters)
    mt.check_grad(f, case.tokens(), *arrays, tolerance=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_state_round_trip(name: str) -> None:
    case = Case()
    one, two = make(name, case), mt.build(name, case.dim, heads=case.h, seed=99, dtype="float64")
    two.load_state_dict(one.state_dict())
    for (key, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        assert np.array_equal(a, b), f"{name}: {key} did not survive the round trip"


@pytest.mark.parametrize("name", MIXERS + TOKEN_WISE)
@pytest.mark.parametrize("filling", ["zeros", "equal rows", "large"])
def test_finite(name: str, filling: str) -> None:
    case = Case(2, 6, 2, 4, 3)
    x = {
        "zeros": np.zeros((case.b, case.t, case.dim)),
        "equal rows": np.broadcast_to(case.tokens().data[:, :1], (case.b, case.t, case.dim)),
        "large": case.tokens().data * 1e3,
    }[filling]
    x = mt.tensor(x, requires_grad=True)
    y = make(name, case)(x)
    y.sum().backward()
    assert np.all(np.isfinite(y.data)), f"{name}: not finite for {filling}"
    assert np.all(np.isfinite(x.grad.data)), f"{name}: gradient not finite for {filling}"
