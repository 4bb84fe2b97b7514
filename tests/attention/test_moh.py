"""Mixture of heads: numbers of heads, the parameter-free router, what a token skips."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.attention.moh import MoH


def tokens() -> mt.Tensor:
    return mt.tensor(np.random.default_rng(0).standard_normal((2, 5, 16)))


def test_numbers_of_heads() -> None:
    found = [(MoH(16, heads=h).shared, MoH(16, heads=h).routed) for h in (1, 2, 4, 8)]
    assert found == [(1, 0), (1, 1), (1, 2), (2, 3)], (
        f"a quarter shared, half of the rest routed, not {found}"
    )
    norm = MoH(16, heads=8, router="norm")
    assert (norm.shared, norm.routed) == (4, 2), "H / 2 and H / 4"
    assert norm.count_parameters() == 4 * 16 * 16, "this router has no parameters"


def test_out_of_range() -> None:
    for options in ({"shared": 5}, {"shared": -1}, {"shared": 1, "routed": 4}, {"routed": 0}):
        with pytest.raises(ValueError, match="shared="):
            MoH(16, heads=4, **options)
    with pytest.raises(ValueError, match="from 0 to the rest, 0"):
        MoH(16, heads=4, shared=4, routed=1)
    with pytest.raises(ValueError, match="'softmax' or 'norm'"):
        MoH(16, router="other")
    with pytest.raises(ValueError, match="must divide"):
        MoH(16, heads=3)
    with pytest.raises(ValueError, match="only causal"):
        layer = MoH(16, causal=False)
        layer.step(tokens().astype("float32")[:, 0], layer.start(2))


def test_routers_are_there_where_they_are_needed() -> None:
    names = {
        (0, 2): {"router.weight"},
        (1, 3): {"router.weight", "kinds_gate.weight"},
        (3, 1): {"shared_gate.weight", "kinds_gate.weight"},
        (4, 0): {"shared_gate.weight"},
    }
    for (s, k), expected in names.items():
        found = {
            n for n, _ in MoH(16, heads=4, shared=s, routed=k).named_parameters() if not n.startswith("w")
        }
        assert found == expected, f"with {s} shared heads and {k} routed: {found}"


def test_heads_that_were_not_chosen_do_not_count() -> None:
    layer, x = MoH(16, heads=4, shared=1, routed=1, dtype="float64"), tokens()
    weights = layer.head_weights(x).data
    assert np.all((weights != 0.0).sum(axis=-1) == 2), "one shared and one routed head for each token"
    before = layer(x[:1, :1]).data
    for h in np.flatnonzero(weights[0, 0] == 0.0):
        layer.wv.weight.data[:, 4 * h : 4 * h + 4] = 9.0
    assert np.array_equal(layer(x[:1, :1]).data, before), "a head that the token did not choose was used"


def test_equal_queries_have_a_finite_loss() -> None:
    layer = MoH(16, heads=4, router="norm", dtype="float64")
    x = mt.tensor(np.zeros((1, 3, 16)), requires_grad=True)
    layer.auxiliary_loss(x).backward()
    assert np.all(np.isfinite(x.grad.data)), "queries of length 0 have std 0"
    assert layer.head_weights(x).data[0, 0].tolist() == [1.0, 1.0, 1.0, 0.0], "the lower head wins a tie"


def test_only_routed_heads_are_balanced() -> None:
    assert float(MoH(16, heads=2, shared=2, routed=0).auxiliary_loss(tokens())) == 0.0, "nothing is routed"
    layer = MoH(16, heads=4, balance=1.0, dtype="float64")
    layer.auxiliary_loss(tokens()).backward()
    moved = {n for n, p in layer.named_parameters() if p.grad is not None}
    assert moved == {"router.weight"}, f"gradients reach {moved}"
