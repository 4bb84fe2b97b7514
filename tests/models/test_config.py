"""The config: defaults, the way to a dictionary and back, and what it refuses."""

from __future__ import annotations

import dataclasses
import inspect
import json

import numpy as np
import pytest

import minitf as mt
from minitf import ops
from minitf.models import (
    Config,
    Encoder,
    ForecastConfig,
    Forecaster,
    ImageConfig,
    ImageModel,
    LanguageModel,
    backbone,
)
from minitf.models.config import PARTS
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


def test_positional_fields_come_first_in_messages() -> None:
    with pytest.raises(ValueError, match="the fields are: vocab, context, dim"):
        Config.from_dict({"vocab": 5, "banana": 1})


SMALL = {"dim": 8, "depth": 1, "heads": 2}
TOKENS = np.arange(8).reshape(2, 4) % 5
# For every host: a model of these parts, and an input.
HOSTS = {
    "a language model": lambda **p: (LanguageModel(Config(vocab=5, context=4, **SMALL, **p)), TOKENS),
    "an encoder": lambda **p: (Encoder(Config(vocab=5, context=4, **SMALL, **p)), TOKENS),
    "an image model": lambda **p: (ImageModel(ImageConfig(size=(4, 6), **SMALL, **p)), np.ones((2, 4, 6))),
    "a forecaster": lambda **p: (
        Forecaster(ForecastConfig(context=12, horizon=3, patch=3, **SMALL, **p)),
        np.random.default_rng(0).random((2, 12, 1)),
    ),
}


@pytest.mark.parametrize("host", HOSTS)
def test_every_variant_is_hosted_or_refused_with_a_reason(host: str) -> None:
    hosted = set()
    for name, card in mt.registry.index().items():
        part = next((p for p, kinds in PARTS.items() if card["kind"] in kinds), None)
        if part is None:
            continue
        options = {part: name} if part == "position" else {part: name, "position": "learned"}
        try:
            model, x = HOSTS[host](**options)
        except ValueError as error:
            told = host in str(error) or "choose another" in str(error)
            assert f"{part}={name!r}" in str(error) and told, f"{host} with {name}: {error}"
            continue
        try:
            y = model.eval()(x).data
        except mt.ShapeError as error:
            # A variant of any number of axes may need two; it says so when it is called.
            assert card["grid"] == "nd" and name in str(error), f"{host} with {name}: {error}"
            continue
        assert np.all(np.isfinite(y)), f"{host} with {part}={name!r} gives NaN or infinity"
        hosted.add(name)
    assert {"softmax_attention", "glu_ffn", "gelu_ffn", "rmsnorm", "pre_norm", "rope"} <= hosted, hosted


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


def like(cls, **card):
    """The same class with another card."""
    return type(cls.__name__, (cls,), {"card": dataclasses.replace(cls.card, **card)})


def test_mixers_that_fit_no_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    class TwoInputs(PlainCausal):
        @staticmethod
        def example_inputs(case):
            return ()

    config = Config(vocab=5, position="none")
    for cls, words in (
        (like(PlainCausal, grid="2d"), "grid of 2 axes, and a language model has a sequence"),
        (like(PlainCausal, properties=("fixed_grid",)), "one fixed number of tokens, and a language model"),
        (TwoInputs, "more than one input, and a language model has only its own tokens"),
    ):
        stand_in(monkeypatch, "softmax", cls)
        with pytest.raises(ValueError, match=words):
            LanguageModel(config)
    # An encoder or a forecaster of one length may have weights for it.
    stand_in(monkeypatch, "softmax", like(Plain, properties=("fixed_grid",)))
    Encoder(config)(np.array([[1, 2]]))


