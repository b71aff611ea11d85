"""What the mechanisms over channels refuse."""

import jax.numpy as jnp
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.mechanisms.channel.channel_attn_davit import ChannelGroupAttention
from attn_flax.mechanisms.channel.eca import EfficientChannel, eca
from attn_flax.mechanisms.channel.gct import GatedChannelTransform
from attn_flax.mechanisms.channel.ge import GatherExcite, gather_averages
from attn_flax.mechanisms.channel.grn import GlobalResponseNorm
from attn_flax.mechanisms.channel.rca import ResidualChannelAttention
from attn_flax.mechanisms.channel.srm import StyleRecalibration

RNGS = nnx.Rngs(0)
X = jnp.ones((7, 5, 8))

REFUSALS = {
    "eca kernel size": (
        lambda: EfficientChannel(8, kernel_size=4, rngs=RNGS),
        "kernel_size must be odd and at least 1, got 4",
    ),
    "eca gamma": (lambda: EfficientChannel(8, gamma=0.0, rngs=RNGS), r"gamma must be positive, got 0\.0"),
    "eca hidden": (lambda: EfficientChannel(8, hidden=0, rngs=RNGS), "hidden must be at least 1, got 0"),
    "eca reduction": (lambda: EfficientChannel(8, reduction=0, rngs=RNGS), "reduction must be at least 1, got 0"),
    "eca window": (lambda: eca(X, jnp.ones((2, 1))), r"an odd number of rows, got shape \(2, 1\)"),
    "ge extent": (lambda: GatherExcite(8, extent=-1, rngs=RNGS), "extent must be at least 0, got -1"),
    "ge extent of averages": (lambda: gather_averages(X, -2), "extent must be at least 0, got -2"),
    "ge learned extent": (
        lambda: GatherExcite(8, extent=6, parametric=True, rngs=RNGS),
        "extent must be 0 or a power of two above 1 for a parametric gather, got 6",
    ),
    "ge no step": (lambda: GatherExcite(8, extent=1, parametric=True, rngs=RNGS), "a power of two above 1 .* got 1"),
    "ge no size": (
        lambda: GatherExcite(8, parametric=True, rngs=RNGS),
        "feature_size must be two sizes of at least 1 for a parametric gather of the whole map, got None",
    ),
    "ge empty size": (lambda: GatherExcite(8, parametric=True, feature_size=(7, 0), rngs=RNGS), r"got \(7, 0\)"),
    "ge idle size": (
        lambda: GatherExcite(8, feature_size=(7, 5), rngs=RNGS),
        r"feature_size must be None unless a whole map is convolved, got \(7, 5\)",
    ),
    "ge hidden": (lambda: GatherExcite(8, hidden=0, rngs=RNGS), "hidden must be at least 1, got 0"),
    "ge map size": (
        lambda: GatherExcite(8, parametric=True, feature_size=(5, 7), rngs=RNGS)(X),
        r"x must be a map of \(5, 7\), as feature_size says, got shape \(7, 5, 8\)",
    ),
    "gct epsilon": (lambda: GatedChannelTransform(8, epsilon=0, rngs=RNGS), "epsilon must be positive, got 0"),
    "srm correction": (lambda: StyleRecalibration(8, correction=2, rngs=RNGS), "correction must be 0 or 1, got 2"),
    "srm epsilon": (lambda: StyleRecalibration(8, epsilon=-1, rngs=RNGS), "epsilon must be positive, got -1"),
    "grn epsilon": (lambda: GlobalResponseNorm(8, epsilon=0, rngs=RNGS), "epsilon must be positive, got 0"),
    "channel groups": (
        lambda: ChannelGroupAttention(8, groups=3, rngs=RNGS),
        "groups must be at least 1 and divide channels, got groups=3, channels=8",
    ),
    "channel group positions": (
        lambda: ChannelGroupAttention(8, num_spatial_dims=0, rngs=RNGS),
        "num_spatial_dims must be at least 1, got 0",
    ),
    "rca hidden": (lambda: ResidualChannelAttention(8, hidden=0, rngs=RNGS), "hidden must be at least 1, got 0"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_it_is_refused(case):
    attempt, message = REFUSALS[case]
    with pytest.raises(InputError, match=message):
        attempt()
