"""The encoder: both directions, padding, pooling, loss, gradients, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minitf as mt
from minitf.models import Config, Encoder

BLOCKS = ("pre", "post", "peri", "parallel")
POSITIONS = ("rope", "alibi", "learned", "sinusoidal", "none")


def build(seed: int = 0, classes: int | None = None, **options) -> Encoder:
    sizes = dict(vocab=13, context=9, dim=8, depth=2, heads=2)
    model = Encoder(Config(**{**sizes, **options}), seed=seed, classes=classes, dtype="float64")
    rng = np.random.default_rng(seed)
    for p in model.parameters():
        p.data = p.data + 0.3 * rng.standard_normal(p.shape)
    return model


def tokens_of(seed: int = 0, batch: int = 3, n: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 13, (batch, n))


def distance(a, b) -> float:
    return float(np.max(np.abs(np.asarray(a) - np.asarray(b)), initial=0.0))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("position", POSITIONS)
def test_every_token_sees_every_other(block: str, position: str) -> None:
    model, tokens = build(block=block, position=position), tokens_of()
    before = model(tokens).data
    assert before.shape == (3, 7, 8)
    for n in (0, 6):
        changed = tokens.copy()
        changed[:, n] = (changed[:, n] + 1) % 13
        moved = np.abs(model(changed).data - before).max(axis=(0, 2))
        assert np.all(moved > 1e-9), f"{block}, {position}: token {n} does not reach every place: {moved}"


@given(
    lengths=st.lists(st.integers(1, 7), min_size=3, max_size=3),
    block=st.sampled_from(BLOCKS),
    position=st.sampled_from(POSITIONS),
    seed=st.integers(0, 99),
)
@settings(max_examples=25)
def test_padding_changes_nothing(lengths: list[int], block: str, position: str, seed: int) -> None:
    model, tokens = build(seed, block=block, position=position), tokens_of(seed)
    pooled = build(seed, classes=4, block=block, position=position)
    real = np.arange(7) < np.array(lengths)[:, None]
    h, z = model(tokens, mask=real).data, pooled(tokens, mask=real).data
    other = np.where(real, tokens, (tokens + 6) % 13)
    assert np.array_equal(model(other, mask=real).data[real], h[real]), "the ids of padding reach real tokens"
    for row, n in enumerate(lengths):
        alone = tokens[row : row + 1, :n]
        error = max(distance(model(alone).data[0], h[row, :n]), distance(pooled(alone).data[0], z[row]))
        assert error <= 1e-12, (
            f"a sequence of {n} and {7 - n} padding differs from itself alone by {error:.2g}"
        )


def test_the_mean_is_over_real_tokens() -> None:
    plain, model, tokens = build(), build(classes=4), tokens_of()
    model.load_state_dict(plain.state_dict(), strict=False)
    real = np.arange(7) < np.array([7, 2, 1])[:, None]
    h = plain(tokens, mask=real).data
    mean = np.stack([h[i, real[i]].mean(axis=0) for i in range(3)])
    expected = mean @ model.head.weight.data + model.head.bias.data
    assert distance(model(tokens, mask=real).data, expected) <= 1e-12, (
        "the logits are not those of the mean real token"
    )
    everything = model(tokens, mask=np.ones((3, 7), dtype=bool)).data
    assert distance(everything, model(tokens).data) <= 1e-12, "a mask of True only must change nothing"


def test_a_sequence_of_padding_only() -> None:
    model, tokens = build(classes=4), tokens_of()
    real = np.array([True, False, True])[:, None] & np.ones((3, 7), dtype=bool)
    y = model(tokens, mask=real)
    assert distance(y.data[1], model.head.bias.data) <= 1e-12, "padding only is pooled to zeros"
    model.loss(tokens, np.array([0, 1, 2]), mask=real).backward()
    assert all(np.all(np.isfinite(p.grad.data)) for p in model.parameters()), (
        "padding only must give finite gradients"
    )


def test_loss_by_hand() -> None:
    model, tokens, labels = build(classes=4), tokens_of(), np.array([2, 0, 3])
    z = model(tokens).data
    expected = np.mean([math.log(sum(math.exp(v) for v in z[i])) - z[i, labels[i]] for i in range(3)])
    assert abs(model.loss(tokens, labels).item() - expected) <= 1e-12, (
        "the loss is not the mean cross entropy in nats"
    )


@pytest.mark.parametrize("block", BLOCKS)
def test_gradients(block: str) -> None:
    model = build(classes=3, block=block, dim=4, position="learned", context=3, vocab=5)
    tokens, labels = tokens_of(n=3) % 5, np.array([2, 0, 1])
    real = np.arange(3) < np.array([3, 2, 1])[:, None]
    places = [
        (module, name)
        for module in model.modules()
        for name, v in vars(module).items()
        if isinstance(v, mt.nn.Parameter)
    ]
    values = [getattr(module, name).data for module, name in places]

    def loss(*weights):
        for (module, name), w in zip(places, weights):
            setattr(module, name, w)
        return model.loss(tokens, labels, mask=real)

    worst = mt.check_grad(loss, *values, order=1)
    assert worst <= 1e-6, f"{block}: derivatives of the loss differ from central differences by {worst:.2g}"


def test_names_and_seeds() -> None:
    names = build(classes=4).state_dict()
    assert names["head.weight"].shape == (8, 4) and names["head.bias"].shape == (4,)
    assert "head.weight" not in build().state_dict(), "without classes there is no head"
    one, same = build(classes=4).state_dict(), build(classes=4).state_dict()
    assert all(np.array_equal(one[name], same[name]) for name in one), (
        "one seed must give one encoder, to the bit"
    )


def test_attention_maps_hide_padding() -> None:
    model, tokens = build(), tokens_of()
    real = np.arange(7) < np.array([7, 2, 1])[:, None]
    maps = model.attention_maps(tokens, mask=real)
    assert [m.shape for m in maps] == [(3, 2, 7, 7)] * 2
    for m in maps:
        assert distance(m.sum(axis=-1), 1.0) <= 1e-12, "rows of attention sum to 1"
        assert np.all(m.transpose(0, 3, 1, 2)[~real] == 0.0), "no attention to padding"


def test_dropout() -> None:
    model, tokens = build(dropout=0.3), tokens_of()
    with pytest.raises(ValueError, match="rng="):
        model(tokens)
    one, same = (model(tokens, rng=np.random.default_rng(1)).data for _ in range(2))
    assert np.array_equal(one, same), "dropout follows its generator"


def test_errors() -> None:
    model, tokens = build(), tokens_of()
    with pytest.raises(TypeError, match="must be boolean"):
        model(tokens, mask=np.ones((3, 7)))
    with pytest.raises(
        mt.ShapeError, match=r"the mask must be \(B, N\) like the tokens \(3, 7\), not \(7,\)"
    ):
        model(tokens, mask=np.ones(7, dtype=bool))
    with pytest.raises(ValueError, match=r"10 tokens.*context is 9"):
        model(tokens_of(n=10))
    with pytest.raises(ValueError, match=r"0\.\.12, found"):
        model(tokens + 13)
    with pytest.raises(mt.ShapeError, match=r"\(B, N\)"):
        model(tokens[0])
    with pytest.raises(ValueError, match="without classes has no loss"):
        model.loss(tokens, np.array([0, 1, 2]))
    for classes in (0, 2.0, True):
        with pytest.raises(ValueError, match="classes must be a positive integer or None"):
            Encoder(Config(vocab=5), classes=classes)


def test_accuracy_is_the_share_of_right_labels() -> None:
    model, tokens, labels = build(classes=4), tokens_of(), np.array([2, 0, 3])
    real = np.arange(7) < np.array([7, 2, 1])[:, None]
    for mask in (None, real):
        right = model(tokens, mask).data.argmax(axis=1) == labels
        assert model.accuracy(tokens, labels, mask) == right.mean()
    with pytest.raises(ValueError, match="without classes has no accuracy"):
        build().accuracy(tokens, labels)
