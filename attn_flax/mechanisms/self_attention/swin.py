"""Shifted-window attention.

    q, k, v = W x + b                                       in heads of d features
    α_ij = softmax_j(q_iᵀ k_j / √d + B_{p_i - p_j})         for each window and head
    y_i = W_O [Σ_j α_ij v_j]_heads + b_O

where i and j are positions in one window of M×M, p_i and p_j their rows and columns in it, and B a table of (2M - 1)²
learned numbers for each head. The windows are cut out of the map rolled back by s along both axes, so that they lie
across the borders of those of another layer; what only the roll has brought together from opposite ends of the map does
not see each other, and the result is rolled forth again. The cost grows with the map, not with its square, and layers
with s = 0 and s = ⌊M/2⌋ in turn carry features from window to window.

A map that M does not divide gets zeros below and on the right, before the roll. They are seen as any other position:
their keys and values are the biases. The window does not shrink to a smaller map.

Differs from the paper: nothing. The biases, which its equations do not have, are those of the authors' networks; norm
and residual around it are the caller's.

Errors elsewhere: timm rolls the map before it pads it, yet masks as if it had been padded before, so that on such maps
opposite ends see each other and neighbours do not.

Source: Liu, Lin, Cao, Hu, Wei, Zhang, Lin and Guo, "Swin Transformer: Hierarchical Vision Transformer using Shifted
Windows" (2021), arXiv:2103.14030. Confirmed with timm's code; the order of padding and roll read in the authors' code
for detection.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_map, count_heads, join_heads, promote, split_heads
from attn_flax.mechanisms.windows import (
    bias_and_mask,
    checked_shift,
    create_table,
    cut_windows,
    join_windows,
    padded_size,
)


def swin_weights(
    x: Float[Array, "*b h w c"], qkv: Callable, table: Float[Array, "t k"], *, window: int, shift: int = 0
) -> Float[Array, "*b windows k n n"]:
    """α of every window and head, a row for each token that asks and a column for each that is asked.

    Args:
        x: maps.
        qkv: x -> [q, k, v], any callable from (*b, n, c) to their features side by side, each head by head.
        table: B, a row for each of the (2M - 1)² offsets, as `ops.relative_position_bias` takes it.
        window: M. Windows of the padded and rolled map, and the tokens in one, are counted in row-major order.
        shift: s.
    """
    q, k, _ = split_heads(qkv(cut_windows(x, window, shift)), 3, table.shape[-1])
    return ops.dot_product_attention_weights(q, k, **bias_and_mask(x, table, window, shift))


def swin(
    x: Float[Array, "*b h w c"],
    qkv: Callable,
    project: Callable,
    table: Float[Array, "t k"],
    *,
    window: int,
    shift: int = 0,
) -> Float[Array, "*b h w e"]:
    """y_i = W_O [Σ_j α_ij v_j]_heads + b_O, with the α of `swin_weights`; `project` is o -> W_O o + b_O.

    >>> x, table = jnp.arange(8.0).reshape(2, 4, 1), jnp.zeros((9, 1))
    >>> swin(x, lambda x: jnp.concatenate([0 * x, x, x], -1), lambda o: o, table, window=2).squeeze()  # the means
    Array([[2.5, 2.5, 4.5, 4.5],
           [2.5, 2.5, 4.5, 4.5]], dtype=float32)
    """
    q, k, v = split_heads(qkv(cut_windows(x, window, shift)), 3, table.shape[-1])
    o = ops.dot_product_attention(q, k, v, **bias_and_mask(x, table, window, shift))
    return project(join_windows(join_heads(o), x.shape[-3:-1], window, shift))


class ShiftedWindowAttention(nnx.Module):
    """Attention in windows of a map of any size, rolled or not.

    Parameters: 4c² + 4c + (2M - 1)²·k, with k = c/d heads. Multiply-adds: (3n' + n)·c² + 2n'·M²·c, for n positions, n'
    of them with the padding.

    Args:
        channels: c.
        head_dim: d, which must divide c.
        window: M.
        shift: s, by default ⌊M/2⌋; 0 leaves the windows where they are.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: sizes below 1, heads that do not divide the channels, or a shift outside the window, at
            construction; an input that is no map of these channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        head_dim: int = 32,
        window: int = 7,
        shift: int | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        num_heads = count_heads(channels, head_dim)
        self.shift = checked_shift(window, shift)
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.qkv = nnx.Linear(channels, 3 * channels, **layer)
        self.proj = nnx.Linear(channels, channels, **layer)
        self.relative_position_bias_table = create_table((window, window), num_heads, rngs, param_dtype)
        self.window = window

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b windows k n n"]:
        """α of every window and head, as `swin_weights` has them."""
        x = self._map(x)
        return swin_weights(x, self.qkv, self._table(x), window=self.window, shift=self.shift)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        x = self._map(x)
        return swin(x, self.qkv, self.proj, self._table(x), window=self.window, shift=self.shift)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        *size, c = shape
        n, padded = math.prod(size), math.prod(padded_size(size, self.window))
        parameters = 4 * c * c + 4 * c + self.relative_position_bias_table.size
        return Cost(parameters, (3 * padded + n) * c * c + 2 * padded * self.window**2 * c)

    def _map(self, x):
        check_map(x, self.proj.in_features)
        return promote(x, self.qkv)

    def _table(self, x):
        return self.relative_position_bias_table[...].astype(x.dtype)
