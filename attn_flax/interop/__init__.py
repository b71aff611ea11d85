"""To and from other libraries: timm's attention modules and networks, and their numbers."""

from attn_flax.interop.layouts import Layout
from attn_flax.interop.timm_modules import TIMM, timm_attention
from attn_flax.interop.weights import load_timm, timm_places, to_timm

__all__ = ["TIMM", "Layout", "load_timm", "timm_attention", "timm_places", "to_timm"]
