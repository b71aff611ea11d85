"""What mechanisms over the positions of a map refuse."""

import jax.numpy as jnp
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.functional import deformable_attention
from attn_flax.mechanisms.spatial.aa_conv import AttentionAugmentedConv
from attn_flax.mechanisms.spatial.attention_gate import AttentionGate
from attn_flax.mechanisms.spatial.deformable import DeformableAttention, MultiScaleDeformableAttention
from attn_flax.mechanisms.spatial.emanet import ExpectationMaximizationAttention
from attn_flax.mechanisms.spatial.hamburger import Hamburger
from attn_flax.mechanisms.spatial.involution import Involution
from attn_flax.mechanisms.spatial.stn import SpatialTransformer
from attn_flax.mechanisms.spatial.tokenlearner import TokenLearner

RNGS = nnx.Rngs(0)
ones = jnp.ones


def gate(**arguments):
    return AttentionGate(6, **{"gating_channels": 4, **arguments}, rngs=RNGS)


def two_maps(z=(9, 6), reference=(9, 2), maps=((7, 5, 6), (3, 4, 6))):
    module = MultiScaleDeformableAttention(6, levels=2, num_heads=2, rngs=RNGS)
    return module(ones(z), ones(reference), [ones(shape) for shape in maps])


REFUSALS = {
    "deformable heads": (
        lambda: DeformableAttention(6, num_heads=4, rngs=RNGS),
        "num_heads must be at least 1 and divide channels, got num_heads=4, channels=6",
    ),
    "deformable points": (
        lambda: DeformableAttention(6, num_heads=2, num_points=0, rngs=RNGS),
        "num_points must be at least 1, got 0",
    ),
    "deformable levels": (
        lambda: MultiScaleDeformableAttention(6, num_heads=2, levels=0, rngs=RNGS),
        "levels must be at least 1, got 0",
    ),
    "deformable maps": (lambda: two_maps(maps=((7, 5, 6),)), "maps must be 2, got 1"),
    "deformable map": (lambda: two_maps(maps=((7, 5, 6), (4, 6))), r"x must be a map .*, got shape \(4, 6\)"),
    "deformable channels": (lambda: two_maps(z=(9, 5)), r"x must have 6 channels .* got shape \(9, 5\)"),
    "deformable references": (
        lambda: two_maps(reference=(8, 2)),
        r"reference must be a point for each query, of shape \(9, 2\), got \(8, 2\)",
    ),
    "deformable levels of the parts": (
        lambda: deformable_attention([ones((7, 5, 2, 3))], ones((9, 2, 2, 4, 2)), ones((9, 2, 2, 4))),
        "values must be one map for each of the locations' and the weights', got 1 for 2 and 2",
    ),
    "gating channels": (lambda: gate(gating_channels=0), "gating_channels must be at least 1, got 0"),
    "gate width": (lambda: gate(hidden=0), "hidden must be at least 1, got 0"),
    "gate stride": (lambda: gate(stride=0), "stride must be at least 1, got 0"),
    "gate map": (
        lambda: gate()(ones((1, 5, 6)), ones((1, 2, 4))),
        r"a map of at least 2×2, the stride, got shape \(1, 5, 6\)",
    ),
    "signal channels": (
        lambda: gate()(ones((7, 5, 6)), ones((3, 2, 6))),
        r"signal must be a map \(\*b, h, w, 4\) with the batch axes of x, got shapes \(3, 2, 6\) and \(7, 5, 6\)",
    ),
    "signal batch": (
        lambda: gate().attention_map(ones((2, 7, 5, 6)), ones((1, 3, 2, 4))),
        r"with the batch axes of x, got shapes \(1, 3, 2, 4\) and \(2, 7, 5, 6\)",
    ),
    "tokens": (lambda: TokenLearner(6, num_tokens=0, rngs=RNGS), "num_tokens must be at least 1, got 0"),
    "tokens version": (
        lambda: TokenLearner(6, version="2.0", rngs=RNGS),
        r"version must be '1\.0' or '1\.1', got '2\.0'",
    ),
    "tokens width": (lambda: TokenLearner(6, hidden=0, rngs=RNGS), "hidden must be at least 1, got 0"),
    "involution window": (
        lambda: Involution(16, kernel_size=4, rngs=RNGS),
        "kernel_size must be odd and positive, got 4",
    ),
    "involution groups": (
        lambda: Involution(24, rngs=RNGS),
        "group_channels must be at least 1 and divide channels, got group_channels=16, channels=24",
    ),
    "involution reduction": (lambda: Involution(16, reduction=0, rngs=RNGS), "reduction must be at least 1, got 0"),
    "bases": (
        lambda: ExpectationMaximizationAttention(6, num_bases=0, rngs=RNGS),
        "num_bases must be at least 1, got 0",
    ),
    "steps": (lambda: ExpectationMaximizationAttention(6, steps=0, rngs=RNGS), "steps must be at least 1, got 0"),
    "momentum": (
        lambda: ExpectationMaximizationAttention(6, momentum=1.5, rngs=RNGS),
        r"momentum must be in \[0, 1\], got 1\.5",
    ),
    "hamburger width": (lambda: Hamburger(6, hidden=0, rngs=RNGS), "hidden must be at least 1, got 0"),
    "hamburger rank": (lambda: Hamburger(6, rank=0, rngs=RNGS), "rank must be at least 1, got 0"),
    "hamburger steps": (lambda: Hamburger(6, steps=-1, rngs=RNGS), "steps must be at least 0, got -1"),
    "hamburger steps in evaluation": (
        lambda: Hamburger(6, eval_steps=-1, rngs=RNGS),
        "eval_steps must be at least 0, got -1",
    ),
    "transformer bins": (lambda: SpatialTransformer(6, bins=0, rngs=RNGS), "bins must be at least 1, got 0"),
    "transformer width": (lambda: SpatialTransformer(6, hidden=0, rngs=RNGS), "hidden must be at least 1, got 0"),
    "augmented size": (
        lambda: AttentionAugmentedConv(16, size=(7, 0), rngs=RNGS),
        r"size must be a height and a width of at least 1, got \(7, 0\)",
    ),
    "augmented window": (
        lambda: AttentionAugmentedConv(16, size=(7, 5), kernel_size=0, rngs=RNGS),
        "kernel_size must be at least 1, got 0",
    ),
    "augmented heads": (
        lambda: AttentionAugmentedConv(16, size=(7, 5), num_heads=0, rngs=RNGS),
        "num_heads must be at least 1, got 0",
    ),
    "augmented keys": (
        lambda: AttentionAugmentedConv(16, size=(7, 5), key_channels=12, rngs=RNGS),
        "key_channels must be a positive multiple of num_heads, got key_channels=12, num_heads=8",
    ),
    "augmented values": (
        lambda: AttentionAugmentedConv(8, size=(7, 5), rngs=RNGS),
        "value_channels must be fewer than channels, got value_channels=8, channels=8",
    ),
    "augmented map": (
        lambda: AttentionAugmentedConv(16, size=(7, 5), rngs=RNGS)(ones((5, 7, 16))),
        r"x must be a map of at most 7×5, got shape \(5, 7, 16\)",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_it_is_refused(case):
    attempt, message = REFUSALS[case]
    with pytest.raises(InputError, match=message):
        attempt()
