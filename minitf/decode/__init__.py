"""From a model's logits to text: sampling, one token at a time or drafted and verified."""

from .sampling import generate, probabilities, sample_logits
from .speculative_decoding import Speculation, SpeculativeDecoding

__all__ = ["Speculation", "SpeculativeDecoding", "generate", "probabilities", "sample_logits"]
