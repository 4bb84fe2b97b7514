"""The config: defaults, the way to a dictionary and back, and what it refuses."""

from __future__ import annotations

import dataclasses
import inspect
import json

import numpy as np
import pytest

import minitf as mt
from minitf.models import Config, Encoder, LanguageModel, backbone
from minitf.registry import UnknownVariantError


def test_dictionary_and_back() -> None:
    config = Config(vocab=np.int64(81), dim=64, kv_heads=2, dropout=0, attention_options={"head_dim": 4})
    values = json.loads(json.dumps(config.to_dict()))
    assert Config.from_dict(values) == config, "a config must survive JSON"
    assert list(values) == [f.name for f in dataclasses.fields(Config)], "every field is written, in order"
    assert type(config.vocab) is int and type(config.dropout) is float


def test_defaults() -> None:
    config = Config.from_dict({"vocab": 5})
    assert (config.attention, config.ffn, config.norm, config.position, config.block, config.tied) == (
        "softmax", "swiglu", "rmsnorm", "rope", "pre", True,
    )  # fmt: skip


def test_a_config_does_not_change() -> None:
    options = {"head_dim": 4}
    config = Config(vocab=5, attention_options=options)
    options["head_dim"] = 8
    config.to_dict()["attention_options"]["head_dim"] = 16
    assert config.attention_options == {"head_dim": 4}, "a config must not share its dictionaries"
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.dim = 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"vocab": 0}, "vocab must be a positive integer, not 0"),
        ({"dim": 8.0}, r"dim must be a positive integer, not 8\.0"),
        ({"depth": True}, "depth must be a positive integer, not True"),
        ({"heads": None}, "heads must be a positive integer, not None"),
        ({"kv_heads": 0}, "kv_heads must be a positive integer"),
        ({"ffn_hidden": -1}, "ffn_hidden must be a positive integer"),
        ({"context": "long"}, "context must be a positive integer, not 'long'"),
        ({"dropout": 1.0}, r"dropout must be a number in \[0, 1\), not 1\.0"),
        ({"dropout": float("nan")}, "dropout must be a number"),
        ({"dropout": "much"}, "dropout must be a number"),
        ({"bias": 1}, "bias must be True or False, not 1"),
        ({"tied": None}, "tied must be True or False"),
        ({"norm": None}, "norm must be the name of a variant"),
        ({"attention_options": [1]}, "attention_options must be a dictionary"),
        ({"ffn_options": {1: 2}}, "ffn_options must be a dictionary"),
        ({"attention_options": {"causal": False}}, "attention_options cannot set causal"),
        ({"ffn_options": {"seed": 3, "hidden": 2}}, "ffn_options cannot set hidden, seed"),
        ({"ffn_options": {"act": np.ones(2)}}, "plain values that JSON knows"),
    ],
)
def test_values_out_of_range(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Config(**{"vocab": 5, **options})


@pytest.mark.parametrize(
    ("part", "name", "words"),
    [
        ("attention", "sofmax", "no attention or mixer variant is called 'sofmax'; the closest are: softmax"),
        ("attention", "swiglu", "'swiglu' is of kind 'ffn'"),
        ("ffn", "swigle", "closest are: swiglu"),
        ("norm", "layer_norm", "closest are: layernorm"),
        ("position", "rop", "closest are: rope"),
        ("block", "prenorm", "closest are: pre_norm"),
    ],
)
def test_unknown_parts(part: str, name: str, words: str) -> None:
    with pytest.raises(UnknownVariantError, match=words):
        Config(vocab=5, **{part: name})


def test_unknown_fields() -> None:
    with pytest.raises(ValueError, match="no field 'head'; did you mean 'heads'"):
        Config.from_dict({"vocab": 5, "head": 2})
    with pytest.raises(ValueError, match="needs vocab"):
        Config.from_dict({"dim": 5})


@pytest.mark.parametrize("model", [LanguageModel, Encoder])
def test_every_named_part_builds(model) -> None:
    for part, kinds in (("attention", ("attention", "mixer")), ("ffn", ("ffn",)), ("block", ("block",)),
                        ("norm", ("norm",)), ("position", ("position",))):  # fmt: skip
        for name in [
            n for n, (own, _) in mt.registry.names().items() if mt.registry.index()[own]["kind"] in kinds
        ]:
            built = model(Config(vocab=5, context=4, dim=8, depth=1, heads=2, **{part: name}))
            y = built(np.zeros((1, 4), dtype=int))
            assert np.all(np.isfinite(y.data)), f"{part}={name!r} gives NaN or infinity"


# ------------------------------ parts that cannot do what is asked: stand-ins for later variants


class Plain(mt.nn.Module):
    """A mixer without options: no heads, no masks, no positions."""

    card = dataclasses.replace(mt.catalogue["softmax"].card, name="plain", causal=False)

    def __init__(self, dim: int):
        pass

    def forward(self, x, **options):
        return x


class PlainCausal(Plain):
    card = dataclasses.replace(Plain.card, causal=True)


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, cls) -> None:
    found = backbone.variant_class
    build = backbone.build
    monkeypatch.setattr(backbone, "variant_class", lambda n: cls if n == name else found(n))
    monkeypatch.setattr(
        backbone, "build", lambda n, dim, **o: cls(dim, **known(cls, o)) if n == name else build(n, dim, **o)
    )


