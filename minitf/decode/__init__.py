"""From a model's logits to text: sampling."""

from .sampling import generate, probabilities, sample_logits

__all__ = ["generate", "probabilities", "sample_logits"]
