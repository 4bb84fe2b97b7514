"""What all models share: positions, a stack of blocks, the norms around them.

    x = x + positions        as the position scheme says, if it acts on embeddings
    x = Block_i(x)           i = 0 .. depth-1
    h = Norm(x)              not after post-norm blocks, which end with a norm of their own

Peri-norm blocks get one more norm, before the first. In training mode, dropout acts on what enters the
blocks.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from minitf.engine import Array, ShapeError, Tensor, array_module, no_grad, to_device
from minitf.nn import Dropout, Embedding, Module, Position, as_norm
from minitf.registry import build, parameters, resolve, variant_class

from .config import Config, Parts


@dataclass(frozen=True)
class Host:
    """What a model offers to the variants that it is built of.

    model: what it is, for messages. grid: the sizes of its grid of tokens, the longest for sequences.
    causal: "always" where no token may see a later one, "never" where all must see all, "either".
    varies: whether sequences may be shorter than the grid.
    """

    model: str
    grid: tuple[int, ...]
    causal: str
    varies: bool


class Backbone(Module):
    """x (B, N, D) -> h (B, N, D).

    Parameters: position.weight (context, D) if learned; embedding_norm for peri-norm; blocks.{i}; norm,
    except after post-norm.

    Initial values follow GPT-2: learned positions are normal with std 0.02; the matrices that write to the
    residual stream (wo of the mixer, w2 or wd of the FFN) start as the variant says, divided by
    sqrt(2 depth), so that the sum of all branches has the same scale at any depth. All else is as each
    variant says.

    Raises:
        ValueError: a part that cannot do what the config asks of it; the message says which and what to do.
    """

    def __init__(self, config: Parts, host: Host, rng: np.random.Generator, dtype: Any):
        self.config: Any = config
        embeds = variant_class(config.position).embed is not Position.embed
        self.position: Any = position_scheme(config, host, rng, dtype) if embeds else None
        self.dropout = Dropout(config.dropout)
        block = resolve(config.block, ("block",))[0]
        norm = resolve(config.norm, ("norm",))[0]
        self.embedding_norm: Any = as_norm(norm, config.dim, dtype=dtype) if block == "peri_norm" else None
        self.blocks: list[Any] = [build_block(config, host, rng, dtype) for _ in range(config.depth)]
        self.norm: Any = None if block == "post_norm" else as_norm(norm, config.dim, dtype=dtype)

    def placed(self, x: Tensor, start: int = 0) -> Tensor:
        """Embeddings (B, N, D), the first at position `start`, with their positions."""
        if self.position is not None:
            x = self.position.embed(x, np.arange(start, start + x.shape[1]))
        return x if self.embedding_norm is None else self.embedding_norm(x)

    def through(self, x: Tensor, rng: np.random.Generator | None = None, **options: Any) -> Tensor:
        """The stack of blocks and the last norm, (B, N, D) -> (B, N, D). `options` go to the mixers."""
        x = self.dropout(x, rng)
        for block in self.blocks:
            x = block(x, rng=rng, **options)
        return x if self.norm is None else self.norm(x)

    def maps(self, run: Callable[[], Any], **options: Any) -> list[np.ndarray[Any, Any]]:
        """The attention maps (B, H, N, N) of each block while `run` calls the model, without dropout."""
        mixers = [mixer_of(block) for block in self.blocks if hasattr(mixer_of(block), "weights")]
        if not mixers:
            raise ValueError(f"{self.mixing_part()} forms no weights, so it has no maps to show")
        found = []

        def keep(mixer: Any, args: tuple[Any, ...]) -> None:
            found.append(mixer.weights(args[0], **options).numpy())

        hooks = [mixer.register_forward_pre_hook(keep) for mixer in mixers]
        try:
            with self.evaluating():
                run()
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def mixing_part(self) -> str:
        """The field of the config that names what mixes tokens, and its value, for messages."""
        part = "block" if mixer_of(self.blocks[0]) is self.blocks[0] else "attention"
        return f"{part}={getattr(self.config, part)!r}"

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """No gradients and no dropout; afterwards every module is in the mode that it was in."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            with no_grad():
                yield
        finally:
            for module, mode in modes:
                module.training = mode

    def with_auxiliary(self, main: Callable[[], Tensor]) -> Tensor:
        """The loss that `main` computes, in training mode plus what the parts want to be small.

        A part with `auxiliary_loss(x)`, such as a mixture of experts that balances their load, is asked with
        the input of each of its calls.
        """
        parts = list(with_a_loss(self)) if self.training else []
        found: list[Tensor] = []

        def ask(part: Any, args: tuple[Any, ...]) -> None:
            found.append(part.auxiliary_loss(args[0]))

        hooks = [part.register_forward_pre_hook(ask) for part in parts]
        try:
            loss = main()
        finally:
            for hook in hooks:
                hook.remove()
        for more in found:
            loss = loss + more
        return loss


