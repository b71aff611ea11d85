"""What vision outlookers refuse."""

from functools import partial

import jax.numpy as jnp
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.models.volo import Volo


def made(**arguments):
    """The network, without its initial values."""
    sizes = {"num_classes": 3, "embed_dims": (4, 6), "depths": (1, 1), "num_heads": (2, 3), "image_size": 32}
    return nnx.eval_shape(lambda: Volo(**(sizes | arguments), rngs=nnx.Rngs(0)))


REFUSALS = {
    "classes": (partial(made, num_classes=0), "num_classes must be at least 1, got 0"),
    "channels of images": (partial(made, in_channels=0), "in_channels must be at least 1, got 0"),
    "a perceptron": (partial(made, mlp_ratio=0), "mlp_ratio must be at least 1, got 0"),
    "a stem": (partial(made, stem_channels=0), "stem_channels must be at least 1, got 0"),
    "channels": (partial(made, embed_dims=(0, 6)), r"embed_dims must be at least 1, got \(0, 6\)"),
    "no transformers": (partial(made, depths=(1,)), r"depths must be at least 2 numbers of at least 1, got \(1,\)"),
    "an empty stage": (partial(made, depths=(1, 0)), r"depths must be at least 2 numbers of at least 1, got \(1, 0\)"),
    "heads": (
        partial(made, num_heads=(2, 4)),
        "num_heads must be at least 1 and divide channels, got num_heads=4, channels=6",
    ),
    "heads of outlookers": (partial(made, num_heads=(3, 3)), "got num_heads=3, channels=4"),
    "a rate": (partial(made, drop_path_rate=1.0), r"drop_path_rate must be in \[0, 1\), got 1.0"),
    "a small image": (partial(made, image_size=(32, 15)), "image_size must be at least 16×16, got 32×15"),
    "other images": (lambda: made()(jnp.ones((32, 32, 1))), r"3 channels on its last axis, got .*32, 1\)"),
    "no map": (lambda: made()(jnp.ones((32, 3))), r"must be a map \(\*b, h, w, 3\), got shape \(32, 3"),
    "small images": (lambda: made()(jnp.ones((2, 15, 48, 3))), "images must be at least 16×16, got 15×48"),
    "new classes": (
        lambda: made().reset_classifier(0, rngs=nnx.Rngs(0)),
        "num_classes must be at least 1, got 0",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    call, message = REFUSALS[name]
    with pytest.raises(InputError, match=message):
        call()
