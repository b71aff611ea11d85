"""Cascaded group attention, in windows.

    u_1 = x_1,   u_i = x_i + o_{i-1}                         a head for each part x_i of the channels
    [q_i, k_i, v_i] = BN(W_i u_i),   q̂_i = BN(f_i q_i)
    o_i = softmax(q̂_i k_iᵀ / √d + B_i) v_i
    y = BN(W_O relu([o_1 … o_h]))

where f_i is a depthwise convolution of K_i×K_i, zeros around the window, and B_i a bias for each distance |Δy|, |Δx| in
the window, learned. Each head sees a part of the channels of its own and what the head before it found, so the heads
differ, and get deeper one by one.

Differs from the paper: nothing. ReLU, the norms, the convolution of queries and the bias are those of the authors'
code; so are the windows of R×R, with zeros below and on the right of a map that R does not divide, which are attended
to like any position. There the last norm's scale starts at zero, inside of a residual; here, where there may be none,
at one. The residual around it is the caller's.

Errors elsewhere: the authors' class has a factor between the widths of values and of keys, which can have one value
only, since what a head gives is added to the next part.

Source: Liu, Peng, Zheng, Yang, Hu and Yuan, "EfficientViT: Memory Efficient Vision Transformer with Cascaded Group
Attention" (2023), arXiv:2305.07027. Confirmed with timm's code.
"""

from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import BatchNorm, DepthwiseConv
from attn_flax.mechanisms.layout import check_heads, check_map, flatten_positions, promote


def cascaded_group_weights(
    x: Float[Array, "*b h w c"], ask: Sequence[Callable], bias: Float[Array, "k n n"]
) -> Float[Array, "*b k n n"]:
    """softmax(q̂_i k_iᵀ / √d + B_i) of every head, positions in row-major order.

    Args:
        x: maps, or windows of them.
        ask: for each head u -> (q̂, k, v), from a part of the channels to features of the same map.
        bias: B of each head.
    """
    heads = zip(_cascade(x, ask, bias), bias, strict=True)
    return jnp.concatenate([ops.dot_product_attention_weights(q, k, bias=b) for (q, k, _), b in heads], -3)


def cascaded_group(
    x: Float[Array, "*b h w c"], ask: Sequence[Callable], project: Callable, bias: Float[Array, "k n n"]
) -> Float[Array, "*b h w c"]:
    """y = project([o_1 … o_h]), with the weights of `cascaded_group_weights`; `project` is o -> BN(W_O relu(o)).

    >>> x, ask = jnp.array([[[1.0, 10.0], [3.0, 20.0]]]), lambda u: (0 * u, u, u)
    >>> cascaded_group(x, [ask, ask], lambda o: o, jnp.zeros((2, 2, 2)))[0]  # the means 2, and of 10 + 2 and 20 + 2
    Array([[ 2., 17.],
           [ 2., 17.]], dtype=float32)
    """
    return project(jnp.concatenate([o for _, _, o in _cascade(x, ask, bias)], -1))


def distance_bias(biases: Float[Array, "k t"], window: int) -> Float[Array, "k n n"]:
    """B_ij = biases[|Δy|·R + |Δx|] for each head, of positions i and j of an R×R window in row-major order.

    >>> distance_bias(jnp.arange(4.0)[None], 2)[0]
    Array([[0., 1., 2., 3.],
           [1., 0., 3., 2.],
           [2., 3., 0., 1.],
           [3., 2., 1., 0.]], dtype=float32)
    """
    quadrant = jnp.moveaxis(biases.reshape(-1, window, window), 0, -1)
    mirror = (window - 1, 0)
    table = jnp.pad(quadrant, (mirror, mirror, (0, 0)), mode="reflect")
    return ops.relative_position_bias(table.reshape(-1, len(biases)), (window, window))


def _cascade(x, ask, bias) -> Iterator[tuple[Array, Array, Array]]:
    """q̂ and k of each head in turn, as tokens of one head, and o as a map."""
    o = jnp.zeros((), x.dtype)
    for part, ask_head, bias_head in zip(jnp.split(x, len(ask), -1), ask, bias, strict=True):
        q, k, v = (flatten_positions(features, 2)[..., None, :] for features in ask_head(part + o))
        o = ops.dot_product_attention(q, k, v, bias=bias_head).reshape(part.shape)
        yield q, k, o


