"""What MaxViT refuses."""

from functools import partial

import jax.numpy as jnp
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.models.maxvit import MaxVit

create = partial(MaxVit, embed_dims=(4, 4), depths=(1, 1), stem_channels=2, head_dim=2, image_size=24)


def maxvit(num_classes, **arguments):
    """A small network, without its initial values."""
    return nnx.eval_shape(lambda: create(num_classes, **arguments, rngs=nnx.Rngs(0)))


def called(*shape):
    """On images of this shape."""
    return nnx.eval_shape(lambda: create(3, rngs=nnx.Rngs(0))(jnp.ones(shape)))


REFUSALS = {
    "classes": (lambda: maxvit(0), "num_classes must be at least 1, got 0"),
    "stem": (lambda: maxvit(3, stem_channels=0), "stem_channels must be at least 1, got 0"),
    "channels of images": (lambda: maxvit(3, in_channels=0), "in_channels must be at least 1, got 0"),
    "channels": (lambda: maxvit(3, embed_dims=(4, 0)), r"embed_dims must be 2 numbers of at least 1, got \(4, 0\)"),
    "other stages": (lambda: maxvit(3, embed_dims=(4,)), r"embed_dims must be 2 numbers of at least 1, got \(4,\)"),
    "no stage": (lambda: maxvit(3, depths=()), r"depths must be numbers of at least 1, got \(\)"),
    "no block": (lambda: maxvit(3, depths=(1, 0)), r"depths must be 2 numbers of at least 1, got \(1, 0\)"),
    "heads": (
        lambda: maxvit(3, head_dim=3),
        "head_dim must be at least 1 and divide channels, got head_dim=3, channels=4",
    ),
    "images to be made for": (
        lambda: maxvit(3, image_size=(24, 20)),
        r"height and width must be multiples of 8 for the windows of 2 stages, got \(24, 20\)",
    ),
    "rate": (lambda: maxvit(3, drop_path_rate=1.0), r"drop_path_rate must be in \[0, 1\), got 1.0"),
    "images of other channels": (lambda: called(24, 24, 1), r"3 channels on its last axis, got .*24, 1\)"),
    "no images": (lambda: called(24, 3), r"must be a map \(\*b, h, w, 3\), got shape \(24, 3"),
    "images that windows do not divide": (
        lambda: called(24, 28, 3),
        r"window must be at least 1 and divide the map on each axis, got window=\(3, 3\) for a map of \(6, 7\)",
    ),
    "images that windows do not divide later": (
        lambda: called(24, 36, 3),
        r"window must be at least 1 and divide the map on each axis, got window=\(3, 3\) for a map of \(3, 5\)",
    ),
    "a new head": (
        lambda: maxvit(3).reset_classifier(0, rngs=nnx.Rngs(0)),
        "num_classes must be at least 1, got 0",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    call, message = REFUSALS[name]
    with pytest.raises(InputError, match=message):
        call()
