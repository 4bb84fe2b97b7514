"""Tokenizers: there and back, the alphabet, JSON, errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitf.tasks import ByteTokenizer, CharTokenizer, load_moby, tokenizer_from_json


@given(st.text(min_size=1))
def test_characters_there_and_back(text: str) -> None:
    tokenizer = CharTokenizer.from_text(text)
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int64 and ids.shape == (len(text),), "one id for every character"
    assert tokenizer.vocab == len(set(text)) and set(ids) == set(range(tokenizer.vocab)), "every id is used"
    assert tokenizer.decode(ids) == text, "decode must undo encode"


@given(st.text())
def test_bytes_there_and_back(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int64 and ids.shape == (len(text.encode()),), "one id for every byte"
    assert tokenizer.vocab == 256 and tokenizer.decode(ids) == text, "decode must undo encode"


def test_ids_follow_the_code_points() -> None:
    tokenizer = CharTokenizer.from_text("cabbage\U0001f40b")
    assert tokenizer.characters == "abceg\U0001f40b"
    assert tokenizer.encode("cab\U0001f40b").tolist() == [2, 0, 1, 5]
    assert CharTokenizer("gecba\U0001f40b").encode("cab").tolist() == [2, 0, 1], (
        "the order given does not matter"
    )


def test_the_novel() -> None:
    text = load_moby()
    tokenizer = CharTokenizer.from_text(text)
    assert tokenizer.vocab == 81, "the novel has 81 characters"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids[:22]) == text[:22] and len(ids) == len(text)


def test_unknown_characters_are_named() -> None:
    tokenizer = CharTokenizer.from_text("abc")
    with pytest.raises(ValueError, match=r"character 'é' at position 2 is not among the 3 characters"):
        tokenizer.encode("abé!")
    with pytest.raises(ValueError, match="'A' at position 0"):
        tokenizer.encode("A")
    with pytest.raises(ValueError, match="'d' at position 1"):
        tokenizer.encode("ad")


def test_empty_texts() -> None:
    for tokenizer in (CharTokenizer("ab"), ByteTokenizer()):
        ids = tokenizer.encode("")
        assert (
            ids.dtype == np.int64
            and ids.shape == (0,)
            and tokenizer.decode(ids) == ""
            and tokenizer.decode([]) == ""
        )
    with pytest.raises(ValueError, match="at least one character"):
        CharTokenizer.from_text("")
    with pytest.raises(ValueError, match="twice"):
        CharTokenizer("aba")


def test_ids_that_do_not_fit() -> None:
    for tokenizer, vocab in ((CharTokenizer("abc"), 3), (ByteTokenizer(), 256)):
        for ids in ([vocab], [-1], [0, vocab + 5]):
            with pytest.raises(ValueError, match=rf"0\.\.{vocab - 1}, found"):
                tokenizer.decode(ids)
        for ids in ([1.0], [[1]], 1):
            with pytest.raises(ValueError, match=r"integers \(n,\)"):
                tokenizer.decode(ids)


def test_broken_utf8_is_shown_not_hidden() -> None:
    assert ByteTokenizer().decode([0x41, 0xFF, 0x42]) == "A�B"


@pytest.mark.parametrize("tokenizer", [CharTokenizer('ab\n"é\U0001f40b\ud800'), ByteTokenizer()])
def test_json_there_and_back(tokenizer) -> None:
    text = tokenizer.to_json()
    text.encode("ascii")
    for again in (tokenizer_from_json(text), type(tokenizer).from_json(text)):
        assert type(again) is type(tokenizer) and again.vocab == tokenizer.vocab
        assert again.to_json() == text, "a tokenizer must survive JSON"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", "3", "{}", '{"tokenizer": "words"}', '{"tokenizer": "characters"}', "[" * 100_000,
     '{"tokenizer": "characters", "characters": ["a"]}', '{"tokenizer": "characters", "characters": ""}'],
)  # fmt: skip
def test_json_of_something_else(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a tokenizer|at least one character"):
        tokenizer_from_json(text)


def test_json_of_the_other_kind() -> None:
    with pytest.raises(ValueError, match="a ByteTokenizer, not a CharTokenizer"):
        CharTokenizer.from_json(json.dumps({"tokenizer": "bytes"}))
