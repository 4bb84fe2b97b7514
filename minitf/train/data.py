"""Where batches come from: windows of a long sequence of tokens."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

Batch = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


class TextData:
    """One long text as token ids: the last part is for validation, the rest for training.

    Args:
        ids: integers (T,), at least 0, from a tokeniser's `encode`.
        context: N, the length of a window.
        validation: the fraction at the end that is kept for validation, in [0, 1); 0 for none.

    Attributes:
        train_ids, validation_ids: the two parts, int64.
        context: N.
        largest_id: a model needs a vocabulary beyond it.

    Raises:
        TypeError: ids are not integers. ValueError: a part is too short for one window, or a negative id.
    """

    def __init__(self, ids: Any, context: int, validation: float = 0.1):
        ids = np.asarray(ids)
        if ids.size and ids.dtype.kind not in "iu":
            raise TypeError(
                f"token ids must be integers, not {ids.dtype}; encode the text with a tokeniser first"
            )
        if ids.ndim != 1:
            raise ValueError(f"token ids must be one long sequence (T,), not of shape {ids.shape}")
        if context < 1:
            raise ValueError(f"the context must be at least 1 token, not {context}")
        if not 0.0 <= validation < 1.0:
            raise ValueError(f"the validation fraction must be in [0, 1), not {validation}")
        if ids.size and int(ids.min()) < 0:
            raise ValueError(f"token ids must be at least 0, found {int(ids.min())}")
        kept = round(ids.size * validation)
        train, rest = ids.size - kept, kept
        # A window and its last target: context + 1 tokens.
        if train < context + 1 or (validation and rest < context + 1):
            longest = max((train if not validation else min(train, rest)) - 1, 0)
            fits = f"a context of at most {longest}" if longest else "no context at all"
            raise ValueError(
                f"the corpus is too short: of its {ids.size} tokens {train} are for training and {rest} for "
                f"validation, and a context of {context} needs {context + 1} in each part; it allows {fits}. "
                "Give a longer text or a shorter context"
            )
        ids = ids.astype(np.int64)
        self.context = context
        self.largest_id = int(ids.max())
        self.train_ids, self.validation_ids = ids[:train], ids[train:]
        self._validation = validation

    def batch(self, rng: np.random.Generator, batch: int) -> Batch:
        """Random windows of the training part: (tokens, targets), each (batch, N)."""
        starts = rng.integers(0, self.train_ids.size - self.context, size=batch)
        return _windows(self.train_ids, starts, self.context)

    def validation_batches(self, batch: int, count: int) -> list[Batch]:
        """The same windows at every call, spread evenly over the validation part.

        Returns:
            At most `count` pairs (tokens, targets), each (batch, N). The last may have fewer rows, since a
            short text gives each of its windows once. Empty without a validation part.
        """
        places = self.validation_ids.size - self.context
        if places < 1:
            return []
        starts = np.unique(np.linspace(0, places - 1, min(batch * count, places)).astype(np.int64))
        rows = [starts[i : i + batch] for i in range(0, starts.size, batch)]
        return [_windows(self.validation_ids, row, self.context) for row in rows]

    def describe(self) -> dict[str, Any]:
        """What identifies this data in a checkpoint: sizes, and a SHA-256 of all ids."""
        digest = hashlib.sha256(self.train_ids.tobytes())
        digest.update(self.validation_ids.tobytes())
        return {
            "tokens": self.train_ids.size + self.validation_ids.size,
            "context": self.context,
            "validation": self._validation,
            "sha256": digest.hexdigest(),
        }


def _windows(ids: np.ndarray[Any, Any], starts: np.ndarray[Any, Any], context: int) -> Batch:
    at = starts[:, None] + np.arange(context)  # (B, N)
    return ids[at], ids[at + 1]
