"""Coordinate attention.

    z_h(i) = mean_j x(i, j)          z_w(j) = mean_i x(i, j)
    [f_h, f_w] = h_swish(BN(F_1 [z_h, z_w]))
    g_h = sigmoid(F_h f_h)           g_w = sigmoid(F_w f_w)
    y(i, j) = x(i, j) · g_h(i) · g_w(j)

with F_1 from c to m features, F_h and F_w back. A gate for every row and one for every column, each by channel: what a
channel is weighted by depends on where a position lies, at the cost of h + w positions instead of h·w. Rows and columns
share F_1 and the statistics of the batch normalisation, which is over both of them.

Differs from the paper: nothing; m = max(8, ⌊c/r⌋), the biases and h_swish are those of the authors' code. timm has no
biases and another width, reached by `use_bias` and `hidden`.

Errors elsewhere: timm's default width, 2c/(3·16) rounded to a multiple of 8, is not the paper's.

Source: Hou, Zhou and Feng, "Coordinate Attention for Efficient Mobile Network Design" (2021), arXiv:2103.02907;
confirmed with the authors' code.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import BatchNorm
from attn_flax.mechanisms.layout import check_map, hidden_width, promote


def coord_weights(
    x: Float[Array, "*b h w c"], embed: Callable, expand_h: Callable, expand_w: Callable
) -> tuple[Float[Array, "*b h 1 c"], Float[Array, "*b 1 w c"]]:
    """g_h and g_w, in (0, 1), for every row and every column by channel.

    Args:
        x: maps.
        embed: z -> h_swish(BN(F_1 z)), any callable from (*b, h + w, 1, c) to (*b, h + w, 1, m).
        expand_h: F_h, from m features to c.
        expand_w: F_w.
    """
    z_h, z_w = ops.strip_averages(x)
    f = embed(jnp.concatenate([z_h, z_w.swapaxes(-3, -2)], axis=-3))
    f_h, f_w = jnp.split(f, [x.shape[-3]], axis=-3)
    scores = expand_h(f_h), expand_w(f_w.swapaxes(-3, -2))
    g_h, g_w = (jax.nn.sigmoid(score).astype(x.dtype) for score in scores)
    return g_h, g_w


def coord(
    x: Float[Array, "*b h w c"], embed: Callable, expand_h: Callable, expand_w: Callable
) -> Float[Array, "*b h w c"]:
    """y = x · g_h · g_w, with the gates of `coord_weights`.

    >>> coord(jnp.array([[[2.0], [-4.0]]]), lambda z: z, lambda f: 0 * f, lambda f: 0 * f).squeeze()
    Array([ 0.5, -1. ], dtype=float32)
    """
    g_h, g_w = coord_weights(x, embed, expand_h, expand_w)
    return x * g_h * g_w


class CoordinateAttention(nnx.Module):
    """Coordinate attention for maps of any size.

    Parameters: 3c·m + 2m, and m + 2c with biases. Multiply-adds: 2(h + w)·c·m.

    Args:
        channels: c.
        reduction: r.
        hidden: m, by default ⌊c/r⌋ and at least 8.
        use_bias: whether F_1, F_h and F_w have biases.
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
        reduction: int = 32,
        hidden: int | None = None,
        use_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        hidden = hidden_width(channels, reduction, hidden, at_least=8)
        types = {"dtype": dtype, "param_dtype": param_dtype}
        self.reduce = nnx.Linear(channels, hidden, use_bias=use_bias, **types, rngs=rngs)
        self.norm = BatchNorm(hidden, **types, rngs=rngs)
        self.expand_h = nnx.Linear(hidden, channels, use_bias=use_bias, **types, rngs=rngs)
        self.expand_w = nnx.Linear(hidden, channels, use_bias=use_bias, **types, rngs=rngs)

    def attention_map(self, x: Float[Array, "*b h w c"]) -> dict[str, Array]:
        """The gates of the rows, "height" (*b, h, 1, c), and of the columns, "width" (*b, 1, w, c)."""
        g_h, g_w = coord_weights(self._map(x), self._embed, self.expand_h, self.expand_w)
        return {"height": g_h, "width": g_w}

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return coord(self._map(x), self._embed, self.expand_h, self.expand_w)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        m = self.reduce.out_features
        biases = m + 2 * c if self.reduce.use_bias else 0
        return Cost(3 * c * m + 2 * m + biases, 2 * (h + w) * c * m)

    def _embed(self, z):
        return jax.nn.hard_swish(self.norm(self.reduce(z)))

    def _map(self, x):
        check_map(x, self.reduce.in_features)
        return promote(x, self.reduce)
