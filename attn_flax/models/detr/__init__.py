"""The detection transformer."""

from attn_flax.models.detr.detector import MODELS, Detr

__all__ = ["MODELS", "Detr"]
