"""What the visual attention networks refuse."""

from functools import partial

import jax.numpy as jnp
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.models.van import VAN


def made(create, *arguments, **keywords):
    """The network, without its initial values."""
    return nnx.eval_shape(lambda: create(*arguments, **keywords, rngs=nnx.Rngs(0)))


van = partial(made, partial(VAN, embed_dims=(4, 6), depths=(1, 1), mlp_ratios=(2, 2)))

REFUSALS = {
    "classes": (lambda: van(0), "num_classes must be at least 1, got 0"),
    "channels": (lambda: van(3, in_channels=0), "in_channels must be at least 1, got 0"),
    "a stage without blocks": (lambda: van(3, depths=(1, 0)), r"got \(4, 6\), \(1, 0\) and \(2, 2\)"),
    "stages without width": (
        lambda: van(3, embed_dims=(4,)),
        r"must be sizes of at least 1, one of each for every stage, got \(4,\), \(1, 1\) and \(2, 2\)",
    ),
    "perceptrons": (lambda: van(3, mlp_ratios=(2,)), r"got \(4, 6\), \(1, 1\) and \(2,\)"),
    "no stage": (lambda: van(3, embed_dims=(), depths=(), mlp_ratios=()), r"got \(\), \(\) and \(\)"),
    "a rate of stochastic depth": (lambda: van(3, drop_path_rate=1.0), r"drop_path_rate must be in \[0, 1\), got 1.0"),
    "a new head": (lambda: van(3).reset_classifier(0, rngs=nnx.Rngs(0)), "num_classes must be at least 1, got 0"),
    "images of other channels": (lambda: van(3)(jnp.ones((9, 9, 1))), r"3 channels on its last axis, got .*9, 1\)"),
    "no images": (lambda: van(3)(jnp.ones((9, 3))), r"must be a map \(\*b, h, w, 3\), got shape \(9, 3\)"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    call, message = REFUSALS[name]
    with pytest.raises(InputError, match=message):
        call()
