"""Softmax attention: every option, tiles and their edges, empty rows, views, few queries over many keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


def attention_cases(rng: np.random.Generator) -> Iterator[tuple[str, dict[str, Any]]]:
    def case(n: int, m: int = 0, b: int = 1, h: int = 2, kv: int = 0, d: int = 4, **options: Any) -> Any:
        draw, m, kv = rng.standard_normal, m or n, kv or h
        q, k, v = draw((b, h, n, d)), draw((b, kv, m, d)), draw((b, kv, m, options.pop("dv", d)))
        return {"q": q, "k": k, "v": v, **options}

    for n in (1, 2, 31, 32, 33, 64, 127, 128, 129):
        yield f"{n} tokens", case(n, causal=True)
    yield "257 tokens, one head", case(257, h=1, causal=True)
    yield "two batches", case(65, b=2, h=3, dv=7)
    yield "wide heads", case(40, d=72, dv=33, causal=True)
    yield "fewer queries than keys", case(5, 140, causal=True)
    yield "more queries than keys", case(140, 5, causal=True)
    yield "grouped heads", case(50, h=6, kv=2, causal=True)
    yield "one key head", case(50, b=2, h=4, kv=1)
    for window in (1, 3, 40, 500):
        yield f"causal window {window}", case(150, causal=True, window=window)
        yield f"window {window}", case(150, window=window)
    yield "window over more keys", case(20, 170, window=30)
    yield "window over fewer keys", case(170, 20, window=30)
    some = rng.random((2, 2, 140, 140)) < 0.5
    some[:, :, 3] = False
    yield "mask with empty rows", case(140, b=2, mask=some)
    yield "mask and causal", case(140, b=2, mask=some[:, :1], causal=True)
    yield "mask with empty tiles", case(140, b=2, mask=some & (np.arange(140) // 128 == 1))
    yield "mask of keys", case(140, b=2, mask=some[:, :1, :1])
    yield "mask of queries", case(140, b=2, mask=some[0, 0, :, :1])
    yield "mask of pairs", case(140, mask=some[0, 0])
    yield (
        "mask repeated by its strides",
        case(30, b=2, mask=np.broadcast_to(some[:1, :1, :30, :30], (2, 2, 30, 30))),
    )
    yield "nothing visible", case(20, mask=np.zeros((20, 20), bool))
    for label, shape in (
        ("pairs", (2, 2, 140, 140)), ("heads", (2, 140, 140)), ("all", (140, 140)),
        ("batches", (2, 1, 140, 140)), ("keys", (140,)), ("queries", (2, 140, 1)), ("nothing", (1, 1, 1, 1)),
    ):  # fmt: skip
        yield f"bias of {label}", case(140, b=2, causal=label != "queries", bias=rng.standard_normal(shape))
    yield "bias and grouped heads", case(30, 140, b=2, h=4, kv=2, bias=rng.standard_normal((4, 30, 140)))
    hide = np.where(rng.random((33, 33)) < 0.5, 0.0, -np.inf)
    hide[4] = -np.inf
    yield "bias that hides", case(33, bias=hide)
    yield "cap", case(140, softcap=1.5, causal=True)
    yield "high cap", case(40, softcap=50.0, scale=1.0)
    yield "cap and bias", case(40, softcap=1.5, bias=rng.standard_normal((40, 40)))
    yield "slopes", case(140, h=4, kv=2, causal=True, slopes=np.array([1.0, 0.5, 0.25, 0.0]))
    yield "slopes, all seen", case(40, 50, slopes=np.array([0.3, 0.1]))
    cuts = np.array([0, 3, 3, 4, 90, 140])
    yield "packed", case(140, b=2, cu_seqlens=cuts)
    yield "packed, causal", case(140, cu_seqlens=cuts.astype("int32"), causal=True)
    everything: dict[str, Any] = {
        "cu_seqlens": cuts,
        "causal": True,
        "window": 20,
        "softcap": 3.0,
        "scale": 0.7,
    }
    everything |= {
        "slopes": rng.standard_normal(4),
        "bias": rng.standard_normal((4, 1, 140)),
        "mask": some[:, :1],
    }
    yield "everything", case(140, b=2, h=4, kv=2, **everything)
    far = case(60, causal=True)
    yield "large scores", {**far, "q": far["q"] * 1000.0, "k": far["k"] * 1000.0}
    token = case(60, h=4, d=8)
    swap = {
        key: np.ascontiguousarray(x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3) for key, x in token.items()
    }
    yield "tokens first in memory", {**swap, "causal": True}
    yield "one query, many keys", case(1, 1100, h=3, d=8, causal=True)
    yield (
        "few queries, many keys",
        case(3, 1500, b=2, h=4, kv=2, d=5, dv=9, causal=True, slopes=rng.standard_normal(4)),
    )
    hole = rng.random((2, 1, 2, 1024)) < 0.5
    hole[0, 0, :, :600] = False
    hole[1, 0, 1] = False
    yield "few queries, masked", case(2, 1024, b=2, mask=hole, softcap=2.0, bias=rng.standard_normal(1024))
    yield "few queries, window", case(2, 1300, causal=True, window=100)
    yield "few queries, wide heads", case(2, 1031, d=21, dv=43)
    yield "one query, long cache", case(1, 8203, d=40, dv=18, causal=True)
    yield "one query, long cache, window", case(1, 8203, d=8, causal=True, window=5000)


CASES = {"softmax_attention": attention_cases, "attention_with_logsumexp": attention_cases}
