"""ViViT's factorised encoder against its derivation, and what it makes of the order of frames."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.explain import attention_maps
from attn_flax.models import ViViT
from tests.mechanisms import against_oracle
from tests.mechanisms.temporal.naive import attend, layer_norm, linear
from tests.models import naive_video as naive
from tests.models.networks import run

SMALL = partial(ViViT, 5, in_channels=2, embed_dim=8, depth=(2, 1), num_heads=2, patch_size=4)
SHAPE = (3, 8, 12, 2)
ODD = (3, 7, 10, 2)  # of as many tokens, with a stem


def encode(z, p, name, depth):
    """The mean of the normalised tokens (n, d) after the blocks."""
    for i in range(depth):
        block = f"{name}.blocks.{i}"
        z = z + attend(layer_norm(z, p, f"{block}.norm1"), p, 2, f"{block}.attn")
        z = naive.perceive(z, p, f"{block}.norm2", f"{block}.mlp")
    return layer_norm(z, p, f"{name}.norm").mean(0)


def oracle(x, p, *, embed, temporal=True, learned=False):
    z = naive.tokens(x, lambda frame: embed(frame, p))
    t, h, w, d = z.shape
    frames = np.array([encode(frame.reshape(h * w, d), p, "space", 2) for frame in z])
    if not temporal:
        return linear(frames.mean(0), p, "head")
    frames = frames + (p["positions.learned"] if learned else naive.times(t, d))
    return linear(encode(frames, p, "time", 1), p, "head")


PATCHES, STEM = partial(naive.patches, size=4), partial(naive.stem, convolutions=2)
FORMS = {
    "patches, learned times": ({"stem": False, "num_frames": 3}, {"embed": PATCHES, "learned": True}, SHAPE),
    "stem, waves": ({}, {"embed": STEM}, ODD),
    "without time": ({"temporal": False}, {"embed": STEM, "temporal": False}, ODD),
}


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    arguments, kinds, shape = FORMS[form]
    against_oracle.assert_equal(partial(SMALL, **arguments), partial(oracle, **kinds), shape, gradient=False)


@pytest.mark.parametrize("temporal", [False, True])
def test_without_time_a_video_is_a_bag_of_frames(temporal):
    network = against_oracle.build(partial(SMALL, temporal=temporal))
    x = np.random.default_rng(1).normal(size=(2, *ODD))
    one, other = (np.asarray(run(network, frames)) for frames in (x, x[:, [2, 0, 1]]))
    assert (np.abs(one - other).max() > 1e-2) == temporal
    if not temporal:
        np.testing.assert_allclose(one, other, rtol=1e-12)


@pytest.mark.full
def test_its_maps_are_of_frames_and_then_of_time():
    maps = attention_maps(SMALL(rngs=nnx.Rngs(0)), jnp.ones((2, *SHAPE)))
    assert {path: weights.shape for path, weights in maps.items()} == {
        "space.blocks.0.attn": (2, 3, 2, 6, 6),
        "space.blocks.1.attn": (2, 3, 2, 6, 6),
        "time.blocks.0.attn": (2, 2, 3, 3),
    }
