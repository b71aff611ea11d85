"""What the cross-covariance transformers refuse."""

import jax.numpy as jnp
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.models.xcit import XCiT

SIZES = {"embed_dim": 4, "depth": 1, "num_heads": 2, "patch_size": 4}


def xcit(num_classes, **arguments):
    """A small network, without its initial values."""
    return nnx.eval_shape(lambda: XCiT(num_classes, **(SIZES | arguments), rngs=nnx.Rngs(0)))


REFUSALS = {
    "classes": (lambda: xcit(0), "num_classes must be at least 1, got 0"),
    "channels": (lambda: xcit(3, embed_dim=0), "embed_dim must be at least 1, got 0"),
    "no block": (lambda: xcit(3, depth=0), "depth must be at least 1, got 0"),
    "heads": (
        lambda: xcit(3, num_heads=3),
        "num_heads must be at least 1 and divide channels, got num_heads=3, channels=4",
    ),
    "heads of the class attention": (
        lambda: xcit(3, num_heads=0, attention=None),
        "num_heads must be at least 1 and divide channels, got num_heads=0, channels=4",
    ),
    "perceptrons": (lambda: xcit(3, mlp_ratio=0), "mlp_ratio must be at least 1, got 0"),
    "patches": (lambda: xcit(3, patch_size=6), "patch_size must be a power of 2, and at least that, got 6"),
    "patches of a pixel": (lambda: xcit(3, patch_size=1), "patch_size must be a power of 2, and at least that, got 1"),
    "channels that cannot be halved": (
        lambda: xcit(3, patch_size=16),
        "embed_dim must be a multiple of patch_size / 2 = 8, got 4",
    ),
    "channels of images": (lambda: xcit(3, in_channels=0), "in_channels must be at least 1, got 0"),
    "rate": (lambda: xcit(3, drop_path_rate=1.0), r"drop_path_rate must be in \[0, 1\), got 1.0"),
    "images of other channels": (lambda: xcit(3)(jnp.ones((8, 8, 1))), r"3 channels on its last axis, got .*8, 1\)"),
    "no images": (lambda: xcit(3)(jnp.ones((8, 3))), r"must be a map \(\*b, h, w, 3\), got shape \(8, 3"),
    "a new head": (
        lambda: xcit(3).reset_classifier(0, rngs=nnx.Rngs(0)),
        "num_classes must be at least 1, got 0",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    call, message = REFUSALS[name]
    with pytest.raises(InputError, match=message):
        call()
