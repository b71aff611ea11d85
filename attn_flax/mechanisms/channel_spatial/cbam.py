"""Convolutional block attention.

    s = sigmoid(W_2 relu(W_1 mean_hw(x) + b_1) + b_2 + W_2 relu(W_1 max_hw(x) + b_1) + b_2)
    x' = x · s
    m = sigmoid(BN(k * [mean_c(x'), max_c(x')]))
    y = x' · m

with W_1 from c to c/r features and W_2 back, the same for mean and maximum, and k a k×k convolution from two channels
to one. A number in (0, 1) for each channel, from its mean and its maximum over the map, and then one for each position,
from the mean and the maximum over the scaled channels around it: first what to look at, then where.

Differs from the paper: the biases b_1 and b_2 and the batch norm BN are of the authors' code and not in the paper's
equations; `use_bias=False` leaves the biases out. The order of mean and maximum is the paper's, the authors' code has
the other one. `light` is no form of the paper but timm's: half of mean and maximum together in the place of both, s by
one pass of the layers and k from one channel.

Errors elsewhere: a collection computes the maximum over the map and then uses the mean twice, with layers that are not
shared; another has a 49×49 window and adds x to the result. timm has no biases, and its light form ignores another gate
than the sigmoid.

Source: Woo, Park, Lee and Kweon, "CBAM: Convolutional Block Attention Module" (2018), arXiv:1807.06521; confirmed with
the authors' code.
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
from attn_flax.mechanisms.layers import BatchNorm, Perceptron
from attn_flax.mechanisms.layout import check_map, hidden_width, promote


def cbam_channel_weights(x: Float[Array, "*b h w c"], excite: Callable, *, light: bool = False) -> Float[Array, "*b c"]:
    """s = sigmoid(excite(mean_hw(x)) + excite(max_hw(x))), in (0, 1), one for each channel.

    Args:
        x: maps.
        excite: z -> W_2 relu(W_1 z + b_1) + b_2, any callable on (*b, c).
        light: s = sigmoid(excite((mean_hw(x) + max_hw(x)) / 2)) instead.
    """
    mean, maximum = ops.average(x), x.max((-3, -2))
    logits = excite((mean + maximum) / 2) if light else excite(mean) + excite(maximum)
    return jax.nn.sigmoid(logits)


def cbam_spatial_weights(
    x: Float[Array, "*b h w c"], convolve: Callable, *, light: bool = False
) -> Float[Array, "*b h w"]:
    """m = sigmoid(convolve([mean_c(x), max_c(x)])), in (0, 1), one for each position.

    Args:
        x: maps, here those scaled by channel.
        convolve: the convolution and its norm, any callable from (*b, h, w, 2) to (*b, h, w, 1).
        light: m = sigmoid(convolve((mean_c(x) + max_c(x)) / 2)) instead, from (*b, h, w, 1).
    """
    mean = x.mean(-1, keepdims=True, dtype=ops.at_least_float32(x.dtype)).astype(x.dtype)
    maximum = x.max(-1, keepdims=True)
    pooled = (mean + maximum) / 2 if light else jnp.concatenate([mean, maximum], -1)
    return jax.nn.sigmoid(convolve(pooled)).squeeze(-1)


def cbam(
    x: Float[Array, "*b h w c"], excite: Callable, convolve: Callable, *, light: bool = False
) -> Float[Array, "*b h w c"]:
    """y = x' · m with x' = x · s, with the s of `cbam_channel_weights` and the m of `cbam_spatial_weights`.

    >>> cbam(jnp.array([[[4.0, -8.0]]]), lambda z: 0 * z, lambda pooled: 0 * pooled[..., :1])
    Array([[[ 1., -2.]]], dtype=float32)
    """
    scaled = x * cbam_channel_weights(x, excite, light=light)[..., None, None, :]
    return scaled * cbam_spatial_weights(scaled, convolve, light=light)[..., None]


class Cbam(nnx.Module):
    """Convolutional block attention of maps of any size.

    Parameters: 2c·hidden, hidden + c with biases, and 2k² + 2; k² + 2 in the light form. Multiply-adds: 4c·hidden and
    2k² for each position, half of both in the light form.

    Args:
        channels: c.
        reduction: r.
        hidden: the features between the layers, by default ⌊c/r⌋ and at least 1.
        kernel_size: k, odd.
        use_bias: whether the layers have biases, as the authors' have and timm's have not.
        light: whether mean and maximum are averaged and not both used, as in timm's light form.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1 or an even kernel_size at construction; an input that is no map of these channels at
            the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        hidden: int | None = None,
        kernel_size: int = 7,
        use_bias: bool = True,
        light: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        hidden = hidden_width(channels, reduction, hidden)
        check(kernel_size >= 1 and kernel_size % 2 == 1, f"kernel_size must be odd and positive, got {kernel_size}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.excite = Perceptron(channels, hidden, use_bias=use_bias, **layer)
        self.convolve = nnx.Conv(1 if light else 2, 1, (kernel_size, kernel_size), use_bias=False, **layer)
        self.norm = BatchNorm(1, **layer)
        self.light = light

    def attention_map(self, x: Float[Array, "*b h w c"]) -> dict[str, Array]:
        """s by channel, "channel" (*b, c), and m by position, "spatial" (*b, h, w)."""
        x = self._map(x)
        channel = cbam_channel_weights(x, self.excite, light=self.light)
        spatial = cbam_spatial_weights(x * channel[..., None, None, :], self._convolve, light=self.light)
        return {"channel": channel, "spatial": spatial}

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return cbam(self._map(x), self.excite, self._convolve, light=self.light)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, _ = shape
        k, _ = self.convolve.kernel_size
        pooled = 1 if self.light else 2
        layers = self.excite.cost(pooled)
        return Cost(layers.parameters + pooled * k * k + 2, layers.multiply_adds + h * w * pooled * k * k)

    def _convolve(self, pooled):
        return self.norm(self.convolve(pooled))

    def _map(self, x):
        check_map(x, self.excite.reduce.in_features)
        return promote(x, self.excite.reduce)
