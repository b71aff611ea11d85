"""What the residual networks and their kin refuse."""

from functools import partial

import jax.numpy as jnp
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.models.resnest import ResNeSt
from attn_flax.models.resnet import BasicBlock, Bottleneck, ResNet
from attn_flax.models.sknet import SelectiveBasicBlock, SKNet


def made(create, *arguments, **keywords):
    """The network, without its initial values."""
    return nnx.eval_shape(lambda: create(*arguments, **keywords, rngs=nnx.Rngs(0)))


resnet = partial(made, ResNet, 3, block=BasicBlock)
bottleneck = partial(made, Bottleneck, 4)
sknet = partial(made, SKNet, 3, block=SelectiveBasicBlock, depths=(1, 1, 1, 1))
resnest = partial(made, ResNeSt, 3, depths=(1, 1, 1, 1))

REFUSALS = {
    "three layers": (lambda: resnet(depths=(1, 1, 1)), r"depths must be four of at least 1, got \(1, 1, 1\)"),
    "an empty layer": (lambda: resnet(depths=(1, 0, 1, 1)), r"depths must be four of at least 1, got \(1, 0, 1, 1\)"),
    "a layer of no width": (
        lambda: resnet(depths=(1, 1, 1, 1), widths=(4, 4, 4, 0)),
        r"widths must be four of at least 1, got \(4, 4, 4, 0\)",
    ),
    "no stem": (
        lambda: resnet(depths=(1, 1, 1, 1), stem_widths=()),
        r"stem_widths must be one or more of at least 1, got \(\)",
    ),
    "a stem of no width": (
        lambda: resnet(depths=(1, 1, 1, 1), stem_widths=(4, 0, 4)),
        r"stem_widths must be one or more of at least 1, got \(4, 0, 4\)",
    ),
    "a rate of stochastic depth": (
        lambda: resnet(depths=(1, 1, 1, 1), drop_path_rate=1.0),
        r"drop_path_rate must be in \[0, 1\), got 1.0",
    ),
    "a new head": (
        lambda: resnet(depths=(1, 1, 1, 1)).reset_classifier(0, rngs=nnx.Rngs(0)),
        "num_classes must be at least 1, got 0",
    ),
    "no group": (lambda: bottleneck(4, groups=0), "groups must be at least 1, got 0"),
    "groups of nothing": (lambda: bottleneck(4, base_width=0), "base_width must be at least 1, got 0"),
    "no reduction": (lambda: bottleneck(4, reduce_first=0), "reduce_first must be at least 1, got 0"),
    "too few channels": (lambda: bottleneck(4, groups=32, base_width=4), "got 0 channels for 32 groups"),
    "groups of unequal sizes": (
        lambda: bottleneck(3, groups=2, reduce_first=2),
        "every group to have as many before the 3×3 convolution, got 3 channels for 2 groups",
    ),
    "reduction of a selective network": (
        lambda: sknet(block=partial(SelectiveBasicBlock, reduction=0)),
        "reduction must be at least 1, got 0",
    ),
    "channels of a selective network": (lambda: sknet(in_channels=0), "in_channels must be at least 1, got 0"),
    "no split": (lambda: resnest(radix=0), "radix must be at least 1, got 0"),
    "splits that do not divide the channels": (
        lambda: resnest(radix=3),
        "radix and groups must be at least 1 and their product divide channels, got radix=3, groups=1, channels=64",
    ),
    "images of other channels": (
        lambda: resnest()(jnp.ones((9, 9, 1))),
        r"3 channels on its last axis, got shape \(9, 9, 1\)",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    call, message = REFUSALS[name]
    with pytest.raises(InputError, match=message):
        call()
