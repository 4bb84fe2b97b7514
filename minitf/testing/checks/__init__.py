"""The checks: free functions check(subject, case), one for each thing that must hold.

The first line of each says why it is there. A check that does not apply to a subject is never run, and the
results say so.
"""

from .backends import kernels
from .contract import (
    batch_independent,
    deterministic,
    inputs_not_modified,
    memory_layout,
    shapes_and_dtypes,
    spelled_out_defaults,
    state_dict_round_trip,
    token_wise,
)
from .core import CHECKS, ROUNDING, Check
from .cost import cost_grows_as_stated, growth
from .derivatives import full_jacobian, gradients
from .masks import hidden_pairs, mask_rule, mask_shapes, padding_invariant
from .streaming import every_chunk_size, streams
from .tokens import (
    causal,
    permutation_equivariant,
    permutation_invariant,
    prefix_invariant,
    row_stochastic,
    translation_equivariant,
)
from .training import every_parameter_learns, seeded_training
from .values import finite, identities, norm_preserving, precision, reference

__all__ = [
    "CHECKS", "ROUNDING", "Check", "growth",
    "batch_independent", "causal", "cost_grows_as_stated", "deterministic", "every_chunk_size",
    "every_parameter_learns", "finite", "full_jacobian", "gradients", "hidden_pairs", "identities",
    "inputs_not_modified", "kernels", "mask_rule", "mask_shapes", "memory_layout", "norm_preserving",
    "padding_invariant", "permutation_equivariant", "permutation_invariant", "precision", "prefix_invariant",
    "reference", "row_stochastic", "seeded_training", "shapes_and_dtypes", "spelled_out_defaults",
    "state_dict_round_trip", "streams", "token_wise", "translation_equivariant",
]  # fmt: skip
