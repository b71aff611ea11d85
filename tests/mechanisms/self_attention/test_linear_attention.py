"""Linear attention against its derivation."""

from functools import partial

import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.self_attention.linear_attention import LinearAttention
from tests.mechanisms import against_oracle
from tests.oracles import reciprocal, scores, softmax_values, weighted_sums

TOKENS, MAP = (7, 6), (5, 3, 6)
HEADS = 2
create = partial(LinearAttention, 6, num_heads=HEADS)
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


def elu_plus_one(u):
    return np.array([[u_c + 1 if u_c > 0 else np.exp(u_c) for u_c in u_i] for u_i in u])


def averaged(similarity):
    return np.array([row * reciprocal(sum(row), 1e-6) for row in similarity])


def weights(x, p, *, split=asked, phi=elu_plus_one, normalize=averaged):
    q, k, _ = split(x, p)
    return np.array([normalize(scores(phi(a), phi(b))) for a, b in zip(q, k, strict=True)])


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


MUTANTS = {
    "relu": partial(oracle, phi=lambda u: np.maximum(u, 0)),
    "elu without one": partial(oracle, phi=lambda u: elu_plus_one(u) - 1),
    "softmax attention": partial(oracle, phi=lambda u: u, normalize=lambda e: softmax_values(e / 3**0.5)),
    "no denominator": partial(oracle, normalize=lambda s: s),
    "a sum over the queries": partial(oracle, normalize=lambda s: averaged(s.T).T),
    "scaled queries": partial(oracle, phi=lambda u: elu_plus_one(u * 3**-0.5)),
    "a single head": partial(oracle, split=partial(asked, heads=1)),
    "keys and queries exchanged": partial(oracle, split=lambda x, p: [asked(x, p)[i] for i in (1, 0, 2)]),
    "no output layer": joined,
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(FORMS["tokens, all biases"][0], MUTANTS[mutant], TOKENS)


@pytest.mark.parametrize(("qkv_bias", "count"), [(False, 4 * 64**2 + 64), (True, 4 * 64**2 + 4 * 64)])
def test_it_has_as_many_parameters_as_the_paper(qkv_bias, count):
    module = nnx.eval_shape(lambda: LinearAttention(64, qkv_bias=qkv_bias, rngs=nnx.Rngs(0)))
    assert module.cost((7, 5, 64)).parameters == count
