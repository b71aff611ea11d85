"""What the neighbourhood attention transformers refuse."""

import jax.numpy as jnp
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.models.nat import NAT


def nat(num_classes=3, **arguments):
    """A small network, without its initial values."""
    sizes = {"embed_dim": 4, "depths": (2, 1), "mlp_ratio": 2, "num_heads": 2, "kernel_size": 3}
    return nnx.eval_shape(lambda: NAT(num_classes, **(sizes | arguments), rngs=nnx.Rngs(0)))


DILATED = {"dilations": ((1, 2), (1,))}
REFUSALS = {
    "classes": (lambda: nat(0), "num_classes must be at least 1, got 0"),
    "channels": (lambda: nat(embed_dim=0), "embed_dim must be even and at least 2, got 0"),
    "an odd number of channels": (lambda: nat(embed_dim=5), "embed_dim must be even and at least 2, got 5"),
    "no stage": (lambda: nat(depths=()), r"depths must be numbers of at least 1, got \(\)"),
    "no block": (lambda: nat(depths=(1, 0)), r"depths must be numbers of at least 1, got \(1, 0\)"),
    "perceptrons": (lambda: nat(mlp_ratio=0), "mlp_ratio must be at least 1, got 0"),
    "channels of images": (lambda: nat(in_channels=0), "in_channels must be at least 1, got 0"),
    "heads": (
        lambda: nat(num_heads=3),
        "num_heads must be at least 1 and divide channels, got num_heads=3, channels=4",
    ),
    "window": (lambda: nat(kernel_size=4), "kernel_size must be odd and positive, got 4"),
    "dilations of another number of stages": (
        lambda: nat(dilations=((1, 2),)),
        r"dilations must be one or more for each of the 2 stages, got \(\(1, 2\),\)",
    ),
    "no dilation": (
        lambda: nat(dilations=((1,), ())),
        r"dilations must be one or more for each of the 2 stages, got \(\(1,\), \(\)\)",
    ),
    "dilation": (lambda: nat(dilations=((0,), (1,))), "dilation must be at least 1, got 0"),
    "rate": (lambda: nat(drop_path_rate=1.0), r"drop_path_rate must be in \[0, 1\), got 1.0"),
    "images of other channels": (lambda: nat()(jnp.ones((32, 32, 1))), r"3 channels on its last axis, got .*32, 1\)"),
    "no images": (lambda: nat()(jnp.ones((32, 3))), r"must be a map \(\*b, h, w, 3\), got shape \(32, 3"),
    "images too small for the last stage": (
        lambda: nat()(jnp.ones((32, 16, 3))),
        "images must be of at least 17×17, got 32×16",
    ),
    "images too small for a dilation": (
        lambda: nat(**DILATED)(jnp.ones((20, 32, 3))),
        "images must be of at least 21×21, got 20×32",
    ),
    "a new head": (
        lambda: nat().reset_classifier(0, rngs=nnx.Rngs(0)),
        "num_classes must be at least 1, got 0",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    call, message = REFUSALS[name]
    with pytest.raises(InputError, match=message):
        call()
