"""An encoder: a vector for every token from all tokens around it, or a class for the whole sequence.

    h = Backbone(tokens)             every block sees all real tokens
    m = sum_n real_n h_n / sum_n real_n
    logits = m W + b                 only with classes

    tokens  (B, N)   integers in 0..V-1;  real  (B, N)   boolean, False = padding
    h  (B, N, D);  logits  (B, C)

Source: BERT, Devlin et al., arXiv:1810.04805, 2018, with exchangeable parts.
Differs from the paper: the sequence is pooled by its mean, not by a special first token; no token types.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import ShapeError, Tensor
from minitf.nn import Linear, init

from .backbone import Host, TokenBackbone, share_right, takes_mask, token_ids
from .config import Config


class Encoder(TokenBackbone):
    """tokens (B, N) -> h (B, N, D), or logits (B, classes).

    Parameters: those of the backbone; with `classes` also head.weight (D, C) and head.bias. `config.tied`
    plays no part.

    Args:
        config: sizes and names of the parts.
        seed: for all initial values. classes: number of classes C, or None. dtype: of the parameters.

    Raises:
        ValueError: parts that do not fit each other, or classes < 1.
    """

    def __init__(
        self, config: Config, seed: init.Seed = 0, classes: int | None = None, dtype: Any = "float32"
    ):
        if classes is not None and (not isinstance(classes, int) or isinstance(classes, bool) or classes < 1):
            raise ValueError(f"classes must be a positive integer or None, not {classes!r}")
        rng = init.generator(seed)
        host = Host("an encoder", (config.context,), causal="never", varies=False)
        super().__init__(config, host, rng, dtype)
        self.classes = classes
        self.head = None
        if classes is not None:
            values = init.normal(rng, (config.dim, classes), dtype=dtype)
            self.head = Linear(config.dim, classes, values=values, dtype=dtype)

    def forward(self, tokens: Any, mask: Any = None, rng: np.random.Generator | None = None) -> Tensor:
        """Encode or classify.

        Args:
            tokens: integers (B, N), N at most the context. Padding may be any id.
            mask: boolean (B, N), True = a real token. Padding changes nothing at the real tokens.
            rng: for dropout in training mode.

        Returns:
            (B, N, D); with classes, logits (B, classes). A sequence of padding only is pooled to zeros.

        Raises:
            ShapeError: tokens or mask are not (B, N). TypeError: tokens not integers, or mask not boolean.
            ValueError: an id outside 0..V-1, a sequence longer than the context, or a mask for a mixer that
                cannot hide tokens.
        """
        ids = token_ids(tokens, 2, "(B, N)")
        real = self._real(ids, mask)
        h = self.hidden(ids, rng, **keys(real))
        if self.head is None:
            return h
        if real is None:
            return self.head(h.mean(axis=1))
        weight = real.astype(h.dtype)[..., None]
        return self.head((h * weight).sum(axis=1) / np.maximum(weight.sum(axis=1), 1.0))

    def loss(
        self, tokens: Any, labels: Any, mask: Any = None, rng: np.random.Generator | None = None
    ) -> Tensor:
        """The mean cross entropy in nats of labels (B,), a scalar. Needs `classes`."""
        if self.head is None:
            raise ValueError("an encoder without classes has no loss: build it with classes=...")
        return self.with_auxiliary(lambda: ops.cross_entropy(self(tokens, mask, rng), labels))

    def accuracy(self, tokens: Any, labels: Any, mask: Any = None) -> float:
        """The share of labels (B,) that are the most probable class, without dropout. Needs `classes`."""
        if self.head is None:
            raise ValueError("an encoder without classes has no accuracy: build it with classes=...")
        with self.evaluating():
            return share_right(self(tokens, mask), labels)

    def attention_maps(self, tokens: Any, mask: Any = None) -> list[np.ndarray[Any, Any]]:
        """P (B, H, N, N) of every block whose mixer attends, without dropout.

        Raises:
            ValueError: no mixer of this model forms attention weights.
        """
        ids = token_ids(tokens, 2, "(B, N)")
        real = self._real(ids, mask)
        return self.maps(lambda: self.hidden(ids, **keys(real)), **keys(real))

    def _real(self, ids: Any, mask: Any) -> Any:
        """The mask as a boolean array, checked."""
        if mask is None:
            return None
        real = mask.data if isinstance(mask, Tensor) else np.asarray(mask)
        if real.dtype != bool:
            raise TypeError(f"the mask must be boolean, True = a real token, not {real.dtype}")
        if real.shape != ids.shape:
            raise ShapeError(f"the mask must be (B, N) like the tokens {ids.shape}, not {real.shape}")
        if not takes_mask(self.config.attention):
            raise ValueError(
                f"attention={self.config.attention!r} cannot hide tokens, so it takes no mask: give "
                "sequences of one length, or let the padding be a token like others"
            )
        return real


def keys(real: Any) -> dict[str, Any]:
    """What mixers are told of padding: every query sees the real keys (B, 1, 1, N)."""
    return {} if real is None else {"mask": real[:, None, None, :]}
