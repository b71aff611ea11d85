"""SAGAN's self-attention against its derivation."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.spatial.sagan import SaganAttention
from tests.mechanisms import against_oracle
from tests.oracles import scores, softmax_values, weighted_sums

SHAPE = (5, 3, 8)
FORMS = {
    "the first version's": {"reduction": 4},
    "the second version's": {"reduction": 4, "value_features": 2},
    "without biases": {"reduction": 4, "value_features": 4, "use_bias": False},
}
create = partial(partial, SaganAttention, 8)


def layer(x, p, name):
    return np.array([x_i @ p[f"{name}.kernel"] + p.get(f"{name}.bias", 0) for x_i in x.reshape(-1, x.shape[-1])])


def weights(x, p, *, scale=1.0):
    return softmax_values(scale * scores(layer(x, p, "query"), layer(x, p, "key")))


def oracle(x, p, *, attend=weights, residual=True, gamma=None):
    o = weighted_sums(attend(x, p), layer(x, p, "value"))
    if "project.kernel" in p:
        o = layer(o, p, "project")
    return x * residual + (p["gamma"] if gamma is None else gamma) * o.reshape(x.shape)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    against_oracle.assert_equal(create(**FORMS[form]), oracle, SHAPE)
    against_oracle.assert_equal(create(**FORMS[form]), weights, SHAPE, method="attention_map", gradient=False)


def over_queries(x, p):
    return softmax_values(scores(layer(x, p, "key"), layer(x, p, "query"))).T


MUTANTS = {
    "scaled by 1/√d": partial(oracle, attend=partial(weights, scale=2**-0.5)),
    "a softmax over the queries": partial(oracle, attend=over_queries),
    "α transposed": partial(oracle, attend=lambda x, p: weights(x, p).T),
    "no residual": partial(oracle, residual=False),
    "no γ": partial(oracle, gamma=1.0),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(create(reduction=4), MUTANTS[mutant], SHAPE)


def test_it_begins_as_the_identity():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *SHAPE)), jnp.float32)
    np.testing.assert_array_equal(SaganAttention(8, rngs=nnx.Rngs(0))(x), x)


def test_it_has_as_many_parameters_as_its_three_convolutions_and_gamma():
    module = nnx.eval_shape(lambda: SaganAttention(64, rngs=nnx.Rngs(0)))
    assert module.cost((7, 7, 64)).parameters == 2 * (64 * 8 + 8) + 64**2 + 64 + 1
