"""Statistics of maps against NumPy, and how maps are stretched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from attn_flax import ops

X = np.random.default_rng(0).normal(size=(2, 3, 7, 5, 6))


def test_means_and_covariance():
    with jax.enable_x64():
        x = jnp.asarray(X)
        np.testing.assert_allclose(ops.average(x), X.mean((-3, -2)), atol=1e-14)
        rows, columns = ops.strip_averages(x)
        np.testing.assert_allclose(rows[..., 0, :], X.mean(-2), atol=1e-14)
        np.testing.assert_allclose(columns[..., 0, :, :], X.mean(-3), atol=1e-14)
        np.testing.assert_allclose(ops.covariance(x)[1, 2], np.cov(X[1, 2].reshape(35, 6).T, ddof=0), atol=1e-14)


@pytest.mark.parametrize("correction", [0, 1])
def test_mean_and_variance(correction):
    with jax.enable_x64():
        mean, variance = ops.mean_and_variance(jnp.asarray(X), (-3, -2), correction=correction)
    np.testing.assert_allclose(mean, X.mean((-3, -2), keepdims=True), atol=1e-14)
    np.testing.assert_allclose(variance, X.var((-3, -2), keepdims=True, ddof=correction), atol=1e-14)


def test_the_variance_of_one_number_is_zero():
    _, variance = ops.mean_and_variance(jnp.ones((1, 1, 3)), (-3, -2), correction=1)
    np.testing.assert_array_equal(variance, 0)


def test_groups_are_normalised_by_example():
    with jax.enable_x64():
        y = ops.group_normalize(jnp.asarray(X), 3, epsilon=1e-3)
    for example in np.ndindex(2, 3):
        for group in range(3):
            part = X[example][..., 2 * group : 2 * group + 2]
            expected = (part - part.mean()) / np.sqrt(part.var() + 1e-3)
            np.testing.assert_allclose(y[example][..., 2 * group : 2 * group + 2], expected, atol=1e-12)


@pytest.mark.parametrize("size", [(14, 5), (3, 2), (9, 13), (7, 5), (1, 1)])
@pytest.mark.parametrize("align_corners", [False, True])
def test_bilinear_is_the_loop(size, align_corners):
    def place(i, few, many):
        if align_corners:
            return i * (few - 1) / max(many - 1, 1)
        return min(max((i + 0.5) * few / many - 0.5, 0), few - 1)

    expected = np.zeros((*size, 6))
    for i, j in np.ndindex(*size):
        y, x = place(i, 7, size[0]), place(j, 5, size[1])
        for p, q in np.ndindex(7, 5):
            expected[i, j] += max(1 - abs(y - p), 0) * max(1 - abs(x - q), 0) * X[0, 0, p, q]
    with jax.enable_x64():
        ours = ops.resize_bilinear(jnp.asarray(X), size, align_corners=align_corners)
    np.testing.assert_allclose(ours[0, 0], expected, atol=1e-12)


@pytest.mark.parametrize("size", [(14, 5), (3, 2), (9, 13)])
def test_nearest_is_the_loop(size):
    ours = ops.resize_nearest(jnp.asarray(X, jnp.float32), size)
    for i, j in np.ndindex(*size):
        np.testing.assert_allclose(ours[1, 2, i, j], X[1, 2, i * 7 // size[0], j * 5 // size[1]], rtol=1e-6)


@pytest.mark.parametrize("size", [(14, 5), (3, 2), (9, 13)])
def test_bicubic_is_pillows(size):
    ours = ops.resize_bicubic(jnp.asarray(X, jnp.float32), size)
    for index in np.ndindex(*X.shape[:-3], X.shape[-1]):
        plane = Image.fromarray(np.float32(X[*index[:-1], ..., index[-1]]))
        expected = plane.resize(size[::-1], Image.Resampling.BICUBIC)
        np.testing.assert_allclose(ours[*index[:-1], ..., index[-1]], expected, rtol=1e-5, atol=1e-5)


def test_bicubic_leaves_a_map_of_that_size_as_it_is():
    x = jnp.asarray(X, jnp.bfloat16)
    np.testing.assert_array_equal(ops.resize_bicubic(x, X.shape[-3:-1]), x)
