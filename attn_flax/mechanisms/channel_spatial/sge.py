"""Spatial group-wise enhance.

    c_g(i) = x_g(i)ᵀ mean_i x_g(i)                   for the channels x_g of each group g at the position i
    t_g = (c_g - mean(c_g)) / (std(c_g) + ε)         over the positions
    y_g(i) = x_g(i) · sigmoid(γ_g t_g(i) + β_g)

The channels are divided in a row into G groups, each taken for one semantic feature. Where a group's features resemble
their mean over the map they are kept, elsewhere they are damped. γ starts at 0 and β at 1, so that at first all is
scaled by sigmoid(1).

Differs from the paper: std, which divides by h·w - 1, and ε = 1e-5 are those of the authors' code. A map of one
position, where h·w - 1 is zero, has the deviation zero and so the weight sigmoid(β).

Errors elsewhere: the authors' code and those that follow it divide zero by zero on a 1×1 map and give NaN.

Source: Li, Hu and Yang, "Spatial Group-wise Enhance: Improving Semantic Feature Learning in Convolutional Networks"
(2019), arXiv:1905.09646; confirmed with the authors' code.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_map, promote

EPSILON = 1e-5


def sge_weights(x: Float[Array, "*b h w c"], groups: int, rescale: Callable) -> Float[Array, "*b h w g"]:
    """sigmoid(rescale(t)), in (0, 1), for every position and group; t computed in float32 or wider.

    Args:
        x: maps.
        groups: G, which divides c.
        rescale: t -> γ t + β, any callable on (*b, h, w, G).
    """
    products = x * ops.average(x)[..., None, None, :]
    grouped = products.reshape(*x.shape[:-1], groups, -1)
    similarity = grouped.sum(-1, dtype=ops.at_least_float32(x.dtype))
    mean, variance = ops.mean_and_variance(similarity, (-3, -2), correction=1)
    t = (similarity - mean) / (_root(variance) + EPSILON)
    return jax.nn.sigmoid(rescale(t.astype(x.dtype)))


def sge(x: Float[Array, "*b h w c"], groups: int, rescale: Callable) -> Float[Array, "*b h w c"]:
    """y, every group of x times its weight of `sge_weights`.

    >>> sge(jnp.array([[[1.0, 2.0], [3.0, 2.0]]]), 2, lambda t: 0 * t)
    Array([[[0.5, 1. ],
            [1.5, 1. ]]], dtype=float32)
    """
    return x * jnp.repeat(sge_weights(x, groups, rescale), x.shape[-1] // groups, axis=-1)


def _root(variance):
    """√, with the derivative zero at zero."""
    return jnp.sqrt(jnp.maximum(variance, jnp.finfo(variance.dtype).tiny))


class SpatialGroupEnhance(nnx.Module):
    """Spatial group-wise enhance for maps of any size.

    Parameters: 2G. Multiply-adds: none.

    Args:
        channels: c.
        groups: G, which must divide the channels; by default the greatest common divisor of 64 and c.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: taken as by all Modules; nothing is random here.

    Raises:
        InputError: a size below 1 or groups that do not divide the channels, at construction; an input that is no map
            of these channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        groups: int | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(channels >= 1, f"channels must be at least 1, got {channels}.")
        groups = math.gcd(64, channels) if groups is None else groups
        check(
            groups >= 1 and channels % groups == 0,
            f"groups must be at least 1 and divide channels, got groups={groups}, channels={channels}.",
        )
        self.scale = nnx.Param(jnp.zeros(groups, param_dtype))
        self.bias = nnx.Param(jnp.ones(groups, param_dtype))
        self.channels = channels
        self.groups = groups
        self.dtype = dtype
        self.param_dtype = param_dtype

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w g"]:
        """A weight for each position and group."""
        return sge_weights(self._map(x), self.groups, self._rescale)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return sge(self._map(x), self.groups, self._rescale)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        return Cost(2 * self.groups, 0)

    def _rescale(self, t):
        return t * self.scale[...].astype(t.dtype) + self.bias[...].astype(t.dtype)

    def _map(self, x):
        check_map(x, self.channels)
        return promote(x, self)
