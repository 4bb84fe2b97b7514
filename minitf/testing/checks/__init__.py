"""The checks: free functions check(subject, case), one for each thing that must hold.

The first line of each says why it is there. A check that does not apply to a subject is never run, and the
results say so.
"""

from .contract import (
    batch_independent,
    deterministic,
    finite,
    identities,
    inputs_not_modified,
    norm_preserving,
    reference,
    shapes_and_dtypes,
    state_dict_round_trip,
    token_wise,
)
from .core import CHECKS, ROUNDING, Check
from .cost import cost_grows_as_stated, growth, kernels
from .derivatives import full_jacobian, gradients
from .tokens import (
    causal,
    every_chunk_size,
    mask_rule,
    padding_invariant,
    permutation_equivariant,
    permutation_invariant,
    row_stochastic,
    streams,
    translation_equivariant,
)

__all__ = [
    "CHECKS", "ROUNDING", "Check", "growth",
    "batch_independent", "causal", "cost_grows_as_stated", "deterministic", "every_chunk_size", "finite",
    "full_jacobian", "gradients", "identities", "inputs_not_modified", "kernels", "mask_rule",
    "norm_preserving", "padding_invariant", "permutation_equivariant", "permutation_invariant", "reference",
    "row_stochastic", "shapes_and_dtypes", "state_dict_round_trip", "streams", "token_wise",
    "translation_equivariant",
]  # fmt: skip
