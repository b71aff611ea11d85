"""The largest singular value against NumPy's, and its gradient against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_flax import ops


def iterated(w, u, steps):
    for _ in range(steps):
        sigma, u = ops.spectral_norm(w, u)
    return sigma, u


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (1, 4), (6, 1)])
def test_converges_to_numpys(rng, shape):
    with jax.enable_x64():
        w, u = jnp.array(rng.normal(size=shape)), jnp.array(rng.normal(size=shape[1]))
        sigma, u = iterated(w, u, 500)
    _, values, right = np.linalg.svd(np.asarray(w))
    np.testing.assert_allclose(sigma, values[0], rtol=1e-12)
    np.testing.assert_allclose(np.abs(right[0] @ np.asarray(u)), 1, rtol=1e-12)


def test_a_step_is_the_papers(rng):
    w, u = rng.normal(size=(7, 5)), rng.normal(size=5)
    with jax.enable_x64():
        sigma, after = ops.spectral_norm(jnp.array(w), jnp.array(u))
    v = w @ u / np.sqrt(((w @ u) ** 2).sum())
    expected = w.T @ v / np.sqrt(((w.T @ v) ** 2).sum())
    np.testing.assert_allclose(after, expected, rtol=1e-12)
    np.testing.assert_allclose(sigma, v @ w @ expected, rtol=1e-12)


def test_its_gradient_takes_the_vectors_as_constants(rng):
    """∂σ/∂w = v uᵀ: at convergence that of the largest singular value, before it not that of the iteration."""
    w, u = rng.normal(size=(7, 5)), rng.normal(size=5)
    with jax.enable_x64():
        _, converged = iterated(jnp.array(w), jnp.array(u), 500)
        gradient = jax.grad(lambda w: ops.spectral_norm(w, converged)[0])(jnp.array(w))
        early = jax.grad(lambda w: ops.spectral_norm(w, jnp.array(u))[0])(jnp.array(w))
    difference = np.zeros_like(w)
    for i, j in np.ndindex(w.shape):
        step = np.zeros_like(w)
        step[i, j] = 1e-6
        high, low = (np.linalg.svd(w + sign * step, compute_uv=False)[0] for sign in (1, -1))
        difference[i, j] = (high - low) / 2e-6
    np.testing.assert_allclose(gradient, difference, atol=1e-8)
    v = w @ u / np.linalg.norm(w @ u)
    np.testing.assert_allclose(early, np.outer(v, w.T @ v / np.linalg.norm(w.T @ v)), rtol=1e-10)


def test_the_vector_passes_no_gradient(rng):
    w, u = jnp.array(rng.normal(size=(7, 5))), jnp.array(rng.normal(size=5))
    np.testing.assert_array_equal(jax.grad(lambda u: ops.spectral_norm(w, u)[0])(u), np.zeros(5))


def test_a_matrix_of_zeros_can_be_divided_by_it():
    sigma, u = ops.spectral_norm(jnp.zeros((3, 2)), jnp.ones(2))
    assert 0 < float(sigma) < 1e-6
    assert jnp.isfinite(u).all()


def test_bfloat16_is_computed_in_float32(rng):
    w = jnp.array(rng.normal(size=(7, 5)), jnp.bfloat16)
    sigma, u = iterated(w, jnp.ones(5), 300)
    assert sigma.dtype == u.dtype == jnp.float32
    np.testing.assert_allclose(sigma, np.linalg.svd(np.float64(w), compute_uv=False)[0], rtol=1e-5)
