"""Deformable attention of a map to points that all queries share (DAT).

    q = W_Q x + b_Q
    p_gj = r_j + s · tanh(θ(q^g)_j) / (size_r - 1)            the points of each group g of channels
    x̃_j = [x^1(p_1j) … x^G(p_Gj)],   k = W_K x̃ + b_K,   v = W_V x̃ + b_V
    α_ij = softmax_j(q_iᵀ k_j / √d + B((q_i - p_gj) / 2))     for each head of group g
    y_i = W_O [Σ_j α_ij v_j]_heads + b_O

in coordinates (x, y) from -1 to 1, the middles of the map's outermost pixels. The r_j are a grid over the map, as many
as every t-th position of it, from border to border, size_r = (w_r, h_r); q_i in B's argument is where query i is; x(p)
is the map between its pixels by bilinear interpolation, zeros outside, and B a table of (2H-1)×(2W-1) biases for the
offsets in an H×W map, read likewise. θ, one for all groups, is a k×k depthwise convolution of stride t, LN, GELU and a
1×1 convolution to two numbers without a bias. All queries share the points, which move to what matters in the image.

Differs from the paper: LN in θ, and s in halves of the grid's spacing, are those of the authors' code; a grid of one
row or column, for which w_r - 1 or h_r - 1 is taken to be one, lies in the middle. An offset's first number is x, in
their code y. Norm and residual around it are the caller's.

Errors elsewhere: the authors' code puts the grid half a step further right and down, so that its last row and column
lie off the map, from a stride of 2 on where there are only zeros, and divides by zero for a grid of one row or column;
a copy in a PyTorch collection takes maps of one size only, while B, read by shares of its extent, serves any.

Source: Xia, Pan, Song, Li and Huang, "Vision Transformer with Deformable Attention" (2022), arXiv:2201.00520. Confirmed
with the authors' code, but for the grid.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import DepthwiseConv, LayerNorm, depthwise_at_stride, gelu
from attn_flax.mechanisms.layout import check_heads, check_map, flatten_positions, join_heads, promote, split_heads

TABLE_DEVIATION = 0.01


def dat_positions(offsets: Float[Array, "*b g p q 2"], *, offset_range: float) -> Float[Array, "*b g p q 2"]:
    """p_j = r_j + s · tanh(θ_j) / (size_r - 1), in float32 or wider.

    Args:
        offsets: θ, to the right and down, for each group and point of the grid.
        offset_range: s.

    >>> dat_positions(jnp.zeros((1, 2, 3, 2)), offset_range=2.0)[0, 1]
    Array([[-1.,  1.],
           [ 0.,  1.],
           [ 1.,  1.]], dtype=float32)
    """
    *_, rows, columns, _ = offsets.shape
    offsets = offsets.astype(ops.at_least_float32(offsets.dtype))
    steps = jnp.asarray([max(columns - 1, 1), max(rows - 1, 1)], offsets.dtype)
    return _grid(rows, columns, offsets.dtype) + offset_range * jnp.tanh(offsets) / steps


def dat_sample(x: Float[Array, "*b h w c"], positions: Float[Array, "*b g p q 2"]) -> Float[Array, "*b m c"]:
    """x̃, each group of the channels at its own points, which are in row-major order.

    >>> x, middle_and_right = jnp.array([[[2.0, 10.0], [6.0, 30.0]]]), jnp.array([[[[0.0, 0.0]]], [[[1.0, 0.0]]]])
    >>> dat_sample(x, middle_and_right)
    Array([[ 4., 30.]], dtype=float32)
    """
    groups = positions.shape[-4]
    sampled = ops.bilinear_sample(_by_groups(x, groups), positions)
    return jnp.moveaxis(sampled, -4, -2).reshape(*x.shape[:-3], -1, x.shape[-1])


def dat_bias(
    table: Float[Array, "offsets_h offsets_w k"], positions: Float[Array, "*b g p q 2"], size: tuple[int, int]
) -> Float[Array, "*b k n m"]:
    """B((q_i - p_gj) / 2) of each head, for the queries of a map of that size; the heads of a group lie side by side.

    >>> table, left_and_right = jnp.arange(3.0).reshape(1, 3, 1), jnp.array([[[[-1.0, 0.0], [1.0, 0.0]]]])
    >>> dat_bias(table, left_and_right, (1, 2))
    Array([[[1., 0.],
            [2., 1.]]], dtype=float32)
    """
    *batch, groups, p, q, _ = positions.shape
    queries = _grid(*size, positions.dtype).reshape(-1, 1, 2)
    keys = positions.reshape(*batch, groups, 1, p * q, 2)
    tables = _by_groups(table, groups)
    tables = jnp.broadcast_to(tables, (*batch, *tables.shape))
    bias = jnp.moveaxis(ops.bilinear_sample(tables, (queries - keys) / 2), -1, -3)
    return bias.reshape(*batch, -1, *bias.shape[-2:])


def dat_weights(
    x: Float[Array, "*b h w c"],
    query: Callable,
    offset: Callable,
    key: Callable,
    table: Float[Array, "offsets_h offsets_w k"],
    *,
    offset_range: float,
) -> Float[Array, "*b k n m"]:
    """α of every head, a row for each position of the map and a column for each point.

    Args:
        x: maps.
        query: x -> q, head by head.
        offset: q -> θ, from maps (*b, h, w, c) to (*b, g, p, q, 2).
        key: x̃ -> k, head by head.
        table: B for each head.
        offset_range: s.
    """
    q, sampled, bias = _asked(x, query, offset, table, offset_range)
    return ops.dot_product_attention_weights(q, _heads(key(sampled), table), bias=bias)


def dat(
    x: Float[Array, "*b h w c"],
    query: Callable,
    offset: Callable,
    key: Callable,
    value: Callable,
    project: Callable,
    table: Float[Array, "offsets_h offsets_w k"],
    *,
    offset_range: float,
) -> Float[Array, "*b h w e"]:
    """y_i = W_O [Σ_j α_ij v_j]_heads + b_O, with the α of `dat_weights`.

    Args:
        x: maps.
        query: x -> q, as of `dat_weights`.
        offset: q -> θ.
        key: x̃ -> k.
        value: x̃ -> v, likewise.
        project: o -> W_O o + b_O.
        table: B for each head.
        offset_range: s.

    >>> x, zero, same = jnp.array([[[2.0], [4.0]]]), lambda u: 0 * u, lambda u: u
    >>> outwards = lambda q: jnp.array([[[[-9.0, 0.0], [9.0, 0.0]]]])  # by two spacings of the grid: off the map
    >>> dat(x, zero, outwards, zero, same, same, jnp.zeros((1, 3, 1)), offset_range=4.0).squeeze()
    Array([0., 0.], dtype=float32)
    """
    q, sampled, bias = _asked(x, query, offset, table, offset_range)
    o = ops.dot_product_attention(q, _heads(key(sampled), table), _heads(value(sampled), table), bias=bias)
    return project(join_heads(o).reshape(*x.shape[:-1], -1))


def _asked(x, query, offset, table, offset_range):
    """q of each head, x̃ and the biases."""
    q = query(x)
    positions = dat_positions(offset(q), offset_range=offset_range)
    bias = dat_bias(table, positions, x.shape[-3:-1])
    return _heads(flatten_positions(q, 2), table), dat_sample(x, positions), bias


def _heads(features, table):
    (heads,) = split_heads(features, 1, table.shape[-1])
    return heads


def _by_groups(x, groups):
    """The map of each group of channels: (*b, g, h, w, c/g)."""
    return jnp.moveaxis(x.reshape(*x.shape[:-1], groups, -1), -2, -4)


def _grid(rows, columns, dtype):
    """(x, y) of evenly spaced points from border to border, (rows, columns, 2)."""
    y, x = np.meshgrid(*(_line(n) for n in (rows, columns)), indexing="ij")
    return jnp.asarray(np.stack([x, y], -1), dtype)


def _line(n):
    return np.linspace(-1, 1, n) if n > 1 else np.zeros(1)


class OffsetNetwork(nnx.Module):
    """θ, where each group of a map's queries wants to look.

    Parameters, with c_g = c/g: (k² + 5)·c_g.

    Args:
        channels: c.
        groups: g.
        kernel_size: k.
        stride: t.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        channels: int,
        groups: int,
        kernel_size: int,
        stride: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        width = channels // groups
        self.conv = DepthwiseConv(width, (kernel_size, kernel_size), **layer)
        self.norm = LayerNorm(width, epsilon=1e-5, **layer)
        self.linear = nnx.Linear(width, 2, use_bias=False, **layer)
        self.groups = groups
        self.stride = stride

    def __call__(self, q: Float[Array, "*b h w c"]) -> Float[Array, "*b g p q 2"]:
        """θ for every t-th position of the map."""
        local = depthwise_at_stride(_by_groups(q, self.groups), self.conv, self.stride)
        return self.linear(gelu(self.norm(local)))

    def cost(self, points: int) -> Cost:
        """For so many points."""
        width, n = self.linear.in_features, self.groups * points
        of_conv = self.conv.cost(n)
        return Cost(of_conv.parameters + 4 * width, of_conv.multiply_adds + 2 * n * width)


