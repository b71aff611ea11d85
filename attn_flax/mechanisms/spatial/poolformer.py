"""Pooling as a mixer of tokens.

    y_i = mean_{j ∈ N(i)} x_j - x_i

with N(i) the K×K positions around i as far as they lie in the map. There is nothing to learn and nothing depends on
the values: every position takes the mean of its surroundings, and leaves itself out since a block adds the input back.

Differs from the paper: nothing.

Errors elsewhere: an average that counts the zeros beyond the border, as PyTorch's does unless told otherwise, darkens
the rim of the map.

Source: Yu, Luo, Zhou, Si, Zhou, Wang, Feng and Yan, "MetaFormer Is Actually What You Need for Vision" (2022),
arXiv:2111.11418; compared with timm's code and with copies of the authors'.
"""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_map, promote


def poolformer_weights(size: tuple[int, int], pool_size: int) -> Float[Array, "h w k k"]:
    """1/|N(i)| for the offsets of a window around position i that lie in a map of this size, and 0 for the others.

    >>> poolformer_weights((1, 3), 3)[0, 0]
    Array([[0. , 0. , 0. ],
           [0. , 0.5, 0.5],
           [0. , 0. , 0. ]], dtype=float32)
    """
    offsets = jnp.arange(pool_size) - pool_size // 2
    rows, columns = ((jnp.arange(s)[:, None] + offsets >= 0) & (jnp.arange(s)[:, None] + offsets < s) for s in size)
    inside = rows[:, None, :, None] & columns[None, :, None, :]
    return inside / inside.sum((-2, -1), keepdims=True)


def poolformer(x: Float[Array, "*b h w c"], pool_size: int) -> Float[Array, "*b h w c"]:
    """y, averaged in float32 or wider.

    Args:
        x: maps.
        pool_size: K, odd.

    >>> poolformer(jnp.array([[[1.0], [2.0], [6.0]]]), 3).squeeze()
    Array([ 0.5,  1. , -2. ], dtype=float32)
    """
    wide = x.astype(ops.at_least_float32(x.dtype))
    means = nnx.avg_pool(wide, (pool_size, pool_size), padding="SAME", count_include_pad=False)
    return (means - wide).astype(x.dtype)


class Pooling(nnx.Module):
    """Pooling of maps of any size.

    Parameters: none. Multiply-adds: none.

    Args:
        channels: c.
        pool_size: K, odd.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: taken as by all mechanisms; nothing is learned here.
        rngs: likewise.

    Raises:
        InputError: a size below 1 or an even window at construction; an input that is no map of these channels at the
            call.
    """

    def __init__(
        self,
        channels: int,
        *,
        pool_size: int = 3,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(channels >= 1, f"channels must be at least 1, got {channels}.")
        check(pool_size >= 1 and pool_size % 2 == 1, f"pool_size must be odd and positive, got {pool_size}.")
        self.channels = channels
        self.pool_size = pool_size
        self.dtype = dtype
        self.param_dtype = param_dtype

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w k k"]:
        """1/|N(i)| in the window of each position, the same for all maps of a size."""
        x = self._map(x)
        weights = poolformer_weights(x.shape[-3:-1], self.pool_size).astype(x.dtype)
        return jnp.broadcast_to(weights, (*x.shape[:-3], *weights.shape))

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return poolformer(self._map(x), self.pool_size)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        return Cost(0, 0)

    def _map(self, x):
        check_map(x, self.channels)
        return promote(x, self)
