"""The image model: patches, grids and lines of tokens, saving, learning the digits."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import minitf as mt
from minitf.engine import ShapeError
from minitf.models import ImageConfig, ImageModel
from minitf.tasks import split_digits
from minitf.train import AdamW
from tests.models.small import distance, same_weights

SIZES = dict(size=(4, 6), dim=8, depth=2, heads=2, classes=3)


def build(seed: int = 0, **options) -> ImageModel:
    model = ImageModel(ImageConfig(**{**SIZES, **options}), seed=seed, dtype="float64")
    rng = np.random.default_rng(seed)
    for p in model.parameters():
        p.data = p.data + 0.3 * rng.standard_normal(p.shape)
    return model


def images_of(seed: int = 0, batch: int = 3, channels: int = 1) -> np.ndarray:
    x = np.random.default_rng(seed).random((batch, 4, 6, channels))
    return x[..., 0] if channels == 1 else x


def test_patches_are_cut_row_by_row() -> None:
    model, images = build(channels=2), images_of(channels=2)
    pieces = model.cut(images).data
    assert pieces.shape == (3, 6, 8), "2 x 3 patches of 2 x 2 pixels with 2 channels"
    for n in range(6):
        r, c = divmod(n, 3)
        piece = images[:, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].reshape(3, -1)
        assert np.array_equal(pieces[:, n], piece), f"patch {n} is not row {r}, column {c}"


def test_the_channel_axis_may_be_left_out() -> None:
    model, images = build(), images_of()
    assert np.array_equal(model(images).data, model(images[..., None]).data)
    assert np.array_equal(model(mt.tensor(images)).data, model(images).data), "tensors are images too"


@pytest.mark.parametrize("attention", ["softmax", "swin_attention"])
def test_every_patch_reaches_the_logits(attention: str) -> None:
    model, images = build(attention=attention), images_of()
    before = model(images).data
    assert before.shape == (3, 3)
    for n in range(6):
        r, c = divmod(n, 3)
        changed = images.copy()
        changed[:, 2 * r, 2 * c] += 1.0
        assert np.abs(model(changed).data - before).max() > 1e-9, f"{attention}: patch {n} changes nothing"


def test_a_mixer_of_grids_sees_rows_and_columns() -> None:
    class Seen(mt.nn.Module):
        def forward(self, x, rng=None):
            shapes.append(x.shape)
            return x

    shapes: list[tuple[int, ...]] = []
    model, images = build(attention="swin_attention"), images_of()
    assert isinstance(model.blocks[0].mixer, mt.models.backbone.OnGrid)
    for block in model.blocks:
        block.mixer.inner = Seen()
    y = model(images)
    assert shapes == [(3, 2, 3, 8)] * 2, f"the mixer saw {shapes}"
    for block in model.blocks:
        block.mixer = Seen()
    assert np.array_equal(model(images).data, y.data), "the way to the grid and back changes nothing"
    assert shapes[2:] == [(3, 6, 8)] * 2


def test_loss_accuracy_and_maps() -> None:
    model, images, labels = build(dropout=0.5), images_of(), np.array([2, 0, 1])
    z = model.eval()(images).data
    expected = np.mean([math.log(np.exp(z[i]).sum()) - z[i, labels[i]] for i in range(3)])
    assert abs(float(model.loss(images, labels)) - expected) <= 1e-12, "not the mean cross entropy in nats"
    right = float(np.mean(z.argmax(axis=1) == labels))
    assert model.train().accuracy(images, labels) == right and model.training, "dropout must not act"
    maps = model.attention_maps(images)
    assert [m.shape for m in maps] == [(3, 2, 6, 6)] * 2 and distance(maps[0].sum(axis=-1), 1.0) <= 1e-12
    model.train().loss(images, labels, rng=np.random.default_rng(0)).backward()
    assert all(p.grad is not None for p in model.parameters()), "a parameter takes no part"


def test_gradients() -> None:
    model, labels = build(depth=1, dim=4), np.array([2, 0, 1])
    worst = mt.check_grad(lambda x: model.loss(x, labels), images_of(), order=1)
    assert worst <= 1e-6, f"derivatives by the pixels differ from central differences by {worst:.2g}"


@pytest.mark.parametrize("options", [{}, {"attention": "swin_attention", "channels": 3, "block": "peri"}])
def test_save_and_load(tmp_path: Path, options: dict) -> None:
    model = ImageModel(ImageConfig(**SIZES, **options), seed=3)
    mt.save(model, tmp_path)
    again = mt.load(tmp_path)
    assert type(again) is ImageModel and again.config == model.config and same_weights(again, model)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"patch": 2', '"patch": 1'))
    with pytest.raises(mt.models.FileError, match=r"patches.weight .* but the config says 2 and \(\d, 8\)"):
        mt.load(tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": (5, 6)}, r"patch=2 must divide both numbers of size=\(5, 6\)"),
        ({"size": (4, 0)}, "size must be two positive integers"),
        ({"size": 8}, "size must be two positive integers"),
        ({"classes": 0}, "ImageConfig: classes must be a positive integer"),
        ({"patch": 0}, "patch must be a positive integer"),
        ({"attention": "gla"}, "sees only the past, so an image model cannot use it"),
        ({"attention": "swin_attention", "position": "rope"}, "takes no position scheme"),
        ({"attention": "swin_attention", "kv_heads": 1}, "has no kv_heads"),
    ],
)
def test_what_does_not_fit(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(**options)


@pytest.mark.parametrize("shape", [(3, 4, 5), (4, 6), (3, 4, 6, 2)])
def test_images_of_another_size(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"images must be \(B, 4, 6, 1\)"):
        build()(np.zeros(shape))


def test_digits_are_learned() -> None:
    learn, test = split_digits()
    model = ImageModel(ImageConfig(size=(8, 8), dim=32, depth=1, heads=4), seed=0)
    optimizer = AdamW(model.parameters(), lr=5e-3)
    rng = np.random.default_rng(0)
    for _ in range(200):
        rows = rng.integers(0, len(learn[1]), 64)
        optimizer.zero_grad()
        model.loss(learn[0][rows], learn[1][rows]).backward()
        optimizer.step()
    accuracy = model.accuracy(*test)
    assert accuracy >= 0.9, f"after 200 steps {accuracy:.3f} of the test images are right"
