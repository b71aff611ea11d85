"""Global response normalisation.

    g_c = ‖x_c‖ = √(Σ_hw x_c²)
    n_c = g_c / (mean_c(g) + ε)
    y = x + γ · x · n + β

with γ and β learned for each channel. A channel is scaled by its share in the response of all channels, so that those
which carry more are strengthened against the others and channels do not collapse into one. At the start γ = β = 0 and
y = x.

Differs from the paper: nothing; ε and the residual are in the authors' code. The derivative of ‖x_c‖ where x_c is zero
everywhere is taken to be zero.

Source: Woo, Debnath, Hu, Chen, Liu, Kweon and Xie, "ConvNeXt V2: Co-designing and Scaling ConvNets with Masked
Autoencoders" (2023), arXiv:2301.00808; compared with the authors' code, facebookresearch/ConvNeXt-V2.
"""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_map, promote


def grn_weights(x: Float[Array, "*b h w c"], *, epsilon: float = 1e-6) -> Float[Array, "*b c"]:
    """n, at least zero, one for each channel; their mean is one but for ε.

    Args:
        x: maps.
        epsilon: ε.
    """
    squares = jnp.square(x.astype(ops.at_least_float32(x.dtype))).sum((-3, -2))
    is_zero = squares == 0
    g = jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, squares)))
    return (g / (g.mean(-1, keepdims=True) + epsilon)).astype(x.dtype)


def grn(
    x: Float[Array, "*b h w c"], gamma: Float[Array, " c"], beta: Float[Array, " c"], *, epsilon: float = 1e-6
) -> Float[Array, "*b h w c"]:
    """y = x + γ · x · n + β, with the n of `grn_weights`.

    Args:
        x: maps.
        gamma: γ.
        beta: β.
        epsilon: ε.

    >>> grn(jnp.array([[[3.0, -1.0]]]), jnp.ones(2), jnp.zeros(2), epsilon=0.0)  # n = (1.5, 0.5)
    Array([[[ 7.5, -1.5]]], dtype=float32)
    """
    return x + gamma * x * grn_weights(x, epsilon=epsilon)[..., None, None, :] + beta


class GlobalResponseNorm(nnx.Module):
    """Global response normalisation of maps of any size.

    Parameters: 2c. Multiply-adds: none.

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
        epsilon: float = 1e-6,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(channels >= 1, f"channels must be at least 1, got {channels}.")
        check(epsilon > 0, f"epsilon must be positive, got {epsilon}.")
        self.gamma = nnx.Param(jnp.zeros(channels, param_dtype))
        self.beta = nnx.Param(jnp.zeros(channels, param_dtype))
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b c"]:
        """n, a weight for each channel."""
        return grn_weights(self._map(x), epsilon=self.epsilon)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        x = self._map(x)
        return grn(x, self.gamma[...].astype(x.dtype), self.beta[...].astype(x.dtype), epsilon=self.epsilon)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        return Cost(2 * self.gamma.size, 0)

    def _map(self, x):
        check_map(x, self.gamma.size)
        return promote(x, self)
