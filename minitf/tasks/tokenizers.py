"""Text to integers and back: one id for every character, or one for every byte.

    tokenizer = CharTokenizer.from_text(text)
    ids = tokenizer.encode("Call me")        int64 (n,), each in 0 .. tokenizer.vocab - 1
    tokenizer.decode(ids) == "Call me"

Any text survives the way there and back, except that bytes which are not UTF-8 cannot become text again.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

Ids = np.ndarray[Any, np.dtype[np.int64]]


class CharTokenizer:
    """One id for every character of an alphabet, in the order of their code points.

    Attributes:
        characters: the alphabet, sorted; the character of id i is `characters[i]`. vocab: its size.

    Raises:
        ValueError: an empty alphabet, or a character twice.
    """

    def __init__(self, characters: str):
        if not isinstance(characters, str) or not characters:
            raise ValueError(f"a character tokenizer needs at least one character, not {characters!r}")
        if len(set(characters)) != len(characters):
            raise ValueError("a character is there twice: CharTokenizer.from_text(text) collects each once")
        self.characters = "".join(sorted(characters))
        self.vocab = len(characters)
        self._codes = code_points(self.characters)

    @classmethod
    def from_text(cls, text: str) -> CharTokenizer:
        """A tokenizer for the characters that occur in `text`."""
        return cls("".join(set(text)))

    def encode(self, text: str) -> Ids:
        """The ids of `text`, int64 (n,).

        Raises:
            ValueError: a character outside the alphabet; the message names it and its position.
        """
        codes = code_points(text)
        ids = np.minimum(np.searchsorted(self._codes, codes), self.vocab - 1)
        unknown = np.flatnonzero(self._codes[ids] != codes)
        if unknown.size:
            at = int(unknown[0])
            raise ValueError(
                f"character {text[at]!r} at position {at} is not among the {self.vocab} characters of this "
                "tokenizer: leave it out, or train with a text that has it"
            )
        return ids.astype(np.int64)

    def decode(self, ids: Any) -> str:
        """The text of integers (n,). Raises ValueError for an id outside the alphabet."""
        return "".join(self.characters[i] for i in checked(ids, self.vocab))

    def to_json(self) -> str:
        """What `tokenizer_from_json` reads."""
        return json.dumps({"tokenizer": "characters", "characters": self.characters}, ensure_ascii=True)

    @classmethod
    def from_json(cls, text: str) -> CharTokenizer:
        """The tokenizer that `to_json` wrote. Raises ValueError for anything else."""
        return same_kind(cls, text)


class ByteTokenizer:
    """One id for every byte of the UTF-8 text: any text, 256 ids.

    Attributes:
        vocab: 256.
    """

    vocab = 256

    def encode(self, text: str) -> Ids:
        """The bytes of `text`, int64 (n,), with n at least the number of characters."""
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int64)

    def decode(self, ids: Any) -> str:
        """The text of integers (n,); bytes that are not UTF-8 become U+FFFD.

        Raises:
            ValueError: an id outside 0..255.
        """
        return bytes(checked(ids, 256)).decode("utf-8", errors="replace")

    def to_json(self) -> str:
        """What `tokenizer_from_json` reads."""
        return json.dumps({"tokenizer": "bytes"})

    @classmethod
    def from_json(cls, text: str) -> ByteTokenizer:
        """The tokenizer that `to_json` wrote. Raises ValueError for anything else."""
        return same_kind(cls, text)


def tokenizer_from_json(text: str) -> CharTokenizer | ByteTokenizer:
    """The tokenizer that a `to_json` wrote.

    Raises:
        ValueError: not JSON, or not a tokenizer.
    """
    try:
        about = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a tokenizer: the text is not JSON ({error})") from error
    match about:
        case {"tokenizer": "bytes"}:
            return ByteTokenizer()
        case {"tokenizer": "characters", "characters": str(characters)}:
            return CharTokenizer(characters)
    raise ValueError('not a tokenizer: it needs "tokenizer": "bytes", or "characters" and the alphabet')


def same_kind(cls: Any, text: str) -> Any:
    tokenizer = tokenizer_from_json(text)
    if not isinstance(tokenizer, cls):
        raise ValueError(f"this is a {type(tokenizer).__name__}, not a {cls.__name__}")
    return tokenizer


def code_points(text: str) -> np.ndarray[Any, Any]:
    """The Unicode numbers of the characters, uint32 (n,)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def checked(ids: Any, vocab: int) -> list[int]:
    """`ids` as a list of integers in 0..vocab-1."""
    ids = np.asarray(ids)
    # An empty list has no integers, and NumPy makes it floating point.
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise ValueError(f"decode takes integers (n,), not {ids.dtype} {ids.shape}")
    if ids.size and not (ids.min() >= 0 and ids.max() < vocab):
        raise ValueError(f"token ids must lie in 0..{vocab - 1}, found {ids.min()}..{ids.max()}")
    return ids.tolist()
