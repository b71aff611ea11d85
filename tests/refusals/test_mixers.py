"""What the mechanisms that mix positions refuse."""

import jax.numpy as jnp
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.mechanisms.channel_spatial.polarized import PolarizedSelfAttention
from attn_flax.mechanisms.channel_spatial.psa_pyramid import PyramidSplitAttention
from attn_flax.mechanisms.channel_spatial.residual_attention_net import ResidualAttention
from attn_flax.mechanisms.channel_spatial.scconv import SelfCalibratedConv
from attn_flax.mechanisms.spatial.focal_modulation import FocalModulation
from attn_flax.mechanisms.spatial.global_filter import GlobalFilter
from attn_flax.mechanisms.spatial.gnconv import RecursiveGatedConv
from attn_flax.mechanisms.spatial.lka import LargeKernelAttention
from attn_flax.mechanisms.spatial.poolformer import Pooling
from attn_flax.mechanisms.spatial.sgu import SpatialGatingUnit

RNGS = nnx.Rngs(0)
ones = jnp.ones

REFUSALS = {
    "lka dilation": (lambda: LargeKernelAttention(4, dilation=0, rngs=RNGS), "dilation must be at least 1, got 0"),
    "lka kernel": (
        lambda: LargeKernelAttention(4, kernel_size=12, rngs=RNGS),
        "dilation⌉ odd, got kernel_size=12, dilation=3",
    ),
    "lka no kernel": (lambda: LargeKernelAttention(4, kernel_size=-3, rngs=RNGS), "got kernel_size=-3, dilation=3"),
    "lka axes": (lambda: LargeKernelAttention(4, rngs=RNGS)(ones((5, 4))), r"a map \(\*b, h, w, 4\)"),
    "focal window": (
        lambda: FocalModulation(4, focal_window=2, rngs=RNGS),
        "focal_window must be odd and positive, got 2",
    ),
    "focal level": (lambda: FocalModulation(4, focal_level=0, rngs=RNGS), "focal_level must be at least 1, got 0"),
    "focal factor": (
        lambda: FocalModulation(4, focal_factor=1, rngs=RNGS),
        "focal_factor must be even and not negative, got 1",
    ),
    "focal epsilon": (lambda: FocalModulation(4, epsilon=0, rngs=RNGS), "epsilon must be positive, got 0"),
    "gnconv order": (
        lambda: RecursiveGatedConv(12, order=4, rngs=RNGS),
        r"2\^\(order-1\) divide channels, got order=4, channels=12",
    ),
    "gnconv no order": (lambda: RecursiveGatedConv(8, order=0, rngs=RNGS), "order must be at least 1"),
    "gnconv window": (
        lambda: RecursiveGatedConv(16, kernel_size=4, rngs=RNGS),
        "kernel_size must be odd and positive, got 4",
    ),
    "poolformer window": (lambda: Pooling(4, pool_size=2, rngs=RNGS), "pool_size must be odd and positive, got 2"),
    "global filter size": (
        lambda: GlobalFilter(4, size=(0, 3), rngs=RNGS),
        r"size must be two numbers of at least 1, got \(0, 3\)",
    ),
    "global filter axes": (lambda: GlobalFilter(4, size=(7,), rngs=RNGS), r"two numbers of at least 1, got \(7,\)"),
    "global filter map": (
        lambda: GlobalFilter(4, size=(7, 5), rngs=RNGS)(ones((5, 7, 4))),
        r"the filter's size \(7, 5\), got shape \(5, 7, 4\)",
    ),
    "sgu channels": (lambda: SpatialGatingUnit(5, tokens=3, rngs=RNGS), "channels must be even, got 5"),
    "sgu tokens": (lambda: SpatialGatingUnit(4, tokens=0, rngs=RNGS), "tokens must be at least 1, got 0"),
    "sgu other tokens": (
        lambda: SpatialGatingUnit(4, tokens=3, rngs=RNGS)(ones((2, 5, 4))),
        r"x must be 3 tokens \(\*b, n, c\), got shape \(2, 5, 4\)",
    ),
    "polarized layout": (
        lambda: PolarizedSelfAttention(4, layout="both", rngs=RNGS),
        "layout must be 'parallel' or 'sequential', got 'both'",
    ),
    "psa windows": (
        lambda: PyramidSplitAttention(64, kernel_sizes=(3, 5, 7, 8), rngs=RNGS),
        r"kernel_sizes must be odd and positive, got \(3, 5, 7, 8\)",
    ),
    "psa no windows": (lambda: PyramidSplitAttention(64, kernel_sizes=(), rngs=RNGS), "kernel_sizes must be odd"),
    "psa channels": (lambda: PyramidSplitAttention(66, rngs=RNGS), "must divide channels, got 4 for channels=66"),
    "psa groups": (
        lambda: PyramidSplitAttention(48, rngs=RNGS),
        r"divide the 12 channels of a part, got \(1, 4, 8, 16\)",
    ),
    "psa number of groups": (lambda: PyramidSplitAttention(64, groups=(1, 2), rngs=RNGS), "groups must be 4 numbers"),
    "psa reduction": (lambda: PyramidSplitAttention(64, reduction=0, rngs=RNGS), "reduction must be at least 1, got 0"),
    "scconv channels": (lambda: SelfCalibratedConv(5, rngs=RNGS), "channels must be even to be split, got 5"),
    "scconv pooling": (lambda: SelfCalibratedConv(4, pooling=0, rngs=RNGS), "pooling must be at least 1, got 0"),
    "scconv interpolation": (
        lambda: SelfCalibratedConv(4, interpolation="cubic", rngs=RNGS),
        "interpolation must be 'bilinear' or 'nearest', got 'cubic'",
    ),
    "residual attention p": (lambda: ResidualAttention(4, p=-1, rngs=RNGS), "p must be at least 0, got -1"),
    "residual attention t": (lambda: ResidualAttention(4, t=0, rngs=RNGS), "t must be at least 1, got 0"),
    "residual attention r": (lambda: ResidualAttention(4, r=0, rngs=RNGS), "r must be at least 1, got 0"),
    "residual attention steps": (lambda: ResidualAttention(4, steps=0, rngs=RNGS), "steps must be at least 1, got 0"),
    "residual attention after": (lambda: ResidualAttention(4, after=-1, rngs=RNGS), "after must be at least 0, got -1"),
    "residual attention reduction": (
        lambda: ResidualAttention(4, reduction=0, rngs=RNGS),
        "reduction must be at least 1, got 0",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    call, message = REFUSALS[name]
    with pytest.raises(InputError, match=message):
        call()
