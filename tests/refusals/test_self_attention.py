"""What the mechanisms by which tokens ask tokens refuse."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.mechanisms.self_attention.attention_pool import AttentionPool
from attn_flax.mechanisms.self_attention.mhsa import MultiHeadSelfAttention

CONSTRUCTIONS = {
    "heads": ({"num_heads": 0}, "num_heads must be at least 1 and divide channels, got num_heads=0, channels=8"),
    "heads that do not divide": ({"num_heads": 3}, "divide channels, got num_heads=3, channels=8"),
    "axes": ({"num_spatial_dims": 0}, "num_spatial_dims must be at least 1, got 0"),
}


@pytest.mark.parametrize("module", [AttentionPool, MultiHeadSelfAttention])
@pytest.mark.parametrize("name", CONSTRUCTIONS)
def test_constructions(name, module):
    arguments, message = CONSTRUCTIONS[name]
    with pytest.raises(InputError, match=message):
        module(8, **arguments, rngs=nnx.Rngs(0))


def test_a_perceptron_of_no_width():
    with pytest.raises(InputError, match="mlp_ratio must be at least 1, got 0"):
        AttentionPool(8, mlp_ratio=0, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("module", [AttentionPool, MultiHeadSelfAttention])
@pytest.mark.parametrize("method", ["__call__", "attention_map"])
def test_tokens_where_maps_are_expected(module, method):
    with pytest.raises(InputError, match=r"x must have 2 axes of positions and one of channels, got shape \(5, 8\)"):
        getattr(module(8, rngs=nnx.Rngs(0)), method)(jnp.ones((5, 8)))


def test_a_map_that_does_not_fit():
    module = MultiHeadSelfAttention(8, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match=r"would need 9\.4 GiB per example"):
        jax.eval_shape(module.attention_map, jax.ShapeDtypeStruct((224, 224, 8), "float32"))
