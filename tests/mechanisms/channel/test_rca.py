"""The residual channel attention block against its derivation."""

from functools import partial

import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.channel.rca import ResidualChannelAttention
from tests.mechanisms import against_oracle
from tests.oracles import conv3x3, sigmoid

SHAPE = (5, 4, 6)
CREATE = partial(ResidualChannelAttention, 6, hidden=3)


def branch(x, p, act=lambda u: np.maximum(u, 0)):
    return conv3x3(act(conv3x3(x, p["first.kernel"], p["first.bias"])), p["second.kernel"], p["second.bias"])


def weights_of(u, p):
    hidden = np.maximum(u.reshape(-1, 6).mean(0) @ p["excite.reduce.kernel"] + p["excite.reduce.bias"], 0)
    return sigmoid(hidden @ p["excite.expand.kernel"] + p["excite.expand.bias"])


def weights(x, p):
    return weights_of(branch(x, p), p)


def oracle(x, p, **kinds):
    u = branch(x, p, **kinds)
    return x + u * weights_of(u, p)


def test_it_is_the_paper():
    against_oracle.assert_equal(CREATE, oracle, SHAPE)
    against_oracle.assert_equal(CREATE, weights, SHAPE, method="attention_map", gradient=False)


MUTANTS = {
    "no residual": lambda x, p: oracle(x, p) - x,
    "a scaled branch": lambda x, p: x + 0.1 * (oracle(x, p) - x),
    "the gate of the input": lambda x, p: x + branch(x, p) * weights_of(x, p),
    "the residual gated": lambda x, p: (x + branch(x, p)) * weights(x, p),
    "no gate": lambda x, p: x + branch(x, p),
    "no activation between": lambda x, p: oracle(x, p, act=lambda u: u),
    "an activation after": lambda x, p: np.maximum(oracle(x, p), 0),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE, MUTANTS[mutant], SHAPE)


def test_the_block_of_the_paper_has_its_parameters():
    """18c² + 3c + 2c²/r + c/r for c = 64 and r = 16."""
    module = nnx.eval_shape(lambda: ResidualChannelAttention(64, rngs=nnx.Rngs(0)))
    assert module.cost((7, 5, 64)).parameters == 73728 + 192 + 512 + 4
