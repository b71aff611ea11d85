"""What the residual networks with attention within their bottlenecks refuse."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.models.attention_resnet import AttentionResNet, bilinear, bottleneck, halo


def made(num_classes, **arguments):
    """A small network, without its initial values."""
    create = partial(
        AttentionResNet,
        depths=(1, 1, 1, 1),
        channels=(8, 8, 8, 8),
        widths=(8, 8, 8, 8),
        stem_widths=(4,),
        image_size=32,
    )
    return nnx.eval_shape(lambda: create(num_classes, **arguments, rngs=nnx.Rngs(0)))


def called(network, *shape):
    """Without its numbers."""
    return jax.eval_shape(lambda network, x: network(x), network, jnp.ones(shape))


in_place = partial(made, 3, replaces=((), (), (), (0,)))

REFUSALS = {
    "classes": (lambda: made(0), "num_classes must be at least 1, got 0"),
    "channels of images": (lambda: made(3, in_channels=0), "in_channels must be at least 1, got 0"),
    "no image": (lambda: made(3, image_size=0), "image_size must be one or two of at least 1, got 0"),
    "an image of three sides": (
        lambda: made(3, image_size=(4, 4, 4)),
        r"image_size must be one or two of at least 1, got \(4, 4, 4\)",
    ),
    "three stages": (lambda: made(3, depths=(1, 1, 1)), r"depths must be four of at least 1, got \(1, 1, 1\)"),
    "an empty stage": (lambda: made(3, depths=(1, 0, 1, 1)), r"depths must be four of at least 1, got \(1, 0, 1, 1\)"),
    "a stage of no channels": (
        lambda: made(3, channels=(8, 8, 8, 0)),
        r"channels must be four of at least 1, got \(8, 8, 8, 0\)",
    ),
    "a stage of no width": (
        lambda: made(3, widths=(8, 8, 0, 8)),
        r"widths must be four of at least 1, got \(8, 8, 0, 8\)",
    ),
    "no group": (lambda: made(3, group_size=0), r"at least 1 and divide the widths \(8, 8, 8, 8\), got 0"),
    "groups of unequal sizes": (lambda: made(3, group_size=3), r"divide the widths \(8, 8, 8, 8\), got 3"),
    "no stem": (lambda: made(3, stem_widths=()), r"stem_widths must be one or more of at least 1, .*, got \(\)"),
    "a stem of no width": (lambda: made(3, stem_widths=(4, 0)), r"stem_widths must be .*, got \(4, 0\)"),
    "a stem that halves the map once": (
        lambda: made(3, stem_pool=False),
        r"stem_widths must be .*, two or more without stem_pool, got \(4,\)",
    ),
    "no last width": (lambda: made(3, last_width=0), "last_width must be at least 1, got 0"),
    "rate": (lambda: made(3, drop_path_rate=1.0), r"drop_path_rate must be in \[0, 1\), got 1.0"),
    "three attentions": (
        lambda: made(3, attention=(halo, None, halo)),
        "attention must be one for all stages or four, got 3",
    ),
    "blocks of three stages": (
        lambda: made(3, replaces=((), (), (0,))),
        r"replaces must be indices of blocks for each of four stages, .*, got \(\(\), \(\), \(0,\)\)",
    ),
    "a block that is not there": (
        lambda: made(3, replaces=((), (), (), (1,))),
        r"replaces must be indices of blocks .* which have \(1, 1, 1, 1\), got \(\(\), \(\), \(\), \(1,\)\)",
    ),
    "a stride beside the blocks": (
        lambda: in_place(attention=partial(halo, block_size=7)),
        "stride must be at least 1 and divide block_size, got stride=2, block_size=7",
    ),
    "images of other channels": (lambda: called(made(3), 8, 8, 1), r"3 channels on its last axis, got .*8, 1\)"),
    "images of another size": (
        lambda: called(in_place(attention=bottleneck), 64, 32, 3),
        r"x must be a map of 2×2, got shape .*4, 2, 8\)",
    ),
    "maps that cannot be cut": (
        lambda: called(made(3, attention=bilinear), 32, 48, 3),
        "must have a height and a width that block_size=8 divides, got 8×12",
    ),
    "a new head": (
        lambda: made(3).reset_classifier(0, rngs=nnx.Rngs(0)),
        "num_classes must be at least 1, got 0",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    call, message = REFUSALS[name]
    with pytest.raises(InputError, match=message):
        call()
