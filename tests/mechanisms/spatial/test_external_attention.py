"""External attention against its derivation."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.spatial.external_attention import ExternalAttention
from tests.mechanisms import against_oracle

SHAPE = (5, 3, 6)
create = partial(partial, ExternalAttention, 6, units=4)


def softmax(e, axis):
    return np.exp(e - e.max(axis, keepdims=True)) / np.exp(e - e.max(axis, keepdims=True)).sum(axis, keepdims=True)


def before(x, p):
    f = x.reshape(-1, 6)
    return f @ p["before.kernel"] + p["before.bias"] if "before.kernel" in p else f


def weights(x, p, *, epsilon=1e-9):
    scores = np.array([[f_i @ m for m in p["key_memory"]] for f_i in before(x, p)])
    over_positions = softmax(scores, 0)
    return np.array([row / (epsilon + sum(row)) for row in over_positions])


def oracle(x, p, *, attend=weights, memory="value_memory"):
    alpha = attend(x, p)
    y = np.array([sum(a * m for a, m in zip(row, p[memory], strict=True)) for row in alpha]).reshape(x.shape)
    if "before.kernel" not in p:
        return y
    z = (y @ p["after.kernel"] - p["norm.mean"]) / np.sqrt(p["norm.var"] + 1e-5) * p["norm.scale"] + p["norm.bias"]
    return np.maximum(x + z, 0)


@pytest.mark.parametrize("block", [False, True])
def test_it_is_the_paper(block):
    against_oracle.assert_equal(create(block=block), oracle, SHAPE)
    against_oracle.assert_equal(create(block=block), weights, SHAPE, method="attention_map", gradient=False)


def test_epsilon_is_added_to_the_sum():
    attend = partial(weights, epsilon=0.5)
    against_oracle.assert_equal(create(epsilon=0.5), partial(oracle, attend=attend), SHAPE)


def scores(x, p):
    return x.reshape(-1, 6) @ p["key_memory"].T


MUTANTS = {
    "one memory": partial(oracle, memory="key_memory"),
    "a softmax over the units alone": partial(oracle, attend=lambda x, p: softmax(scores(x, p), 1)),
    "a softmax over the positions alone": partial(oracle, attend=lambda x, p: softmax(scores(x, p), 0)),
    "the sum over the positions": partial(
        oracle, attend=lambda x, p: softmax(scores(x, p), 1) / softmax(scores(x, p), 1).sum(0)
    ),
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(create(), MUTANTS[mutant], SHAPE)


def test_a_position_that_no_unit_chooses_gets_nothing():
    """Without ε it would be divided by zero."""
    module = ExternalAttention(2, units=3, rngs=nnx.Rngs(0))
    module.key_memory[...] = jnp.ones((3, 2))
    y = module(jnp.array([[[500.0, 500.0], [0.0, 0.0]]]))
    np.testing.assert_allclose(y[0, 0], module.value_memory[...].mean(0), rtol=1e-5)
    np.testing.assert_array_equal(y[0, 1], 0)


def test_tokens_maps_and_volumes_are_the_same_positions():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(12, 6)), jnp.float32)
    out = [
        ExternalAttention(6, num_spatial_dims=len(s), rngs=nnx.Rngs(0))(x.reshape(*s, 6)).reshape(12, 6)
        for s in ((12,), (3, 4), (3, 2, 2))
    ]
    np.testing.assert_allclose(out[1:], [out[0]] * 2, rtol=1e-6)


@pytest.mark.parametrize(("block", "expected"), [(False, 2 * 64 * 64), (True, 2 * 64 * 64 + 2 * 64**2 + 3 * 64)])
def test_it_has_as_many_parameters_as_the_authors(block, expected):
    module = nnx.eval_shape(lambda: ExternalAttention(64, block=block, rngs=nnx.Rngs(0)))
    assert module.cost((7, 7, 64)).parameters == expected
