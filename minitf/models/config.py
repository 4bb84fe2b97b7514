"""What a model is made of: sizes, and the names of its parts in the catalogue."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from numbers import Integral, Real
from typing import Any, ClassVar, Self

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


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the configs of all models share: the stack of blocks.

    Attributes:
        dim: width D. depth: number of blocks.
        heads: attention heads H. kv_heads: heads of keys and values, default H.
        attention: name of the token mixer ("softmax", "mqa", ...). ffn: of the channel mixer ("swiglu", ...).
        ffn_hidden: width inside the FFN, default the variant's own.
        norm: "rmsnorm" or "layernorm". position: "rope", "alibi", "learned", "sinusoidal" or "none".
        block: "pre", "post", "peri" or "parallel".
        dropout: rate on embeddings, branches and attention weights in training mode.
        bias: biases in the linear maps of the mixer and the FFN, where they have any; none in the head.
        attention_options, ffn_options: further options of the two variants, as `mt.build` takes them.

    Raises:
        ValueError: a size, rate or option out of range.
        UnknownVariantError: a name that no variant of the right kind has; the message suggests the closest.
    """

    # The fields that are positive integers, and those of them that may be None.
    SIZES: ClassVar[tuple[str, ...]] = ("dim", "depth", "heads", "kv_heads", "ffn_hidden")
    OPTIONAL: ClassVar[tuple[str, ...]] = ("kv_heads", "ffn_hidden")

    dim: int = 128
    depth: int = 4
    heads: int = 4
    kv_heads: int | None = None
    attention: str = "softmax"
    ffn: str = "swiglu"
    ffn_hidden: int | None = None
    norm: str = "rmsnorm"
    position: str = "learned"
    block: str = "pre"
    dropout: float = 0.0
    bias: bool = True
    attention_options: Mapping[str, Any] = field(default_factory=dict)
    ffn_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        own = type(self).__name__
        for name in self.SIZES:
            value = getattr(self, name)
            if value is None and name in self.OPTIONAL:
                continue
            if not positive(value):
                raise ValueError(f"{own}: {name} must be a positive integer, not {value!r}")
            # NumPy integers are not JSON.
            object.__setattr__(self, name, int(value))
        for name, kinds in PARTS.items():
            value = getattr(self, name)
            if not isinstance(value, str):
                raise ValueError(f"{own}: {name} must be the name of a variant, not {value!r}")
            resolve(value, kinds)
        rate = self.dropout
        if not isinstance(rate, Real) or isinstance(rate, bool) or not 0.0 <= rate < 1.0:
            raise ValueError(f"{own}: dropout must be a number in [0, 1), not {rate!r}")
        object.__setattr__(self, "dropout", float(rate))
        for f in fields(self):
            if f.type in (bool, "bool") and not isinstance(getattr(self, f.name), bool):
                raise ValueError(f"{own}: {f.name} must be True or False, not {getattr(self, f.name)!r}")
        for name in ("attention_options", "ffn_options"):
            options = getattr(self, name)
            if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
                raise ValueError(f"{own}: {name} must be a dictionary of options by name, not {options!r}")
            fixed = sorted(options.keys() & SET_ELSEWHERE[name])
            if fixed:
                raise ValueError(
                    f"{own}: {name} cannot set {', '.join(fixed)}: a field of {own} or the model does"
                )
            try:
                json.dumps(options)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{own}: {name} must hold plain values that JSON knows: {error}") from error
            # A copy: a config does not change with the dictionary that it was made from.
            object.__setattr__(self, name, dict(options))

    def to_dict(self) -> dict[str, Any]:
        """All fields as a dictionary that JSON can hold."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: dict(v) if isinstance(v, Mapping) else v for name, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The config with these fields; those left out take their defaults.

        Raises:
            ValueError: a field without default is missing, an unknown field, or a value out of range.
        """
        known = [f.name for f in sorted(fields(cls), key=lambda f: f.kw_only is True)]
        for name in values:
            if name not in known:
                close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
                hint = f"did you mean {close[0]!r}?" if close else f"the fields are: {', '.join(known)}"
                raise ValueError(f"{cls.__name__} has no field {name!r}; {hint}")
        needed = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
        missing = [name for name in needed if name not in values]
        if missing:
            raise ValueError(f"{cls.__name__} needs {', '.join(missing)}")
        return cls(**values)


@dataclass(frozen=True)
class Config(Parts):
    """A plain description of a language model or encoder: everything but its weights.

    Attributes:
        vocab: number of token ids V. context: the longest sequence N. position: "rope" unless given.
        tied: the head is the transposed embedding.
        The others are those of `Parts`.
    """

    SIZES: ClassVar[tuple[str, ...]] = ("vocab", "context", *Parts.SIZES)

    vocab: int
    context: int = 256
    position: str = field(default="rope", kw_only=True)
    tied: bool = field(default=True, kw_only=True)


@dataclass(frozen=True)
class ImageConfig(Parts):
    """A plain description of an image model.

    Attributes:
        size: rows and columns of an image, each a multiple of `patch`. channels: numbers in a pixel C.
        patch: rows and columns of a patch p. classes: what it tells apart.
        The others are those of `Parts`.
    """

    SIZES: ClassVar[tuple[str, ...]] = ("channels", "patch", "classes", *Parts.SIZES)

    size: tuple[int, int]
    channels: int = 1
    patch: int = 2
    classes: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.size
        if not isinstance(size, (tuple, list)) or len(size) != 2 or not all(map(positive, size)):
            raise ValueError(f"ImageConfig: size must be two positive integers (rows, columns), not {size!r}")
        if any(n % self.patch for n in size):
            raise ValueError(
                f"ImageConfig: patch={self.patch} must divide both numbers of size={tuple(size)}"
            )
        object.__setattr__(self, "size", (int(size[0]), int(size[1])))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.size[0] // self.patch, self.size[1] // self.patch

    def to_dict(self) -> dict[str, Any]:
        """All fields as a dictionary that JSON can hold."""
        return {**super().to_dict(), "size": list(self.size)}


@dataclass(frozen=True)
class ForecastConfig(Parts):
    """A plain description of a forecaster.

    Attributes:
        context: the time steps that it sees T, a multiple of `patch`. horizon: those that it forecasts S.
        patch: time steps in one token p.
        The others are those of `Parts`.
    """

    SIZES: ClassVar[tuple[str, ...]] = ("context", "horizon", "patch", *Parts.SIZES)

    context: int
    horizon: int
    patch: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.context % self.patch:
            raise ValueError(
                f"ForecastConfig: patch={self.patch} must divide context={self.context}: choose another"
            )


def positive(value: Any) -> bool:
    """Whether it is a positive integer."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1
