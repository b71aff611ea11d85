"""What the Twins transformers refuse."""

from functools import partial

import jax.numpy as jnp
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.models.twins import Twins

create = partial(Twins, embed_dims=(4, 6), depths=(1, 1), head_dim=2, sr_ratios=(4, 1), mlp_ratios=(2, 2))


def twins(num_classes, **arguments):
    """A small network, without its initial values."""
    return nnx.eval_shape(lambda: create(num_classes, **arguments, rngs=nnx.Rngs(0)))


REFUSALS = {
    "classes": (lambda: twins(0), "num_classes must be at least 1, got 0"),
    "channels of images": (lambda: twins(3, in_channels=0), "in_channels must be at least 1, got 0"),
    "a stage without blocks": (
        lambda: twins(3, depths=(1, 0)),
        "embed_dims, depths, sr_ratios, mlp_ratios must be sizes of at least 1, one of each for every stage, "
        r"got \(4, 6\), \(1, 0\), \(4, 1\), \(2, 2\)",
    ),
    "squares": (lambda: twins(3, sr_ratios=(4,)), r"got \(4, 6\), \(1, 1\), \(4,\), \(2, 2\)"),
    "window": (lambda: twins(3, window=0), "window must be at least 1, got 0"),
    "heads": (lambda: twins(3, head_dim=4), "head_dim must be .* divide channels, got head_dim=4, channels=6"),
    "rate": (lambda: twins(3, drop_path_rate=1.0), r"drop_path_rate must be in \[0, 1\), got 1.0"),
    "images of other channels": (
        lambda: twins(3)(jnp.ones((16, 16, 1))),
        r"3 channels on its last axis, got .*16, 1\)",
    ),
    "no images": (lambda: twins(3)(jnp.ones((16, 3))), r"must be a map \(\*b, h, w, 3\), got shape \(16, 3\)"),
    "images without a position in the last stage": (
        lambda: twins(3)(jnp.ones((16, 7, 3))),
        "images must be of at least 8×8, got 16×7",
    ),
    "images smaller than a square": (
        lambda: nnx.eval_shape(lambda: create(3, rngs=nnx.Rngs(0))(jnp.ones((16, 15, 3)))),
        r"must be a map of at least 4×4, got shape \(4, 3, 4\)",
    ),
    "a new head": (lambda: twins(3).reset_classifier(0, rngs=nnx.Rngs(0)), "num_classes must be at least 1, got 0"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    call, message = REFUSALS[name]
    with pytest.raises(InputError, match=message):
        call()
