"""A language model: from the tokens so far, the probabilities of the next one.

    h      = Backbone(tokens)        every block is causal
    logits = h W                     W = E^T if tied, else a matrix of its own, without bias
    loss   = mean of -log softmax(logits)[target]        in nats; divide by log 2 for bits

    tokens, targets  (B, N)   integers in 0..V-1; target n is token n + 1; a target of -1 does not count
    logits  (B, N, V)

Source: the layout of GPT-2 (Language Models are Unsupervised Multitask Learners, 2019), with exchangeable
parts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minitf import ops
from minitf.engine import ShapeError, Tensor, array_module, no_grad
from minitf.nn import Linear, init
from minitf.registry import variant_class

from .backbone import Host, TokenBackbone, mixer_of, share_right, token_ids
from .config import Config

# The target of a position that does not count.
IGNORE = -1


class State(NamedTuple):
    """What a model remembers of a stream. A state stays valid after later steps were taken from it.

    blocks: the state of each block. length: tokens so far. batch: number of sequences.
    """

    blocks: tuple[Any, ...]
    length: int
    batch: int


class LanguageModel(TokenBackbone):
    """tokens (B, N) -> logits (B, N, V).

    Parameters: those of the backbone, and head.weight (D, V) unless tied.

    Args:
        config: sizes and names of the parts.
        seed: for all initial values. dtype: of the parameters.

    Raises:
        ValueError: parts that do not fit each other.
    """

    def __init__(self, config: Config, seed: init.Seed = 0, dtype: Any = "float32"):
        rng = init.generator(seed)
        host = Host("a language model", (config.context,), causal="always", varies=True)
        super().__init__(config, host, rng, dtype)
        # (D, V), normal with std 0.02 like the embedding.
        size = (config.dim, config.vocab)
        values = None if config.tied else init.normal(rng, size, dtype=dtype)
        self.head = None if config.tied else Linear(*size, bias=False, values=values, dtype=dtype)

    def forward(self, tokens: Any, rng: np.random.Generator | None = None) -> Tensor:
        """Logits for the token after each position.

        Args:
            tokens: integers (B, N), N at most the context.
            rng: for dropout in training mode.

        Raises:
            ShapeError: tokens are not (B, N). TypeError: they are not integers.
            ValueError: an id outside 0..V-1, or a sequence longer than the context.
        """
        return self._logits(self.hidden(token_ids(tokens, 2, "(B, N)"), rng))

    def loss(self, tokens: Any, targets: Any, rng: np.random.Generator | None = None) -> Tensor:
        """The mean cross entropy in nats, a scalar, where targets are not -1. tokens, targets: (B, N)."""
        goal = targets.data if isinstance(targets, Tensor) else array_module(targets).asarray(targets)
        # Only if it is there: the kernels know the plain loss.
        ignore = IGNORE if bool((goal == IGNORE).any()) else None
        return self.with_auxiliary(lambda: ops.cross_entropy(self(tokens, rng=rng), targets, ignore=ignore))

    def accuracy(self, tokens: Any, targets: Any) -> float:
        """The share of targets other than -1 that are the most probable token, without dropout."""
        with self.evaluating():
            return share_right(self(tokens), targets, IGNORE)

    def _logits(self, h: Tensor) -> Tensor:
        return ops.linear(h, self.embedding.weight.mT) if self.head is None else self.head(h)

    def start(self, batch: int) -> State:
        """The state before the first token of `batch` sequences.

        Raises:
            ValueError: the mixer does not stream, or the FFN looks at several tokens.
        """
        if variant_class(self.config.ffn).card.grid != "any":
            name = self.config.ffn
            raise ValueError(f"ffn={name!r} looks at several tokens: call the model on whole sequences")
        if not all(hasattr(mixer_of(block), "step") for block in self.blocks):
            raise ValueError(f"{self.mixing_part()} does not stream: call the model on whole sequences")
        return State(tuple(block.start(batch) for block in self.blocks), 0, batch)

    def prefill(self, tokens: Any, state: State) -> tuple[Tensor, State]:
        """Several tokens (B, n) after those in `state`: logits (B, n, V), and the new state. No gradients."""
        ids = token_ids(tokens, 2, "(B, n)")
        self._check_batch(ids, state)
        if not all(hasattr(mixer_of(block), "prefill") for block in self.blocks):
            rows = []
            for n in range(ids.shape[1]):
                row, state = self.step(ids[:, n], state)
                rows.append(row)
            return ops.stack(rows, axis=1), state
        blocks = []
        with no_grad():
            x = self.embed(ids, state.length)
            for block, before in zip(self.blocks, state.blocks):
                x, after = block.prefill(x, before)
                blocks.append(after)
            x = x if self.norm is None else self.norm(x)
            return self._logits(x), State(tuple(blocks), state.length + ids.shape[1], state.batch)

    def step(self, tokens: Any, state: State) -> tuple[Tensor, State]:
        """One token (B,) after those in `state`: logits (B, V), and the new state. No gradients."""
        ids = token_ids(tokens, 1, "(B,)")
        self._check_batch(ids, state)
        blocks = []
        with no_grad():
            x = self.embed(ids[:, None], state.length)[:, 0]
            for block, before in zip(self.blocks, state.blocks):
                x, after = block.step(x, before)
                blocks.append(after)
            x = x if self.norm is None else self.norm(x)
            return self._logits(x), State(tuple(blocks), state.length + 1, state.batch)

    def _check_batch(self, ids: Any, state: State) -> None:
        if ids.shape[0] != state.batch:
            raise ShapeError(f"tokens {ids.shape} do not fit a state started for {state.batch} sequences")

    def attention_maps(self, tokens: Any) -> list[np.ndarray[Any, Any]]:
        """P (B, H, N, N) of every block whose mixer attends, for tokens (B, N), without dropout.

        Raises:
            ValueError: no mixer of this model forms attention weights.
        """
        ids = token_ids(tokens, 2, "(B, N)")
        return self.maps(lambda: self.hidden(ids))
