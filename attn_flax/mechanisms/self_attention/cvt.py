"""Attention with convolutional projections.

    q = W_Q BN(f_Q x) + b_Q,   k = W_K BN(f_K x) + b_K,   v = W_V BN(f_V x) + b_V
    α_ij = softmax_j(q_iᵀ k_j / √c)     for each head
    y_i = W_O [Σ_j α_ij v_j]_heads + b_O

where f_Q, f_K and f_V are depthwise convolutions without biases, a window for each channel, those of keys and values
with stride s, and i and j positions of the map and of the smaller one. Queries, keys and values know the neighbours of
their position, so that a position embedding is not needed; with a stride of 2 there are four times fewer keys.

Differs from the paper: nothing. The paper leaves the scale open. In the authors' code it is by the whole width c and
not by a head's c/heads, and so it is here, since their results and their published numbers are with it; the two differ
by a factor √heads, which W_Q can take on. Their class token, which goes around the convolutions, is not here. Norm and
residual around it are the caller's.

Errors elsewhere: a widespread PyTorch collection convolves keys and values by the same window and scales by the width
of a head.

Source: Wu, Xiao, Codella, Liu, Dai, Yuan and Zhang, "CvT: Introducing Convolutions to Vision Transformers" (2021),
arXiv:2103.15808. Confirmed with the authors' code.
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import BatchNorm, DepthwiseConv, depthwise_at_stride
from attn_flax.mechanisms.layout import check_heads, check_map, flatten_positions, join_heads, promote, split_heads


def cvt_weights(
    x: Float[Array, "*b h w c"], query: Callable, key: Callable, *, num_heads: int
) -> Float[Array, "*b k n m"]:
    """α of every head, a row for each position of the queries' map and a column for each of the keys'.

    Args:
        x: maps.
        query: x -> q, from maps to maps of features, head by head.
        key: x -> k, likewise; the map may be smaller.
        num_heads: k.
    """
    q, k = (_heads(ask(x), num_heads) for ask in (query, key))
    return ops.dot_product_attention_weights(q, k, scale=_scale(q))


def cvt(
    x: Float[Array, "*b h w c"], query: Callable, key: Callable, value: Callable, project: Callable, *, num_heads: int
) -> Float[Array, "*b h w e"]:
    """y_i = W_O [Σ_j α_ij v_j]_heads + b_O, with the α of `cvt_weights`.

    Args:
        x: maps.
        query: x -> q, as of `cvt_weights`.
        key: x -> k.
        value: x -> v, of the same map as k.
        project: o -> W_O o + b_O.
        num_heads: k.

    >>> x, every_second = jnp.array([[[1.0], [3.0], [8.0]]]), lambda x: x[:, ::2]
    >>> cvt(x, lambda x: 0 * x, every_second, every_second, lambda o: o, num_heads=1).squeeze()
    Array([4.5, 4.5, 4.5], dtype=float32)
    """
    q, k, v = (_heads(ask(x), num_heads) for ask in (query, key, value))
    o = join_heads(ops.dot_product_attention(q, k, v, scale=_scale(q)))
    return project(o.reshape(*x.shape[:-1], -1))


def _heads(features, num_heads):
    (heads,) = split_heads(flatten_positions(features, 2), 1, num_heads)
    return heads


def _scale(q):
    """c^(-1/2), c the features of all heads."""
    return (q.shape[-2] * q.shape[-1]) ** -0.5


class ConvProjection(nnx.Module):
    """W BN(f x) + b, with a depthwise convolution f.

    Parameters: the window's size times c, c² + 2c, and c with a bias.

    Args:
        channels: c.
        kernel_size: the side of the window.
        stride: s, of f.
        use_bias: whether there is b.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        stride: int,
        *,
        use_bias: bool,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.conv = DepthwiseConv(channels, (kernel_size, kernel_size), use_bias=False, **layer)
        self.norm = BatchNorm(channels, **layer)
        self.linear = nnx.Linear(channels, channels, use_bias=use_bias, **layer)
        self.stride = stride

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q c"]:
        """The map's features, at every s-th position."""
        return self.linear(self.norm(depthwise_at_stride(x, self.conv, self.stride)))

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        *_, c = shape
        n = self.positions(shape)
        parameters, multiply_adds = self.conv.cost(n)
        biases = c if self.linear.use_bias else 0
        return Cost(parameters + c * c + 2 * c + biases, multiply_adds + n * c * c)

    def positions(self, shape: tuple[int, ...]) -> int:
        """⌈h/s⌉⌈w/s⌉ for an example (h, w, c)."""
        h, w, _ = shape
        return -(-h // self.stride) * -(-w // self.stride)


class ConvolutionalAttention(nnx.Module):
    """Multi-head attention of the positions of a map to every s-th of them.

    Parameters: 4c² + c + 3(f²c + 2c), and 3c with `qkv_bias`. Multiply-adds, of n positions and m = ⌈h/s⌉⌈w/s⌉ keys:
    2(n + m)c² + (n + 2m)f²c + 2nm·c.

    Args:
        channels: c.
        num_heads: which must divide c.
        kernel_size: f, the side of the windows, which must be odd.
        stride: s, of keys and values; in the authors' networks 2, as here, in their class by default 1.
        qkv_bias: whether queries, keys and values have biases; the output has.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: sizes below 1, even windows or heads that do not divide the channels, at construction; an input that
            is no map of these channels, at the call, or for `attention_map` one whose map takes more than 1 GiB for an
            example's head.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 8,
        kernel_size: int = 3,
        stride: int = 2,
        qkv_bias: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_heads(channels, num_heads)
        check(
            kernel_size >= 1 and kernel_size % 2 == 1,
            f"kernel_size must be odd and at least 1, got {kernel_size}.",
        )
        check(stride >= 1, f"stride must be at least 1, got {stride}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.q, self.k, self.v = (
            ConvProjection(channels, kernel_size, s, use_bias=qkv_bias, **layer) for s in (1, stride, stride)
        )
        self.proj = nnx.Linear(channels, channels, **layer)
        self.num_heads = num_heads

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b k n m"]:
        """α of every head, from all positions to every s-th, both in row-major order."""
        return cvt_weights(self._map(x), self.q, self.k, num_heads=self.num_heads)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return cvt(self._map(x), self.q, self.k, self.v, self.proj, num_heads=self.num_heads)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        *_, c = shape
        n, m = self.q.positions(shape), self.k.positions(shape)
        parameters, multiply_adds = zip(*(part.cost(shape) for part in (self.q, self.k, self.v)), strict=True)
        return Cost(sum(parameters) + c * c + c, sum(multiply_adds) + n * c * c + 2 * n * m * c)

    def _map(self, x):
        check_map(x, self.proj.in_features)
        return promote(x, self.proj)
