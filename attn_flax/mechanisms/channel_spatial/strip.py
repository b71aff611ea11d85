"""Strip attention.

    z_h(i) = mean_j x(i, j)          z_w(j) = mean_i x(i, j)
    y(i, j) = x(i, j) · sigmoid((F_h z_h)(i) + (F_w z_w)(j))

with F_h and F_w depthwise convolutions of k taps along the height and the width. The means of the rows and columns near
a position are added to one score for each channel: strip pooling's gate without its dense layers.

Differs from the paper: there is none of its own. It is timm's reduction of strip pooling, whose convolutions mix the
channels and are followed by normalisation, a ReLU and a further layer.

Source: timm 1.0.31, StripAttn (2025), with which it is compared; after Hou, Zhang, Cheng and Feng, "Strip Pooling:
Rethinking Spatial Pooling for Scene Parsing" (2020), arXiv:2003.13328.
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
from attn_flax.mechanisms.layers import DepthwiseConv
from attn_flax.mechanisms.layout import check_map, promote


def strip_weights(x: Float[Array, "*b h w c"], conv_h: Callable, conv_w: Callable) -> Float[Array, "*b h w c"]:
    """sigmoid(F_h z_h + F_w z_w), in (0, 1), for every position and channel.

    Args:
        x: maps.
        conv_h: F_h, any callable on (*b, h, 1, c).
        conv_w: F_w, on (*b, 1, w, c).
    """
    z_h, z_w = ops.strip_averages(x)
    return jax.nn.sigmoid(conv_h(z_h) + conv_w(z_w))


def strip(x: Float[Array, "*b h w c"], conv_h: Callable, conv_w: Callable) -> Float[Array, "*b h w c"]:
    """y, x times the weights of `strip_weights`.

    >>> strip(jnp.array([[[2.0], [-4.0]]]), lambda z: 0 * z, lambda z: 0 * z).squeeze()
    Array([ 1., -2.], dtype=float32)
    """
    return x * strip_weights(x, conv_h, conv_w)


class StripAttention(nnx.Module):
    """Strip attention for maps of any size.

    Parameters: 2k·c, and 2c with biases. Multiply-adds: (h + w)·k·c.

    Args:
        channels: c.
        kernel_size: k, odd.
        use_bias: whether F_h and F_w have biases.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1 or an even kernel at construction; an input that is no map of these channels at the
            call.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 3,
        use_bias: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(channels >= 1, f"channels must be at least 1, got {channels}.")
        check(kernel_size >= 1 and kernel_size % 2 == 1, f"kernel_size must be odd and positive, got {kernel_size}.")
        layer = {"use_bias": use_bias, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.conv_h = DepthwiseConv(channels, (kernel_size, 1), **layer)
        self.conv_w = DepthwiseConv(channels, (1, kernel_size), **layer)
        self.channels = channels

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """The weights, in the layout of x."""
        return strip_weights(self._map(x), self.conv_h, self.conv_w)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return strip(self._map(x), self.conv_h, self.conv_w)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, _ = shape
        height, width = self.conv_h.cost(h), self.conv_w.cost(w)
        return Cost(height.parameters + width.parameters, height.multiply_adds + width.multiply_adds)

    def _map(self, x):
        check_map(x, self.channels)
        return promote(x, self.conv_h)
