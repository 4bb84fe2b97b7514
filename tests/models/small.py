"""Small models that the tests of this folder share."""

from __future__ import annotations

import numpy as np

from minitf.models import Config, LanguageModel

BLOCKS = ("pre", "post", "peri", "parallel")
POSITIONS = ("rope", "alibi", "learned", "sinusoidal", "none")
SIZES = dict(vocab=13, context=9, dim=8, depth=2, heads=2)


def build(seed: int = 0, dtype: str = "float64", **options) -> LanguageModel:
    """A small model whose every parameter is random, so that no bias or gain hides a mistake."""
    model = LanguageModel(Config(**{**SIZES, **options}), seed=seed, dtype=dtype)
    rng = np.random.default_rng(seed)
    for p in model.parameters():
        p.data = p.data + (0.3 * rng.standard_normal(p.shape)).astype(dtype)
    return model


def tokens_of(seed: int = 0, batch: int = 2, n: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 13, (batch, n))


def distance(a, b) -> float:
    return float(np.max(np.abs(np.asarray(a) - np.asarray(b)), initial=0.0))


SMALL = Config(vocab=11, context=8, dim=8, depth=2, heads=2)


def same_weights(a, b) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(
        v.dtype == right[name].dtype and v.tobytes() == right[name].tobytes() for name, v in left.items()
    )
