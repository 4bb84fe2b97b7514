"""A training step of a small GPT: forward, backward, AdamW, from the same weights in every library."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minitf.models import Config, LanguageModel
from minitf.ops.kernels import use
from minitf.train import AdamW

from .measure import PAUSE, Row, agree, compared, importable

# Of AdamW, in every library.
LR, BETAS, EPS, DECAY = 3e-4, (0.9, 0.999), 1e-8, 0.01


@dataclass(frozen=True)
class Size:
    """vocab V, tokens T, dim D, heads H, depth, batch B."""

    vocab: int
    context: int
    dim: int
    heads: int
    depth: int
    batch: int


SIZES = {"small": Size(65, 64, 128, 4, 4, 12), "medium": Size(65, 256, 384, 6, 6, 4)}
# A step: tokens (B, T), targets (B, T) -> the loss before the update.
Step = Callable[[], float]


def training(repetitions: int = 15, sizes: dict[str, Size] | None = None) -> list[Row]:
    """Milliseconds for one training step of a GPT in float32: forward, backward and AdamW.

    minitf with kernels and with the plain definitions; torch with scaled_dot_product_attention, eager and
    compiled; JAX with jit. All start from the same weights; the losses of two steps must agree to 1e-4.
    """
    rows = []
    for case, size in (SIZES if sizes is None else sizes).items():
        rng = np.random.default_rng(0)
        tokens, targets = rng.integers(0, size.vocab, (2, size.batch, size.context))
        weights = language_model(size).state_dict()
        steps: dict[str, Step] = {
            "minitf": minitf_step(size, tokens, targets, "auto"),
            "minitf, plain": minitf_step(size, tokens, targets, "reference"),
        }
        if importable("torch"):
            steps["torch"] = torch_step(size, weights, tokens, targets, compiled=False)
            steps["torch.compile"] = torch_step(size, weights, tokens, targets, compiled=True)
        if importable("jax"):
            steps["jax.jit"] = jax_step(size, weights, tokens, targets)
        losses: dict[str, list[float]] = {}
        for name, step in list(steps.items()):
            try:
                losses[name] = [step(), step()]
            except Exception as error:
                # A compiler that cannot build here: the others are still compared.
                if name not in ("torch.compile", "jax.jit"):
                    raise
                print(f"{case}: {name} cannot run here ({type(error).__name__}) and is left out")
                del steps[name]
        agree(f"losses of the {case} GPT", losses, 1e-4)
        rows += compared("training", f"GPT step, {case}", steps, repetitions, "ms", 1e3, PAUSE)
    return rows


def language_model(size: Size) -> LanguageModel:
    config = Config(
        vocab=size.vocab, context=size.context, dim=size.dim, depth=size.depth, heads=size.heads,
        attention="softmax", ffn="gelu", norm="layernorm", position="learned", block="pre",
    )  # fmt: skip
    return LanguageModel(config, seed=0)


def minitf_step(size: Size, tokens: Any, targets: Any, mode: str) -> Step:
    model = language_model(size)
    optimizer = AdamW(model.parameters(), lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY)

    def step() -> float:
        with use(mode):
            optimizer.zero_grad()
            loss = model.loss(tokens, targets)
            loss.backward()
            optimizer.step()
            return float(loss.item())

    return step


def torch_step(size: Size, weights: dict[str, Any], tokens: Any, targets: Any, compiled: bool) -> Step:
    """The same model as functions of torch, queries, keys and values in one product."""
    torch = importlib.import_module("torch")
    functional = importlib.import_module("torch.nn.functional")
    layout = {name: w for name, w in weights.items() if ".mixer.w" not in name or ".wo." in name}
    for i in range(size.depth):
        for part in ("weight", "bias"):
            qkv = [weights[f"blocks.{i}.mixer.{name}.{part}"] for name in ("wq", "wk", "wv")]
            layout[f"blocks.{i}.mixer.qkv.{part}"] = np.concatenate(qkv, axis=-1)
    # Matrices lie in memory as torch keeps them, (out, in).
    p = {
        name: torch.tensor(w.T.copy() if w.ndim == 2 and "blocks" in name else w, requires_grad=True)
        for name, w in layout.items()
    }
    batch, n, d = size.batch, size.context, size.dim // size.heads
    ids, goal = torch.tensor(tokens), torch.tensor(targets).reshape(-1)

    def norm(x: Any, name: str) -> Any:
        return functional.layer_norm(x, (size.dim,), p[name + ".weight"], p[name + ".bias"])

    def linear(x: Any, name: str) -> Any:
        return functional.linear(x, p[name + ".weight"], p[name + ".bias"])

    def loss_of(ids: Any, goal: Any) -> Any:
        x = functional.embedding(ids, p["embedding.weight"]) + p["position.weight"]
        for i in range(size.depth):
            block = f"blocks.{i}"
            heads = linear(norm(x, block + ".norm1"), block + ".mixer.qkv").split(size.dim, 2)
            q, k, v = (t.view(batch, n, size.heads, d).transpose(1, 2) for t in heads)
            o = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + linear(o.transpose(1, 2).reshape(batch, n, size.dim), block + ".mixer.wo")
            hidden = functional.gelu(linear(norm(x, block + ".norm2"), block + ".ffn.w1"))
            x = x + linear(hidden, block + ".ffn.w2")
        logits = functional.linear(norm(x, "norm"), p["embedding.weight"])
        return functional.cross_entropy(logits.reshape(-1, size.vocab), goal)

    run = torch.compile(loss_of) if compiled else loss_of
    optimizer = torch.optim.AdamW(list(p.values()), lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY)

    def step() -> float:
        optimizer.zero_grad()
        loss = run(ids, goal)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return step


def jax_step(size: Size, weights: dict[str, Any], tokens: Any, targets: Any) -> Step:
    """The same model as one jitted function of JAX, AdamW included."""
    jax, jnp = importlib.import_module("jax"), importlib.import_module("jax.numpy")
    p = {name: jnp.asarray(w) for name, w in weights.items()}
    batch, n, d = size.batch, size.context, size.dim // size.heads
    hidden_later = jnp.asarray(np.tri(n, dtype=bool))

    def norm(p: Any, x: Any, name: str) -> Any:
        x = x - x.mean(-1, keepdims=True)
        x = x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
        return x * p[name + ".weight"] + p[name + ".bias"]

    def linear(p: Any, x: Any, name: str) -> Any:
        return x @ p[name + ".weight"] + p[name + ".bias"]

    def loss_of(p: Any) -> Any:
        x = p["embedding.weight"][tokens] + p["position.weight"]
        for i in range(size.depth):
            block = f"blocks.{i}"
            x1 = norm(p, x, block + ".norm1")
            q, k, v = (
                linear(p, x1, f"{block}.mixer.{name}").reshape(batch, n, size.heads, d).transpose(0, 2, 1, 3)
                for name in ("wq", "wk", "wv")
            )
            scores = jnp.where(hidden_later, q @ k.transpose(0, 1, 3, 2) / d**0.5, -jnp.inf)
            o = jax.nn.softmax(scores) @ v
            x = x + linear(p, o.transpose(0, 2, 1, 3).reshape(batch, n, size.dim), block + ".mixer.wo")
            wide = linear(p, norm(p, x, block + ".norm2"), block + ".ffn.w1")
            x = x + linear(p, jax.nn.gelu(wide, approximate=False), block + ".ffn.w2")
        logits = norm(p, x, "norm") @ p["embedding.weight"].T
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1).mean()

    def update(state: Any) -> Any:
        p, m, v, t = state
        loss, g = jax.value_and_grad(loss_of)(p)
        t = t + 1
        m = jax.tree.map(lambda m, g: m + (1 - BETAS[0]) * (g - m), m, g)
        v = jax.tree.map(lambda v, g: BETAS[1] * v + (1 - BETAS[1]) * g * g, v, g)

        def moved(p: Any, m: Any, v: Any) -> Any:
            root = jnp.sqrt(v / (1 - BETAS[1] ** t)) + EPS
            return p * (1 - LR * DECAY) - LR * (m / (1 - BETAS[0] ** t)) / root

        return loss, (jax.tree.map(moved, p, m, v), m, v, t)

    jitted = jax.jit(update)
    zeros = jax.tree.map(jnp.zeros_like, p)
    state = [(p, zeros, zeros, jnp.asarray(0.0))]

    def step() -> float:
        loss, state[0] = jitted(state[0])
        return float(loss)

    return step