class TokenBackbone(Backbone):
    """token ids (B, N) -> h (B, N, D).

    Parameters: embedding.weight (V, D), normal with std 0.02; those of the backbone.
    """

    def __init__(self, config: Config, host: Host, rng: np.random.Generator, dtype: Any):
        self.embedding = Embedding(config.vocab, config.dim, rng, dtype=dtype)
        super().__init__(config, host, rng, dtype)

    @staticmethod
    def first_weight(config: Config) -> tuple[str, tuple[int, ...]]:
        """Name and shape of the first parameter, by which files are checked."""
        return "embedding.weight", (config.vocab, config.dim)

    def embed(self, tokens: Array, start: int = 0) -> Tensor:
        """Token ids (B, N), the first at position `start` -> (B, N, D)."""
        n, limit = tokens.shape[1], self.config.context
        if start + n > limit:
            raise ValueError(
                f"the sequence has {start + n} tokens, but the model's context is {limit}: shorten it "
                f"(tokens[:, -{limit}:] keeps the end), or build a model with context={start + n} or more"
            )
        return self.placed(self.embedding(tokens), start)

    def hidden(self, tokens: Array, rng: np.random.Generator | None = None, **options: Any) -> Tensor:
        """Token ids (B, N) -> h (B, N, D). `options` go to the mixers."""
        return self.through(self.embed(tokens), rng, **options)


class OnGrid(Module):
    """A mixer or FFN of grids (B, rows, columns, D) in a stack of tokens (B, N, D), N = rows * columns."""

    def __init__(self, inner: Any, grid: tuple[int, ...]):
        self.inner, self.grid = inner, grid

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        batch, _, dim = x.shape
        y = self.inner(x.reshape((batch, *self.grid, dim)), **options)
        return y.reshape(x.shape)


def on_grid(part: Any, host: Host) -> Any:
    """A part of a model as a part of a stack of tokens: wrapped, where it wants rows and columns."""
    return OnGrid(part, host.grid) if len(host.grid) > 1 and part.card.grid in ("2d", "nd") else part


def mixer_of(block: Any) -> Any:
    """The mixer that a block was given, or the block itself where it is a whole layer."""
    return block.mixer if "mixer" in parameters(type(block)) else block


def with_a_loss(module: Module) -> Iterator[Any]:
    """The outermost modules that have an `auxiliary_loss`."""
    if hasattr(module, "auxiliary_loss"):
        yield module
        return
    for _, child in module.named_children():
        yield from with_a_loss(child)


def token_ids(tokens: Any, ndim: int, shape: str) -> Array:
    """Tokens as an array with `ndim` axes. The embedding checks that they are integers in range."""
    ids = tokens.data if isinstance(tokens, Tensor) else array_module(tokens).asarray(tokens)
    if ids.ndim != ndim:
        raise ShapeError(
            f"tokens must be {shape}, not {ids.shape}; a single one is a batch of 1: tokens[None]"
        )
    return ids


def tensor_like(x: Any, weight: Tensor) -> Tensor:
    """Real numbers as a tensor of the dtype and on the device of `weight`."""
    if isinstance(x, Tensor):
        return x if x.dtype == weight.dtype else x.astype(weight.dtype)
    return Tensor(to_device(array_module(x).asarray(x, dtype=weight.dtype), weight.device))


def share_right(logits: Tensor, targets: Any, ignore: int | None = None) -> float:
    """The share of targets (...) that have the largest logit (..., C); the lower index wins ties."""
    goal = np.asarray(to_device(targets.data if isinstance(targets, Tensor) else targets, "cpu"))
    right = np.argmax(logits.numpy(), axis=-1) == goal
    return float(right.mean() if ignore is None else right[goal != ignore].mean())


def accepts(name: str, option: str) -> bool:
    """Whether the constructor of a variant takes this option."""
    return option in parameters(variant_class(name))


def takes_mask(name: str) -> bool:
    """Whether calls of a mixer take a mask."""
    takes = inspect.signature(variant_class(name).forward).parameters.values()
    return any(p.name == "mask" or p.kind is p.VAR_KEYWORD for p in takes)


def position_scheme(config: Parts, host: Host, rng: np.random.Generator, dtype: Any) -> Any:
    """A new position scheme as the config names it."""
    context = math.prod(host.grid)
    return build(config.position, config.dim, heads=config.heads, context=context, seed=rng, dtype=dtype)


