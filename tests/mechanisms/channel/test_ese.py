"""Effective squeeze-and-excitation against its derivation."""

from functools import partial

import numpy as np
import pytest

from attn_flax.mechanisms.channel.ese import EffectiveSqueezeExcite
from tests.mechanisms import against_oracle
from tests.oracles import sigmoid

SHAPE = (7, 5, 6)
CREATE = partial(EffectiveSqueezeExcite, 6)


def hard_sigmoid(u):
    return np.minimum(np.maximum(u + 3, 0), 6) / 6


def weights(x, p, *, gate=hard_sigmoid, bias=1):
    h, w, c = x.shape
    z = np.array([sum(x[i, j, k] for i in range(h) for j in range(w)) / (h * w) for k in range(c)])
    return gate(z @ p["excite.kernel"] + bias * p["excite.bias"])


def oracle(x, p, **kinds):
    return x * weights(x, p, **kinds)


@pytest.mark.parametrize(("is_hard", "gate"), [(True, hard_sigmoid), (False, sigmoid)])
def test_it_is_the_paper(is_hard, gate):
    create = partial(CREATE, use_hard_sigmoid=is_hard)
    against_oracle.assert_equal(create, partial(oracle, gate=gate), SHAPE)
    against_oracle.assert_equal(create, partial(weights, gate=gate), SHAPE, method="attention_map", gradient=False)


MUTANTS = {
    "the gate alone": lambda x, p: np.broadcast_to(weights(x, p), x.shape),
    "a residual": lambda x, p: x + oracle(x, p),
    "the smooth sigmoid": lambda x, p: oracle(x, p, gate=sigmoid),
    "the hard sigmoid of slope 1/5": lambda x, p: oracle(x, p, gate=lambda u: np.clip(0.2 * u + 0.5, 0, 1)),
    "no gate": lambda x, p: oracle(x, p, gate=lambda u: u),
    "no bias": lambda x, p: oracle(x, p, bias=0),
    "the sum for the mean": lambda x, p: x * weights(35 * x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE, MUTANTS[mutant], SHAPE)
