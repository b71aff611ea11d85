"""Efficient local attention.

    z_h(i) = mean_j x(i, j)             z_w(j) = mean_i x(i, j)
    g_h = sigmoid(GN_h(F_h z_h))        g_w = sigmoid(GN_w(F_w z_w))
    y(i, j) = x(i, j) · g_h(i) · g_w(j)

with F_h and F_w depthwise convolutions of k taps along the height and the width, without biases, and GN group
normalisations. As in coordinate attention every row and every column is gated by channel, but a gate looks at the k
neighbouring rows or columns of its own channel, no features are reduced, and nothing depends on the batch.

Differs from the paper: nothing in the defaults, which are its version B (k = 7, 16 groups); T has k = 5 and 32 groups.
Its versions S and L, whose convolutions mix eight channels each, are not offered. `activation` puts a function before
the sigmoid, as timm does.

Errors elsewhere: timm has a SiLU before the sigmoid and one group, and cites the title of another paper. Circulating
PyTorch listings share one convolution and one normalisation between rows and columns, which halves the parameters.

Source: Xu and Wan, "ELA: Efficient Local Attention for Deep Convolutional Neural Networks" (2024), arXiv:2403.01123;
stated from its equations, not compared with the authors' code; compared with timm's.
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
from attn_flax.mechanisms.layers import DepthwiseConv, GroupNorm
from attn_flax.mechanisms.layout import check_map, promote


def ela_weights(
    x: Float[Array, "*b h w c"], localize_h: Callable, localize_w: Callable
) -> tuple[Float[Array, "*b h 1 c"], Float[Array, "*b 1 w c"]]:
    """g_h and g_w, in (0, 1), for every row and every column by channel.

    Args:
        x: maps.
        localize_h: z -> GN_h(F_h z), any callable on (*b, h, 1, c).
        localize_w: z -> GN_w(F_w z), on (*b, 1, w, c).
    """
    z_h, z_w = ops.strip_averages(x)
    return jax.nn.sigmoid(localize_h(z_h)), jax.nn.sigmoid(localize_w(z_w))


def ela(x: Float[Array, "*b h w c"], localize_h: Callable, localize_w: Callable) -> Float[Array, "*b h w c"]:
    """y = x · g_h · g_w, with the gates of `ela_weights`.

    >>> ela(jnp.array([[[2.0], [-4.0]]]), lambda z: 0 * z, lambda z: z).round(2).squeeze()
    Array([ 0.88, -0.04], dtype=float32)
    """
    g_h, g_w = ela_weights(x, localize_h, localize_w)
    return x * g_h * g_w


class EfficientLocalAttention(nnx.Module):
    """Efficient local attention for maps of any size.

    Parameters: 2k·c for the convolutions and 4c for the normalisations. Multiply-adds: (h + w)·k·c.

    Args:
        channels: c.
        kernel_size: k, odd.
        groups: of the normalisations; they must divide the channels. By default the greatest common divisor of 16 and
            c; timm has 1.
        activation: between normalisation and sigmoid, by default none; timm has `jax.nn.silu`.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1, an even kernel or groups that do not divide the channels, at construction; an input
            that is no map of these channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 7,
        groups: int | None = None,
        activation: Callable[[Array], Array] | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(channels >= 1, f"channels must be at least 1, got {channels}.")
        check(kernel_size >= 1 and kernel_size % 2 == 1, f"kernel_size must be odd and positive, got {kernel_size}.")
        groups = math.gcd(16, channels) if groups is None else groups
        check(
            groups >= 1 and channels % groups == 0,
            f"groups must be at least 1 and divide channels, got groups={groups}, channels={channels}.",
        )
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.conv_h = DepthwiseConv(channels, (kernel_size, 1), use_bias=False, **layer)
        self.conv_w = DepthwiseConv(channels, (1, kernel_size), use_bias=False, **layer)
        self.norm_h = GroupNorm(channels, groups, **layer)
        self.norm_w = GroupNorm(channels, groups, **layer)
        self.activation = activation
        self.channels = channels

    def attention_map(self, x: Float[Array, "*b h w c"]) -> dict[str, Array]:
        """The gates of the rows, "height" (*b, h, 1, c), and of the columns, "width" (*b, 1, w, c)."""
        g_h, g_w = ela_weights(self._map(x), self._localize_h, self._localize_w)
        return {"height": g_h, "width": g_w}

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return ela(self._map(x), self._localize_h, self._localize_w)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        height, width = self.conv_h.cost(h), self.conv_w.cost(w)
        return Cost(height.parameters + width.parameters + 4 * c, height.multiply_adds + width.multiply_adds)

    def _localize_h(self, z):
        return self._activate(self.norm_h(self.conv_h(z)))

    def _localize_w(self, z):
        return self._activate(self.norm_w(self.conv_w(z)))

    def _activate(self, scores):
        return scores if self.activation is None else self.activation(scores)

    def _map(self, x):
        check_map(x, self.channels)
        return promote(x, self.conv_h)
