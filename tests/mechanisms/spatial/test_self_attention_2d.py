"""Self-attention over maps against its derivation."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.spatial.self_attention_2d import SelfAttention2D
from tests.mechanisms import against_oracle
from tests.oracles import scores, softmax_values, weighted_sums

SHAPE = (5, 3, 6)
FORMS = {"one head": {}, "two heads": {"num_heads": 2}, "unscaled": {"scale": 1.0}}
create = partial(partial, SelfAttention2D, 6)


def layer(x, p, name):
    return np.array([x_i @ p[f"{name}.kernel"] + p[f"{name}.bias"] for x_i in x.reshape(-1, x.shape[-1])])


def weights(x, p, *, num_heads=1, scale=None):
    q, k = (layer(x, p, name) for name in ("query", "key"))
    d = q.shape[-1] // num_heads
    heads = [slice(i * d, (i + 1) * d) for i in range(num_heads)]
    return np.array([softmax_values((d**-0.5 if scale is None else scale) * scores(q[:, i], k[:, i])) for i in heads])


def oracle(x, p, *, num_heads=1, **scale):
    v = np.split(layer(x, p, "value"), num_heads, axis=1)
    alpha = weights(x, p, num_heads=num_heads, **scale)
    return np.concatenate([weighted_sums(alpha[i], v[i]) for i in range(num_heads)], axis=1).reshape(x.shape)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    arguments = FORMS[form]
    against_oracle.assert_equal(create(**arguments), partial(oracle, **arguments), SHAPE)
    against_oracle.assert_equal(
        create(**arguments), partial(weights, **arguments), SHAPE, method="attention_map", gradient=False
    )


def over_queries(x, p):
    alpha = softmax_values(scores(layer(x, p, "key"), layer(x, p, "query")) / np.sqrt(6)).T
    return weighted_sums(alpha, layer(x, p, "value")).reshape(x.shape)


MUTANTS = {
    "no 1/√d": partial(oracle, scale=1.0),
    "1/d": partial(oracle, scale=1 / 6),
    "a softmax over the queries": over_queries,
    "a residual": lambda x, p: x + oracle(x, p),
    "query and key exchanged": lambda x, p: oracle(
        x,
        {
            **p,
            **{f"{a}.{n}": p[f"{b}.{n}"] for a, b in (("query", "key"), ("key", "query")) for n in ("kernel", "bias")},
        },
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(create(), MUTANTS[mutant], SHAPE)


def test_it_follows_any_order_of_the_positions():
    module = SelfAttention2D(6, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    x, order = jnp.asarray(rng.normal(size=(1, 15, 6)), jnp.float32), rng.permutation(15)
    np.testing.assert_allclose(module(x[:, order]), module(x)[:, order], rtol=1e-5, atol=1e-6)


def test_it_has_as_many_parameters_as_its_three_convolutions():
    module = nnx.eval_shape(lambda: SelfAttention2D(64, rngs=nnx.Rngs(0)))
    assert module.cost((7, 7, 64)).parameters == 3 * 64**2 + 3 * 64
