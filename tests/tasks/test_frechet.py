"""The Fréchet distance against scipy's matrix root, and its sums against NumPy's moments."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from attn_flax.checks import InputError
from attn_flax.tasks.frechet import feature_sums, frechet_distance, moments


def gaussian(rng, d, rank):
    factor = rng.normal(size=(d, rank))
    return rng.normal(size=d), factor @ factor.T


@pytest.mark.parametrize("d", [1, 3, 7])
def test_is_scipys(rng, d):
    (mean, covariance), (other_mean, other_covariance) = gaussian(rng, d, d + 2), gaussian(rng, d, d + 5)
    root = scipy.linalg.sqrtm(covariance @ other_covariance)
    expected = ((mean - other_mean) ** 2).sum() + np.trace(covariance + other_covariance - 2 * root.real)
    distance = frechet_distance((mean, covariance), (other_mean, other_covariance))
    assert distance == pytest.approx(expected, rel=1e-10)
    assert frechet_distance((other_mean, other_covariance), (mean, covariance)) == pytest.approx(expected, rel=1e-10)


def test_of_independent_features_is_a_sum_of_squares(rng):
    """(μ - m)² + (σ - s)² for each."""
    mean, other_mean = rng.normal(size=(2, 5))
    std, other_std = rng.uniform(0.1, 2, size=(2, 5))
    expected = ((mean - other_mean) ** 2 + (std - other_std) ** 2).sum()
    distance = frechet_distance((mean, np.diag(std**2)), (other_mean, np.diag(other_std**2)))
    assert distance == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rank", [2, 9])
def test_of_a_distribution_to_itself_is_zero(rng, rank):
    """Also where the covariance is singular, as that of fewer images than features."""
    one = gaussian(rng, 9, rank)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-5)


def test_sums_over_batches_have_the_moments_of_the_rows_that_count(rng):
    features = rng.normal(size=(2, 8, 5)) + 3
    weight = np.ones((2, 8))
    weight[1, 5:] = 0
    parts = [feature_sums(jnp.asarray(f, jnp.float32), jnp.asarray(w)) for f, w in zip(features, weight, strict=True)]
    mean, covariance = moments({name: parts[0][name] + parts[1][name] for name in parts[0]})
    counted = features.reshape(-1, 5)[:13]
    np.testing.assert_allclose(mean, counted.mean(0), rtol=1e-6)
    np.testing.assert_allclose(covariance, np.cov(counted.T), atol=2e-5)


def test_one_image_has_no_covariance():
    with pytest.raises(InputError, match="at least two images, got 1"):
        moments(feature_sums(jnp.ones((1, 3)), jnp.ones(1)))
