"""FcaNet's attention against its derivation."""

import math
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.channel.fca import TOP_FREQUENCIES, Fca, cosine_basis
from tests import costs
from tests.mechanisms import against_oracle
from tests.oracles import adaptive_average_pool, sigmoid

SHAPE = (7, 9, 6)
FREQUENCIES = [(0, 0), (0, 1), (6, 2)]
CREATE = partial(Fca, 6, reduction=2, frequencies=FREQUENCIES, size=(7, 9))


def cosine(frequency, position, size):
    value = math.cos(math.pi * frequency * (position + 0.5) / size) / math.sqrt(size)
    return value if frequency == 0 else value * math.sqrt(2)


def spectrum(x, size, *, frequencies=FREQUENCIES, group=lambda k: k // 2, scale=lambda n: n // 7, pool=True):
    p, q = size
    pooled = adaptive_average_pool(x, size) if pool else x
    z = []
    for k in range(x.shape[-1]):
        u, v = frequencies[group(k)]
        u, v = u * scale(p), v * scale(q)
        z.append(sum(pooled[i, j, k] * cosine(u, i, p) * cosine(v, j, q) for i in range(p) for j in range(q)))
    return np.array(z)


def weights(x, p, *, size=(7, 9), **kinds):
    z = spectrum(x, size, **kinds)
    return sigmoid(np.maximum(z @ p["excite.reduce.kernel"], 0) @ p["excite.expand.kernel"])


def oracle(x, p, **kinds):
    return x * weights(x, p, **kinds)


@pytest.mark.parametrize("size", [(7, 9), (14, 8)], ids=["the map's own grid", "another grid"])
def test_it_is_the_paper(size):
    create = partial(CREATE, size=size)
    against_oracle.assert_equal(create, partial(oracle, size=size), SHAPE)
    against_oracle.assert_equal(create, partial(weights, size=size), SHAPE, method="attention_map", gradient=False)


MUTANTS = {
    "every frequency zero": lambda x, p: oracle(x, p, scale=lambda n: 0),
    "rows and columns exchanged": lambda x, p: oracle(x, p, frequencies=[(v, u) for u, v in FREQUENCIES]),
    "frequencies by turns": lambda x, p: oracle(x, p, group=lambda k: k % 3),
    "the mean for the sum": lambda x, p: oracle(x / 63, p),
    "the gate alone": lambda x, p: np.broadcast_to(weights(x, p), x.shape),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE, MUTANTS[mutant], SHAPE)


def test_frequencies_grow_with_the_grid():
    larger = partial(CREATE, size=(14, 21))
    against_oracle.assert_equal(larger, partial(oracle, size=(14, 21)), SHAPE, gradient=False)
    against_oracle.assert_different(larger, partial(oracle, size=(14, 21), scale=lambda n: 1), SHAPE)


def test_the_patterns_are_of_norm_one_and_at_right_angles():
    frequencies = [(u, v) for u in range(7) for v in range(7)]
    patterns = cosine_basis((7, 7), frequencies, 49).reshape(49, 49)
    np.testing.assert_allclose(patterns.T @ patterns, np.eye(49), atol=1e-12)


def test_the_frequencies_are_all_different_and_the_first_is_the_mean():
    assert len(set(TOP_FREQUENCIES)) == 32
    assert TOP_FREQUENCIES[0] == (0, 0)


@pytest.mark.parametrize("shape", [(7, 7, 6), (5, 9, 6), (9, 5, 6), (14, 28, 6)])
def test_its_cost_is_that_of_pooling_and_the_layers(shape):
    module = Fca(6, reduction=2, frequencies=FREQUENCIES, rngs=nnx.Rngs(0))
    assert module.cost(shape).multiply_adds == costs.multiply_adds(module, jnp.ones(shape))
