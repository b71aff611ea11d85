"""The largest singular value of a matrix, by power iteration."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attn_flax.ops.precision import at_least_float32

EPSILON = 1e-12


def spectral_norm(w: Float[Array, "m n"], u: Float[Array, " n"]) -> tuple[Float[Array, ""], Float[Array, " n"]]:
    """σ(w) estimated by one step of power iteration, and the u to begin the next step with.

        v = w u / ‖w u‖,   u = wᵀ v / ‖wᵀ v‖,   σ = vᵀ w u

    Repeated with its own u it converges to the largest singular value, and u to its right singular vector. u and v are
    constants to differentiation, so that ∂σ/∂w = v uᵀ, which is σ's gradient where they have converged. σ is never
    below 1e-12, so that one may divide by it.

    Source: Miyato, Kataoka, Koyama and Yoshida, "Spectral Normalization for Generative Adversarial Networks" (2018),
    arXiv:1802.05957, algorithm 1.

    >>> sigma, u = spectral_norm(jnp.array([[3.0, 0.0], [0.0, 0.0]]), jnp.array([0.6, 0.8]))
    >>> float(sigma), u.tolist()
    (3.0, [1.0, 0.0])
    """
    w = w.astype(at_least_float32(w.dtype))
    fixed, u = jax.lax.stop_gradient((w, u))
    v = _unit(fixed @ u)
    u = _unit(fixed.T @ v)
    return jnp.maximum(v @ w @ u, EPSILON), u


def _unit(x):
    return x / jnp.maximum(jnp.linalg.norm(x), EPSILON)
