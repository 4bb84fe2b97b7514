"""Data: small real sets that ship with the package, synthetic tasks, and tokenizers for text."""

from minitf.tasks.backcopy import BigramBackcopy
from minitf.tasks.copy import Copy
from minitf.tasks.corpus import load_digits, load_moby, load_series
from minitf.tasks.digits import split_digits
from minitf.tasks.listops import ListOps
from minitf.tasks.mqar import MQAR
from minitf.tasks.selective_copy import SelectiveCopy
from minitf.tasks.series import linear_forecast, split_series, standardised_error
from minitf.tasks.task import Task
from minitf.tasks.tokenizers import ByteTokenizer, CharTokenizer, tokenizer_from_json
from minitf.tasks.toy_facts import ToyFacts

__all__ = [
    "MQAR", "BigramBackcopy", "ByteTokenizer", "CharTokenizer", "Copy", "ListOps", "SelectiveCopy", "Task",
    "ToyFacts", "linear_forecast", "load_digits", "load_moby", "load_series", "split_digits",
    "split_series", "standardised_error", "tokenizer_from_json",
]  # fmt: skip