class LinearNorm(nnx.Module):
    """BN(W x), a 1×1 convolution without a bias and its norm.

    Parameters: c_in·c_out + 2c_out.

    Args:
        in_features: c_in.
        out_features: c_out.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.linear = nnx.Linear(in_features, out_features, use_bias=False, **layer)
        self.norm = BatchNorm(out_features, **layer)

    def __call__(self, x: Float[Array, "*s c"]) -> Float[Array, "*s d"]:
        """The features on the last axis mapped."""
        return self.norm(self.linear(x))

    def cost(self, n: int) -> Cost:
        """For n vectors."""
        c_in, c_out = self.linear.in_features, self.linear.out_features
        return Cost(c_in * c_out + 2 * c_out, n * c_in * c_out)


class _Head(nnx.Module):
    """u -> (q̂, k, v)."""

    def __init__(self, width, key_dim, kernel_size, **layer):
        self.qkv = LinearNorm(width, 2 * key_dim + width, **layer)
        self.conv = DepthwiseConv(key_dim, (kernel_size, kernel_size), use_bias=False, **layer)
        self.norm = BatchNorm(key_dim, **layer)

    def __call__(self, u):
        key_dim = self.norm.num_features
        q, k, v = jnp.split(self.qkv(u), (key_dim, 2 * key_dim), -1)
        return self.norm(self.conv(q)), k, v

    def cost(self, n):
        of_layers = zip(self.qkv.cost(n), self.conv.cost(n), strict=True)
        parameters, multiply_adds = map(sum, of_layers)
        return Cost(parameters + 2 * self.norm.num_features, multiply_adds)


class CascadedGroupAttention(nnx.Module):
    """Cascaded group attention in the R×R windows of maps of any size.

    Parameters, with e = c/h: (c + 2h)(2d + e) + d·Σ K_i² + 2dh + c² + 2c + h·R². Multiply-adds, of n positions of the
    padded map: n·(c(2d + e) + d·Σ K_i² + c² + R²(hd + c)).

    Args:
        channels: c.
        num_heads: h, which must divide c.
        key_dim: d, the features of a head's queries and keys.
        kernel_sizes: K of each head, all odd; by default 5 for each.
        window: R.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: sizes below 1, heads that do not divide the channels, even windows of queries or not one for each
            head, at construction; an input that is no map of these channels, at the call, or for `attention_map`
            windows whose map takes more than 1 GiB for an example's head.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 4,
        key_dim: int = 16,
        kernel_sizes: Sequence[int] | None = None,
        window: int = 7,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_heads(channels, num_heads)
        kernel_sizes = (5,) * num_heads if kernel_sizes is None else tuple(kernel_sizes)
        check(
            len(kernel_sizes) == num_heads and all(k >= 1 and k % 2 == 1 for k in kernel_sizes),
            f"kernel_sizes must be {num_heads} odd and positive numbers, one for each head, got {kernel_sizes}.",
        )
        for name, size in (("key_dim", key_dim), ("window", window)):
            check(size >= 1, f"{name} must be at least 1, got {size}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.heads = nnx.List([_Head(channels // num_heads, key_dim, k, **layer) for k in kernel_sizes])
        self.proj = LinearNorm(channels, channels, **layer)
        self.biases = nnx.Param(jnp.zeros((num_heads, window * window), param_dtype))
        self.window = window

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b windows k n n"]:
        """The weights of every window and head, of n = R² positions, all in row-major order."""
        x = self._map(x)
        return cascaded_group_weights(self._windows(x), self.heads, self._bias(x))

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        x = self._map(x)
        return self._join(cascaded_group(self._windows(x), self.heads, self._project, self._bias(x)), x.shape)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        *size, c = shape
        heads, side = len(self.heads), self.window
        rows, columns = (s + -s % side for s in size)
        n, key_dim = rows * columns, self.heads[0].norm.num_features
        parameters, multiply_adds = zip(self.proj.cost(n), *(head.cost(n) for head in self.heads), strict=True)
        return Cost(sum(parameters) + self.biases.size, sum(multiply_adds) + n * side * side * (heads * key_dim + c))

    def _project(self, o):
        return self.proj(jax.nn.relu(o))

    def _bias(self, x):
        return distance_bias(self.biases[...], self.window).astype(x.dtype)

    def _windows(self, x):
        """Those of the padded map, each a map."""
        side = self.window
        windows = ops.window_partition(ops.pad_to_multiple(x, side), (side, side))
        return windows.reshape(*windows.shape[:-2], side, side, x.shape[-1])

    def _join(self, windows, shape):
        """The map of that shape, without what was added below and on the right."""
        *_, h, w, _ = shape
        side = self.window
        tokens = flatten_positions(windows, 2)
        return ops.window_merge(tokens, (side, side), (h + -h % side, w + -w % side))[..., :h, :w, :]

    def _map(self, x):
        check_map(x, self.proj.linear.in_features)
        return promote(x, self.proj.linear)
