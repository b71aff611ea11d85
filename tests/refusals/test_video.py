"""What the mechanisms on video refuse."""

import jax.numpy as jnp
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.mechanisms.spatial_temporal.divided_st import DividedSpaceTime
from attn_flax.mechanisms.spatial_temporal.dstt import DecoupledSpatialTemporal
from attn_flax.mechanisms.spatial_temporal.factorised_dot import FactorisedDotProduct
from attn_flax.mechanisms.temporal.gltr import GlobalLocalTemporal
from attn_flax.mechanisms.temporal.tam import TemporalAdaptive, tam
from attn_flax.mechanisms.temporal.temporal_mhsa import TemporalSelfAttention

HEADS = "num_heads must be at least 1 and divide channels, got num_heads={}, channels=8"

CONSTRUCTIONS = {
    "heads of none": (TemporalSelfAttention, {"num_heads": 0}, HEADS.format(0)),
    "heads that do not divide": (TemporalSelfAttention, {"num_heads": 3}, HEADS.format(3)),
    "no frames": (TemporalAdaptive, {"num_frames": 0}, "num_frames must be at least 1, got 0"),
    "an even kernel": (TemporalAdaptive, {"num_frames": 3, "kernel_size": 4}, "kernel_size must be odd .*, got 4"),
    "a negative kernel": (TemporalAdaptive, {"num_frames": 3, "kernel_size": -1}, "kernel_size must be odd .*, got -1"),
    "no width": (TemporalAdaptive, {"num_frames": 3, "alpha": 0}, "alpha must be at least 1, got 0"),
    "no reduction": (TemporalAdaptive, {"num_frames": 3, "beta": 0}, "beta must be at least 1, got 0"),
    "no dilation": (GlobalLocalTemporal, {"dilations": ()}, r"dilations must be one or more numbers .*, got \(\)"),
    "a dilation of none": (GlobalLocalTemporal, {"dilations": (1, 0)}, r"at least 1, got \(1, 0\)"),
    "an even pyramid": (GlobalLocalTemporal, {"kernel_size": 2}, "kernel_size must be odd and at least 1, got 2"),
    "nothing hidden": (GlobalLocalTemporal, {"hidden": 0}, "hidden must be at least 1, got 0"),
    "odd heads": (FactorisedDotProduct, {"num_heads": 1}, "num_heads must be even, got 1"),
    "heads of both": (FactorisedDotProduct, {"num_heads": 6}, HEADS.format(6)),
    "heads of either": (DividedSpaceTime, {"num_heads": 3}, HEADS.format(3)),
    "a mode": (DecoupledSpatialTemporal, {"mode": "both"}, "mode must be 'spatial' or 'temporal', got 'both'"),
    "no zones": (DecoupledSpatialTemporal, {"zones": (2, 0)}, r"zones must be two numbers of .*, got \(2, 0\)"),
    "one zone": (DecoupledSpatialTemporal, {"zones": (2,)}, r"zones must be two numbers of .*, got \(2,\)"),
}


@pytest.mark.parametrize("name", CONSTRUCTIONS)
def test_constructions(name):
    create, arguments, message = CONSTRUCTIONS[name]
    with pytest.raises(InputError, match=message):
        create(8, **arguments, rngs=nnx.Rngs(0))


NO_VIDEO = r"x must be a video \(\*b, t, h, w, 8\), got shape \(3, 2, 8\)"

CALLS = {
    "a map for temporal_mhsa": (TemporalSelfAttention, {}, [(3, 2, 8)], NO_VIDEO),
    "a map for tam": (TemporalAdaptive, {"num_frames": 3}, [(3, 2, 8)], NO_VIDEO),
    "other frames": (TemporalAdaptive, {"num_frames": 3}, [(4, 2, 2, 8)], r"3 frames on its axis -4, got .*\(4, 2, 2"),
    "one vector": (GlobalLocalTemporal, {}, [(8,)], r"features \(\*b, t, 8\), got shape \(8,\)"),
    "a video of no frame": (GlobalLocalTemporal, {}, [(0, 8)], r"features \(\*b, t, 8\), got shape \(0, 8\)"),
    "a map for factorised_dot": (FactorisedDotProduct, {}, [(3, 2, 8)], NO_VIDEO),
    "a map for divided_st": (DividedSpaceTime, {}, [(3, 2, 8)], NO_VIDEO),
    "another batch": (
        DividedSpaceTime,
        {},
        [(2, 3, 1, 1, 8), (3, 8)],
        r"class_token must be one for each video, of shape \(2, 8\), got \(3, 8\)",
    ),
    "another class token": (DividedSpaceTime, {}, [(3, 1, 1, 8), (1,)], r"of shape \(8,\), got \(1,\)"),
    "a map for dstt": (DecoupledSpatialTemporal, {}, [(3, 2, 8)], NO_VIDEO),
    "odd frames": (DecoupledSpatialTemporal, {}, [(3, 5, 4, 8)], r"zones \(2, 2\) must divide .*, got 5×4"),
    "zones across": (DecoupledSpatialTemporal, {"zones": (1, 3)}, [(3, 5, 4, 8)], r"zones \(1, 3\) must .* got 5×4"),
}


@pytest.mark.parametrize("method", ["__call__", "attention_map"])
@pytest.mark.parametrize("name", CALLS)
def test_calls(name, method):
    create, arguments, shapes, message = CALLS[name]
    with pytest.raises(InputError, match=message):
        getattr(create(8, **arguments, rngs=nnx.Rngs(0)), method)(*map(jnp.ones, shapes))


def test_an_even_kernel_of_tam():
    with pytest.raises(InputError, match="form_kernel must give an odd number of weights, got 4"):
        tam(jnp.ones((4, 1, 1, 2)), lambda g: g, lambda g: g)
