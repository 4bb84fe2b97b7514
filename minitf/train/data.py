"""Where batches come from: windows of a long text, rows of arrays, or a task that makes them.

A batch is a tuple of arrays whose first axis counts its rows: what a model's `loss` takes, in its order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from minitf.models import IGNORE
from minitf.tasks import Task

Array = np.ndarray[Any, Any]
Batch = tuple[Array, ...]
# Synthetic tasks are validated on samples of this seed: no training step ever draws them.
VALIDATION_SEED = 1


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
        return [_windows(self.validation_ids, row, self.context) for row in _spread(places, batch, count)]

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


class ArrayData:
    """Rows of arrays, some to learn from and others for validation.

    Args:
        learn, validation: tuples of arrays, such as (images, labels); row i of all of them belongs together.
        accuracy: whether validation reports the model's accuracy too.
        unit: what the numbers of the first array are, for the display of speed.

    Raises:
        ValueError: no array, no row to learn from, or arrays of different numbers of rows.
    """

    def __init__(
        self, learn: Sequence[Any], validation: Sequence[Any], accuracy: bool = False, unit: str = "numbers"
    ):
        self.learn, self.validation = (tuple(map(np.asarray, part)) for part in (learn, validation))
        for part in (self.learn, self.validation):
            rows = sorted({len(a) for a in part})
            if len(rows) != 1 or len(part) != len(self.learn):
                raise ValueError(
                    "the arrays of a part must have equally many rows, and both parts equally many arrays; "
                    f"rows: {', '.join(map(str, rows)) or 'none'}"
                )
        if not len(self.learn[0]):
            raise ValueError("there is no row to learn from")
        self.accuracy, self.unit = accuracy, unit

    def batch(self, rng: np.random.Generator, batch: int) -> Batch:
        """Random rows to learn from; a row may come twice."""
        rows = rng.integers(0, len(self.learn[0]), size=batch)
        return tuple(a[rows] for a in self.learn)

    def validation_batches(self, batch: int, count: int) -> list[Batch]:
        """The same rows at every call, spread evenly; all of them if batch * count suffices."""
        places = _spread(len(self.validation[0]), batch, count)
        return [tuple(a[rows] for a in self.validation) for rows in places]

    def describe(self) -> dict[str, Any]:
        """What identifies this data in a checkpoint: rows, and a SHA-256 of all numbers."""
        digest = hashlib.sha256()
        for a in (*self.learn, *self.validation):
            digest.update(np.ascontiguousarray(a).tobytes())
        rows = {"rows": len(self.learn[0]), "validation_rows": len(self.validation[0])}
        return {**rows, "sha256": digest.hexdigest()}


class TaskData:
    """Fresh samples of a synthetic task at every step.

    For a causal task, a batch is (tokens, targets) with -1 where no answer counts; otherwise it is
    (tokens, labels, mask) for an encoder: the answer at the first token, and which tokens are real.

    Args:
        task: see `minitf.tasks.Task`. masked: whether the mask is given; without it, padding (id 0) is a
            token like others.

    Attributes:
        accuracy: True: validation reports accuracy too. context, largest_id: what a model must be able to
        take.
    """

    accuracy = True

    def __init__(self, task: Task, masked: bool = True):
        self.task, self.masked = task, masked
        self.context, self.largest_id = task.N, task.V_in - 1

    def batch(self, rng: np.random.Generator, batch: int) -> Batch:
        """A sample of the task."""
        x, y, w = self.task.sample(rng, batch)
        if self.task.causal:
            return x, np.where(w > 0.0, y, IGNORE)
        return (x, y[:, 0], x != 0) if self.masked else (x, y[:, 0])

    def validation_batches(self, batch: int, count: int) -> list[Batch]:
        """The same `count` samples at every call."""
        return [self.batch(np.random.default_rng([VALIDATION_SEED, i]), batch) for i in range(count)]

    def describe(self) -> dict[str, Any]:
        """What identifies this data in a checkpoint: the task and its numbers."""
        numbers: Any = self.task
        return {"task": type(self.task).__name__, **asdict(numbers), "masked": self.masked}


def _spread(places: int, batch: int, count: int) -> list[Array]:
    """At most `count` lists of at most `batch` different places in 0..places-1, spread evenly."""
    if not places:
        return []
    chosen = np.unique(np.linspace(0, places - 1, min(batch * count, places)).astype(np.int64))
    return [chosen[i : i + batch] for i in range(0, chosen.size, batch)]


def _windows(ids: Array, starts: Array, context: int) -> Batch:
    at = starts[:, None] + np.arange(context)  # (B, N)
    return ids[at], ids[at + 1]
