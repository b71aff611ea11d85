import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from attn_flax.mechanisms.layers import gelu

X = np.linspace(-9, 9, 4001)


def test_gelu_and_its_derivatives_are_those_of_the_normal_distribution():
    with jax.enable_x64(True):
        x = jnp.asarray(X)
        first, second = jax.vmap(jax.grad(gelu)), jax.vmap(jax.grad(jax.grad(gelu)))
        np.testing.assert_allclose(gelu(x), X * norm.cdf(X), atol=1e-14)
        np.testing.assert_allclose(first(x), norm.cdf(X) + X * norm.pdf(X), atol=1e-14)
        np.testing.assert_allclose(second(x), (2 - X**2) * norm.pdf(X), atol=1e-14)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_gelu_is_rounded_once(dtype):
    """To its type; before, in float32, 1 + erf is exact beside 1."""
    x = jnp.asarray(X, dtype)
    y = gelu(x)
    assert y.dtype == dtype
    wide = np.asarray(x, np.float64)
    exact = wide * norm.cdf(wide)
    once = jnp.finfo(dtype).eps * np.abs(exact) + jnp.finfo(dtype).smallest_subnormal
    assert (np.abs(np.asarray(y, np.float64) - exact) <= once + 2 * np.finfo(np.float32).eps * np.abs(wide)).all()
