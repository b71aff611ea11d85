"""Spatial group-wise enhance against its derivation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.channel_spatial.sge import SpatialGroupEnhance
from tests.mechanisms import against_oracle
from tests.oracles import sigmoid

SHAPE = (7, 5, 6)
create = partial(SpatialGroupEnhance, 6, groups=2)


def weights(x, p, *, groups=2, correction=1, center=True, members=None, gate=sigmoid):
    h, w, c = x.shape
    out = np.empty((h, w, groups))
    for g in range(groups):
        group = x[..., np.arange(c).reshape(groups, -1)[g] if members is None else members[g]]
        mean = sum(group[i, j] for i in range(h) for j in range(w)) / (h * w)
        similarity = np.array([[sum(group[i, j] * mean) for j in range(w)] for i in range(h)])
        deviation = np.sqrt(((similarity - similarity.mean()) ** 2).sum() / (h * w - correction))
        t = (similarity - (similarity.mean() if center else 0)) / (deviation + 1e-5)
        out[..., g] = gate(p["scale"][g] * t + p["bias"][g])
    return out


def oracle(x, p, **kinds):
    return x * np.repeat(weights(x, p, **kinds), x.shape[-1] // 2, axis=-1)


def test_it_is_the_paper():
    against_oracle.assert_equal(create, oracle, SHAPE)
    against_oracle.assert_equal(create, weights, SHAPE, method="attention_map", gradient=False)


MUTANTS = {
    "the deviation over h·w": lambda x, p: oracle(x, p, correction=0),
    "not centred": lambda x, p: oracle(x, p, center=False),
    "groups of every other channel": lambda x, p: oracle(x, p, members=[[0, 2, 4], [1, 3, 5]]),
    "the weights laid out for such groups": lambda x, p: x * np.tile(weights(x, p), 3),
    "one group": lambda x, p: x * weights(x, p, groups=1),
    "no sigmoid": lambda x, p: oracle(x, p, gate=lambda u: u),
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(create, MUTANTS[mutant], SHAPE)


def test_at_first_all_is_scaled_alike():
    x = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
    np.testing.assert_allclose(create(rngs=nnx.Rngs(0))(x), x * sigmoid(1), rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 6), SHAPE])
def test_a_map_of_one_position_or_one_value_is_scaled_by_the_bias(shape):
    module, x = create(rngs=nnx.Rngs(0)), jnp.full(shape, 0.5)
    module.scale.set_value(jnp.ones(2))
    np.testing.assert_allclose(module.attention_map(x), sigmoid(1), rtol=1e-6)
    assert jnp.isfinite(jax.grad(lambda x: module(x).sum())(x)).all()
