"""Attention-augmented convolution.

    q, k, v = W_q x, W_k x, W_v x                               in N_h heads
    e_ij = q_iᵀ (k_j + r^w_{x_j - x_i} + r^h_{y_j - y_i}) / √(d_k / N_h)
    a_i = W_o [Σ_j softmax_j(e_ij) v_j]_heads
    y = [conv(x), a]

with d_k channels of queries and keys and d_v of values, all heads together, and vectors r^w and r^h for the offsets
from query to key along each axis, shared by the heads. A part of a convolution's output channels is made by attention
to the whole map instead, which depends on the content and on where things lie to each other.

Differs from the paper: nothing. The tables in the paper's listing are for maps of one size; here `size` is the largest,
and a smaller map takes the offsets that it has. The widths d_k and d_v are a fifth of the channels by default, rounded
down to a multiple of the heads but not below them.

Errors elsewhere: two PyTorch ports lay the heads out wrongly, (heads, positions, features) read as (heads, features,
positions), so that channels and positions are mixed up, and draw random vectors for the offsets at every call instead
of learning them; the Keras port makes q, k and v by windows as large as the convolution's, where the paper's listing
has 1×1.

Source: Bello, Zoph, Vaswani, Shlens and Le, "Attention Augmented Convolutional Networks" (2019), arXiv:1904.09925;
compared with reprints of the listing in the paper.
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_map, promote

DEFAULT_SHARE = 5  # a fifth of the output channels


def aa_conv_attention_weights(
    q: Float[Array, "*b h w k d"],
    k: Float[Array, "*b h w k d"],
    rows: Float[Array, "offsets_h d"],
    columns: Float[Array, "offsets_w d"],
) -> Float[Array, "*b k n n"]:
    """α = softmax_j(e_ij), a map for each head, positions in row-major order.

    Args:
        q: the queries.
        k: the keys.
        rows: r^h, 2h - 1 vectors for the offsets 1 - h to h - 1 from query to key.
        columns: r^w, 2w - 1 vectors likewise.
    """
    bias = _relative_scores(q, rows, columns)
    return ops.dot_product_attention_weights(_in_a_row(q), _in_a_row(k), bias=bias)


def aa_conv_attention(
    q: Float[Array, "*b h w k d"],
    k: Float[Array, "*b h w k d"],
    v: Float[Array, "*b h w k e"],
    rows: Float[Array, "offsets_h d"],
    columns: Float[Array, "offsets_w d"],
) -> Float[Array, "*b h w k e"]:
    """Σ_j α_ij v_j, with the α of `aa_conv_attention_weights`.

    >>> v = jnp.array([1.0, 3.0]).reshape(1, 2, 1, 1)
    >>> aa_conv_attention(0 * v, v, v, jnp.ones((1, 1)), jnp.ones((3, 1))).squeeze()
    Array([2., 2.], dtype=float32)
    """
    bias = _relative_scores(q, rows, columns)
    return ops.dot_product_attention(*map(_in_a_row, (q, k, v)), bias=bias).reshape(v.shape)


def aa_conv(
    x: Float[Array, "*b h w c"],
    convolve: Callable,
    attend: Callable,
) -> Float[Array, "*b h w d"]:
    """y = [convolve(x), attend(x)], side by side.

    >>> aa_conv(jnp.array([[[2.0]]]), lambda x: x + 1, lambda x: x - 1).squeeze()
    Array([3., 1.], dtype=float32)
    """
    return jnp.concatenate([convolve(x), attend(x)], -1)


def _relative_scores(q, rows, columns):
    """Those of the offsets, which ops counts from key to query."""
    scaled = q * q.shape[-1] ** -0.5
    return ops.decomposed_relative_position(scaled, rows[::-1], columns[::-1])


def _in_a_row(x):
    return x.reshape(*x.shape[:-4], -1, *x.shape[-2:])


class AttentionAugmentedConv(nnx.Module):
    """Attention-augmented convolution of maps up to a size, as many channels out as in.

    Parameters: k²·c·(c - d_v) + c·(2d_k + d_v) + d_v² + (2h + 2w - 2)·d_k/N_h, h and w the largest sizes, and
    c + 2d_k + d_v biases. Multiply-adds, of n = h·w positions: n·(k²·c·(c - d_v) + c·(2d_k + d_v) + d_v²) +
    n·(h + w)·d_k + n²·(d_k + d_v).

    Args:
        channels: c.
        size: the height and width of the largest map.
        kernel_size: k, of the convolution's windows.
        key_channels: d_k, of all heads; by default ⌊c/5⌋ rounded down to a multiple of the heads, at least one each.
        value_channels: d_v, likewise, below c.
        num_heads: N_h.
        use_bias: whether the convolutions have biases.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1, heads that do not divide the channels of keys or values, or no channels left for the
            convolution, at construction; an input that is no map of these channels, or a larger one, at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        size: tuple[int, int],
        kernel_size: int = 3,
        key_channels: int | None = None,
        value_channels: int | None = None,
        num_heads: int = 8,
        use_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, number in (("channels", channels), ("kernel_size", kernel_size), ("num_heads", num_heads)):
            check(number >= 1, f"{name} must be at least 1, got {number}.")
        check(len(size) == 2 and min(size) >= 1, f"size must be a height and a width of at least 1, got {size}.")
        default = max(channels // DEFAULT_SHARE // num_heads, 1) * num_heads
        key_channels, value_channels = (default if n is None else n for n in (key_channels, value_channels))
        for name, number in (("key_channels", key_channels), ("value_channels", value_channels)):
            check(
                number >= 1 and number % num_heads == 0,
                f"{name} must be a positive multiple of num_heads, got {name}={number}, num_heads={num_heads}.",
            )
        check(
            value_channels < channels,
            f"value_channels must be fewer than channels, got value_channels={value_channels}, channels={channels}.",
        )
        layer = {"use_bias": use_bias, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.convolve = nnx.Conv(channels, channels - value_channels, (kernel_size, kernel_size), **layer)
        self.query = nnx.Linear(channels, key_channels, **layer)
        self.key = nnx.Linear(channels, key_channels, **layer)
        self.value = nnx.Linear(channels, value_channels, **layer)
        self.project = nnx.Linear(value_channels, value_channels, **layer)
        features = key_channels // num_heads
        initialize = nnx.initializers.normal(features**-0.5)
        self.rows, self.columns = (
            nnx.Param(initialize(rngs.params(), (2 * n - 1, features), param_dtype)) for n in size
        )
        self.size = tuple(size)
        self.num_heads = num_heads

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b k n n"]:
        """α, a map for each head, its rows the queries and its columns the keys, both in row-major order."""
        x = self._map(x)
        return aa_conv_attention_weights(self._heads(self.query(x)), self._heads(self.key(x)), *self._tables(x))

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x: the convolution's channels, then those of attention."""
        return aa_conv(self._map(x), self.convolve, self._attend)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        n, d_k, d_v = h * w, self.query.out_features, self.value.out_features
        rows, columns = self.convolve.kernel_size
        by_position = rows * columns * c * (c - d_v) + c * (2 * d_k + d_v) + d_v * d_v
        biases = c + 2 * d_k + d_v if self.query.use_bias else 0
        tables = (2 * sum(self.size) - 2) * d_k // self.num_heads
        multiply_adds = n * by_position + n * (h + w) * d_k + n * n * (d_k + d_v)
        return Cost(by_position + biases + tables, multiply_adds)

    def _attend(self, x):
        q, k, v = (self._heads(layer(x)) for layer in (self.query, self.key, self.value))
        attended = aa_conv_attention(q, k, v, *self._tables(x))
        return self.project(attended.reshape(*x.shape[:-1], -1))

    def _heads(self, x):
        return x.reshape(*x.shape[:-1], self.num_heads, -1)

    def _tables(self, x):
        """r^h and r^w of the offsets that the map has, in its type."""
        tables = zip((self.rows, self.columns), self.size, x.shape[-3:-1], strict=True)
        return [table[largest - n : largest + n - 1].astype(x.dtype) for table, largest, n in tables]

    def _map(self, x):
        check_map(x, self.query.in_features)
        fits = all(n <= largest for n, largest in zip(x.shape[-3:-1], self.size, strict=True))
        check(fits, f"x must be a map of at most {self.size[0]}×{self.size[1]}, got shape {x.shape}.")
        return promote(x, self.query)
