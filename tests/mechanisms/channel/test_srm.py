"""Style-based recalibration against its derivation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.channel.srm import StyleRecalibration
from tests.mechanisms import against_oracle
from tests.oracles import sigmoid

SHAPE = (3, 2, 6)
CREATE = partial(StyleRecalibration, 6)


def weights(x, p, *, correction=1, has_deviation=True, has_norm=True, squared=False):
    h, w, c = x.shape
    g = np.zeros(c)
    for k in range(c):
        mean = x[..., k].sum() / (h * w)
        variance = ((x[..., k] - mean) ** 2).sum() / (h * w - correction) + 1e-5
        deviation = variance if squared else np.sqrt(variance)
        z = p["kernel"][0, k] * mean + has_deviation * p["kernel"][1, k] * deviation
        if has_norm:
            normed = (z - p["norm.mean"][k]) / np.sqrt(p["norm.var"][k] + 1e-5)
            z = normed * p["norm.scale"][k] + p["norm.bias"][k]
        g[k] = sigmoid(z)
    return g


def oracle(x, p, **kinds):
    return x * weights(x, p, **kinds)


@pytest.mark.parametrize("correction", [0, 1])
def test_it_is_the_paper(correction):
    create = partial(CREATE, correction=correction)
    against_oracle.assert_equal(create, partial(oracle, correction=correction), SHAPE)
    map_of_it = partial(weights, correction=correction)
    against_oracle.assert_equal(create, map_of_it, SHAPE, method="attention_map", gradient=False)


MUTANTS = {
    "the gate alone": lambda x, p: np.broadcast_to(weights(x, p), x.shape),
    "a residual": lambda x, p: x + oracle(x, p),
    "the mean alone": lambda x, p: oracle(x, p, has_deviation=False),
    "the variance for the deviation": lambda x, p: oracle(x, p, squared=True),
    "the other divisor": lambda x, p: oracle(x, p, correction=0),
    "no batch norm": lambda x, p: oracle(x, p, has_norm=False),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE, MUTANTS[mutant], SHAPE)


@pytest.mark.parametrize("correction", [0, 1])
def test_the_deviation_of_one_number_is_the_root_of_epsilon(correction):
    create = partial(CREATE, correction=correction)
    against_oracle.assert_equal(create, partial(oracle, correction=0), (1, 1, 6))


def test_training_normalises_the_style_with_the_batch():
    module = CREATE(rngs=nnx.Rngs(0))
    module.kernel[...] = jnp.ones((2, 6))
    module.train()
    x = np.random.default_rng(0).normal(size=(5, *SHAPE))
    z = x.mean((1, 2)) + np.sqrt(x.var((1, 2), ddof=1) + 1e-5)
    expected = sigmoid((z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5))
    np.testing.assert_allclose(module.attention_map(jnp.asarray(x, jnp.float32)), expected, rtol=1e-4)


def test_each_channel_minds_itself():
    module = CREATE(rngs=nnx.Rngs(0))
    module.eval()
    module.kernel[...] = jnp.ones((2, 6))
    x = jax.random.normal(jax.random.key(0), SHAPE)
    changed = module(x.at[..., 2].add(1.0)) - module(x)
    np.testing.assert_array_equal(jnp.delete(changed, 2, axis=-1), 0)
