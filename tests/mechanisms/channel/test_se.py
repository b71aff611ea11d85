"""Squeeze-and-excitation against its derivation."""

from functools import partial

import jax
import numpy as np
import pytest

from attn_flax.nn import SqueezeExcite
from tests.mechanisms import against_oracle
from tests.oracles import sigmoid

SHAPE = (7, 5, 6)
CREATE = {
    "without biases": partial(SqueezeExcite, 6, reduction=2),
    "with biases": partial(SqueezeExcite, 6, hidden=4, use_bias=True),
}


def weights(x, p, *, act=lambda u: np.maximum(u, 0), gate=sigmoid):
    h, w, c = x.shape
    z = np.array([sum(x[i, j, k] for i in range(h) for j in range(w)) / (h * w) for k in range(c)])
    hidden = act(z @ p["excite.reduce.kernel"] + p.get("excite.reduce.bias", 0))
    return gate(hidden @ p["excite.expand.kernel"] + p.get("excite.expand.bias", 0))


def oracle(x, p, **kinds):
    return x * weights(x, p, **kinds)


@pytest.mark.parametrize("biases", CREATE)
def test_it_is_the_paper(biases):
    against_oracle.assert_equal(CREATE[biases], oracle, SHAPE)
    against_oracle.assert_equal(CREATE[biases], weights, SHAPE, method="attention_map", gradient=False)


def test_another_activation_stands_between_the_layers():
    create = partial(SqueezeExcite, 6, reduction=2, activation=jax.nn.silu)
    against_oracle.assert_equal(create, partial(oracle, act=lambda u: u * sigmoid(u)), SHAPE)


MUTANTS = {
    "the gate alone": lambda x, p: np.broadcast_to(weights(x, p), x.shape),
    "a residual": lambda x, p: x + oracle(x, p),
    "no activation inside": lambda x, p: oracle(x, p, act=lambda u: u),
    "no activation outside": lambda x, p: oracle(x, p, gate=lambda u: u),
    "the sum for the mean": lambda x, p: x * weights(35 * x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE["with biases"], MUTANTS[mutant], SHAPE)
