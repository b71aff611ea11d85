"""Shuffle attention against its derivation."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.channel_spatial.shuffle_attention import ShuffleAttention
from tests.mechanisms import against_oracle
from tests.oracles import sigmoid

SHAPE = (7, 5, 12)
create = partial(ShuffleAttention, 12, groups=2)


def gates(x, p, *, together=False, gate=sigmoid):
    """Of the first halves of the two groups of six channels, and of the second halves."""
    h, w, _ = x.shape
    channel, spatial = np.empty((1, 1, 2, 3)), np.empty((h, w, 2, 3))
    for g in range(2):
        for k in range(3):
            first, second = x[..., 6 * g + k], x[..., 6 * g + 3 + k]
            channel[..., g, k] = gate(p["channel.scale"][k] * first.mean() + p["channel.bias"][k])
            of = x[..., 6 * g + 3 : 6 * g + 6] if together else second
            normalized = (second - of.mean()) / np.sqrt(((of - of.mean()) ** 2).mean() + 1e-5)
            scaled = p["norm.scale"][k] * normalized + p["norm.bias"][k]
            spatial[..., g, k] = gate(p["spatial.scale"][k] * scaled + p["spatial.bias"][k])
    return {"channel": channel, "spatial": spatial}


def gated(x, p, **kinds):
    g = gates(x, p, **kinds)
    out = np.empty(x.shape)
    for group in range(2):
        for k in range(3):
            first, second = 6 * group + k, 6 * group + 3 + k
            out[..., first] = x[..., first] * g["channel"][..., group, k]
            out[..., second] = x[..., second] * g["spatial"][..., group, k]
    return out


def oracle(x, p, **kinds):
    out = gated(x, p, **kinds)
    return np.stack([out[..., 6 * (k % 2) + k // 2] for k in range(12)], -1)


def test_it_is_the_paper():
    against_oracle.assert_equal(create, oracle, SHAPE)
    against_oracle.assert_equal(create, gates, SHAPE, method="attention_map", gradient=False)


def halves_exchanged(p):
    other = {"channel": "spatial", "spatial": "channel"}
    return {name: p[".".join([other.get(name.split(".")[0], "norm"), name.split(".")[1]])] for name in p}


MUTANTS = {
    "not shuffled": gated,
    "shuffled the other way": lambda x, p: np.stack([gated(x, p)[..., 2 * (k % 6) + k // 6] for k in range(12)], -1),
    "one normalisation for all channels of a group": lambda x, p: oracle(x, p, together=True),
    "the halves' parameters exchanged": lambda x, p: oracle(x, halves_exchanged(p)),
    "no affine normalisation": lambda x, p: oracle(x, {**p, "norm.scale": np.ones(3), "norm.bias": np.zeros(3)}),
    "no sigmoid": lambda x, p: oracle(x, p, gate=lambda u: u),
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(create, MUTANTS[mutant], SHAPE)


def test_at_first_all_is_scaled_alike_and_shuffled():
    x = np.random.default_rng(0).normal(size=SHAPE).astype("float32")
    expected = sigmoid(1) * x.reshape(7, 5, 2, 6).swapaxes(2, 3).reshape(SHAPE)
    np.testing.assert_allclose(create(rngs=nnx.Rngs(0))(jnp.asarray(x)), expected, rtol=1e-6)


def test_a_map_of_one_position_is_finite():
    assert jnp.isfinite(create(rngs=nnx.Rngs(0))(jnp.ones((1, 1, 12)))).all()
