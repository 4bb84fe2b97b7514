"""What language models and encoders share: embedding, positions, a stack of blocks, the norms around them.

    x = E[tokens]            then the position scheme, if it acts on embeddings
    x = Block_i(x)           i = 0 .. depth-1
    h = Norm(x)              not after post-norm blocks, which end with a norm of their own

Peri-norm blocks get one more norm, after the embedding. In training mode, dropout acts on what enters the
blocks.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np

from minitf.engine import Array, ShapeError, Tensor, no_grad
from minitf.nn import Dropout, Embedding, Module, Position, as_norm, init
from minitf.registry import build, resolve, variant_class

from .config import Config


class Backbone(Module):
    """tokens (B, N) -> h (B, N, D).

    Parameters: embedding.weight (V, D); position.weight (context, D) if learned; embedding_norm for
    peri-norm; blocks.{i}; norm, except after post-norm.

    Initial values follow GPT-2: embeddings and learned positions are normal with std 0.02; the matrices that
    write to the residual stream (wo of the mixer, w2 or wd of the FFN) start as the variant says, divided by
    sqrt(2 depth), so that the sum of all branches has the same scale at any depth. All else is as each
    variant says.

    Raises:
        ValueError: a part that cannot do what the config asks of it; the message says which and what to do.
    """

    def __init__(self, config: Config, causal: bool, seed: init.Seed, dtype: Any):
        rng = init.generator(seed)
        self.config = config
        self.embedding = Embedding(config.vocab, config.dim, rng, dtype=dtype)
        embeds = variant_class(config.position).embed is not Position.embed
        self.position: Any = position_scheme(config, rng, dtype) if embeds else None
        self.dropout = Dropout(config.dropout)
        block = resolve(config.block, ("block",))[0]
        norm = resolve(config.norm, ("norm",))[0]
        self.embedding_norm: Any = as_norm(norm, config.dim, dtype=dtype) if block == "peri_norm" else None
        self.blocks: list[Any] = [build_block(config, causal, rng, dtype) for _ in range(config.depth)]
        self.norm: Any = None if block == "post_norm" else as_norm(norm, config.dim, dtype=dtype)

    def embed(self, tokens: Array, start: int = 0) -> Tensor:
        """Token ids (B, N), the first at position `start` -> (B, N, D)."""
        n, limit = tokens.shape[1], self.config.context
        if start + n > limit:
            raise ValueError(
                f"the sequence has {start + n} tokens, but the model's context is {limit}: shorten it "
                f"(tokens[:, -{limit}:] keeps the end), or build a model with context={start + n} or more"
            )
        x = self.embedding(tokens)
        if self.position is not None:
            x = self.position.embed(x, np.arange(start, start + n))
        return x if self.embedding_norm is None else self.embedding_norm(x)

    def hidden(self, tokens: Array, rng: np.random.Generator | None = None, **options: Any) -> Tensor:
        """Token ids (B, N) -> h (B, N, D). `options` go to the mixers."""
        x = self.dropout(self.embed(tokens), rng)
        for block in self.blocks:
            x = block(x, rng=rng, **options)
        return x if self.norm is None else self.norm(x)

    def maps(self, tokens: Array, **options: Any) -> list[np.ndarray[Any, Any]]:
        """The attention maps (B, H, N, N) of each block, without dropout."""
        mixers = [block.mixer for block in self.blocks if hasattr(block.mixer, "weights")]
        if not mixers:
            raise ValueError(
                f"attention={self.config.attention!r} forms no weights, so it has no maps to show"
            )
        found = []

        def keep(mixer: Any, args: tuple[Any, ...]) -> None:
            found.append(mixer.weights(args[0], **options).numpy())

        modes = [(module, module.training) for module in self.modules()]
        hooks = [mixer.register_forward_pre_hook(keep) for mixer in mixers]
        try:
            with no_grad():
                self.eval().hidden(tokens, **options)
        finally:
            for hook in hooks:
                hook.remove()
            for module, mode in modes:
                module.training = mode
        return found


def token_ids(tokens: Any, ndim: int, shape: str) -> Array:
    """Tokens as an array with `ndim` axes. The embedding checks that they are integers in range."""
    ids = tokens.data if isinstance(tokens, Tensor) else np.asarray(tokens)
    if ids.ndim != ndim:
        raise ShapeError(
            f"tokens must be {shape}, not {ids.shape}; a single one is a batch of 1: tokens[None]"
        )
    return ids


def position_scheme(config: Config, rng: np.random.Generator, dtype: Any) -> Any:
    """A new position scheme as the config names it."""
    return build(
        config.position, config.dim, heads=config.heads, context=config.context, seed=rng, dtype=dtype
    )


def build_block(config: Config, causal: bool, rng: np.random.Generator, dtype: Any) -> Any:
    """One block with its mixer and FFN."""
    cls = variant_class(config.block)
    takes = inspect.signature(cls).parameters
    if not {"mixer", "ffn", "norm"} <= takes.keys():
        raise ValueError(
            f"block={config.block!r} is not built from a mixer, an FFN and a norm: choose another"
        )
    options: dict[str, Any] = {"norm": resolve(config.norm, ("norm",))[0], "seed": rng, "dtype": dtype}
    if config.dropout:
        if "dropout" not in takes:
            raise ValueError(f"block={config.block!r} has no dropout: write dropout=0.0")
        options["dropout"] = config.dropout
    mixer, ffn = build_mixer(config, causal, rng, dtype), build_ffn(config, rng, dtype)
    for branch, last in ((mixer, ("wo",)), (ffn, ("w2", "wd"))):
        for name in last:
            if hasattr(branch, name):
                getattr(branch, name).weight.data *= 1.0 / math.sqrt(2 * config.depth)
    return build(config.block, config.dim, mixer=mixer, ffn=ffn, **options)


def build_mixer(config: Config, causal: bool, rng: np.random.Generator, dtype: Any) -> Any:
    """The token mixer of one block: what the config says, as far as the variant takes it."""
    name, cls = config.attention, variant_class(config.attention)
    takes = inspect.signature(cls).parameters
    options: dict[str, Any] = {"heads": config.heads, "seed": rng}
    if "dtype" in takes:
        options["dtype"] = dtype
    for common in ("bias", "dropout"):
        if common in takes:
            options[common] = getattr(config, common)
    if "causal" in takes:
        options["causal"] = causal
    elif causal and not cls.card.causal:
        raise ValueError(
            f"attention={name!r} lets a token see later ones, so a language model cannot use it: choose one "
            "that `minitf list --causal` shows"
        )
    elif not causal and cls.card.causal:
        raise ValueError(
            f"attention={name!r} sees only the past, so an encoder cannot use it: choose another"
        )
    if config.kv_heads is not None:
        if "kv_heads" not in takes:
            raise ValueError(f"attention={name!r} has no kv_heads: leave kv_heads=None")
        options["kv_heads"] = config.kv_heads
    scheme = variant_class(config.position)
    if scheme.rotate is not Position.rotate or scheme.bias is not Position.bias:
        if "position" not in takes:
            raise ValueError(
                f"attention={name!r} takes no position scheme, so position={config.position!r} cannot act in "
                "it: write 'none', or one that acts on the embeddings, such as 'learned' or 'sinusoidal'"
            )
        options["position"] = position_scheme(config, rng, dtype)
    return build(name, config.dim, **{**options, **config.attention_options})


def build_ffn(config: Config, rng: np.random.Generator, dtype: Any) -> Any:
    """The channel mixer of one block."""
    takes = inspect.signature(variant_class(config.ffn)).parameters
    options: dict[str, Any] = {"seed": rng}
    if "dtype" in takes:
        options["dtype"] = dtype
    if "bias" in takes:
        options["bias"] = config.bias
    if config.ffn_hidden is not None:
        if "hidden" not in takes:
            raise ValueError(f"ffn={config.ffn!r} has no hidden width: leave ffn_hidden=None")
        options["hidden"] = config.ffn_hidden
    return build(config.ffn, config.dim, **{**options, **config.ffn_options})
