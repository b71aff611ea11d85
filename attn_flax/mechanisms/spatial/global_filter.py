"""Global filter.

    X = F(x)
    y = F⁻¹(K ∘ X)

with F the discrete Fourier transform of each channel over the positions, and K a complex number for each frequency and
channel, of which the half suffices that determines a real map. Every channel is convolved circularly with a kernel as
large as the map, at the cost of two fast transforms.

Differs from the paper: nothing. A filter belongs to one size of maps, other sizes are refused; the authors stretch a
trained K when they change the size.

Errors elsewhere: External-Attention-pytorch builds the size of one network into its filters; around them it has a
softmax inside its classifier and an embedding that nothing uses.

Source: Rao, Zhao, Zhu, Lu and Zhou, "Global Filter Networks for Image Classification" (2021), arXiv:2107.00645;
compared with the authors' code.
"""

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_map, promote

POSITIONS = (-3, -2)


def global_filter_kernel(k: Float[Array, "h half c 2"], width: int) -> Float[Array, "h w c"]:
    """F⁻¹(K), with which y is the circular convolution of x, in float32 or wider.

    Args:
        k: the real and imaginary parts of K, at the ⌊w/2⌋+1 frequencies that `jnp.fft.rfft2` gives.
        width: w, which they leave open between an even number and the next.
    """
    return _inverse(_complex(k), (k.shape[0], width))


def global_filter(x: Float[Array, "*b h w c"], k: Float[Array, "h half c 2"]) -> Float[Array, "*b h w c"]:
    """y, transformed in float32 or wider; no scaling of F matters.

    Args:
        x: maps of the size that K is for.
        k: the real and imaginary parts of K, at the ⌊w/2⌋+1 frequencies that `jnp.fft.rfft2` gives.

    >>> k = jnp.zeros((1, 2, 1, 2)).at[:, 0, :, 0].set(1.0)  # the mean alone passes
    >>> global_filter(jnp.array([[[1.0], [2.0], [6.0]]]), k).squeeze()
    Array([3., 3., 3.], dtype=float32)
    """
    wide = x.astype(ops.at_least_float32(x.dtype))
    return _inverse(_complex(k) * jnp.fft.rfft2(wide, axes=POSITIONS), x.shape[-3:-1]).astype(x.dtype)


class GlobalFilter(nnx.Module):
    """A global filter of maps of one size.

    Parameters: 2·h·(⌊w/2⌋+1)·c. Multiply-adds: none, since the transforms are no products of matrices.

    Args:
        channels: c.
        size: (h, w) of the maps.
        dtype: the type of the result; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1 at construction; an input that is no map of this size and these channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        size: tuple[int, int],
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(channels >= 1, f"channels must be at least 1, got {channels}.")
        check(len(size) == 2 and min(size) >= 1, f"size must be two numbers of at least 1, got {size}.")
        h, w = size
        initialize = nnx.initializers.normal(0.02)
        self.filter = nnx.Param(initialize(rngs.params(), (h, w // 2 + 1, channels, 2), param_dtype))
        self.size = (h, w)
        self.channels = channels
        self.dtype = dtype
        self.param_dtype = param_dtype

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """F⁻¹(K), the circular kernel, the same for all maps."""
        x = self._map(x)
        return jnp.broadcast_to(global_filter_kernel(self.filter[...], self.size[1]).astype(x.dtype), x.shape)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return global_filter(self._map(x), self.filter[...])

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        return Cost(2 * h * (w // 2 + 1) * c, 0)

    def _map(self, x):
        check_map(x, self.channels)
        check(x.shape[-3:-1] == self.size, f"x must be a map of the filter's size {self.size}, got shape {x.shape}.")
        return promote(x, self)


def _complex(k):
    k = k.astype(ops.at_least_float32(k.dtype))
    return lax.complex(k[..., 0], k[..., 1])


def _inverse(spectrum, size):
    return jnp.fft.irfft2(spectrum, size, axes=POSITIONS)
