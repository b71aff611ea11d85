"""What the mechanisms of positions that attend to positions refuse."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.mechanisms.channel_spatial.danet import DualAttention
from attn_flax.mechanisms.spatial.axial import AxialAttention, axial_attention
from attn_flax.mechanisms.spatial.bat import BilinearAttentionTransform
from attn_flax.mechanisms.spatial.criss_cross import CrissCrossAttention
from attn_flax.mechanisms.spatial.double_attention import DoubleAttention
from attn_flax.mechanisms.spatial.external_attention import ExternalAttention
from attn_flax.mechanisms.spatial.gcnet import GlobalContext
from attn_flax.mechanisms.spatial.non_local import NonLocal
from attn_flax.mechanisms.spatial.sagan import SaganAttention
from attn_flax.mechanisms.spatial.self_attention_2d import SelfAttention2D, self_attention_2d

LARGE = jax.ShapeDtypeStruct((224, 224, 8), "float32")


def call(module, *shape, **arguments):
    return module(8, **arguments, rngs=nnx.Rngs(0))(jnp.ones(shape))


def map_of_large(module):
    module = module(8, rngs=nnx.Rngs(0))
    module.eval()
    return jax.eval_shape(module.attention_map, LARGE)


def same(x):
    return x


REFUSALS = {
    "gcnet reduction": (lambda: call(GlobalContext, 5, 3, 8, reduction=0), "reduction must be at least 1, got 0"),
    "gcnet hidden": (lambda: call(GlobalContext, 5, 3, 8, hidden=0), "hidden must be at least 1, got 0"),
    "gcnet epsilon": (lambda: call(GlobalContext, 5, 3, 8, epsilon=0.0), r"epsilon must be positive, got 0\.0"),
    "gcnet fusion": (
        lambda: call(GlobalContext, 5, 3, 8, fuse_add=False),
        "fuse_add or fuse_scale must be true, got neither",
    ),
    "gcnet tokens": (lambda: call(GlobalContext, 5, 8), r"must be a map \(\*b, h, w, 8\), got shape \(5, 8\)"),
    "non_local reduction": (lambda: call(NonLocal, 5, 3, 8, reduction=0), "reduction must be at least 1, got 0"),
    "non_local hidden": (lambda: call(NonLocal, 5, 3, 8, hidden=0), "hidden must be at least 1, got 0"),
    "non_local scale": (
        lambda: call(NonLocal, 5, 3, 8, scale="inner"),
        "scale must be 'none', 'hidden' or 'channels', got 'inner'",
    ),
    "non_local subsample": (lambda: call(NonLocal, 5, 3, 8, subsample=0), "subsample must be at least 1, got 0"),
    "non_local small map": (
        lambda: call(NonLocal, 5, 1, 8, subsample=2),
        r"at least subsample × subsample = 2×2 positions, got shape \(5, 1, 8\)",
    ),
    "non_local tokens": (lambda: call(NonLocal, 5, 8), "must be a map"),
    "non_local large map": (lambda: map_of_large(NonLocal), r"would need 9\.4 GiB per example"),
    "double_attention reduction": (lambda: call(DoubleAttention, 5, 3, 8, reduction=0), "reduction must be at least 1"),
    "double_attention c_m": (lambda: call(DoubleAttention, 5, 3, 8, c_m=0), "c_m must be at least 1, got 0"),
    "double_attention c_n": (lambda: call(DoubleAttention, 5, 3, 8, c_n=-1), "c_n must be at least 1, got -1"),
    "double_attention tokens": (lambda: call(DoubleAttention, 5, 8), "must be a map"),
    "self_attention_2d heads": (
        lambda: call(SelfAttention2D, 5, 3, 8, num_heads=3),
        "num_heads must be at least 1 and divide channels, got num_heads=3, channels=8",
    ),
    "self_attention_2d scale": (
        lambda: call(SelfAttention2D, 5, 3, 8, scale=-1.0),
        r"scale must be positive, got -1\.0",
    ),
    "self_attention_2d tokens": (lambda: call(SelfAttention2D, 5, 8), "must be a map"),
    "self_attention_2d large map": (lambda: map_of_large(SelfAttention2D), r"would need 9\.4 GiB per example"),
    "self_attention_2d function": (
        lambda: self_attention_2d(jnp.ones((5, 3, 8)), same, same, same, num_heads=3),
        "num_heads must be at least 1 and divide the 8 features, got 3",
    ),
    "sagan reduction": (lambda: call(SaganAttention, 5, 3, 8, reduction=0), "reduction must be at least 1, got 0"),
    "sagan values": (
        lambda: call(SaganAttention, 5, 3, 8, value_features=0),
        "value_features must be at least 1, got 0",
    ),
    "sagan tokens": (lambda: call(SaganAttention, 5, 8), "must be a map"),
    "sagan large map": (lambda: map_of_large(SaganAttention), r"would need 9\.4 GiB per example"),
    "criss_cross reduction": (lambda: call(CrissCrossAttention, 5, 3, 8, reduction=0), "reduction must be at least 1"),
    "criss_cross recurrence": (
        lambda: call(CrissCrossAttention, 5, 3, 8, recurrence=0),
        "recurrence must be at least 1, got 0",
    ),
    "criss_cross tokens": (lambda: call(CrissCrossAttention, 5, 8), "must be a map"),
    "axial heads": (
        lambda: call(AxialAttention, 5, 3, 8, num_heads=3),
        "num_heads must be at least 1 and divide channels, got num_heads=3, channels=8",
    ),
    "axial tokens": (lambda: call(AxialAttention, 5, 8), "must be a map"),
    "axial axis": (
        lambda: axial_attention(jnp.ones((5, 3, 8)), same, same, same, axis=0),
        r"axis must be -3 \(the height\) or -2 \(the width\), got 0",
    ),
    "axial function": (
        lambda: axial_attention(jnp.ones((5, 3, 8)), same, same, same, axis=-2, num_heads=3),
        "num_heads must be at least 1 and divide the 8 features, got 3",
    ),
    "external_attention units": (lambda: call(ExternalAttention, 5, 3, 8, units=0), "units must be at least 1, got 0"),
    "external_attention epsilon": (
        lambda: call(ExternalAttention, 5, 3, 8, epsilon=-1.0),
        r"epsilon must be positive, got -1\.0",
    ),
    "external_attention axes": (
        lambda: call(ExternalAttention, 5, 3, 8, num_spatial_dims=0),
        "num_spatial_dims must be at least 1, got 0",
    ),
    "external_attention tokens": (lambda: call(ExternalAttention, 5, 8), "must have 2 axes of positions"),
    "bat reduction": (
        lambda: call(BilinearAttentionTransform, 4, 4, 8, reduction=0),
        "reduction must be at least 1, got 0",
    ),
    "bat hidden": (lambda: call(BilinearAttentionTransform, 4, 4, 8, hidden=0), "hidden must be at least 1, got 0"),
    "bat block": (
        lambda: call(BilinearAttentionTransform, 4, 4, 8, block_size=0),
        "block_size must be at least 1, got 0",
    ),
    "bat groups": (
        lambda: call(BilinearAttentionTransform, 4, 4, 8, groups=3),
        "groups must be at least 1 and divide the 4 features inside, got 3",
    ),
    "bat rate": (
        lambda: call(BilinearAttentionTransform, 4, 4, 8, dropout_rate=1.0),
        r"dropout_rate must be in \[0, 1\), got 1\.0",
    ),
    "bat sides": (
        lambda: call(BilinearAttentionTransform, 8, 6, 8),
        "a height and a width that block_size=4 divides, got 8×6",
    ),
    "bat tokens": (lambda: call(BilinearAttentionTransform, 4, 8), "must be a map"),
    "danet reduction": (lambda: call(DualAttention, 5, 3, 8, reduction=0), "reduction must be at least 1, got 0"),
    "danet queries": (lambda: call(DualAttention, 5, 3, 8, query_reduction=0), "reduction must be at least 1, got 0"),
    "danet tokens": (lambda: call(DualAttention, 5, 8), "must be a map"),
    "danet large map": (lambda: map_of_large(DualAttention), r"would need 9\.4 GiB per example"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    call, message = REFUSALS[name]
    with pytest.raises(InputError, match=message):
        call()
