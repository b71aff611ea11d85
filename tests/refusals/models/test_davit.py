"""What dual attention vision transformers refuse."""

from functools import partial

import jax.numpy as jnp
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.models.davit import DaViT


def made(**arguments):
    """The network, without its initial values."""
    sizes = {"num_classes": 3, "embed_dims": (4, 6), "depths": (1, 1), "num_heads": (2, 3)}
    return nnx.eval_shape(lambda: DaViT(**(sizes | arguments), rngs=nnx.Rngs(0)))


REFUSALS = {
    "classes": (partial(made, num_classes=0), "num_classes must be at least 1, got 0"),
    "channels of images": (partial(made, in_channels=0), "in_channels must be at least 1, got 0"),
    "a perceptron": (partial(made, mlp_ratio=0), "mlp_ratio must be at least 1, got 0"),
    "a window": (partial(made, window=0), "window must be at least 1, got 0"),
    "no stages": (
        partial(made, embed_dims=(), depths=(), num_heads=()),
        r"embed_dims must be numbers of at least 1, one for each stage of depths=\(\), got \(\)",
    ),
    "an empty stage": (partial(made, depths=(1, 0)), r"depths must be numbers of at least 1, .*, got \(1, 0\)"),
    "no channels": (partial(made, embed_dims=(0, 6)), r"embed_dims must be numbers of at least 1, .*, got \(0, 6\)"),
    "heads of fewer stages": (
        partial(made, num_heads=(2,)),
        r"num_heads must be numbers of at least 1, one for each stage of depths=\(1, 1\), got \(2,\)",
    ),
    "heads": (
        partial(made, num_heads=(2, 4)),
        "num_heads must be at least 1 and divide channels, got num_heads=4, channels=6",
    ),
    "a rate": (partial(made, drop_path_rate=1.0), r"drop_path_rate must be in \[0, 1\), got 1.0"),
    "other images": (lambda: made()(jnp.ones((9, 9, 1))), r"3 channels on its last axis, got .*9, 1\)"),
    "no map": (lambda: made()(jnp.ones((9, 3))), r"must be a map \(\*b, h, w, 3\), got shape \(9, 3"),
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
