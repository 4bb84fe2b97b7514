"""Performer: how Om is drawn, the other kernels under the checks, the guard, large keys, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

import minitf as mt
from minitf.attention.performer_favor import FeatureMap, PerformerFavor, bidirectional, causal, projection
from minitf.testing import check_variant


@pytest.mark.parametrize(("m", "d"), [(3, 4), (4, 4), (10, 4)])
def test_blocks_are_orthogonal(m: int, d: int) -> None:
    om = projection(0, m, d, scaling=1)
    assert om.shape == (m, d), f"Om must be (m, d), not {om.shape}"
    for start in range(0, m, d):
        block = om[start : start + d]
        error = np.max(np.abs(block @ block.T - d * np.eye(len(block))))
        assert error <= 1e-12, f"rows of a block must be orthogonal and sqrt(d) long: off by {error:.2g}"


def test_directions_prefer_no_sign() -> None:
    om = projection(1, 40000, 4)
    # Every coordinate is standard normal; the mean of 40000 deviates by 0.005. Five deviations.
    mean, square = np.abs(om.mean(axis=0)), (om**2).mean(axis=0)
    assert np.all(mean <= 0.025), f"coordinates lean to one sign: {mean}"
    assert np.all(np.abs(square - 1.0) <= 0.05), f"coordinates must have variance 1: {square}"
    # The same for each row of a block, where a QR factorisation without its signs fails.
    rows = np.abs(om.reshape(-1, 4, 4).mean(axis=0))
    assert np.all(rows <= 0.05), f"rows lean to one sign: {rows}"


@pytest.mark.parametrize(
    "options",
    [
        {"causal": False},
        {"causal": False, "eps": 0.0, "orthogonal": False},
        {"kernel": "relu"},
        {"kernel": "relu_om", "causal": False, "scaling": 1},
        {"kernel": "sincos", "features": 512},
    ],
)
def test_options_pass_the_checks(options: dict) -> None:
    def make(dim: int, heads: int, seed: int, dtype: str) -> PerformerFavor:
        return PerformerFavor(dim, heads=heads, seed=seed, dtype=dtype, **options)

    claims = ("key_masks",) if options.get("causal") is False else ("key_masks", "causal", "streams")
    # A denominator of sines can come near 0, where differences are no derivative.
    checks = ["padding_invariant", "batch_independent", "state_dict_round_trip", "causal", "streams"]
    checks += [] if options.get("kernel") == "sincos" else ["gradients", "finite"]
    check_variant(make, kind="token_mixer", claims=claims, checks=checks, examples=5)


def test_a_large_key_shrinks_what_was_before_and_does_not_overflow() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (mt.tensor(rng.standard_normal((1, 1, 6, 4)).astype("float32")) for _ in range(3))
    k.data[:, :, 3] = -40.0
    phi = FeatureMap(mt.tensor(projection(2, 64, 4).astype("float32")))
    wide = FeatureMap(mt.tensor(phi.om.data.astype("float64")))
    small = causal(q, k, v, phi)[0].data
    exact = causal(*(mt.tensor(x.data.astype("float64")) for x in (q, k, v)), wide)[0].data
    error = np.max(np.abs(small - exact))
    assert error <= 1e-3, f"float32 differs from float64 by {error:.2g} around a large key"


def test_hidden_keys_may_hold_anything() -> None:
    layer = PerformerFavor(4, heads=1, features=16, dtype="float64")
    x = np.random.default_rng(0).standard_normal((1, 5, 4))
    mask = np.array([False, True, False, True, True])
    expected = layer(mt.tensor(x), mask=mask).data[:, mask]
    x[:, ~mask] = 1e100
    found = layer(mt.tensor(x), mask=mask).data[:, mask]
    assert np.array_equal(found, expected), "what hidden tokens hold must not matter"


def test_nothing_visible_gives_zeros() -> None:
    for flag in (True, False):
        layer = PerformerFavor(4, heads=1, causal=flag)
        y = layer(mt.tensor(np.ones((1, 3, 4), "float32")), mask=np.zeros(3, dtype=bool))
        assert np.all(y.data == 0.0), "queries that see nothing must give zeros"


def test_eps_leaks_only_where_it_is_allowed() -> None:
    """With eps, the largest of all keys moves every output; this is why the causal form has none."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 1, 6, 4)) for _ in range(3))
    om = mt.tensor(projection(0, 32, 4))
    moved = []
    for eps in (0.0, 1e-2):
        outputs = []
        for size in (1.0, 3.0):
            k2 = k.copy()
            k2[:, :, -1] *= size
            phi = FeatureMap(om, eps=eps)
            c = phi.largest(mt.tensor(k2)).max(axis=-2, keepdims=True)
            a = phi(mt.tensor(q)) @ phi(mt.tensor(k2), c).mT
            a = np.tril(a.data)
            outputs.append((a @ v / a.sum(axis=-1, keepdims=True))[:, :, :-1])
        moved.append(np.max(np.abs(outputs[0] - outputs[1])))
    assert moved[0] <= 1e-12, f"without eps, the largest key must cancel: {moved[0]:.2g}"
    assert moved[1] > 1e-6, f"with eps, earlier outputs must be seen to move: {moved[1]:.2g}"


def test_redraw() -> None:
    layer = PerformerFavor(8, heads=2, features=16)
    before = layer.om.data.copy()
    layer.redraw(5)
    assert layer.om.shape == (16, 4) and layer.om.dtype == np.float32, "Om must keep its shape and type"
    assert not np.allclose(layer.om.data, before), "Om must change"
    again = layer.om.data.copy()
    layer.redraw(5)
    assert np.array_equal(layer.om.data, again), "one seed must give one Om"


def test_the_error_explodes_with_the_norm() -> None:
    rng, errors = np.random.default_rng(3), []
    for norm in (1.0, 2.0, 4.0):
        q, k, v = rng.standard_normal((3, 1, 1, 32, 4))
        q, k = (mt.tensor(norm * x / np.linalg.norm(x, axis=-1, keepdims=True)) for x in (q, k))
        exact = mt.ops.softmax_attention(q, k, mt.tensor(v)).data
        found = bidirectional(q, k, mt.tensor(v), FeatureMap(mt.tensor(projection(rng, 256, 4)))).data
        errors.append(math.sqrt(np.mean((found - exact) ** 2)))
    assert errors[0] < errors[1] < errors[2], f"errors for norms 1, 2, 4: {errors}"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"heads": 3}, "must divide"),
        ({"features": 0}, "1 or more"),
        ({"chunk": 0}, "1 or more"),
        ({"kernel": "elu"}, "softmax"),
        ({"scaling": 2}, "scaling must be 0"),
        ({"eps": 1e-4}, "causal"),
        ({"kernel": "sincos", "eps": 1e-4, "causal": False}, "sincos"),
        ({"kernel": "relu", "eps": -1.0}, "0 or more"),
    ],
)
def test_errors(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PerformerFavor(8, **options)


def test_only_the_causal_form_streams() -> None:
    layer = PerformerFavor(8, heads=2, causal=False)
    with pytest.raises(ValueError, match="causal=True"):
        layer.step(mt.tensor(np.zeros((1, 8), "float32")), layer.start(1))
