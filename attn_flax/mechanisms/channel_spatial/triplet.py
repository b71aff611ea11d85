"""Triplet attention.

    Z_a(x) = [max_a x, mean_a x]                     over one axis a of height, width and channels
    g_a = sigmoid(BN_a(F_a Z_a(x)))                  a map over the two other axes
    y = x · (g_channel + g_width + g_height) / 3

with F_a a k×k convolution from 2 channels to 1, without a bias. Each axis in turn plays the channels' part: the usual
spatial gate over height and width, and two more over a spatial axis and the channels, so that channels interact with
positions without any reduction of features.

Differs from the paper: nothing; the momentum of the batch normalisations, 0.99 of the old statistics, is that of the
authors' code. The kernels of the two rotated gates are laid out with the spatial axis first and the channels second,
whichever way the authors' code turns the map.

Source: Misra, Nalamada, Arasanipalai and Hou, "Rotate to Attend: Convolutional Triplet Attention Module" (2021),
arXiv:2010.03045; confirmed with the authors' code.
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


def z_pool(x: Float[Array, "*b h w c"], axis: int) -> Float[Array, "*b p q 2"]:
    """[max x, mean x] over one of the last three axes; the mean accumulated in float32 or wider.

    Raises:
        InputError: a map without a position.

    >>> z_pool(jnp.array([[[1.0, 3.0, 8.0]]]), -1)
    Array([[[8., 4.]]], dtype=float32)
    """
    check(min(x.shape[-3:]) >= 1, f"x must be a map of at least 1×1, got shape {x.shape}.")
    mean = x.mean(axis, dtype=ops.at_least_float32(x.dtype)).astype(x.dtype)
    return jnp.stack([x.max(axis), mean], axis=-1)


def triplet_weights(
    x: Float[Array, "*b h w c"], score_hw: Callable, score_hc: Callable, score_wc: Callable
) -> tuple[Float[Array, "*b h w 1"], Float[Array, "*b h 1 c"], Float[Array, "*b 1 w c"]]:
    """g_channel, g_width and g_height, in (0, 1), each over the two axes that it does not pool.

    Args:
        x: maps.
        score_hw: z -> BN(F z) on what is pooled over the channels, from (*b, h, w, 2) to (*b, h, w, 1).
        score_hc: likewise over the width, from (*b, h, c, 2) to (*b, h, c, 1).
        score_wc: likewise over the height, from (*b, w, c, 2) to (*b, w, c, 1).
    """

    def gate(axis, score):
        g = jax.nn.sigmoid(score(z_pool(x, axis))).squeeze(-1)
        return jnp.expand_dims(g, axis).astype(x.dtype)

    return gate(-1, score_hw), gate(-2, score_hc), gate(-3, score_wc)


def triplet(
    x: Float[Array, "*b h w c"], score_hw: Callable, score_hc: Callable, score_wc: Callable
) -> Float[Array, "*b h w c"]:
    """y, x times the mean of the gates of `triplet_weights`.

    >>> mean = lambda z: z[..., 1:]
    >>> triplet(jnp.array([[[2.0, -4.0]]]), mean, mean, mean).round(2)
    Array([[[ 1.35, -0.41]]], dtype=float32)
    """
    return x * sum(triplet_weights(x, score_hw, score_hc, score_wc)) / 3


class TripletAttention(nnx.Module):
    """Triplet attention for maps of any size.

    Parameters: 3(2k² + 2), whatever the channels. Multiply-adds: 2k²·(h·w + h·c + w·c).

    Args:
        channels: c.
        kernel_size: k, odd.
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
        kernel_size: int = 7,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(channels >= 1, f"channels must be at least 1, got {channels}.")
        check(kernel_size >= 1 and kernel_size % 2 == 1, f"kernel_size must be odd and positive, got {kernel_size}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.height_width = _Score(kernel_size, **layer)
        self.height_channel = _Score(kernel_size, **layer)
        self.width_channel = _Score(kernel_size, **layer)
        self.channels = channels
        self.kernel_size = kernel_size

    def attention_map(self, x: Float[Array, "*b h w c"]) -> dict[str, Array]:
        """The gates: "height_width" (*b, h, w, 1), "height_channel" (*b, h, 1, c), "width_channel" (*b, 1, w, c)."""
        weights = triplet_weights(self._map(x), self.height_width, self.height_channel, self.width_channel)
        return dict(zip(("height_width", "height_channel", "width_channel"), weights, strict=True))

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return triplet(self._map(x), self.height_width, self.height_channel, self.width_channel)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        taps = 2 * self.kernel_size**2
        return Cost(3 * (taps + 2), taps * (h * w + h * c + w * c))

    def _map(self, x):
        check_map(x, self.channels)
        return promote(x, self.height_width.conv)


class _Score(nnx.Module):
    """BN(F z), from two channels to one."""

    def __init__(self, kernel_size, **layer):
        self.conv = nnx.Conv(2, 1, (kernel_size, kernel_size), use_bias=False, **layer)
        self.norm = BatchNorm(1, momentum=0.99, **layer)

    def __call__(self, z):
        return self.norm(self.conv(z))
