"""Temporal self-attention against its derivation."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.temporal.temporal_mhsa import TemporalSelfAttention
from tests.mechanisms import against_oracle
from tests.mechanisms.temporal import naive

SHAPE = (5, 3, 2, 6)
HEADS = 2
CREATE = {
    "all biases": partial(TemporalSelfAttention, 6, num_heads=HEADS),
    "output bias": partial(TemporalSelfAttention, 6, num_heads=HEADS, qkv_bias=False),
}


def oracle(x, p, *, attend=naive.attend, **kinds):
    y = np.zeros_like(x)
    for i, j in np.ndindex(x.shape[1:3]):
        y[:, i, j] = attend(x[:, i, j], p, HEADS, **kinds)
    return y


def weights(x, p):
    _, h, w, _ = x.shape
    return np.array([[naive.weights(x[:, i, j], p, HEADS) for j in range(w)] for i in range(h)])


@pytest.mark.parametrize("biases", CREATE)
def test_it_is_the_paper(biases):
    against_oracle.assert_equal(CREATE[biases], oracle, SHAPE)
    against_oracle.assert_equal(CREATE[biases], weights, SHAPE, method="attention_map", gradient=False)


def over_space(x, p):
    return np.array([naive.attend(frame.reshape(-1, 6), p, HEADS).reshape(frame.shape) for frame in x])


MUTANTS = {
    "over space": over_space,
    "over all tokens": lambda x, p: naive.attend(x.reshape(-1, 6), p, HEADS).reshape(x.shape),
    "the scale of one head": partial(oracle, scale=6**-0.5),
    "no scale": partial(oracle, scale=1.0),
    "the softmax over queries": partial(oracle, normalize=lambda scores: naive.softmax(scores.T).T),
    "a single head": lambda x, p: oracle(x, p, attend=lambda tokens, p, _: naive.attend(tokens, p, 1)),
    "no output layer": partial(oracle, attend=naive.joined),
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE["all biases"], MUTANTS[mutant], SHAPE)


def test_frames_and_positions_in_another_order_give_the_same_in_that_order():
    module = TemporalSelfAttention(6, num_heads=HEADS, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, *SHAPE))
    for axis in (1, 2, 3):
        order = np.random.default_rng(axis).permutation(x.shape[axis])
        np.testing.assert_allclose(module(x.take(order, axis)), module(x).take(order, axis), rtol=1e-5, atol=1e-6)
