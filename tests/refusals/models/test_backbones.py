"""What the backbones refuse."""

from functools import partial

import jax.numpy as jnp
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.models import FeaturePyramid
from attn_flax.models.resnet import BasicBlock, ResNet


def made(create, *arguments, **keywords):
    """The network, without its initial values."""
    return nnx.eval_shape(lambda: create(*arguments, **keywords, rngs=nnx.Rngs(0)))


resnet = partial(made, ResNet, block=BasicBlock, depths=(1, 1, 1, 1))
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
