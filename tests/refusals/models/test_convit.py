"""What ConViT refuses."""

from functools import partial

import jax.numpy as jnp
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.models.convit import ConViT

create = partial(ConViT, embed_dim=4, num_heads=2, depths=(1, 1), image_size=4, patch_size=2)


def convit(num_classes, **arguments):
    """A small network, without its initial values."""
    return nnx.eval_shape(lambda: create(num_classes, **arguments, rngs=nnx.Rngs(0)))


REFUSALS = {
    "classes": (lambda: convit(0), "num_classes must be at least 1, got 0"),
    "channels": (lambda: convit(3, embed_dim=0), "embed_dim must be at least 1, got 0"),
    "perceptrons": (lambda: convit(3, mlp_ratio=0), "mlp_ratio must be at least 1, got 0"),
    "patches": (lambda: convit(3, patch_size=0), "patch_size must be at least 1, got 0"),
    "channels of images": (lambda: convit(3, in_channels=0), "in_channels must be at least 1, got 0"),
    "no block of maps": (lambda: convit(3, depths=(0, 2)), r"depths must be two numbers of at least 1, got \(0, 2\)"),
    "no block of tokens": (lambda: convit(3, depths=(2, 0)), r"depths must be two numbers of at least 1, got \(2, 0\)"),
    "more stages": (lambda: convit(3, depths=(2, 1, 1)), r"depths must be two numbers .*, got \(2, 1, 1\)"),
    "heads": (
        lambda: convit(3, num_heads=3),
        "num_heads must be at least 1 and divide channels, got num_heads=3, channels=4",
    ),
    "image": (lambda: convit(3, image_size=(4, 5)), "images must be of patches of 2×2, got 4×5"),
    "rate": (lambda: convit(3, drop_path_rate=1.0), r"drop_path_rate must be in \[0, 1\), got 1.0"),
    "images of other channels": (lambda: convit(3)(jnp.ones((4, 4, 1))), r"3 channels on its last axis, got .*4, 1\)"),
    "no images": (lambda: convit(3)(jnp.ones((4, 3))), r"must be a map \(\*b, h, w, 3\), got shape \(4, 3\)"),
    "images of other sizes": (lambda: convit(3)(jnp.ones((2, 6, 5, 3))), "images must be of patches of 2×2, got 6×5"),
    "a new head": (lambda: convit(3).reset_classifier(0, rngs=nnx.Rngs(0)), "num_classes must be at least 1, got 0"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    call, message = REFUSALS[name]
    with pytest.raises(InputError, match=message):
        call()
