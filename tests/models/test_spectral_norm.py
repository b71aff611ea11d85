"""Layers divided by their spectral norm, against NumPy's singular values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.models.spectral_norm import SpectralNorm


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


LAYERS = {
    "linear": lambda rngs: nnx.Linear(7, 5, bias_init=nnx.initializers.normal(), rngs=rngs),
    "conv": lambda rngs: nnx.Conv(3, 5, (3, 2), bias_init=nnx.initializers.normal(), rngs=rngs),
}
INPUTS = {"linear": random(4, 7), "conv": random(2, 6, 5, 3)}


@pytest.mark.parametrize("kind", LAYERS)
def test_the_kernel_is_divided_and_the_bias_is_not(kind):
    layer, x = LAYERS[kind](nnx.Rngs(0)), INPUTS[kind]
    divided = SpectralNorm(layer, rngs=nnx.Rngs(1))
    for _ in range(200):
        divided(x)
    kernel = np.float64(layer.kernel[...])
    norm = np.linalg.svd(kernel.reshape(-1, 5), compute_uv=False)[0]
    without = nnx.clone(layer)
    without.kernel.set_value(jnp.asarray(kernel / norm, jnp.float32))
    divided.eval()
    np.testing.assert_allclose(divided(x), without(x), rtol=1e-4, atol=1e-5)


def test_calls_leave_the_parameters_and_in_evaluation_everything_as_it_is():
    layer = SpectralNorm(LAYERS["linear"](nnx.Rngs(0)), rngs=nnx.Rngs(1))

    def variables(*kinds):
        return jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(layer, *kinds)))

    params, vector = variables(nnx.Param), layer.u[...]
    layer(INPUTS["linear"])
    assert jnp.abs(layer.u[...] - vector).max() > 0.01
    layer.eval()
    everything = variables()
    once = layer(INPUTS["linear"])
    np.testing.assert_array_equal(layer(INPUTS["linear"]), once)
    np.testing.assert_allclose(jax.jit(lambda x: layer(x))(INPUTS["linear"]), once, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, everything, variables())
    jax.tree.map(np.testing.assert_array_equal, params, variables(nnx.Param))


def test_the_gradient_is_that_of_the_divided_kernel():
    """Of a scalar L(W/σ): G/σ - (Σ G∘W)/σ² · v uᵀ with G = ∂L/∂(W/σ), σ = vᵀ W u (Miyato et al., equation 12)."""
    layer = SpectralNorm(LAYERS["linear"](nnx.Rngs(0)), rngs=nnx.Rngs(1))
    x, target = INPUTS["linear"], random(4, 5, seed=2)
    for _ in range(200):
        layer(x)
    layer.eval()
    gradient = nnx.grad(lambda layer: (layer(x) * target).sum())(layer)["layer"]["kernel"][...]
    w = np.float64(layer.layer.kernel[...])
    left, values, right = np.linalg.svd(w)
    sigma, outer = values[0], np.outer(left[:, 0], right[0])
    g = np.float64(x).T @ np.float64(target)
    np.testing.assert_allclose(gradient, g / sigma - (g * w).sum() / sigma**2 * outer, rtol=1e-3, atol=1e-4)
