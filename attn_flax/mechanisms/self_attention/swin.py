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
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_map, join_heads, promote, split_heads


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


def cut_windows(x: Shaped[Array, "*b h w c"], window: int, shift: int = 0) -> Shaped[Array, "*b windows n c"]:
    """The windows of the map, padded with zeros to whole ones and rolled back."""
    return ops.window_partition(ops.cyclic_shift(ops.pad_to_multiple(x, window), (shift, shift)), (window, window))


def join_windows(
    windows: Shaped[Array, "*b windows n c"], size: tuple[int, int], window: int, shift: int = 0
) -> Shaped[Array, "*b h w c"]:
    """The map of that size out of whose like `cut_windows` cuts such windows: its inverse.

    >>> x = jnp.arange(15).reshape(3, 5, 1)
    >>> bool((join_windows(cut_windows(x, 2, 1), (3, 5), 2, 1) == x).all())
    True
    """
    h, w = size
    padded = ops.window_merge(windows, (window, window), padded_size(size, window))
    return ops.cyclic_shift(padded, (-shift, -shift))[..., :h, :w, :]


def bias_and_mask(
    x: Float[Array, "*b h w c"], table: Float[Array, "t k"], window: int, shift: int
) -> dict[str, Array | None]:
    """What `ops.dot_product_attention` has to know of a map's windows: B, and who sees whom where the map is rolled."""
    window_size, size = (window, window), padded_size(x.shape[-3:-1], window)
    mask = jnp.asarray(ops.shifted_window_mask(size, window_size, (shift, shift)))[:, None] if shift else None
    return {"bias": ops.relative_position_bias(table, window_size), "mask": mask}


def padded_size(size: Sequence[int], window: int) -> tuple[int, ...]:
    """The size of a map, filled up to whole windows.

    >>> padded_size((3, 4), 2)
    (4, 4)
    """
    return tuple(math.ceil(n / window) * window for n in size)


def count_heads(channels: int, head_dim: int) -> int:
    """How many heads of so many features the channels make.

    Raises:
        InputError: channels or features below 1, or features that do not divide the channels.

    >>> count_heads(96, 32)
    3
    """
    check(channels >= 1, f"channels must be at least 1, got {channels}.")
    check(
        head_dim >= 1 and channels % head_dim == 0,
        f"head_dim must be at least 1 and divide channels, got head_dim={head_dim}, channels={channels}.",
    )
    return channels // head_dim


def checked_shift(window: int, shift: int | None) -> int:
    """The shift of such windows, by default half of one, rounded down.

    Raises:
        InputError: a window below 1; a shift below 0, or of a window or more.
    """
    check(window >= 1, f"window must be at least 1, got {window}.")
    shift = window // 2 if shift is None else shift
    check(0 <= shift < window, f"shift must be at least 0 and below window, got shift={shift}, window={window}.")
    return shift


def create_table(size: Sequence[int], num_heads: int, rngs: nnx.Rngs, param_dtype: DTypeLike) -> nnx.Param:
    """B to begin with: small numbers for each offset between two positions of a map of this size, and each head."""
    offsets = math.prod(2 * n - 1 for n in size)
    return nnx.Param(nnx.initializers.truncated_normal(0.02)(rngs.params(), (offsets, num_heads), param_dtype))


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
