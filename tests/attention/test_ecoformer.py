"""EcoFormer: what learning does to the codes, anchors, errors."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.attention.ecoformer import EcoFormer, codes, learned
from minitf.engine import ShapeError


def clusters(n: int = 40) -> np.ndarray:
    """n tokens around 4 directions, (2, n, 8)."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((4, 8))
    return centres[np.arange(n) % 4] + 0.2 * rng.standard_normal((2, n, 8))


def alignment(z: np.ndarray, h: np.ndarray) -> float:
    """Mean of h h^T over the 10 most similar tokens of each row of z z^T, less that over the 10 least."""
    order = np.argsort(-(z @ z.T), axis=1, kind="stable")
    products = np.take_along_axis(h @ h.T, order, axis=1)
    return float(products[:, :10].mean() - products[:, -10:].mean())


def test_learned_codes_keep_what_is_similar() -> None:
    z = clusters()[:1, None] / np.linalg.norm(clusters()[:1, None], axis=-1, keepdims=True)
    anchors = z[0][:, :25]
    for seed in range(5):
        a = np.random.default_rng(seed).standard_normal((1, 1, 25))
        found = []
        for steps in (0, 100):
            mu, row = learned(z, anchors, a, steps=steps, lr=0.5)
            h = codes(*map(mt.tensor, (z, anchors, mu, row))).data[0, 0]
            found.append(alignment(z[0, 0], h))
        assert found[1] >= found[0], (
            f"one bit, learned, must not align worse: {found[0]:.3f} to {found[1]:.3f}"
        )
        assert found[1] >= 1.0, f"one bit must separate four clusters, its alignment is {found[1]:.3f}"


def test_a_step_that_leads_nowhere_is_not_kept() -> None:
    z = clusters()[:, None] / np.linalg.norm(clusters()[:, None], axis=-1, keepdims=True)
    a = np.random.default_rng(1).standard_normal((1, 1, 25))
    assert np.array_equal(learned(z, z[0][:, :25], a, steps=0)[1], a), "no steps leave A as it was"
    good = learned(z, z[0][:, :25], a, steps=200, lr=0.5)[1]
    assert not np.array_equal(good, a), "learning should move A"
    up = learned(z, z[0][:, :25], good, steps=5, lr=-0.05)[1]
    assert np.array_equal(up, good), "steps that raise the loss must not be kept"


def test_anchors_are_tokens_of_the_first_sample_and_repeat_where_there_are_few() -> None:
    layer, x = EcoFormer(8, heads=2, count=7, dtype="float64"), mt.tensor(clusters(3))
    layer.fit(x, steps=1)
    z = layer._directions(x).data[0]
    for h in range(2):
        distance = np.linalg.norm(layer.anchors.data[h][:, None] - z[h], axis=-1)
        assert np.all(distance.min(axis=1) == 0.0) and set(distance.argmin(axis=1)) == {0, 1, 2}


def test_learning_is_seeded_and_saved() -> None:
    one, two = (EcoFormer(8, heads=2, dtype="float64") for _ in range(2))
    x = mt.tensor(clusters())
    one.fit(x, seed=3, steps=2)
    two.fit(x, seed=3, steps=2)
    assert np.array_equal(one.a.data, two.a.data) and np.array_equal(one(x).data, two(x).data)
    assert {"anchors", "mu", "a"} <= one.state_dict().keys()


def test_everything_hidden_gives_zeros() -> None:
    layer, x = EcoFormer(8, heads=2, dtype="float64"), mt.tensor(clusters())
    y = layer(x, mask=np.zeros((2, 1, 1, 40), dtype=bool)).data
    assert np.all(y == 0.0)


def test_errors() -> None:
    with pytest.raises(ValueError, match="heads=3 must divide dim=8"):
        EcoFormer(8, heads=3)
    for options in ({"bits": 0}, {"count": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            EcoFormer(8, **options)
    with pytest.raises(ShapeError, match=r"must be \(B, N, D\)"):
        EcoFormer(8)(mt.tensor(np.zeros((5, 8), dtype="float32")))
