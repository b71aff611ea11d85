"""What the Swin transformers refuse."""

from functools import partial

import jax.numpy as jnp
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.models.swin import SwinTransformer


def swin(num_classes, **arguments):
    """A small network, without its initial values."""
    create = partial(
        SwinTransformer, num_classes, embed_dim=4, depths=(1, 1), head_dim=2, image_size=8, window=2, patch_size=2
    )
    return nnx.eval_shape(lambda: create(**arguments, rngs=nnx.Rngs(0)))


REFUSALS = {
    "classes": (lambda: swin(0), "num_classes must be at least 1, got 0"),
    "channels": (lambda: swin(3, embed_dim=0), "embed_dim must be at least 1, got 0"),
    "no stage": (lambda: swin(3, depths=()), r"depths must be numbers of at least 1, got \(\)"),
    "no block": (lambda: swin(3, depths=(1, 0)), r"depths must be numbers of at least 1, got \(1, 0\)"),
    "heads": (
        lambda: swin(3, head_dim=3),
        "head_dim must be at least 1 and divide channels, got head_dim=3, channels=4",
    ),
    "perceptrons": (lambda: swin(3, mlp_ratio=0), "mlp_ratio must be at least 1, got 0"),
    "window": (lambda: swin(3, window=0), "window must be at least 1, got 0"),
    "patches": (lambda: swin(3, patch_size=0), "patch_size must be at least 1, got 0"),
    "channels of images": (lambda: swin(3, in_channels=0), "in_channels must be at least 1, got 0"),
    "image": (lambda: swin(3, image_size=7), "images must be of patches of 2×2, got 7×7"),
    "no image": (lambda: swin(3, image_size=0), "images must be of patches of 2×2, got 0×0"),
    "rate": (lambda: swin(3, drop_path_rate=1.0), r"drop_path_rate must be in \[0, 1\), got 1.0"),
    "images of other channels": (lambda: swin(3)(jnp.ones((8, 8, 1))), r"3 channels on its last axis, got .*8, 1\)"),
    "no images": (lambda: swin(3)(jnp.ones((8, 3))), r"must be a map \(\*b, h, w, 3\), got shape \(8, 3"),
    "images of other sizes": (lambda: swin(3)(jnp.ones((2, 6, 5, 3))), "images must be of patches of 2×2, got 6×5"),
    "a new head": (
        lambda: swin(3).reset_classifier(0, rngs=nnx.Rngs(0)),
        "num_classes must be at least 1, got 0",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    call, message = REFUSALS[name]
    with pytest.raises(InputError, match=message):
        call()
