"""The small real data sets that ship with the package, and tokenizers that turn text into integers."""

from minitf.tasks.corpus import load_digits, load_moby, load_series
from minitf.tasks.tokenizers import ByteTokenizer, CharTokenizer, tokenizer_from_json

__all__ = ["ByteTokenizer", "CharTokenizer", "load_digits", "load_moby", "load_series", "tokenizer_from_json"]
