"""TokenLearner against its derivation."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_flax.mechanisms.spatial.tokenlearner import TokenLearner
from tests.mechanisms import against_oracle
from tests.oracles import conv3x3, sigmoid

SHAPE, TOKENS = (7, 5, 6), 3
CREATE = {
    "1.0": partial(TokenLearner, 6, num_tokens=TOKENS),
    "1.0 with sums": partial(TokenLearner, 6, num_tokens=TOKENS, sum_pooling=True),
    "1.1": partial(TokenLearner, 6, num_tokens=TOKENS, version="1.1", hidden=4),
}


def gelu(x):
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def exact_gelu(x):
    return x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def layer_norm(x, p):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-6) * p["norm.scale"] + p["norm.bias"]


def softmax_over_positions(scores):
    return np.exp(scores) / np.exp(scores).sum((0, 1))


def scores(x, p, *, act=gelu, norm=layer_norm):
    x = norm(x, p)
    if "score.reduce.kernel" in p:
        hidden = act(x @ p["score.reduce.kernel"] + p["score.reduce.bias"])
        return hidden @ p["score.expand.kernel"] + p["score.expand.bias"]
    for i in range(4):
        x = conv3x3(act(x) if i else x, p[f"score.layers.{i}.kernel"], np.zeros(TOKENS))
    return x


def weights(x, p, *, gate=None, **kinds):
    gate = gate or (softmax_over_positions if "score.reduce.kernel" in p else sigmoid)
    return gate(scores(x, p, **kinds)).transpose(2, 0, 1)


def summed(x, p, **kinds):
    a = weights(x, p, **kinds)
    h, w, _ = x.shape
    return np.array([sum(a[s, i, j] * x[i, j] for i in range(h) for j in range(w)) for s in range(TOKENS)])


def averaged(x, p, **kinds):
    return summed(x, p, **kinds) / (x.shape[0] * x.shape[1])


@pytest.mark.parametrize(("form", "oracle"), [("1.0", averaged), ("1.0 with sums", summed), ("1.1", summed)])
def test_it_is_the_paper(form, oracle):
    against_oracle.assert_equal(CREATE[form], oracle, SHAPE)
    against_oracle.assert_equal(CREATE[form], weights, SHAPE, method="attention_map", gradient=False)


MUTANTS = {
    "the sum for the mean": summed,
    "a softmax over the positions": partial(averaged, gate=softmax_over_positions),
    "a gelu after the last convolution": partial(averaged, gate=lambda u: sigmoid(gelu(u))),
    "no norm": partial(averaged, norm=lambda x, p: x),
    "tokens of the normalised map": lambda x, p: averaged(layer_norm(x, p), p, norm=lambda x, p: x),
    "relu for gelu": partial(averaged, act=lambda x: np.maximum(x, 0)),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE["1.0"], MUTANTS[mutant], SHAPE)


def test_gelu_is_the_approximation():
    against_oracle.assert_different(CREATE["1.1"], partial(summed, act=exact_gelu), SHAPE, by=1e-6)


def test_mistakes_in_version_1_1_differ():
    for mutant in (averaged, partial(summed, gate=sigmoid)):
        against_oracle.assert_different(CREATE["1.1"], mutant, SHAPE)


def test_version_1_1_does_not_care_where_things_are():
    with jax.enable_x64():
        module = against_oracle.build(CREATE["1.1"])
        x = np.random.default_rng(0).normal(size=(35, 6))
        shuffled = np.random.default_rng(1).permutation(x)
        y, of_shuffled = (module(jnp.asarray(a.reshape(SHAPE))) for a in (x, shuffled))
        np.testing.assert_allclose(of_shuffled, y, rtol=1e-10)
