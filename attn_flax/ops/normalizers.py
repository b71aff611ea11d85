"""From scores to weights: e_ij -> α_ij. Computed in float32 or wider, returned in the type of the scores."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attn_flax.ops.precision import at_least_float32


def softmax(scores: Float[Array, "*b n m"]) -> Float[Array, "*b n m"]:
    """α_ij = exp(e_ij) / Σ_j exp(e_ij); every row sums to one."""
    scores_wide = scores.astype(at_least_float32(scores.dtype))
    return jax.nn.softmax(scores_wide, axis=-1).astype(scores.dtype)


def sum_normalize(scores: Float[Array, "*b n m"], *, epsilon: float = 1e-6) -> Float[Array, "*b n m"]:
    """α_ij = e_ij / Σ_j e_ij with a guarded division, so that a row sums to d²/(d²+ε²), where d = Σ_j e_ij.

    The scores may have any sign: the weights do too, and their size grows as d approaches zero.

    >>> import jax.numpy as jnp
    >>> sum_normalize(jnp.array([[1.0, 3.0], [-1.0, 3.0]]))
    Array([[ 0.25,  0.75],
           [-0.5 ,  1.5 ]], dtype=float32)
    """
    scores_wide = scores.astype(at_least_float32(scores.dtype))
    denominator = scores_wide.sum(-1, keepdims=True)
    return (scores_wide * guarded_reciprocal(denominator, epsilon=epsilon)).astype(scores.dtype)


def guarded_reciprocal(d: Float[Array, "*s"], *, epsilon: float) -> Float[Array, "*s"]:
    """d / (d² + ε²): within a relative ε²/d² of 1/d, zero at d = 0, at most 1/(2ε) in size, smooth everywhere.

    Computed in units of max(|d|, ε), so that no square over- or underflows, neither here nor in the derivative.
    """
    unit = jax.lax.stop_gradient(jnp.maximum(jnp.abs(d), epsilon))  # the value is the same in any unit
    x = d / unit
    return x / (x * x + (epsilon / unit) ** 2) / unit
