import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_flax import ops
from tests import oracles

EPSILON = 0.25


@pytest.fixture
def scores():
    return np.random.default_rng(0).normal(size=(3, 7, 5))


def test_softmax_is_the_oracles(scores):
    with jax.enable_x64():
        weights = ops.softmax(jnp.array(scores))
    np.testing.assert_allclose(weights, [oracles.softmax_values(e) for e in scores], rtol=1e-12)


def test_sum_normalize_is_the_oracles(scores):
    with jax.enable_x64():
        weights = ops.sum_normalize(jnp.array(scores), epsilon=EPSILON)
    np.testing.assert_allclose(weights, [oracles.sum_values(e, EPSILON) for e in scores], rtol=1e-12)


def test_sums_of_random_scores_are_negative_half_of_the_time():
    q, k = np.random.default_rng(0).normal(size=(2, 500, 12))
    assert 0.4 < np.mean(oracles.scores(q, k[:35]).sum(-1) < 0) < 0.6


def test_law_of_the_guard(scores):
    scores[0, 0] = [1, -1, 2, -2, 0]  # a denominator of exactly zero
    d = scores.sum(-1)
    with jax.enable_x64():
        sums = ops.sum_normalize(jnp.array(scores), epsilon=EPSILON).sum(-1)
    np.testing.assert_allclose(sums, d**2 / (d**2 + EPSILON**2), rtol=1e-12)


@pytest.mark.parametrize("epsilon", [1e-10, 1e-6, 1.0])
@pytest.mark.parametrize("d", [0.0, 1e-6, -0.3, 1e5, -1e10, 1e18])
def test_guarded_reciprocal_and_slope_at_any_scale(d, epsilon):
    d = np.float32(d)
    value, slope = jax.value_and_grad(lambda d: ops.guarded_reciprocal(d, epsilon=epsilon))(d)
    d = np.float64(d)
    np.testing.assert_allclose(value, oracles.reciprocal(d, epsilon), rtol=1e-6)
    expected = (epsilon**2 - d**2) / (d**2 + epsilon**2) ** 2
    np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-6 / (d**2 + epsilon**2))


def test_gradient_is_finite_where_the_denominator_is_zero():
    gradient = jax.grad(lambda e: (ops.sum_normalize(e) * jnp.arange(4.0)).sum())(jnp.array([[1.0, -1.0, 2.0, -2.0]]))
    assert jnp.isfinite(gradient).all()
    assert jnp.abs(gradient).max() > 0


@pytest.mark.parametrize("normalize", [ops.softmax, ops.sum_normalize])
def test_bfloat16_scores_are_normalised_in_float32(normalize, scores):
    narrow = jnp.array(scores, jnp.bfloat16)
    weights = normalize(narrow)
    assert weights.dtype == jnp.bfloat16
    np.testing.assert_array_equal(weights, normalize(narrow.astype(jnp.float32)).astype(jnp.bfloat16))
