"""The context encoding module against its derivation."""

from functools import partial

import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.channel.enc import Enc
from tests.mechanisms import against_oracle
from tests.oracles import sigmoid, softmax_values

SHAPE = (7, 5, 6)
CREATE = partial(Enc, 6, num_codes=3)


def relu(u):
    return np.maximum(u, 0)


def norm(x, p, name):
    return (x - p[f"{name}.mean"]) / np.sqrt(p[f"{name}.var"] + 1e-5) * p[f"{name}.scale"] + p[f"{name}.bias"]


def features(x, p, *, plain=False):
    z = np.array([v @ p["project.kernel"] for v in x.reshape(-1, x.shape[-1])])
    return z if plain else relu(norm(z, p, "norm"))


def assignment(z, p, *, sign=1, power=2):
    distances = [[np.sqrt(sum((v - d) ** 2)) for d in p["codewords"]] for v in z]
    return softmax_values(sign * p["smoothing"] * np.array(distances) ** power)


def gate(x, p, *, reduce=lambda codes: sum(codes) / len(codes), residuals=True, plain=False, **kinds):
    z = features(x, p, plain=plain)
    alpha = assignment(z, p, **kinds)
    n, k = alpha.shape
    d = p["codewords"] if residuals else 0 * p["codewords"]
    codes = np.array([sum(alpha[i, j] * (z[i] - d[j]) for i in range(n)) for j in range(k)])
    e = reduce(relu(norm(codes.T, p, "code_norm").T))
    return sigmoid(e @ p["excite.kernel"] + p["excite.bias"])


def maps(x, p):
    return {"channel": gate(x, p), "assignment": assignment(features(x, p), p).reshape(*x.shape[:2], -1)}


def oracle(x, p, **kinds):
    return relu(x + x * gate(x, p, **kinds))


def product(x, p):
    return x * gate(x, p)


@pytest.mark.parametrize(("residual", "oracle"), [(True, oracle), (False, product)], ids=["authors' code", "paper"])
def test_it_is_the_paper(residual, oracle):
    create = partial(CREATE, residual=residual)
    against_oracle.assert_equal(create, oracle, SHAPE)
    against_oracle.assert_equal(create, maps, SHAPE, method="attention_map", gradient=False)


MUTANTS = {
    "the product alone": product,
    "no relu outside": lambda x, p: x + product(x, p),
    "no batch norm and relu around W": lambda x, p: oracle(x, p, plain=True),
    "the sum of the codes": lambda x, p: oracle(x, p, reduce=sum),
    "the smoothing of the other sign": lambda x, p: oracle(x, p, sign=-1),
    "distances not squared": lambda x, p: oracle(x, p, power=1),
    "sums for differences": lambda x, p: oracle(x, p, residuals=False),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE, MUTANTS[mutant], SHAPE, by=1e-4)


def test_it_starts_as_the_authors_do():
    module = Enc(16, num_codes=8, rngs=nnx.Rngs(0))
    assert np.abs(module.codewords[...]).max() <= 1 / np.sqrt(8 * 16)
    assert -1 <= module.smoothing[...].min() < module.smoothing[...].max() <= 0


def test_its_width_is_that_of_the_authors():
    assert Enc(64, rngs=nnx.Rngs(0)).cost((7, 5, 64)).parameters == 2 * 64**2 + 3 * 64 + 32 * 64 + 3 * 32