class SharedDeformableAttention(nnx.Module):
    """Multi-head attention of the positions of a map to points that move with its content.

    Parameters, with c_g = c/g: 4c² + 4c + (k² + 5)·c_g + heads·(2H - 1)(2W - 1). Multiply-adds, of n positions and
    m = ⌈h/t⌉⌈w/t⌉ points: 2(n + m)c² + m(k² + 2)c + 2nm·c.

    Args:
        channels: c.
        size: (H, W), of the maps for which the table has a bias for each offset; other maps read it between them.
        num_heads: which must divide c.
        groups: g, which must divide the heads.
        kernel_size: k, which must be odd.
        stride: t.
        offset_range: s, how far points may go, in halves of the grid's spacing.
        dtype: the type to compute in; by default that of input and parameters together. Positions are float32 or wider.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: sizes below 1, even windows, heads that do not divide the channels, groups that do not divide the
            heads or a range below zero, at construction; an input that is no map of these channels, at the call, or
            for `attention_map` one whose map takes more than 1 GiB for an example's head.
    """

    def __init__(
        self,
        channels: int,
        *,
        size: tuple[int, int] = (14, 14),
        num_heads: int = 8,
        groups: int = 2,
        kernel_size: int = 5,
        stride: int = 1,
        offset_range: float = 2.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_heads(channels, num_heads)
        check(len(size) == 2 and min(size) >= 1, f"size must be a height and a width of at least 1, got {size}.")
        check(
            groups >= 1 and num_heads % groups == 0,
            f"groups must be at least 1 and divide num_heads, got groups={groups}, num_heads={num_heads}.",
        )
        check(
            kernel_size >= 1 and kernel_size % 2 == 1,
            f"kernel_size must be odd and at least 1, got {kernel_size}.",
        )
        check(stride >= 1, f"stride must be at least 1, got {stride}.")
        check(offset_range >= 0, f"offset_range must be at least 0, got {offset_range}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.q, self.k, self.v, self.proj = (nnx.Linear(channels, channels, **layer) for _ in range(4))
        self.offset = OffsetNetwork(channels, groups, kernel_size, stride, **layer)
        initialize = nnx.initializers.truncated_normal(TABLE_DEVIATION)
        height, width = size
        self.table = nnx.Param(initialize(rngs.params(), (2 * height - 1, 2 * width - 1, num_heads), param_dtype))
        self.offset_range = offset_range

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b k n m"]:
        """α of every head, from all positions to all points, both in row-major order."""
        x = self._map(x)
        return dat_weights(x, self.q, self.offset, self.k, self._table(x), offset_range=self.offset_range)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        x = self._map(x)
        layers = self.q, self.offset, self.k, self.v, self.proj
        return dat(x, *layers, self._table(x), offset_range=self.offset_range)

    def positions(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b g p q 2"]:
        """The points of each group, (x, y) from -1 to 1."""
        return dat_positions(self.offset(self.q(self._map(x))), offset_range=self.offset_range)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        n, m = h * w, -(-h // self.offset.stride) * -(-w // self.offset.stride)
        parameters, multiply_adds = self.offset.cost(m)
        return Cost(
            4 * c * c + 4 * c + parameters + self.table.size, 2 * (n + m) * c * c + multiply_adds + 2 * n * m * c
        )

    def _table(self, x):
        return self.table[...].astype(x.dtype)

    def _map(self, x):
        check_map(x, self.proj.in_features)
        return promote(x, self.proj)
