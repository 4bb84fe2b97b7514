"""Token merging, adapters, quantisation, DiT and iTransformer against published code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minitf import ops
from minitf.adapt.lora import LoRA
from minitf.blocks.dit_block import DiTBlock
from minitf.blocks.itransformer import ITransformer
from minitf.compress.llm_int8 import codes, product
from minitf.engine import Tensor
from minitf.nn import Linear
from minitf.tokens.tome import ToMe
from tests.oracles.oracle import compare, load


def put(layer: Linear, weight: Tensor, bias: Tensor | None = None) -> None:
    """Tensors in place of parameters, so that gradients arrive at the inputs of the comparison."""
    layer.weight = weight  # type: ignore[assignment]
    if bias is not None:
        layer.bias = bias  # type: ignore[assignment]


def test_lora() -> None:
    def f(x: Tensor, weight: Tensor, bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
        layer = LoRA(base=Linear(6, 5, dtype="float64"), r=3, alpha=8.0)
        layer.weight, layer.bias, layer.a, layer.b = weight, bias, a, b  # type: ignore[assignment]
        return layer(x)

    compare("lora", f, 1e-12)


def test_llm_int8() -> None:
    found = load("llm_int8")
    x, w = found["in.x"], found["in.w"]
    o = (np.abs(x) >= 6.0).any(axis=0)
    # The library works in float32 and multiplies 127 / s first, so a code next to a half may round elsewhere.
    rows = codes(np.where(np.abs(x) >= 6.0, 0.0, x), 1)[0]
    assert np.max(np.abs(np.where(o, 0.0, rows) - found["codes"])) <= 0, "codes of the input differ"
    assert np.max(np.abs(codes(w, 0)[0] - found["wcodes"])) <= 0, "codes of the weight differ"
    error = np.max(np.abs(product(x, w, outliers="int8") - found["y"])) / np.max(np.abs(found["y"]))
    # It reads outlier weights back from codes in float16: 2^-11 of a value.
    assert error <= 1e-3, f"the product differs by {error:.2g}"


@pytest.mark.parametrize("name", ["tome", "tome_special", "tome_kth"])
def test_tome(name: str) -> None:
    special, split = name == "tome_special", "kth" if name == "tome_kth" else "half"
    metric = Tensor(load(name)["metric"])

    def f(x: Tensor, size: Tensor) -> Tensor:
        merged = ToMe(r=4, class_token=special, distill_token=special, split=split, k=3)(x, metric, size)
        return ops.concat([merged.x, merged.size], axis=-1)

    compare(name, f, 1e-12)


def test_dit_block() -> None:
    def f(x: Tensor, c: Tensor, wqkv: Tensor, bqkv: Tensor, **p: Any) -> Tensor:
        block = DiTBlock(8, heads=2, dtype="float64")
        put(block.wc, p["wc"], p["bc"])
        q, k, v = zip(ops.split(wqkv, 3, axis=1), ops.split(bqkv, 3), strict=True)
        for linear, (weight, bias) in ((block.mixer.wq, q), (block.mixer.wk, k), (block.mixer.wv, v)):
            put(linear, weight, bias)
        put(block.mixer.wo, p["wo"], p["bo"])
        put(block.ffn.w1, p["w1"])
        put(block.ffn.w2, p["w2"])
        return block(x, c)

    compare("dit_block", f, 1e-10)


def test_itransformer() -> None:
    def f(x: Tensor, marks: Tensor, **p: Tensor) -> Tensor:
        model = ITransformer(4, heads=2, past=10, horizon=3, depth=1, dtype="float64")
        put(model.embed, p["embed"])
        put(model.project, p["project"])
        (block,) = model.blocks
        for name in ("wq", "wk", "wv", "wo"):
            put(getattr(block.mixer, name), p[name])
        put(block.ffn.w1, p["w1"])
        put(block.ffn.w2, p["w2"])
        return model(x, marks)

    compare("itransformer", f, 1e-10)
