"""To and from other libraries: timm's attention modules and their numbers."""

from attn_flax.interop.timm_modules import timm_attention
from attn_flax.interop.weights import load_timm, to_timm

__all__ = ["load_timm", "timm_attention", "to_timm"]
