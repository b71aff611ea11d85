"""SimAM, attention without parameters.

    μ = mean_hw(x)                       σ² = Σ_hw (x - μ)² / (h·w - 1)
    E⁻¹ = (x - μ)² / (4(σ² + λ)) + 1/2
    y = x · sigmoid(E⁻¹)

by channel. E is the least energy of a linear classifier that tells one position from all others of its channel: the
further a feature lies from the mean, the more it is kept. A weight is at least sigmoid(1/2), about 0.62.

Differs from the paper: the variance, divided by h·w - 1, is that of the authors' code. A map of one position, where
h·w - 1 is zero, has the variance zero and so the weight sigmoid(1/2).

Errors elsewhere: the authors' code and those that follow it divide zero by zero on a 1×1 map and give NaN.

Source: Yang, Zhang, Li and Xie, "SimAM: A Simple, Parameter-Free Attention Module for Convolutional Neural Networks"
(2021), Proceedings of Machine Learning Research 139; confirmed with the authors' code.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_map, promote


def simam_weights(x: Float[Array, "*b h w c"], *, regularization: float = 1e-4) -> Float[Array, "*b h w c"]:
    """sigmoid(E⁻¹), at least sigmoid(1/2), for every position and channel; computed in float32 or wider.

    Args:
        x: maps.
        regularization: λ.
    """
    mean, variance = ops.mean_and_variance(x, (-3, -2), correction=1)
    importance = jnp.square(x - mean) / (4 * (variance + regularization)) + 0.5
    return jax.nn.sigmoid(importance).astype(x.dtype)


def simam(x: Float[Array, "*b h w c"], *, regularization: float = 1e-4) -> Float[Array, "*b h w c"]:
    """y, x times the weights of `simam_weights`.

    >>> simam(jnp.array([[[1.0], [1.0], [4.0]]])).round(2).squeeze()
    Array([0.64, 0.64, 2.79], dtype=float32)
    """
    return x * simam_weights(x, regularization=regularization)


class SimAM(nnx.Module):
    """SimAM for maps of any size.

    Parameters: none. Multiply-adds: none.

    Args:
        channels: c, only checked.
        regularization: λ; the authors' code has 1e-4 by default and takes 0.1 on ImageNet and COCO.
        dtype: the type of the output; by default that of input and `param_dtype` together.
        param_dtype: as of all Modules; there are no parameters.
        rngs: taken as by all Modules; nothing is random here.

    Raises:
        InputError: channels below 1 or a λ that is not positive at construction; an input that is no map of these
            channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        regularization: float = 1e-4,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(channels >= 1, f"channels must be at least 1, got {channels}.")
        check(regularization > 0, f"regularization must be positive, got {regularization}.")
        self.channels = channels
        self.regularization = regularization
        self.dtype = dtype
        self.param_dtype = param_dtype

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """The weights, in the layout of x."""
        return simam_weights(self._map(x), regularization=self.regularization)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return simam(self._map(x), regularization=self.regularization)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        return Cost(0, 0)

    def _map(self, x):
        check_map(x, self.channels)
        return promote(x, self)
