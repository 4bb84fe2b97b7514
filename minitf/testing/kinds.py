"""The words of the testing API: kinds, claims, grids; and the error of who uses another."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from minitf.engine import MinitfError

KINDS = {
    "token_mixer": "x (B, N, D), or a grid (B, rows, columns, D), -> the same; tokens see each other",
    "channel_mixer": "x (..., D) -> (..., D), each token on its own",
    "block": "x (B, N, D) -> (B, N, D), mixers with a skip path",
    "token_reducer": "x (B, N, D) -> (B, M, D), M <= N",
    "operation": "any call that gives a tensor; `example_inputs(case)` of its class makes the inputs",
    "position": "a position scheme: embed, rotate, bias",
    "procedure": "what is not called on tensors: its identities alone are checked",
    "attention_function": "f(q, k, v, mask=None), all (B, H, N, d) -> (B, H, N, d)",
}
# The kinds of the catalogue, as the checks see them.
CATALOGUE_KINDS = {
    "attention": "token_mixer",
    "mixer": "token_mixer",
    "ffn": "channel_mixer",
    "norm": "channel_mixer",
    "adapter": "channel_mixer",
    "compress": "channel_mixer",
    "tokens": "token_reducer",
    "embedding": "operation",
    "decode": "operation",
    "model": "operation",
}
# What a variant may claim, or list in the properties of its card. Each turns the check of its name on.
CLAIMS = (
    "causal", "causal_to_rounding", "streams", "chunked", "token_wise", "row_stochastic", "batch_independent",
    "permutation_equivariant", "permutation_equivariant_without_causal", "permutation_invariant",
    "translation_equivariant", "norm_preserving", "key_masks", "fixed_grid",
)  # fmt: skip
GRIDS = ("1d", "2d", "nd", "any")


class UsageError(MinitfError, ValueError):
    """A call of the testing API that cannot be carried out; the message lists what there is."""


def known(what: str, name: str, allowed: Iterable[str]) -> str:
    """The name, if it is allowed. Raises UsageError with the closest name and all others."""
    allowed = list(allowed)
    if name in allowed:
        return name
    close = difflib.get_close_matches(str(name), allowed, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise UsageError(f"unknown {what} {name!r}.{hint} There are: {', '.join(allowed)}")