def test_mixers_are_told_the_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict] = []

    class Sized(PlainCausal):
        def __init__(
            self, dim: int, *, grid=None, context: int = 1024, causal: bool = True, bias: bool = True
        ):
            told.append({"grid": grid, "context": context, "causal": causal, "bias": bias})

    class Grid(Sized):
        card = dataclasses.replace(Plain.card, grid="2d")

    for cls in (Sized, Grid):
        stand_in(monkeypatch, "softmax", cls)
        for host in HOSTS:
            if cls is Sized or host == "an image model":
                HOSTS[host](position="none", bias=False)
        monkeypatch.undo()
    line = {"grid": 4, "context": 4, "causal": False, "bias": False}
    image = {"grid": 6, "context": 6, "causal": False, "bias": False}
    expected = [{**line, "causal": True}, line, image, line, {**image, "grid": (2, 3)}]
    assert told == expected, f"mixers were told {told}"


def test_mixers_that_take_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoMask(Plain):
        def forward(self, x, *, rng=None):
            return x

    stand_in(monkeypatch, "softmax", NoMask)
    model, tokens = Encoder(Config(vocab=5, position="none")), np.array([[1, 2]])
    assert model(tokens).shape == (1, 2, 128), "no mask was given, so none is needed"
    with pytest.raises(ValueError, match="cannot hide tokens, so it takes no mask"):
        model(tokens, mask=np.array([[True, False]]))


@pytest.mark.parametrize("host", HOSTS)
def test_losses_of_parts_are_added_in_training(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    class Balanced(PlainCausal):
        card = dataclasses.replace(PlainCausal.card, grid="any")

        def __init__(self, dim: int):
            self.w = mt.nn.Parameter(np.ones(dim, dtype="float32"))

        def forward(self, x):
            return x * self.w

        def auxiliary_loss(self, x):
            return 0.1 * ops.square(self.w).sum() + 0.0 * x.sum()

    stand_in(monkeypatch, "swiglu", Balanced)
    model, x = HOSTS[host](position="learned")
    if host == "an encoder":
        model = Encoder(model.config, classes=3)
    goal = {"a language model": TOKENS, "a forecaster": np.zeros((2, 3, 1))}.get(host, np.array([0, 1]))
    trained, plain = float(model.train().loss(x, goal)), float(model.eval().loss(x, goal))
    assert abs(trained - plain - 0.8) <= 1e-4, f"{host}: the loss grew by {trained - plain}, not by 8 / 10"
    model.train().loss(x, goal).backward()
    assert all(not module.__dict__.get("_hooks") for module in model.modules()), "a hook was left behind"


def test_streaming_needs_an_ffn_of_single_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LanguageModel(Config(vocab=5, dim=8, depth=1, heads=2))
    monkeypatch.setattr("minitf.models.language.variant_class", lambda name: like(PlainCausal, grid="1d"))
    with pytest.raises(ValueError, match="looks at several tokens"):
        model.start(1)


def test_an_ffn_without_a_width(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "swiglu", PlainCausal)
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

    class NoNorm(mt.nn.Module):
        def __init__(self, dim: int, *, mixer, ffn, seed=0, dtype="float32"):
            pass

    stand_in(monkeypatch, "post", NoNorm)
    with pytest.raises(ValueError, match="is not built from a mixer, an FFN and a norm"):
        LanguageModel(Config(vocab=5, block="post"))


def test_a_whole_layer_as_block() -> None:
    config = Config(vocab=5, context=12, dim=8, depth=2, block="mamba_block", position="none")
    model = LanguageModel(config, dtype="float64").eval()
    tokens = np.random.default_rng(0).integers(0, 5, (2, 7))
    whole = model(tokens).data
    logits, state = model.prefill(tokens[:, :3], model.start(2))
    rows = [logits.data[:, i] for i in range(3)]
    for n in range(3, 7):
        row, state = model.step(tokens[:, n], state)
        rows.append(row.data)
    error = np.max(np.abs(np.stack(rows, axis=1) - whole))
    assert error <= 1e-10, f"a language model of Mamba blocks streams with a difference of {error:.2g}"
    with pytest.raises(ValueError, match="block='mamba_block' takes no position scheme"):
        LanguageModel(dataclasses.replace(config, position="rope"))
    with pytest.raises(ValueError, match="forms no weights"):
        model.attention_maps(tokens)


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
