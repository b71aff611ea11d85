"""What is learned: loss, metrics and predictions, one file per task."""

from attn_flax.tasks.classification import Classification

__all__ = ["Classification"]