def known(cls, options: dict) -> dict:
    """As `build` does: heads and seed are left out where a variant does not take them."""
    takes = inspect.signature(cls).parameters
    return {k: v for k, v in options.items() if k in takes or k not in ("heads", "seed")}


def test_a_mixer_without_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "softmax", PlainCausal)
    for position in ("rope", "alibi"):
        with pytest.raises(
            ValueError, match=f"takes no position scheme, so position='{position}' cannot act.*'learned'"
        ):
            LanguageModel(Config(vocab=5, position=position))
    for position in ("none", "learned", "sinusoidal"):
        LanguageModel(Config(vocab=5, position=position))(np.array([[1, 2]]))


def test_a_mixer_that_is_not_causal(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "softmax", Plain)
    with pytest.raises(ValueError, match="a language model cannot use it"):
        LanguageModel(Config(vocab=5, position="none"))
    Encoder(Config(vocab=5, position="none"))(np.array([[1, 2]]))


def test_a_mixer_that_is_always_causal(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "softmax", PlainCausal)
    with pytest.raises(ValueError, match="an encoder cannot use it"):
        Encoder(Config(vocab=5, position="none"))


def test_a_mixer_without_kv_heads_or_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "softmax", PlainCausal)
    with pytest.raises(ValueError, match="has no kv_heads: leave kv_heads=None"):
        LanguageModel(Config(vocab=5, position="none", kv_heads=1))
    with pytest.raises(ValueError, match="no maps to show"):
        LanguageModel(Config(vocab=5, position="none")).attention_maps(np.array([[1, 2]]))


def test_an_ffn_without_a_width(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "swiglu", Plain)
    with pytest.raises(ValueError, match="has no hidden width: leave ffn_hidden=None"):
        LanguageModel(Config(vocab=5, ffn_hidden=8))


def test_blocks_of_another_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoDropout(mt.nn.Module):
        def __init__(self, dim: int, *, mixer, ffn, norm: str = "rmsnorm", seed=0, dtype="float32"):
            pass

    stand_in(monkeypatch, "pre", NoDropout)
    LanguageModel(Config(vocab=5))
    with pytest.raises(ValueError, match="block='pre' has no dropout"):
        LanguageModel(Config(vocab=5, dropout=0.1))
    stand_in(monkeypatch, "post", Plain)
    with pytest.raises(ValueError, match="is not built from a mixer, an FFN and a norm"):
        LanguageModel(Config(vocab=5, block="post"))


def test_options_of_the_parts() -> None:
    config = Config(
        vocab=5, dim=8, heads=2, depth=1, attention_options={"head_dim": 6}, ffn_options={"act": "relu"}
    )
    shapes = {name: a.shape for name, a in LanguageModel(config).state_dict().items()}
    assert shapes["blocks.0.mixer.wq.weight"] == (8, 12), "attention_options did not reach the mixer"
    with pytest.raises(TypeError, match=r"does not take span; it takes: heads"):
        LanguageModel(Config(vocab=5, attention_options={"span": 3}))
    with pytest.raises(ValueError, match="heads=3 must divide dim=8"):
        LanguageModel(Config(vocab=5, dim=8, heads=3))
