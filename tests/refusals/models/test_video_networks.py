"""What the networks on video refuse."""

import jax.numpy as jnp
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.models import TimeSformer, ViViT

NUMBERS = "depth must be two numbers of at least 1, got "

CONSTRUCTIONS = {
    "no class": (TimeSformer, {"num_classes": 0}, "num_classes must be at least 1, got 0"),
    "no block": (TimeSformer, {"depth": 0}, "depth must be at least 1, got 0"),
    "no perceptron": (TimeSformer, {"mlp_ratio": 0}, "mlp_ratio must be at least 1, got 0"),
    "a pooling": (TimeSformer, {"global_pool": "max"}, "global_pool must be 'token' or 'avg', got 'max'"),
    "an odd width": (TimeSformer, {"embed_dim": 6}, "embed_dim must be a positive multiple of four, got 6"),
    "no patch": (TimeSformer, {"patch_size": 0, "stem": False}, "patch_size must be at least 1, got 0"),
    "no channel": (TimeSformer, {"in_channels": 0}, "in_channels must be at least 1, got 0"),
    "a stem by three": (TimeSformer, {"patch_size": 6}, "patch_size must be a power of two with a stem, got 6"),
    "a narrow stem": (
        TimeSformer,
        {"embed_dim": 4, "patch_size": 16},
        "embed_dim must be a multiple of patch_size / 2 with a stem, got 4 and 16",
    ),
    "no frames": (TimeSformer, {"num_frames": 0}, "num_frames must be at least 1 or None, got 0"),
    "heads": (
        TimeSformer,
        {"num_heads": 3},
        "num_heads must be at least 1 and divide channels, got num_heads=3, channels=64",
    ),
    "no class of vivit": (ViViT, {"num_classes": 0}, "num_classes must be at least 1, got 0"),
    "no perceptron of vivit": (ViViT, {"mlp_ratio": 0}, "mlp_ratio must be at least 1, got 0"),
    "no encoder": (ViViT, {"depth": (2, 0)}, NUMBERS + r"\(2, 0\)"),
    "one encoder": (ViViT, {"depth": (2,)}, NUMBERS + r"\(2,\)"),
}


@pytest.mark.parametrize("name", CONSTRUCTIONS)
def test_constructions(name):
    create, arguments, message = CONSTRUCTIONS[name]
    with pytest.raises(InputError, match=message):
        create(**({"num_classes": 5} | arguments), rngs=nnx.Rngs(0))


CALLS = {
    "other channels": ({}, (2, 3, 8, 12, 3), r"x must have 2 channels on its last axis, got shape \(2, 3, 8, 12, 3\)"),
    "images": ({}, (8, 12, 2), r"x must be a video \(\*b, t, h, w, 2\), got shape \(8, 12, 2\)"),
    "half a patch": ({"stem": False}, (3, 8, 10, 2), "videos must have frames of patches of 4×4, got 3 of 8×10"),
    "no frames": ({}, (2, 0, 8, 8, 2), "videos must have frames of patches of 4×4, got 0 of 8×8"),
    "other frames": ({"num_frames": 4}, (3, 8, 8, 2), "in time are learned for 4 frames, got videos of 3"),
}


@pytest.mark.parametrize("create", [TimeSformer, ViViT])
@pytest.mark.parametrize("name", CALLS)
def test_calls(name, create):
    arguments, shape, message = CALLS[name]
    network = create(5, in_channels=2, embed_dim=8, num_heads=2, patch_size=4, **arguments, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match=message):
        network(jnp.ones(shape))
