"""What the backbones refuse."""

from functools import partial

import jax.numpy as jnp
import pytest
from flax import nnx

from attn_flax import nn
from attn_flax.checks import InputError
from attn_flax.models import FeaturePyramid, VisionTransformer, create_model
from attn_flax.models.resnet import BasicBlock, ResNet


def made(create, *arguments, **keywords):
    """The network, without its initial values."""
    return nnx.eval_shape(lambda: create(*arguments, **keywords, rngs=nnx.Rngs(0)))


resnet = partial(made, ResNet, block=BasicBlock, depths=(1, 1, 1, 1))
vit = partial(made, VisionTransformer, embed_dim=8, depth=1, num_heads=2, image_size=4, patch_size=2)
pyramid = partial(made, FeaturePyramid)

REFUSALS = {
    "classes of a resnet": (lambda: resnet(0), "num_classes must be at least 1, got 0"),
    "channels of a resnet": (lambda: resnet(3, in_channels=0), "in_channels must be at least 1, got 0"),
    "a stem": (lambda: resnet(3, stem="large"), "stem must be 'imagenet' or 'cifar', got 'large'"),
    "other images for a resnet": (lambda: resnet(3)(jnp.ones((9, 9, 1))), r"3 channels on its last axis, got .*9, 1\)"),
    "no images for a resnet": (
        lambda: resnet(3)(jnp.ones((9, 3))),
        r"must be a map \(\*b, h, w, 3\), got shape \(9, 3",
    ),
    "classes of a vit": (lambda: vit(0), "num_classes must be at least 1, got 0"),
    "patches": (lambda: vit(3, patch_size=0), "patch_size must be at least 1, got 0"),
    "its perceptrons": (lambda: vit(3, mlp_ratio=0), "mlp_ratio must be at least 1, got 0"),
    "its heads": (lambda: vit(3, num_heads=3), "num_heads must be at least 1 and divide channels, got num_heads=3"),
    "its pooling": (lambda: vit(3, global_pool="max"), "global_pool must be 'token', 'avg' or 'map', got 'max'"),
    "its image": (lambda: vit(3, image_size=(4, 5)), "images must be of patches of 2×2, got 4×5"),
    "images of other sizes": (lambda: vit(3)(jnp.ones((2, 3, 4, 3))), "images must be of patches of 2×2, got 3×4"),
    "images of no patch": (lambda: vit(3)(jnp.ones((2, 0, 4, 3))), "images must be of patches of 2×2, got 0×4"),
    "other images for a vit": (lambda: vit(3)(jnp.ones((4, 4, 1))), "3 channels on its last axis"),
    "an attention of maps": (
        lambda: vit(3, attention=nn.Cbam),
        r"attention must be one of tokens \(\*b, 5, 8\), as some are with num_spatial_dims=1: x must be a map",
    ),
    "one of maps by name": (
        lambda: made(create_model, "vit_tiny_patch16_224", attention="mhsa"),
        r"one of tokens \(\*b, 197, 192\), as some .* axes of positions and one of channels, got shape \(197, 192\)",
    ),
    "one of videos": (lambda: vit(3, attention=nn.DividedSpaceTime), "x must be a video"),
    "one that pools": (
        lambda: vit(3, attention=partial(nn.AttentionPool, num_spatial_dims=1)),
        r"attention must keep the tokens' shape \(5, 8\), got \(8,\)",
    ),
    "a pyramid of nothing": (lambda: pyramid(()), r"one for each map, got \(\)"),
    "a pyramid of no channels": (lambda: pyramid((2,), 0), "channels must be at least 1"),
    "a map of no channels": (lambda: pyramid((2, 0)), r"of at least 1, .*, got \(2, 0\)"),
    "too few maps": (lambda: pyramid((2, 3))([jnp.ones((4, 4, 2))]), "maps must be 2, got 1"),
    "a map of other channels": (
        lambda: pyramid((2, 3))([jnp.ones((4, 4, 2)), jnp.ones((2, 2, 4))]),
        "3 channels on its last axis",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    call, message = REFUSALS[name]
    with pytest.raises(InputError, match=message):
        call()
