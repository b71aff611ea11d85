"""Block attention and grid attention.

    q, k, v = W x + b                                       in heads of d features
    α_ij = softmax_j(q_iᵀ k_j / √d + w_{p_i - p_j})         for each group and head
    y_i = W_O [Σ_j α_ij v_j]_heads + b_O

where i and j are positions of one group of M×M, p_i and p_j their rows and columns in it, and w a table of (2M - 1)²
learned numbers for each head. The groups of block attention are windows, each of neighbours; those of grid attention
are the points of a grid that is spread over the whole map, at h/M rows and w/M columns from each other. MaxViT has one
after the other, each in a block of its own with norm, residual and perceptron: between them any position reaches any
other, at a cost that grows with the map and not with its square.

Differs from the paper: nothing. The table runs over the offsets from key to query, as timm's; in the authors' code, and
the numbers that they published, from query to key. M must divide the map, as there.

Source: Tu, Talebi, Zhang, Yang, Milanfar, Bovik and Li, "MaxViT: Multi-Axis Vision Transformer" (2022),
arXiv:2204.01697. Confirmed with timm's code, whose features lie head by head, [q, k, v] in each, as here.
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_map, count_heads, promote
from attn_flax.mechanisms.self_attention.coatnet_rel import coatnet_rel, coatnet_rel_weights
from attn_flax.mechanisms.windows import create_table

Partition = Literal["window", "grid"]
PARTITIONS = {
    "window": (ops.window_partition, ops.window_merge),
    "grid": (ops.grid_partition, ops.grid_merge),
}


def grid_attention_weights(
    x: Float[Array, "*b h w c"],
    qkv: Callable,
    table: Float[Array, "t k"],
    *,
    window: int,
    partition: Partition = "grid",
) -> Float[Array, "*b groups k n n"]:
    """α of every group and head, a row for each token that asks and a column for each that is asked.

    Args:
        x: maps.
        qkv: x -> [q, k, v]_1, [q, k, v]_2, …, any callable from (*b, n, c) to the features of head after head.
        table: w, a row for each of the (2M - 1)² offsets, as `ops.relative_position_bias` takes it.
        window: M. Groups, and the tokens in one, are counted in row-major order.
        partition: "window" for block attention, "grid" for grid attention.

    Raises:
        InputError: M does not divide the map.
    """
    size = (window, window)
    cut, _ = PARTITIONS[partition]
    return coatnet_rel_weights(cut(x, size), qkv, table, size=size)


def grid_attention(
    x: Float[Array, "*b h w c"],
    qkv: Callable,
    project: Callable,
    table: Float[Array, "t k"],
    *,
    window: int,
    partition: Partition = "grid",
) -> Float[Array, "*b h w e"]:
    """y_i = W_O [Σ_j α_ij v_j]_heads + b_O, with the α of `grid_attention_weights`; `project` is o -> W_O o + b_O.

    >>> x, table = jnp.arange(8.0).reshape(2, 4, 1), jnp.zeros((9, 1))
    >>> qkv = lambda x: jnp.concatenate([0 * x, x, x], -1)
    >>> grid_attention(x, qkv, lambda o: o, table, window=2).squeeze()  # of every other column the mean
    Array([[3., 4., 3., 4.],
           [3., 4., 3., 4.]], dtype=float32)
    """
    size = (window, window)
    cut, merge = PARTITIONS[partition]
    return merge(coatnet_rel(cut(x, size), qkv, project, table, size=size), size, x.shape[-3:-1])


class PartitionAttention(nnx.Module):
    """Attention in the windows of a map, or among the points of the grids on it.

    Parameters: 4c² + 4c + (2M - 1)²·k, with k = c/d heads. Multiply-adds, of n positions: 4n·c² + 2n·M²·c.

    Args:
        channels: c.
        window: M.
        partition: "window" for block attention, "grid" for grid attention.
        head_dim: d, which must divide c.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: sizes below 1, heads that do not divide the channels, or another partition, at construction; an
            input that is no map of these channels, or one that M does not divide, at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        window: int,
        partition: Partition = "grid",
        head_dim: int = 32,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        num_heads = count_heads(channels, head_dim)
        check(window >= 1, f"window must be at least 1, got {window}.")
        check(
            partition in get_args(Partition),
            f"partition must be one of {', '.join(get_args(Partition))}, got {partition!r}.",
        )
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.qkv = nnx.Linear(channels, 3 * channels, **layer)
        self.proj = nnx.Linear(channels, channels, **layer)
        self.relative_position_bias_table = create_table((window, window), num_heads, rngs, param_dtype)
        self.window = window
        self.partition = partition

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b groups k n n"]:
        """α of every group and head, as `grid_attention_weights` has them."""
        x = self._map(x)
        return grid_attention_weights(x, self.qkv, self._table(x), window=self.window, partition=self.partition)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        x = self._map(x)
        return grid_attention(x, self.qkv, self.proj, self._table(x), window=self.window, partition=self.partition)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        *size, c = shape
        n = math.prod(size)
        parameters = 4 * c * c + 4 * c + self.relative_position_bias_table.size
        return Cost(parameters, 4 * n * c * c + 2 * n * self.window**2 * c)

    def _map(self, x):
        check_map(x, self.proj.in_features)
        return promote(x, self.qkv)

    def _table(self, x):
        return self.relative_position_bias_table[...].astype(x.dtype)
