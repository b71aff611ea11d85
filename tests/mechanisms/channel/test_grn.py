"""Global response normalisation against its derivation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.channel.grn import GlobalResponseNorm
from tests.mechanisms import against_oracle

SHAPE = (7, 5, 6)
CREATE = partial(GlobalResponseNorm, 6, epsilon=0.1)


def weights(x, p, *, epsilon=0.1, norm=2, compete=np.mean):
    g = np.array([(abs(x[..., k]) ** norm).sum() ** (1 / norm) for k in range(x.shape[-1])])
    return g / (compete(g) + epsilon)


def oracle(x, p, residual=1, **kinds):
    return residual * x + p["gamma"] * x * weights(x, p, **kinds) + p["beta"]


def test_it_is_the_paper():
    against_oracle.assert_equal(CREATE, oracle, SHAPE)
    against_oracle.assert_equal(CREATE, weights, SHAPE, method="attention_map", gradient=False)


MUTANTS = {
    "no residual": lambda x, p: oracle(x, p, residual=0),
    "the sum over channels for the mean": lambda x, p: oracle(x, p, compete=np.sum),
    "the root mean square over channels": lambda x, p: oracle(x, p, compete=lambda g: np.sqrt(np.mean(g**2))),
    "the sum of sizes for the norm": lambda x, p: oracle(x, p, norm=1),
    "the mean over positions for the sum": lambda x, p: x + p["gamma"] * x * weights(x / np.sqrt(35), p) + p["beta"],
    "no β": lambda x, p: oracle(x, {**p, "beta": np.zeros(6)}),
    "another ε": lambda x, p: oracle(x, p, epsilon=1e-6),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE, MUTANTS[mutant], SHAPE)


def test_it_begins_as_the_identity():
    x = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
    np.testing.assert_array_equal(GlobalResponseNorm(6, rngs=nnx.Rngs(0))(x), x)


@pytest.mark.parametrize("x", [np.zeros(SHAPE), np.ones(SHAPE) * (np.arange(6) != 2)])
def test_the_gradient_at_channels_of_zeros_is_finite(x):
    module = CREATE(rngs=nnx.Rngs(0))
    module.gamma[...] = jnp.ones(6)
    assert jnp.isfinite(jax.grad(lambda x: module(x).sum())(jnp.asarray(x, jnp.float32))).all()
