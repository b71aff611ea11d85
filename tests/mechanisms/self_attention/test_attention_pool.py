"""Attention pooling against its derivation."""

import math
from functools import partial

import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.self_attention.attention_pool import AttentionPool
from tests.mechanisms import against_oracle
from tests.oracles import scores, softmax_values, weighted_sums

TOKENS, MAP = (7, 6), (5, 3, 6)
HEADS = 2
create = partial(AttentionPool, 6, num_heads=HEADS, mlp_ratio=2)
FORMS = {"tokens": (partial(create, num_spatial_dims=1), TOKENS), "a map": (create, MAP)}


def linear(x, p, name):
    return x @ p[f"{name}.kernel"] + p[f"{name}.bias"]


def heads(x):
    return np.split(x, HEADS, axis=-1)


def asked(x, p):
    """The query, and each token's key and value."""
    k, v = np.split(linear(x.reshape(-1, 6), p, "kv"), 2, axis=-1)
    return linear(p["latent"], p, "q"), k, v


def weights(x, p, *, split=asked, scale=None, normalize=softmax_values):
    q, k, _ = split(x, p)
    pairs = zip(heads(q), heads(k), strict=True)
    return np.array([normalize(scores([a], b) * (scale or len(a) ** -0.5))[0] for a, b in pairs])


def pooled(x, p, *, split=asked, **kinds):
    v = heads(split(x, p)[2])
    alpha = weights(x, p, split=split, **kinds)
    return np.concatenate([weighted_sums([a], v_j)[0] for a, v_j in zip(alpha, v, strict=True)])


def norm(z, p, name):
    return (z - z.mean()) / math.sqrt(z.var() + 1e-6) * p[f"{name}.scale"] + p[f"{name}.bias"]


def gelu(u):
    return u * 0.5 * (1 + np.vectorize(math.erf)(u / math.sqrt(2)))


def gelu_by_tanh(u):
    return u * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))


def perceptron(z, p, *, norm=norm, activate=gelu):
    return linear(activate(linear(norm(z, p, "norm"), p, "mlp.reduce")), p, "mlp.expand")


def oracle(x, p, *, after=perceptron, **kinds):
    z = linear(pooled(x, p, **kinds), p, "proj")
    return z + after(z, p)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    create, shape = FORMS[form]
    against_oracle.assert_equal(create, oracle, shape)
    against_oracle.assert_equal(create, weights, shape, method="attention_map", gradient=False)


MUTANTS = {
    "no scale": partial(oracle, scale=1.0),
    "a mean": partial(oracle, normalize=lambda e: np.full_like(e, 1 / e.size)),
    "the mean as query": partial(
        oracle, split=lambda x, p: (linear(x.reshape(-1, 6).mean(0), p, "q"), *asked(x, p)[1:])
    ),
    "the query as it is": partial(oracle, split=lambda x, p: (p["latent"], *asked(x, p)[1:])),
    "keys and values exchanged": partial(oracle, split=lambda x, p: [asked(x, p)[i] for i in (0, 2, 1)]),
    "the vector added": lambda x, p: p["latent"] + oracle(x, p),
    "no perceptron": partial(oracle, after=lambda z, p: 0),
    "no residual": lambda x, p: oracle(x, p) - linear(pooled(x, p), p, "proj"),
    "no norm": partial(oracle, after=partial(perceptron, norm=lambda z, p, name: z)),
    "gelu by tanh": partial(oracle, after=partial(perceptron, activate=gelu_by_tanh)),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    by = 1e-5 if mutant == "gelu by tanh" else 1e-3
    against_oracle.assert_different(FORMS["tokens"][0], MUTANTS[mutant], TOKENS, by=by)


def test_it_has_as_many_parameters_as_timms_with_a_norm():
    module = nnx.eval_shape(lambda: AttentionPool(64, rngs=nnx.Rngs(0)))
    assert module.cost((7, 5, 64)).parameters == 12 * 64**2 + 12 * 64
