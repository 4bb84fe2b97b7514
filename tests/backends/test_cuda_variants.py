"""Every variant on the card: moved by `.to("cuda")` it computes, learns and streams as on the CPU.

No card is needed: the stand-in for CuPy is as strict, and computes as NumPy does. So where a variant lets the
two meet, or asks of CuPy what only NumPy can do, it fails here; and what it computes is what it computed on
the CPU, but for the order of sums. Definitions are used; one model at the end uses kernels too.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import minitf as mt
from minitf import ops
from minitf.decode import SpeculativeDecoding, generate
from minitf.engine import Tensor, no_grad
from minitf.models import Config, Encoder, ForecastConfig, Forecaster, ImageConfig, ImageModel, LanguageModel
from minitf.nn import Case
from minitf.registry import index
from minitf.testing import subject
from minitf.train import AdamW, clip_grad_norm

from .emulator import stand_in

CASE = Case()
# Beside the defaults: options whose code is another.
OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "attention_sinks": ({"learned_sink": True}, {"position": "alibi"}),
    "cofr_ladder": ({"clip_eval": True},),
    "combiner_fixed": ({"causal": False},),
    "deepseek_moe": ({"groups": 2, "group_limit": 1}, {"biased": False}),
    "diff_attn": ({"position": "rope"},),
    "gqa": ({"position": "alibi"},),
    "itransformer": ({"use_norm": False},),
    "mamba2_ssd": ({"chunk": 2},),
    "mla": ({"position": "nope"},),
    "moh": ({"router": "norm"}, {"position": "rope"}),
    "performer_favor": ({"causal": False}, {"kernel": "relu"}),
    "softmax_attention": ({"position": "rope"}, {"position": "alibi"}, {"dropout": 0.5}),
    "sliding_window": ({"dilation": 2}, {"position": "rope"}),
    "statistical_topk": ({"smooth": 0.1}, {"fill": "-inf"}),
    "tome": ({"split": "kth"}, {"split": "random"}),
}
# What is called on tensors; position schemes and decoding have tests of their own below.
LAYERS = [name for name in index() if subject(name).kind not in ("position", "procedure")]
STREAMS = [name for name in LAYERS if index()[name]["streams"]]
MASKS = [name for name in LAYERS if subject(name).masks]


@pytest.fixture(scope="module", autouse=True)
def cupy() -> Iterator[Any]:
    with stand_in.installed() as found:
        yield found


def moved(a: Any, device: str) -> Any:
    return a.to(device) if isinstance(a, Tensor) else a


def tensors(y: Any) -> list[Tensor]:
    """Those of an output: itself, or the parts of a tuple."""
    if isinstance(y, tuple | list):
        return [t for part in y for t in tensors(part)]
    return [y] if isinstance(y, Tensor) else []


def outcome(name: str, device: str, training: bool, options: dict[str, Any], mask: Any = None) -> Any:
    """Outputs, weights and auxiliary loss, and the gradients of the inputs and parameters, by name."""
    one = subject(name)
    layer = one.layer(CASE, **options)
    given = [moved(t, device) for t in one.inputs(CASE)]
    given = [Tensor(t.data, requires_grad=True) if t.dtype.kind == "f" else t for t in given]
    keywords: dict[str, Any] = {} if mask is None else {"mask": mask}
    found: dict[str, Any] = {}
    drawn = {"rng": np.random.default_rng(1)} if "rng" in one.keywords else {}
    parameters: list[tuple[str, Any]] = []
    if isinstance(layer, mt.nn.Module):
        parameters = list(layer.train(training).to(device).named_parameters())
    with ops.kernels.use("reference"):
        outputs = tensors(layer(*given, **keywords, **drawn))
        total = sum([(y * y).sum() for y in outputs if y.requires_grad], Tensor(given[0].data).sum())
        found |= {f"output {i}": y for i, y in enumerate(outputs)}
        if total.requires_grad:
            total.backward()
        with no_grad():
            for extra in ("weights", "auxiliary_loss"):
                function = getattr(layer, extra, None)
                if callable(function):
                    takes = keywords if "mask" in inspect.signature(function).parameters else {}
                    found |= {f"{extra} {i}": y for i, y in enumerate(tensors(function(*given, **takes)))}
    leaves = [(f"input {i}", t) for i, t in enumerate(given)] + parameters
    found |= {f"gradient of {key}": t.grad for key, t in leaves if t.grad is not None}
    assert all(y.device == device for y in found.values()), f"{name}: something is left on the other device"
    return {key: y.numpy() for key, y in found.items()}


def compare(words: str, found: dict[str, Any], right: dict[str, Any], tolerance: float = 1e-10) -> None:
    assert found.keys() == right.keys(), f"{words}: only one has {', '.join(found.keys() ^ right.keys())}"
    for key, a in right.items():
        b = found[key]
        assert (b.shape, b.dtype) == (a.shape, a.dtype), f"{words}: {key} is {b.dtype} {b.shape}"
        off = np.where(a == b, 0.0, a - np.where(a == b, 0.0, b))
        err = float(np.abs(off).max(initial=0.0))
        most = tolerance * max(1.0, float(np.abs(a[np.isfinite(a)]).max(initial=0.0)))
        assert err <= most, f"{words}: {key} on the card is off by {err:.3g}"


@pytest.mark.parametrize("name", LAYERS)
def test_forward_and_backward(name):
    for options in ({}, *OPTIONS.get(name, ())):
        for training in (False, True):
            right = outcome(name, "cpu", training, options)
            compare(f"{name} {options}", outcome(name, "cuda", training, options), right)


@pytest.mark.parametrize("options", [{}, {"distill_token": True}, {"split": "kth"}])
def test_merged_tokens_come_back(options, cupy):
    """What was merged on the card is taken apart there."""
    x = CASE.tokens()
    found = [mt.build("tome", dim=8, r=2, **options)(y) for y in (x, x.to("cuda"))]
    here, there = (merged.matching.unmerge(merged.x) for merged in found)
    assert there.device == "cuda" and np.array_equal(here.numpy(), there.numpy())


@pytest.mark.parametrize("name", MASKS)
def test_masks_on_either_device(name, cupy):
    """A mask may be a NumPy array, a CuPy array or a tensor on the card. The last key is hidden."""
    sizes = subject(name).inputs(CASE)[0].shape
    mask = np.ones((sizes[0], 1, 1, int(np.prod(sizes[1:-1]))), dtype=bool)
    mask[0, ..., -1] = False
    right = outcome(name, "cpu", False, {}, mask)
    for given in (mask, cupy.asarray(mask), Tensor(cupy.asarray(mask))):
        compare(f"{name} with a mask", outcome(name, "cuda", False, {}, given), right)


def streamed(name: str, device: str, dtype: str) -> dict[str, Any]:
    """Every token by a step, then all at once and once more."""
    one = subject(name)
    layer = one.layer(CASE, dtype).to(device)
    x, *others = (moved(t, device) for t in one.inputs(CASE, dtype))
    found = {}
    with ops.kernels.use("reference"):
        state = layer.start(CASE.b)
        for t in range(CASE.t):
            found[f"step {t}"], state = layer.step(x[:, t], state, *(a[:, t] for a in others))
        if hasattr(layer, "prefill") and not others:
            found["prefill"], state = layer.prefill(x, layer.start(CASE.b))
            found["prefill again"], state = layer.prefill(x, state)
    assert all(y.device == device for y in found.values()), f"{name}: something is left on the other device"
    return {key: y.numpy() for key, y in found.items()}


def test_operations_take_arrays_on_the_card(cupy):
    """Arrays that are no tensors: the same numbers, on the card."""
    x, ids = np.random.default_rng(0).standard_normal((3, 4)), np.array([2, 0, 2])
    empty = np.ones((2, 0))
    for operation, args in (
        (ops.keyed_dropout, (x, 7, 0.5)),
        (ops.embedding, (ids, x)),
        (ops.cross_entropy, (x, ids)),
        (ops.cross_entropy, (x, ids, 2)),
        (ops.softmax, (empty,)),
        (ops.logsumexp, (empty,)),
        (ops.where, (True, x, 0.0)),
        (ops.joint_mask, (ids == 2, np.tri(3, dtype=bool))),
    ):
        there = [cupy.asarray(a) if isinstance(a, np.ndarray) else a for a in args]
        with ops.kernels.use("reference"):
            a, b = (operation(*given) for given in (there, args))
        a, b = (y.data if isinstance(y, Tensor) else y for y in (a, b))
        assert isinstance(a, cupy.ndarray) and np.array_equal(a.get(), b), operation.__name__
    assert ops.zeros(2, like=cupy.asarray(x)).device == "cuda"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", STREAMS)
def test_streaming(name, dtype):
    """The first state lies where the parameters lie, in their dtype."""
    eps = float(np.finfo(dtype).eps)
    compare(name, streamed(name, "cuda", dtype), streamed(name, "cpu", dtype), 1e4 * eps)


@pytest.mark.parametrize("name", [n for n in index() if index()[n]["kind"] == "position"])
def test_positions(name, cupy):
    """Positions may be on either device."""
    layer = mt.build(name, dim=8, heads=2, dtype="float64").to("cuda")
    rng, n = np.random.default_rng(0), np.arange(5)
    x, heads = rng.standard_normal((2, 5, 8)), rng.standard_normal((2, 2, 5, 4))
    here = mt.build(name, dim=8, heads=2, dtype="float64")
    for there in (n, cupy.asarray(n), Tensor(cupy.asarray(n))):
        found = layer.embed(Tensor(cupy.asarray(x)), there), layer.rotate(Tensor(cupy.asarray(heads)), there)
        right = here.embed(Tensor(x), n), here.rotate(Tensor(heads), n)
        for a, b in zip(found, right):
            assert a.device == "cuda" and np.allclose(a.numpy(), b.numpy(), rtol=1e-12, atol=1e-12), name
        bias, wanted = layer.bias(there, there), here.bias(n, n)
        assert (bias is None and wanted is None) or np.array_equal(bias, wanted), f"{name}: the bias differs"


PARTS: dict[str, Any] = dict(dim=16, depth=2, heads=2)
# Mixers, and what else is another than usual.
MODELS: dict[str, dict[str, Any]] = {
    "softmax": dict(position="rope"),
    "mqa": dict(position="alibi", ffn="smoe_topk", norm="layernorm"),
    "gla": dict(position="learned"),
    "mamba2_ssd": dict(position="none", block="parallel"),
    "gated_delta_net": dict(position="none", ffn="gelu", dropout=0.2),
}


def language_model(device: str, mixer: str, dtype: str = "float64") -> LanguageModel:
    config = Config(vocab=11, context=8, attention=mixer, **PARTS, **MODELS[mixer])
    return LanguageModel(config, seed=0, dtype=dtype).to(device)


def three_steps(model: Any, device: str, mode: str, *batch: Any) -> dict[str, Any]:
    """The losses and gradient norms of three steps of AdamW, and the parameters after them."""
    opt, found = AdamW(model.parameters(), lr=0.01, weight_decay=0.1), {}
    with ops.kernels.use(mode):
        for i in range(3):
            opt.zero_grad()
            loss = model.loss(*(moved(a, device) for a in batch), rng=np.random.default_rng(i))
            loss.backward()
            found[f"norm {i}"] = np.asarray(float(clip_grad_norm(model.parameters(), 1.0)))
            opt.step()
            assert loss.device == device and all(p.device == device for p in model.parameters())
            found[f"loss {i}"] = loss.numpy()
    return found | {name: p.numpy() for name, p in model.named_parameters()}


@pytest.mark.parametrize("mixer", MODELS)
def test_a_language_model_trains(mixer):
    """Tokens may stay on the CPU. The first with kernels, in float32.

    In float32, AdamW makes steps of rounding errors where gradients are 0, as those of a bias of keys are.
    """
    mode, dtype, tolerance = "reference", "float64", 1e-10
    if mixer == "softmax":
        if why := stand_in.missing():
            pytest.skip(why)
        mode, dtype, tolerance = "auto", "float32", 2e-5
    tokens = np.random.default_rng(0).integers(0, 11, (2, 8))
    goals = np.roll(tokens, -1, axis=1)
    goals[:, -1] = -1
    right = three_steps(language_model("cpu", mixer, dtype), "cpu", "reference", tokens, goals)
    for batch in ((tokens, goals), (Tensor(tokens), Tensor(goals))):
        found = three_steps(language_model("cuda", mixer, dtype), "cuda", mode, *batch)
        compare(mixer, found, right, tolerance)


@pytest.mark.parametrize("mixer", MODELS)
def test_a_language_model_continues_text(mixer, cupy):
    here, there = (language_model(device, mixer).eval() for device in ("cpu", "cuda"))
    tokens = np.random.default_rng(0).integers(0, 11, (2, 8))
    with ops.kernels.use("reference"):
        assert here.accuracy(tokens, tokens) == there.accuracy(tokens, cupy.asarray(tokens))
        first, state = there.prefill(cupy.asarray(tokens[:, :5]), there.start(2))
        rows = [first]
        for n in range(5, 8):
            row, state = there.step(tokens[:, n], state)
            rows.append(row[:, None])
        compare(mixer, {"logits": ops.concat(rows, axis=1).numpy()}, {"logits": here(tokens).numpy()})
        texts = [list(generate(model, [1, 2, 3], 9, seed=3)) for model in (here, there)]
        assert texts[0] == texts[1], f"{mixer}: sampled on the card, another text"
        texts = [list(SpeculativeDecoding(seed=3)(model, model, [1, 2], 4).tokens) for model in (here, there)]
        assert texts[0] == texts[1], f"{mixer}: drafted on the card, another text"


OTHERS: dict[str, Any] = {
    "encoder": lambda: Encoder(Config(vocab=11, context=8, **PARTS), seed=0, classes=3),
    "forecaster": lambda: Forecaster(ForecastConfig(context=8, horizon=4, patch=2, **PARTS), seed=0),
    "image": lambda: ImageModel(ImageConfig(size=(4, 4), classes=3, **PARTS), seed=0),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_train(name):
    rng = np.random.default_rng(0)
    series = (rng.standard_normal((2, n, 3)).astype("float32") for n in (8, 4))
    batch = {
        "encoder": (rng.integers(0, 11, (2, 8)), np.array([0, 2]), np.arange(8) < [[8], [5]]),
        "forecaster": tuple(series),
        "image": (rng.random((2, 4, 4, 1)).astype("float32"), np.array([2, 0])),
    }[name]
    right = three_steps(OTHERS[name](), "cpu", "reference", *batch)
    for given in (batch, tuple(map(Tensor, batch))):
        compare(name, three_steps(OTHERS[name]().to("cuda"), "cuda", "reference", *given), right, 2e-5)
