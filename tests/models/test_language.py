"""The language model: causality, names, initial values, gradients, loss, errors."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

import minitf as mt
from minitf.models import Config, LanguageModel
from minitf.models.language import State
from tests.models.small import BLOCKS, POSITIONS, SIZES, build, distance, tokens_of

# --------------------------------------------------------------------------------------------- causality


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("position", POSITIONS)
def test_no_token_sees_a_later_one(block: str, position: str) -> None:
    model, tokens = build(block=block, position=position), tokens_of()
    before = model(tokens).data
    for n in range(1, 9):
        changed = tokens.copy()
        changed[:, n:] = (changed[:, n:] + 1 + np.arange(9 - n)) % 13
        after = model(changed).data
        assert np.array_equal(after[:, :n], before[:, :n]), (
            f"{block}, {position}: tokens from {n} on change logits before {n}"
        )
        assert distance(after[:, n:], before[:, n:]) > 1e-6, (
            f"{block}, {position}: token {n} has no effect at all"
        )


@pytest.mark.parametrize("block", BLOCKS)
def test_no_gradient_from_an_earlier_output_to_a_later_embedding(block: str) -> None:
    model = build(block=block, tied=False)
    seen = []
    hook = model.embedding.register_forward_hook(
        lambda module, args, y: seen.append(mt.tensor(y, True)) or seen[-1]
    )
    logits = model(tokens_of())
    hook.remove()
    logits[:, :4].sum().backward()
    g = seen[0].grad.data
    assert np.all(g[:, 4:] == 0.0), (
        "logits 0..3 have a gradient with respect to the embedding of a later token"
    )
    assert np.all(np.abs(g[:, :4]).sum(axis=-1) > 0.0), (
        "logits 0..3 have no gradient with respect to their own tokens"
    )


# ------------------------------------------------------------------------------- values, gradients, loss


def test_logits_are_the_composition_of_the_parts() -> None:
    model, tokens = build(position="learned", norm="layernorm", ffn="gelu"), tokens_of()
    x = model.embedding.weight.data[tokens] + model.position.weight.data[:9]
    x = mt.tensor(x)
    for block in model.blocks:
        x = block(x)
    expected = model.norm(x).data @ model.embedding.weight.data.T
    assert distance(model(tokens).data, expected) <= 1e-12, "the logits are not those of the parts in order"


def test_loss_by_hand() -> None:
    model, tokens = build(), tokens_of()
    targets = tokens_of(seed=5)
    z = model(tokens).data
    total = 0.0
    for b in range(2):
        for n in range(9):
            total -= z[b, n, targets[b, n]] - math.log(sum(math.exp(v) for v in z[b, n]))
    loss = model.loss(tokens, targets)
    assert loss.shape == () and abs(loss.item() - total / 18) <= 1e-12, (
        "the loss is not the mean cross entropy in nats"
    )


def test_an_untrained_model_knows_nothing() -> None:
    for block in BLOCKS:
        model = LanguageModel(Config(vocab=81, block=block, depth=6, dim=64))
        tokens = np.random.default_rng(0).integers(0, 81, (8, 64))
        loss = model.loss(tokens[:, :-1], tokens[:, 1:]).item()
        assert abs(loss - math.log(81)) <= 0.1, (
            f"{block}: the first loss is {loss:.3f}, far from log 81 = {math.log(81):.3f}"
        )


@pytest.mark.parametrize(
    "options",
    [
        {"block": "pre", "position": "rope"},
        {"block": "post", "position": "learned", "norm": "layernorm", "ffn": "gelu", "tied": False},
        {"block": "peri", "position": "alibi", "kv_heads": 1},
        {"block": "parallel", "position": "sinusoidal", "ffn": "relu2", "bias": False},
    ],
)
def test_gradients_of_the_whole_model(options: dict) -> None:
    sizes = dict(vocab=5, context=3, dim=4, depth=2, heads=2)
    model = LanguageModel(Config(**{**sizes, **options}), seed=1, dtype="float64")
    rng = np.random.default_rng(2)
    tokens, targets = rng.integers(0, 5, (2, 3)), rng.integers(0, 5, (2, 3))
    places = [
        (module, name)
        for module in model.modules()
        for name, v in vars(module).items()
        if isinstance(v, mt.nn.Parameter)
    ]
    values = [
        getattr(module, name).data + 0.5 * rng.standard_normal(getattr(module, name).shape)
        for module, name in places
    ]

    def loss(*weights):
        for (module, name), w in zip(places, weights):
            setattr(module, name, w)
        return model.loss(tokens, targets)

    worst = mt.check_grad(loss, *values, order=2, tolerance=1e-5)
    assert worst <= 1e-5, f"{options}: derivatives of the loss differ from central differences by {worst:.2g}"


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_has_a_gradient(tied: bool) -> None:
    for block in BLOCKS:
        model = build(block=block, position="learned", tied=tied)
        model.loss(tokens_of(), tokens_of(seed=1)).backward()
        silent = [name for name, p in model.named_parameters() if p.grad is None or not np.any(p.grad.data)]
        # A bias on the keys shifts all scores of a query alike, and softmax ignores that.
        silent = [name for name in silent if not name.endswith("wk.bias")]
        assert silent == [], f"{block}: no gradient reaches {silent}"


def test_attention_maps() -> None:
    model, tokens = build(dropout=0.5, block="parallel"), tokens_of()
    model.blocks[0].eval()
    maps = model.attention_maps(tokens)
    assert [m.shape for m in maps] == [(2, 2, 9, 9)] * 2, "one map (B, H, N, N) for each block"
    for m in maps:
        assert distance(m.sum(axis=-1), 1.0) <= 1e-12, "rows of attention sum to 1"
        assert np.all(np.triu(m, 1) == 0.0), "no attention to later tokens"
    h = model.blocks[0].norm(model.embedding(tokens))
    assert distance(model.blocks[0].mixer.weights(h).data, maps[0]) <= 1e-12, (
        "the first map is not that of the first block"
    )
    assert model.training and not model.blocks[0].training, (
        "looking at maps must not change the mode of any module"
    )
    assert "_hooks" not in vars(model.blocks[0].mixer) or not model.blocks[0].mixer._hooks, (
        "the hooks must be gone"
    )


# --------------------------------------------------------------------------------- names, initial values


def test_names_of_the_parameters() -> None:
    names = set(build(depth=1).state_dict())
    mixer = {f"blocks.0.mixer.{w}.{k}" for w in ("wq", "wk", "wv", "wo") for k in ("weight", "bias")}
    ffn = {f"blocks.0.ffn.{w}.{k}" for w in ("wg", "wu", "wd") for k in ("weight", "bias")}
    assert (
        names
        == {"embedding.weight", "blocks.0.norm1.weight", "blocks.0.norm2.weight", "norm.weight"} | mixer | ffn
    )


@pytest.mark.parametrize(
    ("options", "present", "absent"),
    [
        ({"position": "learned"}, ["position.weight"], ["head.weight"]),
        ({"position": "rope", "tied": False}, ["head.weight"], ["position.weight", "head.bias"]),
        ({"block": "post"}, ["blocks.0.norm2.weight"], ["norm.weight"]),
        ({"block": "peri"}, ["embedding_norm.weight", "norm.weight", "blocks.1.norm1_out.weight"], []),
        ({"block": "parallel"}, ["blocks.0.norm.weight", "norm.weight"], ["blocks.0.norm1.weight"]),
        ({"norm": "layernorm"}, ["norm.bias"], []),
        (
            {"bias": False, "ffn": "gelu"},
            ["blocks.1.ffn.w2.weight"],
            ["blocks.0.ffn.w1.bias", "blocks.0.mixer.wq.bias"],
        ),
    ],
)
def test_names_that_depend_on_the_config(options: dict, present: list[str], absent: list[str]) -> None:
    names = build(**options).state_dict().keys()
    assert set(present) <= names and not set(absent) & names, f"{options}: wrong names in {sorted(names)}"


def test_shapes() -> None:
    shapes = {
        name: a.shape for name, a in build(tied=False, position="learned", kv_heads=1).state_dict().items()
    }
    assert shapes["embedding.weight"] == (13, 8) and shapes["head.weight"] == (8, 13)
    assert shapes["position.weight"] == (9, 8) and shapes["blocks.0.mixer.wk.weight"] == (8, 4)


def test_seeds() -> None:
    config = Config(**SIZES)
    one, same, other = (LanguageModel(config, seed=s).state_dict() for s in (1, 1, 2))
    assert all(np.array_equal(one[name], same[name]) for name in one), (
        "one seed must give one model, to the bit"
    )
    assert not np.array_equal(one["embedding.weight"], other["embedding.weight"])
    assert not np.array_equal(one["blocks.0.mixer.wq.weight"], one["blocks.1.mixer.wq.weight"]), (
        "blocks must differ"
    )


def test_initial_values_follow_gpt2() -> None:
    config = Config(vocab=500, context=300, dim=64, depth=8, position="learned", tied=False, ffn="gelu")
    model = LanguageModel(config, dtype="float32")
    for name in ("embedding.weight", "position.weight", "head.weight"):
        a = model.state_dict()[name]
        # The standard deviation of n normal numbers is known to about 1 / sqrt(2 n), here below 0.6 %.
        assert a.dtype == np.float32 and abs(a.std() / 0.02 - 1) <= 0.03, (
            f"{name} has std {a.std():.4f}, not 0.02"
        )
    block = model.blocks[3]
    plain = {
        "mixer.wo": math.sqrt(6 / 128) / math.sqrt(3),
        "ffn.w2": 1 / math.sqrt(256) / math.sqrt(3),
    }
    for name, std in plain.items():
        got = block.state_dict()[f"{name}.weight"].std()
        assert abs(got / (std / 4) - 1) <= 0.03, f"{name} has std {got:.4f}: not divided by sqrt(2 depth) = 4"
    q = block.mixer.wq.weight.data.std()
    assert abs(q / plain["mixer.wo"] - 1) <= 0.03, (
        f"wq has std {q:.4f}: only what writes to the residual stream is scaled"
    )


def test_dtypes() -> None:
    for dtype in ("float32", "float64"):
        model = LanguageModel(Config(**SIZES, position="sinusoidal", norm="layernorm"), dtype=dtype)
        assert {p.dtype for p in model.parameters()} == {np.dtype(dtype)}, (
            "every parameter has the dtype asked for"
        )
        assert model(tokens_of()).dtype == dtype and model.loss(tokens_of(), tokens_of()).dtype == dtype
        y, _ = model.step(np.array([1]), model.start(1))
        assert y.dtype == dtype, "streaming keeps the dtype"


def test_dropout_needs_a_generator_and_is_reproducible() -> None:
    model, tokens = build(dropout=0.3), tokens_of()
    with pytest.raises(ValueError, match="rng="):
        model(tokens)
    one, same, other = (model(tokens, rng=np.random.default_rng(s)).data for s in (1, 1, 2))
    assert np.array_equal(one, same) and not np.array_equal(one, other), "dropout follows its generator"
    assert np.array_equal(model.eval()(tokens).data, model(tokens).data), "evaluation mode drops nothing"


# ------------------------------------------------------------------------------------------------ errors


def test_tokens_that_do_not_fit() -> None:
    model = build()
    with pytest.raises(ValueError, match=r"10 tokens.*context is 9.*tokens\[:, -9:\].*context=10"):
        model(tokens_of(n=10))
    with pytest.raises(ValueError, match=r"10 tokens.*context is 9"):
        model.prefill(tokens_of(n=2), State(model.start(2).blocks, 8, 2))
    with pytest.raises(ValueError, match=r"0\.\.12, found 1\.\.13"):
        model(np.array([[1, 13]]))
    with pytest.raises(ValueError, match=r"0\.\.12, found -1\.\.3"):
        model.step(np.array([3, -1]), model.start(2))
    with pytest.raises(TypeError, match="must be integers"):
        model(np.array([[1.0]]))
    with pytest.raises(mt.ShapeError, match=r"\(B, N\), not \(3,\).*tokens\[None\]"):
        model(np.array([1, 2, 3]))
    with pytest.raises(mt.ShapeError, match="targets"):
        model.loss(tokens_of(), tokens_of(n=8))
    with pytest.raises(ValueError, match="targets"):
        model.loss(tokens_of(), tokens_of() + 13)


def test_tensors_and_lists_as_tokens() -> None:
    model, tokens = build(), tokens_of()
    for given_as in (mt.tensor(tokens), tokens.tolist(), tokens.astype(np.uint8)):
        assert np.array_equal(model(given_as).data, model(tokens).data), (
            "tokens may be tensors, lists or small integers"
        )


def test_importing_models_is_light() -> None:
    """Reading files needs more libraries; building a model does not load them."""
    heavy = "('safetensors', 'hypothesis', 'click', 'matplotlib')"
    code = f"import sys, minitf.models; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]", f"importing minitf.models also imports {out.strip()}"


def test_targets_that_do_not_count() -> None:
    model, tokens = build(dropout=0.5).eval(), tokens_of()
    targets = tokens_of(seed=1)
    z = model(tokens).data
    each = np.log(np.exp(z).sum(axis=-1)) - np.take_along_axis(z, targets[..., None], axis=-1)[..., 0]
    right = z.argmax(axis=-1) == targets
    counts = np.random.default_rng(2).random(targets.shape) < 0.4
    hidden = np.where(counts, targets, -1)
    assert abs(float(model.loss(tokens, hidden)) - each[counts].mean()) <= 1e-12
    assert model.accuracy(tokens, hidden) == right[counts].mean()
    assert model.train().accuracy(tokens, targets) == right.mean() and model.training, "dropout must not act"
