"""SimAM against its derivation, and against the energy that it minimises."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.channel_spatial.simam import SimAM
from tests.mechanisms import against_oracle
from tests.oracles import sigmoid

SHAPE = (7, 5, 6)
CREATE = {"the paper's": partial(SimAM, 6), "more regular": partial(SimAM, 6, regularization=0.1)}
LAMBDA = {"the paper's": 1e-4, "more regular": 0.1}


def weights(x, _, *, regularization=1e-4, correction=1, half=0.5, factor=4):
    h, w, c = x.shape
    out = np.empty(x.shape)
    for k in range(c):
        mean = x[..., k].sum() / (h * w)
        variance = sum((x[i, j, k] - mean) ** 2 for i in range(h) for j in range(w)) / (h * w - correction)
        out[..., k] = sigmoid((x[..., k] - mean) ** 2 / (factor * (variance + regularization)) + half)
    return out


def oracle(x, p, **kinds):
    return x * weights(x, p, **kinds)


@pytest.mark.parametrize("form", CREATE)
def test_it_is_the_paper(form):
    kinds = {"regularization": LAMBDA[form]}
    against_oracle.assert_equal(CREATE[form], partial(oracle, **kinds), SHAPE)
    against_oracle.assert_equal(CREATE[form], partial(weights, **kinds), SHAPE, method="attention_map", gradient=False)


MUTANTS = {
    "the variance over h·w": lambda x, p: oracle(x, p, correction=0),
    "no half": lambda x, p: oracle(x, p, half=0),
    "no factor of four": lambda x, p: oracle(x, p, factor=1),
    "statistics over the channels too": lambda x, p: oracle(x.reshape(7, 30, 1), p).reshape(SHAPE),
    "the weights alone": weights,
    "no sigmoid": lambda x, p: x * np.log(weights(x, p) / (1 - weights(x, p))),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE["the paper's"], MUTANTS[mutant], SHAPE)


def test_a_map_of_one_position_or_one_value_has_the_least_weight():
    module = SimAM(6, rngs=nnx.Rngs(0))
    for shape in ((1, 1, 6), (7, 5, 6)):
        x = jnp.full(shape, 2.0)
        np.testing.assert_allclose(module.attention_map(x), sigmoid(0.5), rtol=1e-6)
        assert jnp.isfinite(jax.grad(lambda x: module(x).sum())(x)).all()


def test_positions_may_be_exchanged():
    x = np.random.default_rng(0).normal(size=(35, 6)).astype("float32")
    order = np.random.default_rng(1).permutation(35)
    module = SimAM(6, rngs=nnx.Rngs(0))
    y = module(jnp.asarray(x.reshape(SHAPE))).reshape(35, 6)
    np.testing.assert_allclose(module(jnp.asarray(x[order].reshape(SHAPE))).reshape(35, 6), y[order], rtol=1e-5)
