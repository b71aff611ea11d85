"""Second-order channel attention against its derivation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.channel.soca import Soca, matrix_sqrt
from tests.mechanisms import against_oracle
from tests.oracles import sigmoid

SHAPE = (7, 5, 6)
CREATE = partial(Soca, 6, reduction=2)


def covariance(x, *, correction=0, centred=True):
    positions = x.reshape(-1, x.shape[-1])
    mu = sum(positions) / len(positions) if centred else 0
    return sum(np.outer(v - mu, v - mu) for v in positions) / (len(positions) - correction)


def newton_schulz(a, *, iterations=5, post=np.sqrt, mistaken=False):
    trace = sum(a[i, i] for i in range(len(a)))
    y, z, identity = a / trace, np.eye(len(a)), np.eye(len(a))
    for k in range(iterations):
        t = (3 * identity - z) @ y / 2 if mistaken and k else (3 * identity - z @ y) / 2
        y, z = y @ t, t @ z
    return y * post(trace)


def weights(x, p, *, matrix=lambda x: newton_schulz(covariance(x))):
    root = matrix(x)
    z = np.array([sum(row) / len(row) for row in root])
    hidden = np.maximum(z @ p["excite.reduce.kernel"] + p["excite.reduce.bias"], 0)
    return sigmoid(hidden @ p["excite.expand.kernel"] + p["excite.expand.bias"])


def oracle(x, p, **kinds):
    return x * weights(x, p, **kinds)


@pytest.mark.parametrize("iterations", [2, 5])
def test_it_is_the_paper(iterations):
    create = partial(CREATE, iterations=iterations)
    matrix = lambda x: newton_schulz(covariance(x), iterations=iterations)  # noqa: E731
    against_oracle.assert_equal(create, partial(oracle, matrix=matrix), SHAPE)
    kinds = {"method": "attention_map", "gradient": False}
    against_oracle.assert_equal(create, partial(weights, matrix=matrix), SHAPE, **kinds)


MUTANTS = {
    "a collection's step": lambda x, p: oracle(x, p, matrix=lambda x: newton_schulz(covariance(x), mistaken=True)),
    "one iteration fewer": lambda x, p: oracle(x, p, matrix=lambda x: newton_schulz(covariance(x), iterations=4)),
    "the exact root": lambda x, p: oracle(x, p, matrix=lambda x: newton_schulz(covariance(x), iterations=50)),
    "the trace not given back": lambda x, p: oracle(
        x, p, matrix=lambda x: newton_schulz(covariance(x), post=lambda trace: 1)
    ),
    "the trace for its root": lambda x, p: oracle(
        x, p, matrix=lambda x: newton_schulz(covariance(x), post=lambda trace: trace)
    ),
    "the covariance for its root": lambda x, p: oracle(x, p, matrix=covariance),
    "not centred": lambda x, p: oracle(x, p, matrix=lambda x: newton_schulz(covariance(x, centred=False))),
    "the unbiased covariance": lambda x, p: oracle(x, p, matrix=lambda x: newton_schulz(covariance(x, correction=1))),
    "the gate alone": lambda x, p: np.broadcast_to(weights(x, p), x.shape),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(partial(CREATE), MUTANTS[mutant], SHAPE, by=1e-4)


def test_enough_iterations_give_the_root():
    a = np.random.default_rng(0).normal(size=(5, 5))
    root = matrix_sqrt(jnp.asarray(a @ a.T + np.eye(5), jnp.float32), iterations=20)
    np.testing.assert_allclose(root @ root, a @ a.T + np.eye(5), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("x", [np.ones((1, 1, 6)), np.full((7, 5, 6), 0.5)], ids=["1×1", "constant"])
def test_a_map_that_does_not_vary_has_a_root_of_zero_and_a_finite_gradient(x):
    module = CREATE(rngs=nnx.Rngs(0))
    x = jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(module(x), x * jax.nn.sigmoid(module.excite(jnp.zeros(6))), rtol=1e-6)
    assert jnp.isfinite(jax.grad(lambda x: module(x).sum())(x)).all()


def test_the_order_of_positions_does_not_matter():
    module = CREATE(rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=SHAPE).astype("float32")
    shuffled = np.random.default_rng(1).permutation(x.reshape(-1, 6)).reshape(5, 7, 6)
    weights = [module.attention_map(jnp.asarray(x)) for x in (x, shuffled)]
    np.testing.assert_allclose(*weights, rtol=1e-4)
