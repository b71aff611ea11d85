"""Gated channel transformation.

    s_c = α_c √(Σ_hw x_c² + ε)
    ŝ_c = s_c / √(mean_c(s²) + ε)
    y_c = x_c (1 + tanh(γ_c ŝ_c + β_c))

with three learned numbers for each channel. The norm of a channel over the map says how much it carries, the division
lets the channels compete, and the gate, from 0 to 2, either damps or amplifies. At the start γ = β = 0 and y = x.

Differs from the paper: nothing. The authors' code also has an embedding by the sum of absolute values, which is not
here.

Errors elsewhere: the authors ask that β has no weight decay, which nobody's code does by itself; theirs ends in a
NameError where an unknown norm is asked for.

Source: Yang, Zhu, Wu and Yang, "Gated Channel Transformation for Visual Recognition" (2020), arXiv:1909.11519; compared
with the authors' code, z-x-yang/GCT.
"""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_map, promote


def gct_weights(
    x: Float[Array, "*b h w c"],
    alpha: Float[Array, " c"],
    gamma: Float[Array, " c"],
    beta: Float[Array, " c"],
    *,
    epsilon: float = 1e-5,
) -> Float[Array, "*b c"]:
    """1 + tanh(γ ŝ + β), in (0, 2), one for each channel.

    Args:
        x: maps.
        alpha: α.
        gamma: γ.
        beta: β.
        epsilon: ε.
    """
    x_wide = x.astype(ops.at_least_float32(x.dtype))
    s = alpha * jnp.sqrt(jnp.square(x_wide).sum((-3, -2)) + epsilon)
    s_hat = s / jnp.sqrt(jnp.square(s).mean(-1, keepdims=True) + epsilon)
    return (1 + jnp.tanh(gamma * s_hat + beta)).astype(x.dtype)


def gct(
    x: Float[Array, "*b h w c"],
    alpha: Float[Array, " c"],
    gamma: Float[Array, " c"],
    beta: Float[Array, " c"],
    *,
    epsilon: float = 1e-5,
) -> Float[Array, "*b h w c"]:
    """y = x · (1 + tanh(γ ŝ + β)), with the gate of `gct_weights`.

    >>> one, zero = jnp.ones(2), jnp.zeros(2)
    >>> gct(jnp.array([[[3.0, 0.0]]]), one, -99 * one, zero)  # the channel that carries more is closed
    Array([[[0., 0.]]], dtype=float32)
    >>> gct(jnp.array([[[3.0, 0.0]]]), one, zero, zero)
    Array([[[3., 0.]]], dtype=float32)
    """
    return x * gct_weights(x, alpha, gamma, beta, epsilon=epsilon)[..., None, None, :]


class GatedChannelTransform(nnx.Module):
    """The gated channel transformation of maps of any size.

    Parameters: 3c. Multiply-adds: none.

    Args:
        channels: c.
        epsilon: ε.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: taken as by all mechanisms; nothing is random here.

    Raises:
        InputError: channels below 1 or ε not positive at construction; an input that is no map of these channels at the
            call.
    """

    def __init__(
        self,
        channels: int,
        *,
        epsilon: float = 1e-5,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(channels >= 1, f"channels must be at least 1, got {channels}.")
        check(epsilon > 0, f"epsilon must be positive, got {epsilon}.")
        self.alpha = nnx.Param(jnp.ones(channels, param_dtype))
        self.gamma = nnx.Param(jnp.zeros(channels, param_dtype))
        self.beta = nnx.Param(jnp.zeros(channels, param_dtype))
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b c"]:
        """The gate, a factor for each channel."""
        return gct_weights(self._map(x), *self._learned(), epsilon=self.epsilon)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return gct(self._map(x), *self._learned(), epsilon=self.epsilon)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        return Cost(3 * self.alpha.size, 0)

    def _map(self, x):
        check_map(x, self.alpha.size)
        return promote(x, self)

    def _learned(self):
        return self.alpha[...], self.gamma[...], self.beta[...]
