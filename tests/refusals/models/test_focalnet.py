"""What focal modulation networks refuse."""

from functools import partial

import jax.numpy as jnp
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.models.focalnet import FocalNet


def made(**arguments):
    """The network, without its initial values."""
    sizes = {"num_classes": 3, "embed_dim": 4, "depths": (1, 1)}
    return nnx.eval_shape(lambda: FocalNet(**(sizes | arguments), rngs=nnx.Rngs(0)))


REFUSALS = {
    "classes": (partial(made, num_classes=0), "num_classes must be at least 1, got 0"),
    "channels": (partial(made, embed_dim=0), "embed_dim must be at least 1, got 0"),
    "channels of images": (partial(made, in_channels=0), "in_channels must be at least 1, got 0"),
    "a perceptron": (partial(made, mlp_ratio=0), "mlp_ratio must be at least 1, got 0"),
    "no stages": (partial(made, depths=()), r"depths must be numbers of at least 1, got \(\)"),
    "an empty stage": (partial(made, depths=(1, 0)), r"depths must be numbers of at least 1, got \(1, 0\)"),
    "an even window": (partial(made, focal_window=4), "focal_window must be odd and positive, got 4"),
    "no ranges": (partial(made, focal_level=0), "focal_level must be at least 1, got 0"),
    "a rate": (partial(made, drop_path_rate=1.0), r"drop_path_rate must be in \[0, 1\), got 1.0"),
    "other images": (lambda: made()(jnp.ones((9, 9, 1))), r"3 channels on its last axis, got .*9, 1\)"),
    "no map": (lambda: made()(jnp.ones((9, 3))), r"must be a map \(\*b, h, w, 3\), got shape \(9, 3"),
    "small images": (lambda: made()(jnp.ones((2, 9, 7, 3))), "images must be of at least 8×8, got 9×7"),
    "small images, overlapping windows": (
        lambda: made(overlap_down=True)(jnp.ones((2, 2, 7, 3))),
        "images must be of at least 3×3, got 2×7",
    ),
    "new classes": (
        lambda: made().reset_classifier(0, rngs=nnx.Rngs(0)),
        "num_classes must be at least 1, got 0",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    call, message = REFUSALS[name]
    with pytest.raises(InputError, match=message):
        call()
