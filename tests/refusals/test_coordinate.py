"""What the mechanisms over strips and groups refuse of their own arguments."""

import jax.numpy as jnp
import pytest
from flax import nnx

from attn_flax import ops
from attn_flax.checks import InputError
from attn_flax.mechanisms.channel_spatial.coord import CoordinateAttention
from attn_flax.mechanisms.channel_spatial.ela import EfficientLocalAttention
from attn_flax.mechanisms.channel_spatial.sge import SpatialGroupEnhance
from attn_flax.mechanisms.channel_spatial.shuffle_attention import ShuffleAttention
from attn_flax.mechanisms.channel_spatial.simam import SimAM
from attn_flax.mechanisms.channel_spatial.simple_coord import SimpleCoordinateAttention
from attn_flax.mechanisms.channel_spatial.strip import StripAttention
from attn_flax.mechanisms.channel_spatial.strip_pooling import MixedPooling
from attn_flax.mechanisms.channel_spatial.triplet import TripletAttention, z_pool

REFUSALS = {
    "coord reduction": (CoordinateAttention, {"reduction": 0}, "reduction must be at least 1, got 0"),
    "coord hidden": (CoordinateAttention, {"hidden": 0}, "hidden must be at least 1, got 0"),
    "simple_coord hidden": (SimpleCoordinateAttention, {"hidden": -1}, "hidden must be at least 1, got -1"),
    "ela kernel": (EfficientLocalAttention, {"kernel_size": 4}, "kernel_size must be odd and positive, got 4"),
    "ela groups": (EfficientLocalAttention, {"groups": 5}, "divide channels, got groups=5, channels=12"),
    "ela no groups": (EfficientLocalAttention, {"groups": 0}, "groups must be at least 1"),
    "strip kernel": (StripAttention, {"kernel_size": 2}, "kernel_size must be odd and positive, got 2"),
    "triplet kernel": (TripletAttention, {"kernel_size": -1}, "kernel_size must be odd and positive, got -1"),
    "simam regularization": (SimAM, {"regularization": 0.0}, r"regularization must be positive, got 0\.0"),
    "sge groups": (SpatialGroupEnhance, {"groups": 5}, "divide channels, got groups=5, channels=12"),
    "shuffle groups": (ShuffleAttention, {"groups": 4}, "twice of them divide channels, got groups=4, channels=12"),
    "mixed reduction": (MixedPooling, {"reduction": 0}, "reduction must be at least 1, got 0"),
    "mixed sizes": (MixedPooling, {"pool_sizes": (3, 0)}, r"pool_sizes must be at least 1 each, got \(3, 0\)"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    module, arguments, message = REFUSALS[name]
    with pytest.raises(InputError, match=message):
        module(12, **arguments, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("pool", [ops.strip_averages, lambda x: z_pool(x, -1)])
def test_maps_without_a_position_are_refused(pool):
    with pytest.raises(InputError, match=r"of at least 1×1, got shape \(0, 5, 3\)"):
        pool(jnp.ones((0, 5, 3)))
