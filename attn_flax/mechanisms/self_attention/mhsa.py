"""Multi-head self-attention.

    q = W_Q x + b_Q,   k = W_K x + b_K,   v = W_V x + b_V
    α_ij = softmax_j(q_iᵀ k_j / √d)     for each head
    y_i = W_O [Σ_j α_ij v_j]_heads + b_O

where i and j are tokens, or the positions of a map, and d = c/heads. Every token gathers from all tokens what it looks
for, several times over, and without regard to where they are.

Differs from the paper: nothing. The biases, which its equations do not have, are those of the authors' networks;
`qkv_bias` leaves out b_Q, b_K and b_V. Norm and residual around it are the caller's.

Source: Dosovitskiy, Beyer, Kolesnikov, Weissenborn, Zhai, Unterthiner, Dehghani, Minderer, Heigold, Gelly, Uszkoreit
and Houlsby, "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale" (2021), arXiv:2010.11929,
after Vaswani et al., "Attention Is All You Need" (2017), arXiv:1706.03762. Confirmed with timm's code.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import (
    check_channels,
    check_heads,
    flatten_positions,
    join_heads,
    promote,
    split_heads,
)


def mhsa_weights(x: Float[Array, "*b n c"], qkv: Callable, *, num_heads: int) -> Float[Array, "*b k n n"]:
    """α of every head, a row for each token that asks and a column for each that is asked.

    Args:
        x: tokens.
        qkv: x -> [q, k, v], any callable from (*b, n, c) to their features side by side, each head by head.
        num_heads: k.
    """
    q, k, _ = split_heads(qkv(x), 3, num_heads)
    return ops.dot_product_attention_weights(q, k)


def mhsa(x: Float[Array, "*b n c"], qkv: Callable, project: Callable, *, num_heads: int) -> Float[Array, "*b n e"]:
    """y_i = W_O [Σ_j α_ij v_j]_heads + b_O, with the α of `mhsa_weights`; `project` is o -> W_O o + b_O.

    >>> x = jnp.array([[1.0], [3.0]])
    >>> mhsa(x, lambda x: jnp.concatenate([0 * x, x, x], -1), lambda o: o, num_heads=1)  # no token stands out: the mean
    Array([[2.],
           [2.]], dtype=float32)
    """
    return project(join_heads(ops.dot_product_attention(*split_heads(qkv(x), 3, num_heads))))


class MultiHeadSelfAttention(nnx.Module):
    """Multi-head self-attention over the positions of maps, or over tokens.

    Parameters: 4c² + c, and 3c with `qkv_bias`. Multiply-adds: 4n·c² + 2n²·c.

    Args:
        channels: c.
        num_heads: which must divide c.
        qkv_bias: whether queries, keys and values have biases; the output has.
        num_spatial_dims: how many axes before the channels are positions: 1 for tokens, 2 for maps, 3 for volumes and
            video.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: sizes below 1 or heads that do not divide the channels, at construction; at the call, channels or
            axes that do not fit, or for `attention_map` a map of more than 1 GiB for an example's head.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 8,
        qkv_bias: bool = False,
        num_spatial_dims: int = 2,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_heads(channels, num_heads)
        check(num_spatial_dims >= 1, f"num_spatial_dims must be at least 1, got {num_spatial_dims}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.qkv = nnx.Linear(channels, 3 * channels, use_bias=qkv_bias, **layer)
        self.proj = nnx.Linear(channels, channels, **layer)
        self.num_heads = num_heads
        self.num_spatial_dims = num_spatial_dims

    def attention_map(self, x: Float[Array, "*s c"]) -> Float[Array, "*b k n n"]:
        """α of every head, positions in row-major order."""
        return mhsa_weights(self._tokens(x), self.qkv, num_heads=self.num_heads)

    def __call__(self, x: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
        """y, in the layout of x."""
        return mhsa(self._tokens(x), self.qkv, self.proj, num_heads=self.num_heads).reshape(x.shape)

    def split(self, x: Float[Array, "*s c"]) -> tuple[Float[Array, "*s k d"], ...]:
        """q, k and v of each head, for those who attend in another way."""
        return split_heads(self.qkv(x), 3, self.num_heads)

    def join(self, o: Float[Array, "*s k d"]) -> Float[Array, "*s c"]:
        """W_O [o]_heads + b_O."""
        return self.proj(join_heads(o))

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (*s, c)."""
        *positions, c = shape
        n = math.prod(positions)
        biases = 4 * c if self.qkv.use_bias else c
        return Cost(4 * c * c + biases, 4 * n * c * c + 2 * n * n * c)

    def _tokens(self, x):
        check_channels(x, self.proj.in_features)
        return flatten_positions(promote(x, self.qkv), self.num_spatial_dims)
