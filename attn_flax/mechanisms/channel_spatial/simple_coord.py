"""Simple coordinate attention.

    z_h(i) = mean_j x(i, j)                 z_w(j) = mean_i x(i, j)
    a_h = W_h silu(W_1 z_h + b_1) + b_h     a_w = W_w silu(W_1 z_w + b_1) + b_w
    y(i, j) = x(i, j) · sigmoid(a_h(i) + a_w(j))

with W_1 from c to m features, W_h and W_w back. The scores of a row and of a column are added before a single gate, so
that every position has one weight for each channel; there is no normalisation.

Differs from the paper: there is no paper. It is timm's simplification of coordinate attention, which normalises after
its first layer and multiplies two gates.

Source: timm 1.0.31, SimpleCoordAttn (2025), with which it is compared; after Hou, Zhou and Feng, "Coordinate Attention
for Efficient Mobile Network Design" (2021), arXiv:2103.02907.
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
from attn_flax.mechanisms.layout import check_map, promote


def simple_coord_weights(
    x: Float[Array, "*b h w c"], embed: Callable, expand_h: Callable, expand_w: Callable
) -> Float[Array, "*b h w c"]:
    """sigmoid(a_h + a_w), in (0, 1), for every position and channel.

    Args:
        x: maps.
        embed: z -> silu(W_1 z + b_1), from c features to m, for rows and columns alike.
        expand_h: the layer W_h, b_h, from m features to c.
        expand_w: the layer W_w, b_w.
    """
    z_h, z_w = ops.strip_averages(x)
    return jax.nn.sigmoid(expand_h(embed(z_h)) + expand_w(embed(z_w)))


def simple_coord(
    x: Float[Array, "*b h w c"], embed: Callable, expand_h: Callable, expand_w: Callable
) -> Float[Array, "*b h w c"]:
    """y, x times the weights of `simple_coord_weights`.

    >>> simple_coord(jnp.array([[[2.0], [-4.0]]]), lambda z: z, lambda f: 0 * f, lambda f: 0 * f).squeeze()
    Array([ 1., -2.], dtype=float32)
    """
    return x * simple_coord_weights(x, embed, expand_h, expand_w)


class SimpleCoordinateAttention(nnx.Module):
    """Simple coordinate attention for maps of any size.

    Parameters: 3c·m, and m + 2c with biases. Multiply-adds: 2(h + w)·c·m.

    Args:
        channels: c.
        hidden: m, by default c/6 rounded to a multiple of 8, and at least 8.
        use_bias: whether the layers have biases.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1 at construction; an input that is no map of these channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        hidden: int | None = None,
        use_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(channels >= 1, f"channels must be at least 1, got {channels}.")
        hidden = 8 * max((channels + 24) // 48, 1) if hidden is None else hidden
        check(hidden >= 1, f"hidden must be at least 1, got {hidden}.")
        layer = {"use_bias": use_bias, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.reduce = nnx.Linear(channels, hidden, **layer)
        self.expand_h = nnx.Linear(hidden, channels, **layer)
        self.expand_w = nnx.Linear(hidden, channels, **layer)

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """The weights, in the layout of x."""
        return simple_coord_weights(self._map(x), self._embed, self.expand_h, self.expand_w)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return simple_coord(self._map(x), self._embed, self.expand_h, self.expand_w)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        m = self.reduce.out_features
        biases = m + 2 * c if self.reduce.use_bias else 0
        return Cost(3 * c * m + biases, 2 * (h + w) * c * m)

    def _embed(self, z):
        return jax.nn.silu(self.reduce(z))

    def _map(self, x):
        check_map(x, self.reduce.in_features)
        return promote(x, self.reduce)
