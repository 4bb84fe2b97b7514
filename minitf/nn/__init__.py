"""Modules, parameters, and the layers that variants are built of."""

from . import init
from .activations import ACTIVATIONS, activation
from .batchnorm import BatchNorm
from .cache import KVCache
from .card import Card, Case, Identity, Paper, identities, identity
from .checked import not_negative, positive
from .convolution import Conv, ShortConv
from .dispatch import dispatch
from .linear import Dropout, Embedding, Linear
from .masks import visible_keys
from .module import Buffer, Hook, Module, Parameter, StateError
from .norms import LayerNorm, RMSNorm, as_norm
from .positions import ALiBi, LearnedPosition, NoPosition, Position, RoPE, SinusoidalPosition, as_position
from .windows import RelativeBias2D, offsets, partition, unpartition

__all__ = [
    "ACTIVATIONS",
    "ALiBi",
    "BatchNorm",
    "Buffer",
    "Card",
    "Case",
    "Conv",
    "Dropout",
    "Embedding",
    "Hook",
    "Identity",
    "KVCache",
    "LayerNorm",
    "LearnedPosition",
    "Linear",
    "Module",
    "NoPosition",
    "Paper",
    "Parameter",
    "Position",
    "RMSNorm",
    "RelativeBias2D",
    "RoPE",
    "ShortConv",
    "SinusoidalPosition",
    "StateError",
    "activation",
    "as_norm",
    "as_position",
    "dispatch",
    "identities",
    "identity",
    "init",
    "not_negative",
    "offsets",
    "partition",
    "positive",
    "unpartition",
    "visible_keys",
]
