"""What a model is made of: sizes, and the names of its parts in the catalogue."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from minitf.registry import resolve

# For every part: the kinds of variant that may stand there.
PARTS = {
    "attention": ("attention", "mixer"),
    "ffn": ("ffn",),
    "norm": ("norm",),
    "position": ("position",),
    "block": ("block",),
}

# Options of the variants that are decided by other fields, or by the model.
SET_ELSEWHERE = {
    "attention_options": {"heads", "kv_heads", "causal", "bias", "dropout", "position", "seed", "dtype"},
    "ffn_options": {"hidden", "bias", "seed", "dtype"},
}


@dataclass(frozen=True)
class Config:
    """A plain description of a model: everything but its weights.

    Attributes:
        vocab: number of token ids V. context: the longest sequence N. dim: width D. depth: number of blocks.
        heads: attention heads H. kv_heads: heads of keys and values, default H.
        attention: name of the token mixer ("softmax", "mqa", ...). ffn: of the channel mixer ("swiglu", ...).
        ffn_hidden: width inside the FFN, default the variant's own.
        norm: "rmsnorm" or "layernorm". position: "rope", "alibi", "learned", "sinusoidal" or "none".
        block: "pre", "post", "peri" or "parallel".
        dropout: rate on embeddings, branches and attention weights in training mode.
        bias: biases in the linear maps of the mixer and the FFN, where they have any; none in the head.
        tied: the head is the transposed embedding.
        attention_options, ffn_options: further options of the two variants, as `mt.build` takes them.

    Raises:
        ValueError: a size, rate or option out of range.
        UnknownVariantError: a name that no variant of the right kind has; the message suggests the closest.
    """

    vocab: int
    context: int = 256
    dim: int = 128
    depth: int = 4
    heads: int = 4
    kv_heads: int | None = None
    attention: str = "softmax"
    ffn: str = "swiglu"
    ffn_hidden: int | None = None
    norm: str = "rmsnorm"
    position: str = "rope"
    block: str = "pre"
    dropout: float = 0.0
    bias: bool = True
    tied: bool = True
    attention_options: Mapping[str, Any] = field(default_factory=dict)
    ffn_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("vocab", "context", "dim", "depth", "heads", "kv_heads", "ffn_hidden"):
            value = getattr(self, name)
            if value is None and name in ("kv_heads", "ffn_hidden"):
                continue
            if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
                raise ValueError(f"Config: {name} must be a positive integer, not {value!r}")
            # NumPy integers are not JSON.
            object.__setattr__(self, name, int(value))
        for name, kinds in PARTS.items():
            value = getattr(self, name)
            if not isinstance(value, str):
                raise ValueError(f"Config: {name} must be the name of a variant, not {value!r}")
            resolve(value, kinds)
        rate = self.dropout
        if not isinstance(rate, Real) or isinstance(rate, bool) or not 0.0 <= rate < 1.0:
            raise ValueError(f"Config: dropout must be a number in [0, 1), not {rate!r}")
        object.__setattr__(self, "dropout", float(rate))
        for name in ("bias", "tied"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"Config: {name} must be True or False, not {getattr(self, name)!r}")
        for name in ("attention_options", "ffn_options"):
            options = getattr(self, name)
            if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
                raise ValueError(f"Config: {name} must be a dictionary of options by name, not {options!r}")
            fixed = sorted(options.keys() & SET_ELSEWHERE[name])
            if fixed:
                raise ValueError(
                    f"Config: {name} cannot set {', '.join(fixed)}: a field of Config or the model does"
                )
            try:
                json.dumps(options)
            except (TypeError, ValueError) as error:
                raise ValueError(f"Config: {name} must hold plain values that JSON knows: {error}") from error
            # A copy: a config does not change with the dictionary that it was made from.
            object.__setattr__(self, name, dict(options))

    def to_dict(self) -> dict[str, Any]:
        """All fields as a dictionary that JSON can hold."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: dict(v) if isinstance(v, Mapping) else v for name, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """The config with these fields; those left out take their defaults.

        Raises:
            ValueError: `vocab` is missing, an unknown field, or a value out of range.
        """
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
                hint = f"did you mean {close[0]!r}?" if close else f"the fields are: {', '.join(known)}"
                raise ValueError(f"Config has no field {name!r}; {hint}")
        if "vocab" not in values:
            raise ValueError("Config needs vocab, the number of token ids")
        return cls(**values)
