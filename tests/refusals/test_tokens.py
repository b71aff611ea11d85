"""What the variants of self-attention over tokens refuse."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.mechanisms.self_attention.class_attention import ClassAttention
from attn_flax.mechanisms.self_attention.deepvit_reattention import ReAttention
from attn_flax.mechanisms.self_attention.diff_attention import DifferentialAttention
from attn_flax.mechanisms.self_attention.eva_rope import RotarySelfAttention
from attn_flax.mechanisms.self_attention.gpsa import GatedPositionalSelfAttention
from attn_flax.mechanisms.self_attention.talking_heads import TalkingHeadsAttention
from attn_flax.mechanisms.self_attention.xca import CrossCovarianceAttention

OF_POSITIONS = [
    CrossCovarianceAttention, DifferentialAttention, ReAttention, RotarySelfAttention, TalkingHeadsAttention,
]  # fmt: skip
ALL = [*OF_POSITIONS, ClassAttention, GatedPositionalSelfAttention]


@pytest.mark.parametrize("module", ALL)
@pytest.mark.parametrize("num_heads", [0, 3])
def test_heads(module, num_heads):
    message = f"num_heads must be at least 1 and divide channels, got num_heads={num_heads}, channels=32"
    with pytest.raises(InputError, match=message):
        module(32, num_heads=num_heads, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("module", OF_POSITIONS)
def test_axes(module):
    with pytest.raises(InputError, match="num_spatial_dims must be at least 1, got 0"):
        module(32, num_spatial_dims=0, rngs=nnx.Rngs(0))


CONSTRUCTIONS = {
    "two maps of odd features": (
        DifferentialAttention,
        {"num_heads": 32},
        "channels / num_heads must be even, for two maps each, got channels=32, num_heads=32",
    ),
    "depth": (DifferentialAttention, {"depth": -1}, "depth must be at least 0, got -1"),
    "pairs for two axes": (
        RotarySelfAttention,
        {"num_heads": 16},
        "must be a multiple of 4, two for each of 2 axes, got channels=32, num_heads=16",
    ),
    "base": (RotarySelfAttention, {"base": 0.0}, r"base must be positive, got 0\.0"),
    "locality": (
        GatedPositionalSelfAttention,
        {"locality_strength": 0.0},
        r"locality_strength must be positive, got 0\.0",
    ),
}


@pytest.mark.parametrize("name", CONSTRUCTIONS)
def test_constructions(name):
    module, arguments, message = CONSTRUCTIONS[name]
    with pytest.raises(InputError, match=message):
        module(32, **arguments, rngs=nnx.Rngs(0))


CALLS = {
    **dict.fromkeys(
        OF_POSITIONS, ((5, 32), r"x must have 2 axes of positions and one of channels, got shape \(5, 32\)")
    ),
    ClassAttention: ((32,), r"x must be tokens \(\*b, n, 32\), the class token first, got shape \(32,\)"),
    GatedPositionalSelfAttention: ((5, 32), r"x must be a map \(\*b, h, w, 32\), got shape \(5, 32\)"),
}


@pytest.mark.parametrize("module", ALL)
@pytest.mark.parametrize("method", ["__call__", "attention_map"])
def test_too_few_axes(module, method):
    shape, message = CALLS[module]
    with pytest.raises(InputError, match=message):
        getattr(module(32, rngs=nnx.Rngs(0)), method)(jnp.ones(shape))


WITH_A_MAP = {
    "__call__": [ReAttention, TalkingHeadsAttention],
    "attention_map": [
        DifferentialAttention, GatedPositionalSelfAttention, ReAttention, RotarySelfAttention, TalkingHeadsAttention,
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "module"), [(method, module) for method in WITH_A_MAP for module in WITH_A_MAP[method]]
)
def test_a_map_that_does_not_fit(method, module):
    call = getattr(module(32, rngs=nnx.Rngs(0)), method)
    with pytest.raises(InputError, match=r"would need 9\.4 GiB per example"):
        jax.eval_shape(call, jax.ShapeDtypeStruct((224, 224, 32), "float32"))
