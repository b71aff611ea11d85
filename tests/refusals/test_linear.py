"""What the mechanisms of linear cost, and those that compare no two tokens, refuse."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.mechanisms.self_attention.additive import EfficientAdditiveAttention
from attn_flax.mechanisms.self_attention.aft import AttentionFreeTransformer
from attn_flax.mechanisms.self_attention.linear_attention import LinearAttention
from attn_flax.mechanisms.self_attention.performer import Performer
from attn_flax.mechanisms.self_attention.relu_linear import ReluLinearAttention
from attn_flax.mechanisms.self_attention.separable_mobilevit import SeparableSelfAttention

simple_aft = partial(AttentionFreeTransformer, form="simple", size=None)
OF_TOKENS = [EfficientAdditiveAttention, LinearAttention, Performer, SeparableSelfAttention, simple_aft]
BY_HEADS = [LinearAttention, Performer, simple_aft]


@pytest.mark.parametrize("module", OF_TOKENS)
def test_no_axes_of_positions(module):
    with pytest.raises(InputError, match="num_spatial_dims must be at least 1, got 0"):
        module(8, num_spatial_dims=0, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("module", [*OF_TOKENS, ReluLinearAttention])
def test_no_channels(module):
    with pytest.raises(InputError, match="channels must be at least 1, got 0"):
        module(0, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("module", BY_HEADS)
@pytest.mark.parametrize("heads", [0, 3])
def test_heads_that_do_not_divide(module, heads):
    with pytest.raises(InputError, match=f"num_heads must be at least 1 and divide channels, got num_heads={heads}"):
        module(8, num_heads=heads, rngs=nnx.Rngs(0))


CONSTRUCTIONS = {
    "additive heads": (EfficientAdditiveAttention, {"num_heads": 0}, "num_heads must be at least 1, got 0"),
    "no features": (Performer, {"num_features": 0}, "num_features must be at least 1, got 0"),
    "fewer channels than features of a head": (
        ReluLinearAttention,
        {"dim": 16},
        "num_heads must be at least 1, got 0 of 8 channels, 16 each",
    ),
    "heads of no features": (ReluLinearAttention, {"dim": 0}, "dim must be at least 1, got 0"),
    "an even scale": (ReluLinearAttention, {"scales": (3, 4)}, r"scales must be odd sizes, got \(3, 4\)"),
    "an unknown form": (
        AttentionFreeTransformer,
        {"form": "fuller", "size": (7, 5)},
        "form must be one of full, local, simple, conv, got 'fuller'",
    ),
    "no size": (
        AttentionFreeTransformer,
        {"size": None},
        "size must be 2 numbers of at least 1 for form 'full', got None",
    ),
    "a size of other axes": (
        AttentionFreeTransformer,
        {"size": (7,), "form": "local"},
        r"size must be 2 numbers of at least 1 for form 'local', got \(7,\)",
    ),
    "an empty size": (AttentionFreeTransformer, {"size": (7, 0)}, r"size must be .*, got \(7, 0\)"),
    "no window": (
        AttentionFreeTransformer,
        {"form": "conv", "size": None, "window": 0},
        "window must be at least 1, got 0",
    ),
    "an even window": (
        AttentionFreeTransformer,
        {"form": "conv", "size": None, "window": 4},
        "window must be odd for form 'conv', got 4",
    ),
}


@pytest.mark.parametrize("name", CONSTRUCTIONS)
def test_constructions(name):
    module, arguments, message = CONSTRUCTIONS[name]
    with pytest.raises(InputError, match=message):
        module(8, **arguments, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("module", OF_TOKENS)
@pytest.mark.parametrize("method", ["__call__", "attention_map"])
def test_tokens_where_maps_are_expected(module, method):
    with pytest.raises(InputError, match=r"x must have 2 axes of positions and one of channels, got shape \(5, 8\)"):
        getattr(module(8, rngs=nnx.Rngs(0)), method)(jnp.ones((5, 8)))


@pytest.mark.parametrize("module", [*OF_TOKENS, ReluLinearAttention])
@pytest.mark.parametrize("method", ["__call__", "attention_map"])
def test_other_channels(module, method):
    with pytest.raises(InputError, match=r"x must have 8 channels on its last axis, got shape \(7, 5, 6\)"):
        getattr(module(8, rngs=nnx.Rngs(0)), method)(jnp.ones((7, 5, 6)))


@pytest.mark.parametrize("method", ["__call__", "attention_map"])
def test_tokens_where_a_map_is_needed(method):
    with pytest.raises(InputError, match=r"x must be a map \(\*b, h, w, 8\), got shape \(5, 8\)"):
        getattr(ReluLinearAttention(8, rngs=nnx.Rngs(0)), method)(jnp.ones((5, 8)))


@pytest.mark.parametrize("method", ["__call__", "attention_map"])
@pytest.mark.parametrize("form", ["full", "local"])
def test_a_map_of_another_size(form, method):
    module = AttentionFreeTransformer(8, form=form, size=(7, 5), rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match=r"x must be of size \(7, 5\) for form .*, got shape \(5, 7, 8\)"):
        getattr(module, method)(jnp.ones((5, 7, 8)))


@pytest.mark.parametrize(
    "module", [LinearAttention, Performer, ReluLinearAttention, simple_aft, partial(simple_aft, form="conv")]
)
def test_a_map_that_does_not_fit(module):
    module = module(8, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match=r"would need 9\.4 GiB per example"):
        jax.eval_shape(module.attention_map, jax.ShapeDtypeStruct((224, 224, 8), "float32"))
