"""What the mechanisms refuse by which positions ask a reduced map, or a part of the channels."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.mechanisms.self_attention.cascaded_group import CascadedGroupAttention
from attn_flax.mechanisms.self_attention.cvt import ConvolutionalAttention
from attn_flax.mechanisms.self_attention.dat import SharedDeformableAttention
from attn_flax.mechanisms.self_attention.single_head import SingleHeadAttention
from attn_flax.mechanisms.self_attention.sra import SpatialReductionAttention

SRA, CVT, DAT = SpatialReductionAttention, ConvolutionalAttention, SharedDeformableAttention
CASCADED, SINGLE = CascadedGroupAttention, SingleHeadAttention
EVERY = [SRA, CVT, DAT, CASCADED, SINGLE]
CONSTRUCTIONS = [
    *((module, {"num_heads": 3}, "divide channels, got num_heads=3, channels=8") for module in (SRA, CVT, DAT)),
    (CASCADED, {"num_heads": 0}, "num_heads must be at least 1 and divide channels, got num_heads=0, channels=8"),
    (SRA, {"sr_ratio": 0}, "sr_ratio must be at least 1, got 0"),
    (SRA, {"sr_ratio": 1, "pool": 0}, "pool must be at least 1, got 0"),
    (SRA, {"sr_ratio": 2, "pool": 7}, "sr_ratio must be 1 in the linear form, got 2, pool=7"),
    (CVT, {"kernel_size": 4}, "kernel_size must be odd and at least 1, got 4"),
    (CVT, {"kernel_size": -1}, "kernel_size must be odd and at least 1, got -1"),
    (CVT, {"stride": 0}, "stride must be at least 1, got 0"),
    (DAT, {"size": (7, 0)}, r"size must be a height and a width of at least 1, got \(7, 0\)"),
    (DAT, {"size": (7,)}, r"size must be a height and a width of at least 1, got \(7,\)"),
    (DAT, {"groups": 3}, "groups must be at least 1 and divide num_heads, got groups=3, num_heads=8"),
    (DAT, {"groups": 0}, "groups must be at least 1 and divide num_heads, got groups=0, num_heads=8"),
    (DAT, {"kernel_size": 2}, "kernel_size must be odd and at least 1, got 2"),
    (DAT, {"stride": 0}, "stride must be at least 1, got 0"),
    (DAT, {"offset_range": -1.0}, "offset_range must be at least 0, got -1.0"),
    (CASCADED, {"kernel_sizes": (5, 5, 5)}, r"must be 4 odd and positive numbers, one for each head, got \(5, 5, 5\)"),
    (CASCADED, {"kernel_sizes": (5, 5, 4, 3)}, r"must be 4 odd and positive numbers.* got \(5, 5, 4, 3\)"),
    (CASCADED, {"key_dim": 0}, "key_dim must be at least 1, got 0"),
    (CASCADED, {"window": 0}, "window must be at least 1, got 0"),
    (SINGLE, {"key_dim": 0}, "key_dim must be at least 1, got 0"),
    (SINGLE, {"partial_channels": 0}, "partial_channels must be 1 to channels=8, got 0"),
    (SINGLE, {"partial_channels": 9}, "partial_channels must be 1 to channels=8, got 9"),
]


@pytest.mark.parametrize(("module", "arguments", "message"), CONSTRUCTIONS)
def test_constructions(module, arguments, message):
    with pytest.raises(InputError, match=message):
        module(8, **arguments, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("module", EVERY)
@pytest.mark.parametrize("method", ["__call__", "attention_map"])
@pytest.mark.parametrize(
    ("shape", "message"),
    [((5, 8), r"must be a map .* got shape \(5, 8\)"), ((7, 5, 6), r"must have 8 channels .* got shape \(7, 5, 6\)")],
)
def test_what_is_no_map_of_these_channels(module, method, shape, message):
    with pytest.raises(InputError, match=message):
        getattr(module(8, rngs=nnx.Rngs(0)), method)(jnp.ones(shape))


@pytest.mark.parametrize("method", ["__call__", "attention_map"])
def test_maps_smaller_than_a_square(method):
    with pytest.raises(InputError, match=r"must be a map of at least 4×4, got shape \(2, 7, 3, 8\)"):
        getattr(SRA(8, sr_ratio=4, rngs=nnx.Rngs(0)), method)(jnp.ones((2, 7, 3, 8)))


def test_a_map_that_does_not_fit():
    module = SINGLE(8, rngs=nnx.Rngs(0))
    module.eval()
    with pytest.raises(InputError, match=r"would need 9\.4 GiB per example"):
        jax.eval_shape(module.attention_map, jax.ShapeDtypeStruct((224, 224, 8), "float32"))
