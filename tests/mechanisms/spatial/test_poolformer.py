"""Pooling against its derivation."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.spatial.poolformer import Pooling
from tests.mechanisms import against_oracle

SHAPE = (7, 5, 3)


def around(x, i, j, pool_size):
    reach = pool_size // 2
    return [
        (i + a, j + b)
        for a in range(-reach, reach + 1)
        for b in range(-reach, reach + 1)
        if 0 <= i + a < x.shape[0] and 0 <= j + b < x.shape[1]
    ]


def oracle(x, p, *, pool_size=3, count=len, itself=1):
    y = np.zeros_like(x)
    for i, j in np.ndindex(x.shape[:2]):
        neighbours = around(x, i, j, pool_size)
        y[i, j] = sum(x[n] for n in neighbours) / count(neighbours) - itself * x[i, j]
    return y


def weights(x, p, *, pool_size=3):
    h, w, _ = x.shape
    alpha = np.zeros((h, w, pool_size, pool_size))
    for i, j in np.ndindex(h, w):
        neighbours = around(x, i, j, pool_size)
        for row, column in neighbours:
            alpha[i, j, row - i + pool_size // 2, column - j + pool_size // 2] = 1 / len(neighbours)
    return alpha


@pytest.mark.parametrize("pool_size", [1, 3, 9])
def test_it_is_the_paper(pool_size):
    create = partial(Pooling, 3, pool_size=pool_size)
    against_oracle.assert_equal(create, partial(oracle, pool_size=pool_size), SHAPE)
    against_oracle.assert_equal(
        create, partial(weights, pool_size=pool_size), SHAPE, method="attention_map", gradient=False
    )


MUTANTS = {
    "zeros beyond the border counted": partial(oracle, count=lambda _: 9),
    "a sum": partial(oracle, count=lambda _: 1),
    "the position itself left in": partial(oracle, itself=0),
    "the position added": partial(oracle, itself=-1),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(partial(Pooling, 3), MUTANTS[mutant], SHAPE)


def test_nothing_is_left_of_a_constant_map():
    assert jnp.abs(Pooling(3, rngs=nnx.Rngs(0))(jnp.full(SHAPE, 7.0))).max() < 1e-6
