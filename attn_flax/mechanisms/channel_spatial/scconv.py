"""Self-calibrated convolution.

    [x_1, x_2] = x
    A = sigmoid(x_1 + up(f_2(mean_r(x_1))))
    y = [f_4(A ∘ f_3(x_1)), f_1(x_2)]

with x_1 and x_2 halves of the channels, f_k 3×3 convolutions with a batch norm in the place of a bias, mean_r the means
of squares of r×r, and up the bilinear interpolation back to the size of x. One half of a convolution is calibrated:
what f_3 finds at a position is gated by what f_2 sees of its surroundings at a coarser scale.

Differs from the paper: the batch norms are those of the authors' code, which the paper's equations leave out. That code
takes the nearest of the coarse positions (`interpolation="nearest"`), and its module of this name is the calibrated
path alone, of all channels (`split=False`); a relu follows each of its two paths. Rows and columns that fill no square
are dropped before the interpolation, as in that code; a map smaller than a square is averaged whole.

Errors elsewhere: ports of the authors' module leave the split out without saying so, and fail on maps smaller than a
square.

Source: Liu, Hou, Cheng, Wang and Feng, "Improving Convolutional Networks with Self-Calibrated Convolutions", CVPR
(2020); compared with the authors' code, the split and the interpolation with descriptions of the paper.
"""

from collections.abc import Callable
from typing import Literal, get_args

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

Interpolation = Literal["bilinear", "nearest"]


def block_average(x: Float[Array, "*b h w c"], size: int) -> Float[Array, "*b p q c"]:
    """The means of squares of this size side by side, in float32 or wider; one longer than the map is cut to it.

    >>> block_average(jnp.arange(5.0).reshape(1, 5, 1), 2).squeeze()
    Array([0.5, 2.5], dtype=float32)
    """
    window = tuple(min(size, s) for s in x.shape[-3:-1])
    return nnx.avg_pool(x.astype(ops.at_least_float32(x.dtype)), window, window).astype(x.dtype)


def scconv_weights(
    x: Float[Array, "*b h w c"], coarse: Callable, *, pooling: int, stretch: Callable = ops.resize_bilinear
) -> Float[Array, "*b h w c"]:
    """A = sigmoid(x + stretch(coarse(mean_r(x)))), in (0, 1), one for each position and channel.

    Args:
        x: maps, in the paper x_1.
        coarse: f_2, any callable on maps.
        pooling: r.
        stretch: up, from a map and a size to a map.
    """
    return jax.nn.sigmoid(x + stretch(coarse(block_average(x, pooling)), x.shape[-3:-1]))


def scconv(
    x: Float[Array, "*b h w c"],
    coarse: Callable,
    fine: Callable,
    out: Callable,
    *,
    pooling: int,
    stretch: Callable = ops.resize_bilinear,
) -> Float[Array, "*b h w c"]:
    """out(A ∘ fine(x)), with the A of `scconv_weights`.

    Args:
        x: maps, in the paper x_1.
        coarse: f_2, any callable on maps.
        fine: f_3, likewise.
        out: f_4, likewise.
        pooling: r.
        stretch: up, from a map and a size to a map.

    >>> scconv(jnp.array([[[2.0, -4.0]]]), lambda x: -x, lambda x: x, lambda x: x, pooling=4)
    Array([[[ 1., -2.]]], dtype=float32)
    """
    return out(scconv_weights(x, coarse, pooling=pooling, stretch=stretch) * fine(x))


class NormedConv(nnx.Module):
    """A 3×3 convolution without bias and its batch norm.

    Parameters: 9c² + 2c.
    """

    def __init__(self, channels: int, *, dtype: DTypeLike | None, param_dtype: DTypeLike, rngs: nnx.Rngs):
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.conv = nnx.Conv(channels, channels, (3, 3), use_bias=False, **layer)
        self.norm = BatchNorm(channels, **layer)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """The map of the same size."""
        return self.norm(self.conv(x))


class SelfCalibratedConv(nnx.Module):
    """Self-calibrated convolution of maps of any size.

    Parameters: 9c² + 4c, without `split` 27c² + 6c. Multiply-adds: with d = c/2 and four convolutions, without `split`
    d = c and three, 9d² for each of them and each position, of the coarse map for f_2.

    Args:
        channels: c, even if split.
        pooling: r.
        split: whether the calibrated path has half the channels and a plain convolution the other half.
        interpolation: "bilinear" or "nearest".
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1, an unknown interpolation, or odd channels to be split, at construction; an input
            that is no map of these channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        pooling: int = 4,
        split: bool = True,
        interpolation: Interpolation = "bilinear",
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(channels >= 1, f"channels must be at least 1, got {channels}.")
        check(not split or channels % 2 == 0, f"channels must be even to be split, got {channels}.")
        check(pooling >= 1, f"pooling must be at least 1, got {pooling}.")
        check(
            interpolation in get_args(Interpolation),
            f"interpolation must be 'bilinear' or 'nearest', got {interpolation!r}.",
        )
        width = channels // 2 if split else channels
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.coarse = NormedConv(width, **layer)
        self.fine = NormedConv(width, **layer)
        self.out = NormedConv(width, **layer)
        self.plain = nnx.data(NormedConv(width, **layer) if split else None)
        self.channels = channels
        self.pooling = pooling
        self.interpolation = interpolation

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w d"]:
        """A, one for each position and channel of the calibrated path."""
        x, _ = self._paths(x)
        return scconv_weights(x, self.coarse, pooling=self.pooling, stretch=self._stretch)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        x, rest = self._paths(x)
        y = scconv(x, self.coarse, self.fine, self.out, pooling=self.pooling, stretch=self._stretch)
        return y if self.plain is None else jnp.concatenate([y, self.plain(rest)], axis=-1)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        fine, width = (2, c) if self.plain is None else (3, c // 2)
        coarse = (h // min(h, self.pooling)) * (w // min(w, self.pooling))
        taps = 9 * width**2
        return Cost((fine + 1) * (taps + 2 * width), (fine * h * w + coarse) * taps)

    @property
    def _stretch(self):
        return {"bilinear": ops.resize_bilinear, "nearest": ops.resize_nearest}[self.interpolation]

    def _paths(self, x):
        check_map(x, self.channels)
        x = promote(x, self.fine.conv)
        return (x, None) if self.plain is None else jnp.split(x, 2, axis=-1)
