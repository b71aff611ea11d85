"""Global second-order pooling against its derivation."""

from functools import partial

import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.channel.gsop import Gsop
from tests.mechanisms import against_oracle
from tests.oracles import sigmoid

SHAPE = (7, 5, 6)
CREATE = partial(Gsop, 6, hidden=4)


def relu(u):
    return np.maximum(u, 0)


def norm(x, p, name):
    return (x - p[f"{name}.mean"]) / np.sqrt(p[f"{name}.var"] + 1e-5) * p[f"{name}.scale"] + p[f"{name}.bias"]


def weights(x, p, *, stride=1, before=relu, inside=lambda v: v, by_column=False, centred=True, correction=0):
    positions = x[::stride, ::stride].reshape(-1, x.shape[-1])
    z = [relu(norm(before(v) @ p["reduce.kernel"] + p["reduce.bias"], p, "norm")) for v in positions]
    mu = sum(z) / len(z) if centred else 0
    covariance = sum(np.outer(v - mu, v - mu) for v in z) / (len(z) - correction)
    rows = norm(covariance, p, "row_norm") if by_column else norm(covariance.T, p, "row_norm").T
    d = len(rows)
    kernel, bias = p["convolve_rows.kernel"], p["convolve_rows.bias"]
    v = [sum(rows[j, l] * kernel[j, l, k] for l in range(d)) + bias[j, k] for j in range(d) for k in range(4)]
    return sigmoid(inside(np.array(v)) @ p["excite.kernel"] + p["excite.bias"])


def oracle(x, p, **kinds):
    return x * weights(x, p, **kinds)


@pytest.mark.parametrize("stride", [1, 2])
def test_it_is_the_paper(stride):
    create = partial(CREATE, stride=stride)
    against_oracle.assert_equal(create, partial(oracle, stride=stride), SHAPE)
    against_oracle.assert_equal(create, partial(weights, stride=stride), SHAPE, method="attention_map", gradient=False)


MUTANTS = {
    "no relu before": lambda x, p: oracle(x, p, before=lambda u: u),
    "a relu between the row convolution and W": lambda x, p: oracle(x, p, inside=relu),
    "columns normalised for rows": lambda x, p: oracle(x, p, by_column=True),
    "not centred": lambda x, p: oracle(x, p, centred=False),
    "the unbiased covariance": lambda x, p: oracle(x, p, correction=1),
    "every second position": lambda x, p: oracle(x, p, stride=2),
    "the gate alone": lambda x, p: np.broadcast_to(weights(x, p), x.shape),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE, MUTANTS[mutant], SHAPE, by=1e-4)


def test_its_width_is_that_of_the_authors():
    c, d = 256, 128
    cost = Gsop(c, rngs=nnx.Rngs(0)).cost((56, 56, c))
    assert cost.parameters == 5 * c * d + 4 * d * d + 9 * d + c
