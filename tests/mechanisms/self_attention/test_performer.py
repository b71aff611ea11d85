"""The Performer against its derivation, and against the softmax attention that it approximates."""

import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.self_attention.performer import (
    Performer,
    orthogonal_features,
    performer,
    performer_weights,
    positive_features_log,
)
from tests.mechanisms import against_oracle
from tests.oracles import scores, softmax_values, weighted_sums

TOKENS, MAP = (7, 6), (5, 3, 6)
HEADS, M = 2, 5
create = partial(Performer, 6, num_heads=HEADS, num_features=M)
FORMS = {"tokens": (partial(create, num_spatial_dims=1), TOKENS), "a map": (create, MAP)}


@cache
def drawn():
    """The ω of the Module under test."""
    return np.float64(against_oracle.build(create).features[...])


def asked(x, p, *, heads=HEADS):
    """q, k and v of each head, as lists of (n, d)."""
    features = x.reshape(-1, x.shape[-1]) @ p["qkv.kernel"]
    c = x.shape[-1]
    d = c // heads
    return [[features[:, part * c + j * d : part * c + (j + 1) * d] for j in range(heads)] for part in range(3)]


def positive(u, *, root=4, half=0.5):
    """φ of each row, as the paper writes it."""
    u = u / u.shape[1] ** (1 / root)
    return np.array([[math.exp(w @ u_i - half * (u_i @ u_i)) / len(drawn()) ** 0.5 for w in drawn()] for u_i in u])


def waves(u):
    """Trigonometric features, whose similarities may be negative."""
    u = u / u.shape[1] ** 0.25
    angles = u @ drawn().T
    return np.exp((u * u).sum(1, keepdims=True) / 2) * np.concatenate([np.sin(angles), np.cos(angles)], 1)


def weights(x, p, *, phi=positive, split=asked, normalize=lambda s: s / s.sum(1, keepdims=True)):
    q, k, _ = split(x, p)
    return np.array([normalize(scores(phi(a), phi(b))) for a, b in zip(q, k, strict=True)])


def joined(x, p, *, split=asked, **kinds):
    v = split(x, p)[2]
    each = [weighted_sums(alpha, v_j) for alpha, v_j in zip(weights(x, p, split=split, **kinds), v, strict=True)]
    return np.concatenate(each, 1).reshape(x.shape)


def oracle(x, p, **kinds):
    return joined(x, p, **kinds) @ p["proj.kernel"]


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    create, shape = FORMS[form]
    against_oracle.assert_equal(create, oracle, shape)
    against_oracle.assert_equal(create, weights, shape, method="attention_map", gradient=False)


MUTANTS = {
    "softmax attention itself": partial(oracle, phi=lambda u: u / 3**0.25, normalize=softmax_values),
    "trigonometric features": partial(oracle, phi=waves),
    "no norm in the exponent": partial(oracle, phi=partial(positive, half=0)),
    "the whole norm in the exponent": partial(oracle, phi=partial(positive, half=1)),
    "scaled by the square root, twice": partial(oracle, phi=partial(positive, root=2)),
    "a number added to the features": partial(oracle, phi=lambda u: positive(u) + 0.01),
    "no denominator": partial(oracle, normalize=lambda s: s),
    "a sum over the queries": partial(oracle, normalize=lambda s: s / s.sum(0)),
    "keys and queries exchanged": partial(oracle, split=lambda x, p: [asked(x, p)[i] for i in (1, 0, 2)]),
    "no output layer": joined,
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(FORMS["tokens"][0], MUTANTS[mutant], TOKENS)


def test_the_features_are_orthogonal_in_blocks_and_normal():
    features = np.asarray(orthogonal_features(jax.random.key(0), 11, 4))
    for block in (features[:4], features[4:8], features[8:]):
        gram = block @ block.T
        np.testing.assert_allclose(gram - np.diag(np.diag(gram)), 0, atol=1e-5)
    many = np.asarray(orthogonal_features(jax.random.key(1), 40_000, 4))
    np.testing.assert_allclose(many.mean(0), 0, atol=0.02)  # four standard errors
    np.testing.assert_allclose(many.T @ many / len(many), np.eye(4), atol=0.03)
    np.testing.assert_allclose((many**4).mean(0), 3, atol=0.2)


@pytest.mark.parametrize("d", [1, 3])
def test_the_similarity_is_unbiased(d):
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, d))
    features = orthogonal_features(jax.random.key(0), 60_000, d)
    of_q, of_k = (
        jnp.exp(positive_features_log(jnp.float32(u)[None, None], features))[0, 0] * 60_000**0.5 for u in (q, k)
    )
    draws = np.float64(of_q * of_k)
    standard_error = draws.std() / 60_000**0.5
    exact = math.exp(q @ k / d**0.5)
    assert standard_error < 0.02 * exact
    assert abs(draws.mean() - exact) < 4 * standard_error


def test_with_many_features_it_becomes_softmax_attention():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(13, 6)), rng.normal(size=(6, 18)) / 6**0.5
    q, k, v = asked(x, {"qkv.kernel": kernel})
    exact = np.array([softmax_values(scores(a, b) / 3**0.5) for a, b in zip(q, k, strict=True)])
    values = np.concatenate([weighted_sums(alpha, v_j) for alpha, v_j in zip(exact, v, strict=True)], 1)

    def errors(m, seed):
        features = orthogonal_features(jax.random.key(seed), m, 3)
        arguments = jnp.float32(x), lambda x: x @ jnp.float32(kernel)
        alpha = performer_weights(*arguments, features, num_heads=HEADS)
        y = performer(*arguments, lambda o: o, features, num_heads=HEADS)
        return [np.square(alpha - exact).mean(), np.square(y - values).mean()]

    few, many = (np.sqrt(np.mean([errors(m, seed) for seed in range(8)], 0)) for m in (30, 30_000))
    assert (many < 0.01).all()
    np.testing.assert_array_less(few / many, 100)  # the root of a thousand is 32
    np.testing.assert_array_less(10, few / many)


def test_large_queries_and_keys_are_finite_with_their_gradients():
    x = jnp.float32(np.random.default_rng(0).normal(size=(5, 3, 6)) * 100)
    module = create(rngs=nnx.Rngs(0))
    y, gradient = jax.value_and_grad(lambda x: jnp.abs(module(x)).sum())(x)
    assert jnp.isfinite(y)
    assert jnp.isfinite(gradient).all()
    np.testing.assert_allclose(module.attention_map(x).sum(-1), 1, rtol=1e-5)


def test_the_features_are_not_learned_and_follow_the_seed():
    module, same, other = (create(rngs=nnx.Rngs(seed)) for seed in (0, 0, 1))
    assert module.features.shape == (M, 3)
    assert not isinstance(module.features, nnx.Param)
    np.testing.assert_array_equal(module.features[...], same.features[...])
    assert np.abs(module.features[...] - other.features[...]).max() > 0.1


def test_it_has_as_many_parameters_as_the_paper():
    module = nnx.eval_shape(lambda: Performer(64, rngs=nnx.Rngs(0)))
    assert module.cost((7, 5, 64)).parameters == 4 * 64**2
