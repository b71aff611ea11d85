"""To and from other libraries: timm's modules and networks with their numbers, Linen, StableHLO."""

from attn_flax.interop.layouts import Layout
from attn_flax.interop.linen import to_linen
from attn_flax.interop.stablehlo import from_stablehlo, to_stablehlo
from attn_flax.interop.timm_modules import TIMM, timm_attention
from attn_flax.interop.weights import load_timm, timm_places, to_timm

__all__ = [
    "TIMM",
    "Layout",
    "from_stablehlo",
    "load_timm",
    "timm_attention",
    "timm_places",
    "to_linen",
    "to_stablehlo",
    "to_timm",
]
