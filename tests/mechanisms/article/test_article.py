"""The article's attention against its naive derivation, forward and gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax import functional as F
from attn_flax import ops
from attn_flax.checks import InputError
from attn_flax.nn import Article
from tests import oracles
from tests.compiled import with_gradients

N, C, EPSILON = 7, 5, 0.01
READINGS = [(normalizer, residual) for normalizer in ("softmax", "sum") for residual in (False, True)]


def inputs(seed=0, n=N, c=C):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, c)), rng.normal(size=(c, c)) / np.sqrt(c), rng.normal(size=c)


def normalize(normalizer):
    return ops.softmax if normalizer == "softmax" else partial(ops.sum_normalize, epsilon=EPSILON)


def article(x, w, b, *, normalizer, residual):
    if normalizer == "softmax":
        return F.article_attention(x, lambda x: x @ w.T + b, residual=residual)
    return F.article_sum_attention(x, lambda x: x @ w.T + b, epsilon=EPSILON, residual=residual)


def module(w, b, **arguments):
    built = Article(len(b), **arguments, param_dtype=w.dtype, rngs=nnx.Rngs(0))
    built.weigh.kernel.set_value(jnp.asarray(w.T))
    built.weigh.bias.set_value(jnp.asarray(b))
    return built


@pytest.mark.parametrize(("normalizer", "residual"), READINGS)
def test_the_oracles_gradients_are_those_of_its_output(normalizer, residual):
    arguments, rng = inputs(), np.random.default_rng(1)
    f = partial(oracles.article, normalizer=normalizer, residual=residual, epsilon=0.3)
    do, direction = rng.normal(size=(N, C)), [rng.normal(size=p.shape) for p in arguments]
    gradients = oracles.article_gradients(*arguments, do, normalizer=normalizer, residual=residual, epsilon=0.3)
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
    assert slope == pytest.approx(oracles.central_difference(lambda *p: (f(*p) * do).sum(), arguments, direction), 1e-6)


@pytest.mark.parametrize(("normalizer", "residual"), READINGS)
def test_function_and_gradients_are_the_oracles(normalizer, residual):
    arguments, do = inputs(), np.random.default_rng(1).normal(size=(N, C))
    reading = {"normalizer": normalizer, "residual": residual, "epsilon": EPSILON}
    with jax.enable_x64():
        out, *gradients = with_gradients(partial(article, normalizer=normalizer, residual=residual), arguments, do)
    np.testing.assert_allclose(out, oracles.article(*arguments, **reading), rtol=1e-10, atol=1e-12)
    expected = oracles.article_gradients(*arguments, do, **reading)
    for gradient, oracle in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, oracle, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("normalizer", "residual"), READINGS)
def test_the_module_is_the_oracle_on_any_map(normalizer, residual):
    rng = np.random.default_rng(2)
    x, (_, w, b) = rng.normal(size=(3, 2, 7, 6, C)), inputs(3)
    reading = {"normalizer": normalizer, "residual": residual, "epsilon": EPSILON}
    expected = [[oracles.article(image.reshape(-1, C), w, b, **reading) for image in row] for row in x]
    values = [
        [oracles.article_values(image.reshape(-1, C), w, b, normalizer=normalizer, epsilon=EPSILON) for image in row]
        for row in x
    ]
    with jax.enable_x64():
        built = module(w, b, **reading)
        out, weights = (jax.jit(method)(x) for method in (built.__call__, built.attention_map))
    np.testing.assert_allclose(out, np.reshape(expected, x.shape), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(weights, values, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("dims", "shape"), [(1, (2, 35, C)), (2, (2, 7, 5, C)), (3, (2, 7, 5, 1, C)), (2, (7, 5, C))])
def test_positions_are_what_it_is_told(dims, shape):
    x, w, b = inputs(4, n=70)
    x = x[: int(np.prod(shape[:-1]))].reshape(shape).astype(np.float32)
    out = jax.jit(module(np.float32(w), np.float32(b), num_spatial_dims=dims).__call__)(x)
    tokens = x.reshape(-1, 35, C)
    expected = [oracles.article(np.float64(t), w, b, normalizer="softmax", residual=True) for t in tokens]
    np.testing.assert_allclose(out, np.reshape(expected, shape), rtol=1e-4, atol=1e-5)


def test_rows_of_the_map_keep_their_law():
    x, w, b = (jnp.asarray(p, jnp.float32) for p in inputs(5, n=35, c=8))
    e = (x @ w.T + b) @ x.T
    rows = {
        name: F.article_weights(x, lambda x: x @ w.T + b, normalize=normalize(name)).sum(-1)
        for name in ("softmax", "sum")
    }
    np.testing.assert_allclose(rows["softmax"], 1, rtol=1e-5)
    d = np.float64(e).sum(-1)
    np.testing.assert_allclose(rows["sum"], d**2 / (d**2 + EPSILON**2), rtol=1e-3)


def test_half_of_the_denominators_are_negative():
    signs = []
    for seed in range(50):
        x, w, b = inputs(seed, n=35, c=8)
        signs.append(((x @ w.T + b) @ x.T).sum(-1) < 0)
    assert 0.3 < np.mean(signs) < 0.7


def softmax(e, axis):
    return np.exp(e) / np.exp(e).sum(axis, keepdims=True)


MUTANTS = {
    "softmax over the queries": lambda x, a: x + softmax(a @ x.mT, -2) @ x,
    "softmax over the batch": lambda x, a: x + softmax(a @ x.mT, 0) @ x,
    "scores without the weights": lambda x, a: x + softmax(x @ x.mT, -1) @ x,
    "scores between the weights": lambda x, a: x + softmax(a @ a.mT, -1) @ x,
    "no residual": lambda x, a: softmax(a @ x.mT, -1) @ x,
    "values from the weights": lambda x, a: x + softmax(a @ x.mT, -1) @ a,
    "scaled scores": lambda x, a: x + softmax(a @ x.mT / np.sqrt(C), -1) @ x,
    "sum of sizes": lambda x, a: x + a @ x.mT / np.abs(a @ x.mT).sum(-1, keepdims=True) @ x,
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    rng = np.random.default_rng(6)
    x, (_, w, b) = rng.normal(size=(3, N, C)), inputs(7)
    with jax.enable_x64():
        reading = "sum" if mutant == "sum of sizes" else "softmax"
        ours = np.array(jax.jit(partial(article, normalizer=reading, residual=True))(x, w, b))
    assert np.abs(MUTANTS[mutant](x, x @ w.T + b) - ours).max() > 0.05


@pytest.mark.parametrize("forgotten", ["bias", "transpose"])
def test_the_map_is_affine_in_its_parameters(forgotten):
    x, w, b = inputs(8)
    expected = oracles.article(x, w, b, normalizer="softmax", residual=True)
    wrong = {"bias": (x, w, 0 * b), "transpose": (x, w.T, b)}[forgotten]
    with jax.enable_x64():
        ours = np.array(jax.jit(partial(article, normalizer="softmax", residual=True))(*wrong))
    assert np.abs(ours - expected).max() > 0.05


def test_a_map_that_cannot_fit_is_refused_before_it_is_allocated_and_is_not_needed():
    x = jax.random.normal(jax.random.key(0), (1, 112, 224, 8))
    for normalizer in ("softmax", "sum"):
        built = Article(8, normalizer=normalizer, rngs=nnx.Rngs(0))
        with pytest.raises(InputError, match=r"25088 queries and 25088 keys would need 2\.3 GiB"):
            built.attention_map(x)
        assert jnp.isfinite(built(x)).all()
