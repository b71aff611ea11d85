"""The gated channel transformation against its derivation."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.channel.gct import GatedChannelTransform
from tests.mechanisms import against_oracle

SHAPE = (7, 5, 6)
CREATE = partial(GatedChannelTransform, 6, epsilon=0.1)


def weights(x, p, *, epsilon=0.1, norm=2, compete=np.mean, gate=lambda u: 1 + np.tanh(u)):
    c = x.shape[-1]
    s = np.zeros(c)
    for k in range(c):
        total = (abs(x[..., k]) ** norm).sum()
        s[k] = p["alpha"][k] * (np.sqrt(total + epsilon) if norm == 2 else total)
    s_hat = s / np.sqrt(compete(s**2) + epsilon)
    return gate(p["gamma"] * s_hat + p["beta"])


def oracle(x, p, **kinds):
    return x * weights(x, p, **kinds)


def test_it_is_the_paper():
    against_oracle.assert_equal(CREATE, oracle, SHAPE)
    against_oracle.assert_equal(CREATE, weights, SHAPE, method="attention_map", gradient=False)


MUTANTS = {
    "the gate alone": lambda x, p: np.broadcast_to(weights(x, p), x.shape),
    "no one in the gate": lambda x, p: oracle(x, p, gate=np.tanh),
    "a sigmoid": lambda x, p: oracle(x, p, gate=lambda u: 1 / (1 + np.exp(-u))),
    "the sum over channels for the mean": lambda x, p: oracle(x, p, compete=np.sum),
    "the mean over positions for the sum": lambda x, p: x * weights(x / np.sqrt(35), p),
    "the sum of sizes for the norm": lambda x, p: oracle(x, p, norm=1),
    "no α": lambda x, p: oracle(x, {**p, "alpha": np.ones(6)}),
    "no β": lambda x, p: oracle(x, {**p, "beta": np.zeros(6)}),
    "another ε": lambda x, p: oracle(x, p, epsilon=1e-5),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE, MUTANTS[mutant], SHAPE)


def test_it_begins_as_the_identity():
    x = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
    np.testing.assert_array_equal(GatedChannelTransform(6, rngs=nnx.Rngs(0))(x), x)
