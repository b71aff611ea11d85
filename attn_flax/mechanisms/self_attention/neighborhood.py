"""Neighbourhood attention.

    q = W_Q x + b_Q,   k_j = W_K x_j + b_K,   v_j = W_V x_j + b_V
    α_ij = softmax_{j ∈ N(i)}(q_iᵀ k_j / √d + B_{j-i})           for each head
    y_i = W_O [Σ_j α_ij v_j]_heads + b_O

where N(i) is the window of K×K positions nearest to i: around it inside the map, moved inwards at the borders, so that
all positions see as many. B is a learned bias for each offset and head. With a dilation δ an axis is divided into the δ
classes of positions i mod δ, each of which is an axis of its own: the same window reaches δ times as far.

Differs from the paper: nothing; B can be left out. A map of fewer than K·δ positions along an axis is refused, where
the authors' networks fill it up with zeros.

Errors elsewhere: the modules of NATTEN, the authors' library, have no longer a B, which their networks need.

Source: Hassani, Walton, Li, Li and Shi, "Neighborhood Attention Transformer" (2022), arXiv:2204.07143; dilated: Hassani
and Shi, "Dilated Neighborhood Attention Transformer" (2022), arXiv:2209.15001; stated from the papers' equations.
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_heads, check_map, join_heads, promote, split_heads


def neighborhood_weights(
    x: Float[Array, "*b h w c"],
    qkv: Callable,
    table: Float[Array, "offsets k"] | None = None,
    *,
    num_heads: int,
    kernel_size: int,
    dilation: int = 1,
) -> Float[Array, "*b h w k m"]:
    """α of every position and head over its window, in row-major order.

    Args:
        x: maps.
        qkv: x -> [q, k, v], any callable from (*b, h, w, c) to their features side by side, each head by head.
        table: B, the offsets from query to key in row-major order, from 1 - K to K - 1 steps of the dilation along each
            axis; none if there is no bias.
        num_heads: k.
        kernel_size: K, odd.
        dilation: δ.
    """
    q, k, _ = split_heads(qkv(x), 3, num_heads)
    return ops.neighborhood_attention_weights(q, k, window=(kernel_size,) * 2, dilation=(dilation,) * 2, table=table)


def neighborhood(
    x: Float[Array, "*b h w c"],
    qkv: Callable,
    project: Callable,
    table: Float[Array, "offsets k"] | None = None,
    *,
    num_heads: int,
    kernel_size: int,
    dilation: int = 1,
) -> Float[Array, "*b h w e"]:
    """y_i = W_O [Σ_j α_ij v_j]_heads + b_O, with the α of `neighborhood_weights`; `project` is o -> W_O o + b_O.

    >>> x = jnp.arange(15.0).reshape(3, 5, 1)
    >>> unasked = lambda x: jnp.concatenate([0 * x, x, x], -1)
    >>> neighborhood(x, unasked, lambda o: o, num_heads=1, kernel_size=3)[0].squeeze()  # the means of the windows
    Array([6., 6., 7., 8., 8.], dtype=float32)
    """
    window, steps = (kernel_size,) * 2, (dilation,) * 2
    o = ops.neighborhood_attention(*split_heads(qkv(x), 3, num_heads), window=window, dilation=steps, table=table)
    return project(join_heads(o))


class NeighborhoodAttention(nnx.Module):
    """Neighbourhood attention over maps of at least K·δ positions along each axis.

    Parameters: 4c² + 4c, and (2K - 1)²·k with `rel_pos_bias`, with k heads. Multiply-adds, of n positions: 4n·c² +
    2n·K²·c for what is seen; dense products over tiles take some more that they mask.

    Args:
        channels: c.
        num_heads: k, which must divide c.
        kernel_size: K, odd.
        dilation: δ.
        rel_pos_bias: whether scores have a bias for the offset.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: sizes below 1, heads that do not divide the channels or an even kernel, at construction; an input
            that is no map of these channels, or smaller than K·δ, at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 8,
        kernel_size: int = 7,
        dilation: int = 1,
        rel_pos_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_heads(channels, num_heads)
        check(kernel_size >= 1 and kernel_size % 2 == 1, f"kernel_size must be odd and positive, got {kernel_size}.")
        check(dilation >= 1, f"dilation must be at least 1, got {dilation}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.qkv = nnx.Linear(channels, 3 * channels, **layer)
        self.proj = nnx.Linear(channels, channels, **layer)
        initialize = nnx.initializers.truncated_normal(0.02)
        offsets = (2 * kernel_size - 1) ** 2
        table = nnx.Param(initialize(rngs.params(), (offsets, num_heads), param_dtype)) if rel_pos_bias else None
        self.table = nnx.data(table)
        self.num_heads = num_heads
        self.kernel_size = kernel_size
        self.dilation = dilation

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w k m"]:
        """α of every position and head over its window of m = K² positions, in row-major order."""
        return neighborhood_weights(self._map(x), self.qkv, self._table(), **self._sizes())

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return neighborhood(self._map(x), self.qkv, self.proj, self._table(), **self._sizes())

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        biases = 4 * c + (0 if self.table is None else self.table.size)
        return Cost(4 * c * c + biases, h * w * (4 * c * c + 2 * self.kernel_size**2 * c))

    def _table(self):
        return None if self.table is None else self.table[...]

    def _sizes(self):
        return {"num_heads": self.num_heads, "kernel_size": self.kernel_size, "dilation": self.dilation}

    def _map(self, x):
        check_map(x, self.qkv.in_features)
        return promote(x, self.qkv)
