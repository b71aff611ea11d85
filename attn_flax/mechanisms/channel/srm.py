"""Style-based recalibration.

    t_c = (μ_c, σ_c),   σ_c = √(Σ_hw (x_c - μ_c)² / (hw - 1) + ε)
    g_c = sigmoid(BN(w_cᵀ t_c))
    y = x · g

with μ_c the mean of channel c over the map and two learned weights w_c for each channel. The mean and deviation of a
channel are what is called its style; each channel is scaled by its own style, without regard to the others: no layer
joins two channels. At the start w = 0.

Differs from the paper: the equation is that of the authors' code, with hw - 1 and ε; `correction=0` divides by hw. The
divisor is at least 1, so the deviation of a 1×1 map is √ε.

Errors elsewhere: the authors' code divides by zero on 1×1 maps, and gives NaN.

Source: Lee, Kim and Nam, "SRM: A Style-based Recalibration Module for Convolutional Neural Networks" (2019),
arXiv:1903.10829; compared with the authors' code, hyunjaelee410/style-based-recalibration-module.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import BatchNorm
from attn_flax.mechanisms.layout import check_map, promote


def srm_weights(
    x: Float[Array, "*b h w c"],
    kernel: Float[Array, "2 c"],
    normalize: Callable,
    *,
    correction: int = 1,
    epsilon: float = 1e-5,
) -> Float[Array, "*b c"]:
    """g = sigmoid(normalize(w_1 μ + w_2 σ)), in (0, 1), one for each channel.

    Args:
        x: maps.
        kernel: the weights of the mean and of the deviation.
        normalize: BN, any callable on (*b, c).
        correction: what the divisor of the variance is less than hw; the divisor is at least 1.
        epsilon: ε.
    """
    mean, variance = ops.mean_and_variance(x, (-3, -2), correction=correction)
    style = kernel[0] * mean + kernel[1] * jnp.sqrt(variance + epsilon)
    return jax.nn.sigmoid(normalize(style[..., 0, 0, :].astype(x.dtype)))


def srm(
    x: Float[Array, "*b h w c"],
    kernel: Float[Array, "2 c"],
    normalize: Callable,
    *,
    correction: int = 1,
    epsilon: float = 1e-5,
) -> Float[Array, "*b h w c"]:
    """y = x · g, with the g of `srm_weights` of the same arguments.

    >>> x = jnp.array([[[2.0, 2.0], [2.0, -2.0]]])  # the second channel deviates, the first does not
    >>> srm(x, jnp.array([[0.0, 0.0], [-99.0, -99.0]]), lambda z: z).round(1)
    Array([[[ 0.8,  0. ],
            [ 0.8, -0. ]]], dtype=float32)
    """
    g = srm_weights(x, kernel, normalize, correction=correction, epsilon=epsilon)
    return x * g[..., None, None, :]


class StyleRecalibration(nnx.Module):
    """Style-based recalibration of maps of any size.

    Parameters: 4c. Multiply-adds: none.

    Args:
        channels: c.
        correction: 1 divides the variance by hw - 1, 0 by hw.
        epsilon: ε.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: channels below 1, another correction or ε not positive at construction; an input that is no map of
            these channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        correction: int = 1,
        epsilon: float = 1e-5,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(channels >= 1, f"channels must be at least 1, got {channels}.")
        check(correction in (0, 1), f"correction must be 0 or 1, got {correction}.")
        check(epsilon > 0, f"epsilon must be positive, got {epsilon}.")
        self.kernel = nnx.Param(jnp.zeros((2, channels), param_dtype))
        self.norm = BatchNorm(
            channels,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.correction = correction
        self.epsilon = epsilon

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b c"]:
        """g, a weight for each channel."""
        return srm_weights(self._map(x), self.kernel[...], self.norm, correction=self.correction, epsilon=self.epsilon)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return srm(self._map(x), self.kernel[...], self.norm, correction=self.correction, epsilon=self.epsilon)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        return Cost(4 * self.norm.num_features, 0)

    def _map(self, x):
        check_map(x, self.norm.num_features)
        return promote(x, self.norm)
