"""Training beside a twin in torch: the same initial weights, batches and optimiser, 50 steps in float32.

The twin is written here in plain torch, from the equations, with torch's own AdamW. Every step, the relative
difference of the two losses must stay below 1e-4.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from minitf.models import Config, LanguageModel
from minitf.tasks import CharTokenizer, load_moby
from minitf.train import AdamW

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.parity

STEPS = 50
CASES = {
    "gpt": dict(ffn="gelu", norm="layernorm", position="learned", block="pre"),
    "llama": dict(ffn="swiglu", norm="rmsnorm", position="rope", block="pre"),
    "llama, grouped heads, own head": dict(
        ffn="swiglu", norm="rmsnorm", position="rope", block="pre", kv_heads=2, tied=False, bias=False
    ),
}


def rms_norm(x, w):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w


def rotate(x):
    """Pairs (2j, 2j + 1) of x (B, H, N, d) turn by n * 10000^(-2j/d)."""
    n, d = x.shape[-2:]
    angle = torch.arange(n, dtype=torch.float64)[:, None] * 10000.0 ** (
        -torch.arange(0, d, 2, dtype=torch.float64) / d
    )
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


def twin_loss(p: dict, config: Config, tokens, targets):
    """The loss from a dictionary of torch parameters that has our names."""
    functional = torch.nn.functional

    def linear(name, x):
        y = x @ p[f"{name}.weight"]
        return y + p[f"{name}.bias"] if f"{name}.bias" in p else y

    def norm(name, x):
        w = p[f"{name}.weight"]
        if config.norm == "layernorm":
            return functional.layer_norm(x, w.shape, w, p[f"{name}.bias"], 1e-5)
        return rms_norm(x, w)

    batch, n = tokens.shape
    kv_heads = config.kv_heads or config.heads
    x = p["embedding.weight"][tokens]
    if config.position == "learned":
        x = x + p["position.weight"][:n]
    hidden = torch.ones(n, n, dtype=torch.bool).triu(1)
    for i in range(config.depth):
        at = f"blocks.{i}"
        h = norm(f"{at}.norm1", x)
        q, k, v = (
            linear(f"{at}.mixer.{w}", h).view(batch, n, heads, -1).transpose(1, 2)
            for w, heads in (("wq", config.heads), ("wk", kv_heads), ("wv", kv_heads))
        )
        if config.position == "rope":
            q, k = rotate(q), rotate(k)
        k, v = (a.repeat_interleave(config.heads // kv_heads, dim=1) for a in (k, v))
        s = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        o = s.masked_fill(hidden, -math.inf).softmax(-1) @ v
        x = x + linear(f"{at}.mixer.wo", o.transpose(1, 2).reshape(batch, n, -1))
        h = norm(f"{at}.norm2", x)
        if config.ffn == "gelu":
            h = linear(f"{at}.ffn.w2", functional.gelu(linear(f"{at}.ffn.w1", h)))
        else:
            h = linear(f"{at}.ffn.wd", functional.silu(linear(f"{at}.ffn.wg", h)) * linear(f"{at}.ffn.wu", h))
        x = x + h
    x = norm("norm", x)
    logits = x @ (p["embedding.weight"].T if config.tied else p["head.weight"])
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


@pytest.mark.parametrize("name", CASES)
def test_50_steps(name: str) -> None:
    text = load_moby()[:50_000]
    tokenizer = CharTokenizer.from_text(text)
    ids = tokenizer.encode(text)
    config = Config(vocab=tokenizer.vocab, context=32, dim=64, depth=3, heads=4, **CASES[name])
    ours = LanguageModel(config, seed=1)
    theirs = {key: torch.nn.Parameter(torch.tensor(a)) for key, a in ours.state_dict().items()}
    settings = dict(lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    ours_opt, theirs_opt = (
        AdamW(ours.parameters(), **settings),
        torch.optim.AdamW(theirs.values(), **settings),
    )
    rng, losses = np.random.default_rng(2), []
    for _ in range(STEPS):
        starts = rng.integers(0, len(ids) - 33, 8)
        window = ids[starts[:, None] + np.arange(33)]
        tokens, targets = window[:, :-1], window[:, 1:]
        loss = ours.loss(tokens, targets)
        twin = twin_loss(theirs, config, torch.tensor(tokens), torch.tensor(targets))
        losses.append((loss.item(), twin.item()))
        for a in (ours_opt, theirs_opt):
            a.zero_grad()
        loss.backward()
        twin.backward()
        ours_opt.step()
        theirs_opt.step()
    a, b = np.array(losses).T
    worst = np.max(np.abs(a - b) / b)
    print(f"{name}: loss {a[0]:.4f} -> {a[-1]:.4f}, largest relative difference {worst:.2e}")
    assert a[-1] < a[0] - 0.5, (
        f"{name}: the loss fell only from {a[0]:.3f} to {a[-1]:.3f}: nothing was learnt"
    )
    assert worst <= 1e-4, f"{name}: the losses of the twins differ by {worst:.2g}, relative"
