"""TimeSformer against its derivation, and what it makes of the order of frames."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.explain import attention_maps
from attn_flax.models import TimeSformer, create_model
from tests.mechanisms import against_oracle
from tests.mechanisms.temporal.naive import attend, layer_norm, linear
from tests.models import naive_video as naive
from tests.models.networks import run

SIZES = {"in_channels": 2, "embed_dim": 8, "depth": 2, "num_heads": 2}
SMALL = partial(TimeSformer, 5, **SIZES, patch_size=4)
SHAPE = (3, 8, 12, 2)
ODD = (3, 7, 10, 2)  # of as many tokens, with a stem


def after_time(z, p, attn):
    normed, y = layer_norm(z, p, f"{attn}.time_norm"), z.copy()
    for i, j in np.ndindex(z.shape[1:3]):
        y[:, i, j] += linear(attend(normed[:, i, j], p, 2, f"{attn}.time.heads"), p, f"{attn}.time_project")
    return y


def oracle(x, p, *, embed, temporal=True, learned=False, token=False):
    z = naive.tokens(x, lambda frame: embed(frame, p))
    t, h, w, d = z.shape
    if temporal:
        z = z + (p["time.learned"] if learned else naive.times(t, d))[:, None, None]
    u = p["cls_token"] if token else np.zeros((0, d))
    for i in range(2):
        block = f"blocks.{i}"
        z = after_time(z, p, f"{block}.attn") if temporal else z
        frames = [np.concatenate([np.reshape(u, (-1, d)), frame.reshape(-1, d)]) for frame in z]
        given = [attend(layer_norm(f, p, f"{block}.attn.space_norm"), p, 2, f"{block}.attn.space") for f in frames]
        z = z + np.array([g[-h * w :].reshape(h, w, d) for g in given])
        u = u + sum(g[: -h * w].squeeze() for g in given) / t if token else u
        z, u = (naive.perceive(y, p, f"{block}.norm", f"{block}.mlp") for y in (z, u))
    pooled = layer_norm(u, p, "norm") if token else layer_norm(z, p, "norm").mean((0, 1, 2))
    return linear(pooled, p, "head")


PATCHES, STEM = partial(naive.patches, size=4), partial(naive.stem, convolutions=2)
FORMS = {
    "patches, learned times, class token": (
        {"stem": False, "num_frames": 3, "global_pool": "token"},
        {"embed": PATCHES, "learned": True, "token": True},
        SHAPE,
    ),
    "stem, waves, mean": ({}, {"embed": STEM}, ODD),
    "without time": ({"temporal": False}, {"embed": STEM, "temporal": False}, ODD),
    "without time, class token": (
        {"temporal": False, "stem": False, "global_pool": "token"},
        {"embed": PATCHES, "temporal": False, "token": True},
        SHAPE,
    ),
}


@pytest.mark.full
@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    arguments, kinds, shape = FORMS[form]
    against_oracle.assert_equal(partial(SMALL, **arguments), partial(oracle, **kinds), shape, gradient=False)


def logits_in_two_orders(**arguments):
    """Of three frames, and of the same in another order."""
    network = against_oracle.build(partial(SMALL, **arguments))
    x = np.random.default_rng(1).normal(size=(2, *ODD))
    return [np.asarray(run(network, frames)) for frames in (x, x[:, [2, 0, 1]])]


@pytest.mark.parametrize("pool", [pytest.param("avg", marks=pytest.mark.full), "token"])
def test_without_time_a_video_is_a_bag_of_frames(pool):
    np.testing.assert_allclose(*logits_in_two_orders(temporal=False, global_pool=pool), rtol=1e-12)
    one, other = logits_in_two_orders(global_pool=pool)
    assert np.abs(one - other).max() > 1e-2


@pytest.mark.full
def test_its_maps_are_over_time_and_space_and_its_frames_may_be_gated():
    network = create_model("timesformer", num_classes=5, attention="se", **SIZES, patch_size=4, rngs=nnx.Rngs(0))
    maps = attention_maps(network, jnp.ones((2, *ODD)))
    assert maps["tokens.attention"].shape[-1] == 8
    assert {part: weights.shape for part, weights in maps["blocks.1.attn"].items()} == {
        "temporal": (2, 2, 3, 2, 3, 3),
        "spatial": (2, 3, 2, 6, 6),
    }
    for block in network.blocks:  # time is not attended to at first
        assert not block.attn.time_project.kernel[...].any()


def test_at_the_papers_sizes_it_has_the_authors_blocks():
    """ViT-B, and in each block the attention over time, its norm and a layer after it; without positions in space."""
    c, classes = 768, 400
    sizes = {"embed_dim": c, "depth": 12, "num_heads": 12, "mlp_ratio": 4, "patch_size": 16}
    forms = {"stem": False, "num_frames": 8, "global_pool": "token"}
    network = nnx.eval_shape(lambda: TimeSformer(classes, **sizes, **forms, rngs=nnx.Rngs(0)))
    block = 2 * (4 * c * c + 4 * c) + c * c + c + 8 * c * c + 5 * c + 3 * 2 * c
    expected = 12 * block + 16 * 16 * 3 * c + c + 8 * c + c + 2 * c + c * classes + classes
    assert sum(p.size for p in jax.tree.leaves(nnx.state(network, nnx.Param))) == expected
