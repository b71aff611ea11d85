"""Multi-head self-attention against its derivation."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.self_attention.mhsa import MultiHeadSelfAttention
from tests.mechanisms import against_oracle
from tests.oracles import scores, softmax_values, weighted_sums

TOKENS, MAP = (7, 6), (5, 3, 6)
HEADS = 2
create = partial(MultiHeadSelfAttention, 6, num_heads=HEADS)
FORMS = {
    "tokens": (partial(create, num_spatial_dims=1), TOKENS),
    "tokens, all biases": (partial(create, num_spatial_dims=1, qkv_bias=True), TOKENS),
    "a map": (create, MAP),
}


def asked(x, p, *, heads=HEADS):
    """q, k and v of each head, as lists of (n, d)."""
    tokens = x.reshape(-1, x.shape[-1])
    features = np.array([x_i @ p["qkv.kernel"] + p.get("qkv.bias", 0) for x_i in tokens])
    c = x.shape[-1]
    d = c // heads
    return [[features[:, part * c + j * d : part * c + (j + 1) * d] for j in range(heads)] for part in range(3)]


def weights(x, p, *, split=asked, scale=None, normalize=softmax_values):
    q, k, _ = split(x, p)
    return np.array([normalize(scores(a, b) * (scale or a.shape[1] ** -0.5)) for a, b in zip(q, k, strict=True)])


def joined(x, p, *, split=asked, **kinds):
    v = split(x, p)[2]
    each = [weighted_sums(alpha, v_j) for alpha, v_j in zip(weights(x, p, split=split, **kinds), v, strict=True)]
    return np.concatenate(each, 1).reshape(x.shape)


def oracle(x, p, **kinds):
    return joined(x, p, **kinds) @ p["proj.kernel"] + p["proj.bias"]


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    create, shape = FORMS[form]
    against_oracle.assert_equal(create, oracle, shape)
    against_oracle.assert_equal(create, weights, shape, method="attention_map", gradient=False)


def interleaved(x, p):
    """q, k and v head by head, as some keep them."""
    tokens = x.reshape(-1, x.shape[-1])
    features = (tokens @ p["qkv.kernel"] + p.get("qkv.bias", 0)).reshape(len(tokens), HEADS, 3, -1)
    return [[features[:, j, part] for j in range(HEADS)] for part in range(3)]


MUTANTS = {
    "no scale": partial(oracle, scale=1.0),
    "the scale of one head": partial(oracle, scale=6**-0.5),
    "a softmax over the queries": partial(oracle, normalize=lambda e: softmax_values(e.T).T),
    "a single head": partial(oracle, split=partial(asked, heads=1)),
    "queries, keys and values by heads": partial(oracle, split=interleaved),
    "keys and queries exchanged": partial(oracle, split=lambda x, p: [asked(x, p)[i] for i in (1, 0, 2)]),
    "no output layer": joined,
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(FORMS["tokens, all biases"][0], MUTANTS[mutant], TOKENS)


def test_it_follows_any_order_of_the_tokens():
    module = create(num_spatial_dims=1, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    x, order = jnp.asarray(rng.normal(size=(3, 15, 6)), jnp.float32), rng.permutation(15)
    np.testing.assert_allclose(module(x[:, order]), module(x)[:, order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("qkv_bias", "count"), [(False, 4 * 64**2 + 64), (True, 4 * 64**2 + 4 * 64)])
def test_it_has_as_many_parameters_as_timms(qkv_bias, count):
    module = nnx.eval_shape(lambda: MultiHeadSelfAttention(64, qkv_bias=qkv_bias, rngs=nnx.Rngs(0)))
    assert module.cost((7, 5, 64)).parameters == count
