"""What the class-attention transformers refuse."""

import jax.numpy as jnp
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.models.cait import CaiT

SIZES = {"embed_dim": 4, "depth": 1, "num_heads": 2, "image_size": 8, "patch_size": 2}


def cait(num_classes, **arguments):
    """A small network, without its initial values."""
    return nnx.eval_shape(lambda: CaiT(num_classes, **(SIZES | arguments), rngs=nnx.Rngs(0)))


REFUSALS = {
    "classes": (lambda: cait(0), "num_classes must be at least 1, got 0"),
    "channels": (lambda: cait(3, embed_dim=0), "embed_dim must be at least 1, got 0"),
    "no block": (lambda: cait(3, depth=0), "depth must be at least 1, got 0"),
    "heads": (
        lambda: cait(3, num_heads=3),
        "num_heads must be at least 1 and divide channels, got num_heads=3, channels=4",
    ),
    "heads of the class attention": (
        lambda: cait(3, num_heads=0, attention=None),
        "num_heads must be at least 1 and divide channels, got num_heads=0, channels=4",
    ),
    "perceptrons": (lambda: cait(3, mlp_ratio=0), "mlp_ratio must be at least 1, got 0"),
    "patches": (lambda: cait(3, patch_size=0), "patch_size must be at least 1, got 0"),
    "channels of images": (lambda: cait(3, in_channels=0), "in_channels must be at least 1, got 0"),
    "image": (lambda: cait(3, image_size=(8, 7)), "images must be of patches of 2×2, got 8×7"),
    "no image": (lambda: cait(3, image_size=0), "images must be of patches of 2×2, got 0×0"),
    "rate": (lambda: cait(3, drop_path_rate=1.0), r"drop_path_rate must be in \[0, 1\), got 1.0"),
    "images of other channels": (lambda: cait(3)(jnp.ones((8, 8, 1))), r"3 channels on its last axis, got .*8, 1\)"),
    "no images": (lambda: cait(3)(jnp.ones((8, 3))), r"must be a map \(\*b, h, w, 3\), got shape \(8, 3"),
    "images of other sizes": (lambda: cait(3)(jnp.ones((2, 6, 5, 3))), "images must be of patches of 2×2, got 6×5"),
    "a new head": (
        lambda: cait(3).reset_classifier(0, rngs=nnx.Rngs(0)),
        "num_classes must be at least 1, got 0",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    call, message = REFUSALS[name]
    with pytest.raises(InputError, match=message):
        call()
