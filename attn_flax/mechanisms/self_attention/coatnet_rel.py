"""Relative self-attention.

    q, k, v = W x + b                                   in heads of d features
    α_ij = softmax_j(q_iᵀ k_j / √d + w_{p_i - p_j})     for each head
    y_i = W_O [Σ_j α_ij v_j]_heads + b_O

where i and j are positions of a map of h×w, p_i and p_j their rows and columns, and w a table of (2h - 1)(2w - 1)
learned numbers for each head. The table is a depthwise convolution as large as the map, one for each head, that is
added before the softmax: what lies at a certain offset counts more or less whatever it is, and what is alike counts
wherever it lies.

A map of another size than the table's gets the table interpolated linearly, as the authors do where they tune a network
for larger images.

Differs from the paper: nothing. Its equation leaves out heads, layers and scale, which its networks have.

Errors elsewhere: External-Attention-pytorch's CoAtNet attends without the table, and to a map laid out in one row.

Source: Dai, Liu, Le and Tan, "CoAtNet: Marrying Convolution and Attention for All Data Sizes" (2021), arXiv:2106.04803.
Confirmed with timm's code, whose features lie head by head, [q, k, v] in each, as here; the interpolation read in the
authors' code of MaxViT.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_map, count_heads, flatten_positions, join_heads, promote
from attn_flax.mechanisms.windows import create_table


def coatnet_rel_weights(
    x: Float[Array, "*b n c"], qkv: Callable, table: Float[Array, "t k"], *, size: Sequence[int]
) -> Float[Array, "*b k n n"]:
    """α of every head, a row for each token that asks and a column for each that is asked.

    Args:
        x: the tokens of a map, in row-major order.
        qkv: x -> [q, k, v]_1, [q, k, v]_2, …, any callable from (*b, n, c) to the features of head after head.
        table: w, a row for each offset, as `ops.relative_position_bias` takes it.
        size: of the map.
    """
    q, k, _ = _split(qkv(x), table)
    return ops.dot_product_attention_weights(q, k, bias=ops.relative_position_bias(table, size))


def coatnet_rel(
    x: Float[Array, "*b n c"], qkv: Callable, project: Callable, table: Float[Array, "t k"], *, size: Sequence[int]
) -> Float[Array, "*b n e"]:
    """y_i = W_O [Σ_j α_ij v_j]_heads + b_O, with the α of `coatnet_rel_weights`; `project` is o -> W_O o + b_O.

    >>> x, before = jnp.array([[1.0], [3.0], [5.0]]), jnp.array([[0.0], [0.0], [0.0], [99.0], [0.0]])
    >>> qkv = lambda x: jnp.concatenate([0 * x, x, x], -1)
    >>> coatnet_rel(x, qkv, lambda o: o, before, size=(3,))  # what lies one before; of the first, where none does, all
    Array([[3.],
           [1.],
           [3.]], dtype=float32)
    """
    q, k, v = _split(qkv(x), table)
    return project(join_heads(ops.dot_product_attention(q, k, v, bias=ops.relative_position_bias(table, size))))


def _split(features, table):
    """q, k and v of each head."""
    by_head = features.reshape(*features.shape[:-1], table.shape[-1], 3, -1)
    return jnp.unstack(by_head, axis=-2)


class RelativeSelfAttention(nnx.Module):
    """Self-attention that knows offsets.

    Parameters: 3c_in·c + c² + 4c + (2h - 1)(2w - 1)·k, with k = c/d heads. Multiply-adds, with n positions:
    n(3c_in·c + c²) + 2n²·c.

    Args:
        channels: c, of q, k, v and y.
        size: h and w, of the maps that the table is for; others may come.
        head_dim: d, which must divide c.
        in_channels: c_in, of x; by default c.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: sizes below 1 or heads that do not divide the channels, at construction; an input that is no map of
            these channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        size: tuple[int, int],
        head_dim: int = 32,
        in_channels: int | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        num_heads = count_heads(channels, head_dim)
        check(len(size) == 2 and min(size) >= 1, f"size must be a height and a width of at least 1, got {size}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        in_channels = channels if in_channels is None else in_channels
        check(in_channels >= 1, f"in_channels must be at least 1, got {in_channels}.")
        self.qkv = nnx.Linear(in_channels, 3 * channels, **layer)
        self.proj = nnx.Linear(channels, channels, **layer)
        self.relative_position_bias_table = create_table(size, num_heads, rngs, param_dtype)
        self.size = tuple(size)

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b k n n"]:
        """α of every head, positions in row-major order."""
        size, tokens = self._tokens(x)
        return coatnet_rel_weights(tokens, self.qkv, self._table(size, tokens.dtype), size=size)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w e"]:
        """y, in the layout of x."""
        size, tokens = self._tokens(x)
        y = coatnet_rel(tokens, self.qkv, self.proj, self._table(size, tokens.dtype), size=size)
        return y.reshape(*x.shape[:-1], -1)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c_in)."""
        h, w, c_in = shape
        n, c = h * w, self.proj.in_features
        layers = 3 * c_in * c + c * c
        return Cost(layers + 4 * c + self.relative_position_bias_table.size, n * layers + 2 * n * n * c)

    def _tokens(self, x):
        check_map(x, self.qkv.in_features)
        return x.shape[-3:-1], flatten_positions(promote(x, self.qkv), 2)

    def _table(self, size, dtype):
        """The table for maps of a size."""
        table = self.relative_position_bias_table[...]
        if size != self.size:
            h, w = self.size
            offsets = table.reshape(2 * h - 1, 2 * w - 1, -1)
            table = ops.resize_bilinear(offsets, (2 * size[0] - 1, 2 * size[1] - 1)).reshape(-1, table.shape[-1])
        return table.astype(dtype)