def build_block(config: Parts, host: Host, rng: np.random.Generator, dtype: Any) -> Any:
    """One block with its mixer and FFN."""
    takes = parameters(variant_class(config.block))
    if not {"mixer", "ffn"} & takes.keys():
        # A whole layer by itself, such as Mamba's: the mixer and the FFN of the config play no part.
        check_position(config, "block")
        whole = build(config.block, config.dim, **common_options("block", config, host, rng, dtype))
        return on_grid(whole, host)
    if not {"mixer", "ffn", "norm"} <= takes.keys():
        raise ValueError(
            f"block={config.block!r} is not built from a mixer, an FFN and a norm: choose another"
        )
    options: dict[str, Any] = {"norm": resolve(config.norm, ("norm",))[0], "seed": rng, "dtype": dtype}
    if config.dropout:
        if "dropout" not in takes:
            raise ValueError(f"block={config.block!r} has no dropout: write dropout=0.0")
        options["dropout"] = config.dropout
    mixer, ffn = build_mixer(config, host, rng, dtype), build_ffn(config, host, rng, dtype)
    for branch, last in ((mixer, ("wo",)), (ffn, ("w2", "wd"))):
        for name in last:
            if hasattr(branch, name):
                getattr(branch, name).weight.data *= 1.0 / math.sqrt(2 * config.depth)
    mixer, ffn = on_grid(mixer, host), on_grid(ffn, host)
    return build(config.block, config.dim, mixer=mixer, ffn=ffn, **options)


def build_mixer(config: Parts, host: Host, rng: np.random.Generator, dtype: Any) -> Any:
    """The token mixer of one block: what the config says, as far as the variant takes it."""
    name = config.attention
    options = common_options("attention", config, host, rng, dtype)
    if accepts(name, "dropout"):
        options["dropout"] = config.dropout
    if config.kv_heads is not None:
        if not accepts(name, "kv_heads"):
            raise ValueError(f"attention={name!r} has no kv_heads: leave kv_heads=None")
        options["kv_heads"] = config.kv_heads
    if check_position(config, "attention"):
        options["position"] = position_scheme(config, host, rng, dtype)
    return build(name, config.dim, **{**options, **config.attention_options})


def check_position(config: Parts, part: str) -> bool:
    """Whether the position scheme acts inside the mixers. Raises ValueError where this part takes none."""
    scheme = variant_class(config.position)
    if scheme.rotate is Position.rotate and scheme.bias is Position.bias:
        return False
    name = getattr(config, part)
    if not accepts(name, "position"):
        raise ValueError(
            f"{part}={name!r} takes no position scheme, so position={config.position!r} cannot act in "
            "it: write 'none', or one that acts on the embeddings, such as 'learned' or 'sinusoidal'"
        )
    return True


def build_ffn(config: Parts, host: Host, rng: np.random.Generator, dtype: Any) -> Any:
    """The channel mixer of one block."""
    options = common_options("ffn", config, host, rng, dtype)
    if config.ffn_hidden is not None:
        if not accepts(config.ffn, "hidden"):
            raise ValueError(f"ffn={config.ffn!r} has no hidden width: leave ffn_hidden=None")
        options["hidden"] = config.ffn_hidden
    return build(config.ffn, config.dim, **{**options, **config.ffn_options})


def common_options(
    part: str, config: Parts, host: Host, rng: np.random.Generator, dtype: Any
) -> dict[str, Any]:
    """What mixers and FFNs are told alike, each as far as it takes it.

    Raises:
        ValueError: the variant cannot stand in this model.
    """
    name = getattr(config, part)
    cls = variant_class(name)
    card, axes = cls.card, len(host.grid)
    if hasattr(cls, "example_inputs"):
        raise ValueError(
            f"{part}={name!r} needs more than one input, and {host.model} has only its own tokens to give: "
            "call it by itself, as `minitf show` tells"
        )
    if card.grid not in ("any", "nd", "1d", *(("2d",) if axes == 2 else ())):
        raise ValueError(
            f"{part}={name!r} works on a grid of {card.grid[0]} axes, and {host.model} has "
            f"{'a sequence' if axes == 1 else 'rows and columns'} of tokens: choose another"
        )
    if host.varies and "fixed_grid" in card.properties:
        raise ValueError(
            f"{part}={name!r} has weights for one fixed number of tokens, and {host.model} meets "
            "sequences of every length: choose another"
        )
    if host.causal == "always" and not (card.causal or "token_wise" in card.properties):
        raise ValueError(
            f"{part}={name!r} lets a token see later ones, so {host.model} cannot use it: choose one "
            "that `minitf list --causal` shows"
        )
    # An FFN that sees one token only is called causal too.
    if host.causal == "never" and part != "ffn" and card.causal and not accepts(name, "causal"):
        raise ValueError(f"{part}={name!r} sees only the past, so {host.model} cannot use it: choose another")
    # Sizes of the grid; a sequence has one.
    grid: Any = host.grid if card.grid in ("2d", "nd") else math.prod(host.grid)
    given = {
        "heads": config.heads, "seed": rng, "dtype": dtype, "bias": config.bias, "grid": grid,
        "causal": host.causal == "always", "context": math.prod(host.grid),
    }  # fmt: skip
    return {option: value for option, value in given.items() if accepts(name, option)}
