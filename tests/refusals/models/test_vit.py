"""What the vision transformers refuse."""

from functools import partial

import jax.numpy as jnp
import pytest
from flax import nnx

from attn_flax import nn
from attn_flax.checks import InputError
from attn_flax.models import create_model
from attn_flax.models.deit import DistilledVisionTransformer
from attn_flax.models.vit import VisionTransformer


def made(create, *arguments, **keywords):
    """The network, without its initial values."""
    return nnx.eval_shape(lambda: create(*arguments, **keywords, rngs=nnx.Rngs(0)))


sizes = {"embed_dim": 8, "depth": 1, "num_heads": 2, "image_size": 4, "patch_size": 2}
vit = partial(made, partial(VisionTransformer, **sizes))
distilled = partial(made, partial(DistilledVisionTransformer, **sizes))

REFUSALS = {
    "classes": (lambda: vit(0), "num_classes must be at least 1, got 0"),
    "features": (lambda: vit(3, embed_dim=0), "embed_dim must be at least 1, got 0"),
    "blocks": (lambda: vit(3, depth=0), "depth must be at least 1, got 0"),
    "patches": (lambda: vit(3, patch_size=0), "patch_size must be at least 1, got 0"),
    "channels": (lambda: vit(3, in_channels=0), "in_channels must be at least 1, got 0"),
    "perceptrons": (lambda: vit(3, mlp_ratio=0), "mlp_ratio must be at least 1, got 0"),
    "heads": (lambda: vit(3, num_heads=3), "num_heads must be at least 1 and divide channels, got num_heads=3"),
    "pooling": (lambda: vit(3, global_pool="max"), "global_pool must be one of token, avg, map here, got 'max'"),
    "pooling of a distilled one": (
        lambda: distilled(3, global_pool="avg"),
        "global_pool must be one of token here, got 'avg'",
    ),
    "rate": (lambda: vit(3, depth=2, drop_path_rate=1.0), r"drop_path_rate must be in \[0, 1\), got 1.0"),
    "no rate": (lambda: vit(3, depth=2, drop_path_rate=-0.5), r"drop_path_rate must be in \[0, 1\), got -0.5"),
    "image": (lambda: vit(3, image_size=(4, 5)), "images must be of patches of 2×2, got 4×5"),
    "images of other sizes": (lambda: vit(3)(jnp.ones((2, 3, 4, 3))), "images must be of patches of 2×2, got 3×4"),
    "images of no patch": (lambda: vit(3)(jnp.ones((2, 0, 4, 3))), "images must be of patches of 2×2, got 0×4"),
    "images of other channels": (lambda: vit(3)(jnp.ones((4, 4, 1))), "3 channels on its last axis"),
    "no images": (lambda: vit(3).features(jnp.ones((4, 3))), r"must be a map \(\*b, h, w, 3\), got shape \(4, 3"),
    "other images for a distilled one": (
        lambda: distilled(3).logits_of_heads(jnp.ones((4, 4, 1))),
        "3 channels on its last axis",
    ),
    "an attention of maps": (
        lambda: vit(3, attention=nn.Cbam),
        r"attention must be one of tokens \(\*b, 5, 8\), as some are with num_spatial_dims=1: x must be a map",
    ),
    "one of maps in a distilled one": (lambda: distilled(3, attention=nn.Cbam), r"one of tokens \(\*b, 6, 8\)"),
    "one of maps by name": (
        lambda: made(create_model, "vit_tiny_patch16_224", attention="mhsa"),
        r"one of tokens \(\*b, 197, 192\), as some .* axes of positions and one of channels, got shape \(197, 192\)",
    ),
    "one of videos": (lambda: vit(3, attention=nn.DividedSpaceTime), "x must be a video"),
    "one that pools": (
        lambda: vit(3, attention=partial(nn.AttentionPool, num_spatial_dims=1)),
        r"attention must keep the tokens' shape \(5, 8\), got \(8,\)",
    ),
    "new heads": (
        lambda: distilled(3).reset_classifier(0, rngs=nnx.Rngs(0)),
        "num_classes must be at least 1, got 0",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    call, message = REFUSALS[name]
    with pytest.raises(InputError, match=message):
        call()
