"""The spatial gating unit against its derivation."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.spatial.sgu import SpatialGatingUnit
from tests.mechanisms import against_oracle

SHAPE = (5, 8)
create = partial(SpatialGatingUnit, 8, tokens=5)


def layer_norm(v, p, axis=-1):
    mean = v.mean(axis, keepdims=True)
    return (v - mean) / np.sqrt(((v - mean) ** 2).mean(axis, keepdims=True) + 1e-5) * p["norm.scale"] + p["norm.bias"]


def gate(x, p, *, normalize=layer_norm, swapped=False, transposed=False, biased=True):
    d = x.shape[-1] // 2
    v = normalize(x[:, :d] if swapped else x[:, d:], p)
    w = p["kernel"].T if transposed else p["kernel"]
    return np.array([sum(w[i, j] * v[j] for j in range(len(x))) + biased * p["bias"][i] for i in range(len(x))])


def oracle(x, p, *, swapped=False, **kinds):
    d = x.shape[-1] // 2
    return (x[:, d:] if swapped else x[:, :d]) * gate(x, p, swapped=swapped, **kinds)


def test_it_is_the_paper():
    against_oracle.assert_equal(create, oracle, SHAPE)
    against_oracle.assert_equal(create, gate, SHAPE, method="attention_map", gradient=False)


MUTANTS = {
    "the gate alone": gate,
    "the halves exchanged": partial(oracle, swapped=True),
    "no norm": partial(oracle, normalize=lambda v, p: v),
    "a norm over the tokens": partial(oracle, normalize=partial(layer_norm, axis=0)),
    "the matrix transposed": partial(oracle, transposed=True),
    "no bias": partial(oracle, biased=False),
    "the bias by channel": lambda x, p: x[:, :4] * (gate(x, p, biased=False) + p["bias"][:4]),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(create, MUTANTS[mutant], SHAPE)


def test_at_first_it_gives_the_first_half():
    x = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
    np.testing.assert_allclose(create(rngs=nnx.Rngs(0))(x), x[:, :4], atol=1e-4)
