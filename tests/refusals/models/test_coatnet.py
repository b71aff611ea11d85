"""What CoAtNet refuses."""

from functools import partial

import jax.numpy as jnp
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.models.coatnet import CoAtNet


def coatnet(num_classes, **arguments):
    """A small network, without its initial values."""
    create = partial(
        CoAtNet, num_classes, embed_dims=(4,) * 4, depths=(1,) * 4, stem_channels=2, head_dim=2, image_size=32
    )
    return nnx.eval_shape(lambda: create(**arguments, rngs=nnx.Rngs(0)))


REFUSALS = {
    "classes": (lambda: coatnet(0), "num_classes must be at least 1, got 0"),
    "stem": (lambda: coatnet(3, stem_channels=0), "stem_channels must be at least 1, got 0"),
    "channels of images": (lambda: coatnet(3, in_channels=0), "in_channels must be at least 1, got 0"),
    "channels": (
        lambda: coatnet(3, embed_dims=(4, 4, 0, 4)),
        r"embed_dims must be 4 numbers of at least 1, got \(4, 4, 0, 4\)",
    ),
    "three stages": (lambda: coatnet(3, depths=(1, 1, 1)), r"depths must be 4 numbers of at least 1, got \(1, 1, 1\)"),
    "no block": (
        lambda: coatnet(3, depths=(1, 1, 1, 0)),
        r"depths must be 4 numbers of at least 1, got \(1, 1, 1, 0\)",
    ),
    "heads": (
        lambda: coatnet(3, head_dim=3),
        "head_dim must be at least 1 and divide channels, got head_dim=3, channels=4",
    ),
    "image": (lambda: coatnet(3, image_size=(32, 0)), "image_size must be at least 1×1, got 32×0"),
    "rate": (lambda: coatnet(3, drop_path_rate=1.0), r"drop_path_rate must be in \[0, 1\), got 1.0"),
    "images of other channels": (
        lambda: coatnet(3)(jnp.ones((32, 32, 1))),
        r"3 channels on its last axis, got .*32, 1\)",
    ),
    "no images": (lambda: coatnet(3)(jnp.ones((32, 3))), r"must be a map \(\*b, h, w, 3\), got shape \(32, 3"),
    "a new head": (
        lambda: coatnet(3).reset_classifier(0, rngs=nnx.Rngs(0)),
        "num_classes must be at least 1, got 0",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    call, message = REFUSALS[name]
    with pytest.raises(InputError, match=message):
        call()
