"""To and from other libraries: timm's attention modules and their numbers."""

from attn_flax.interop.timm_modules import TIMM, timm_attention
from attn_flax.interop.weights import load_timm, to_timm

__all__ = ["TIMM", "load_timm", "timm_attention", "to_timm"]
