"""Self-attention over the positions of a map.

    q, k, v = W_q x, W_k x, W_v x
    α_ij = softmax_j(q_iᵀ k_j / √d)
    y_i  = Σ_j α_ij v_j

for the positions i and j of a map, each with all others, with 1×1 convolutions W and d the features of a head. Every
position gathers what it looks for from the whole map, without regard to where it is.

Differs from the paper: each position of a map is a token, and there is no layer after the heads; `scale` replaces
1/√d, for those who leave it out.

Errors elsewhere: the code of the survey by Guo et al. leaves 1/√d out.

Source: Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser and Polosukhin, "Attention Is All You Need" (2017),
arXiv:1706.03762; on maps as in Guo et al., "Attention Mechanisms in Computer Vision: A Survey" (2021),
arXiv:2111.07624, whose code has the same layers.
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
from attn_flax.mechanisms.layout import check_heads, check_map, flatten_positions, promote


def self_attention_2d_weights(
    x: Float[Array, "*b h w c"], query: Callable, key: Callable, *, num_heads: int = 1, scale: float | None = None
) -> Float[Array, "*b k n m"]:
    """α of every head, a row for each position and a column for each one it attends to, both in row-major order.

    Args:
        x: maps.
        query: x -> W_q x, any callable on (*b, h, w, c), to as many features as the key.
        key: x -> W_k x, likewise; it may give a smaller map.
        num_heads: into which the features are divided.
        scale: of the products, by default d^(-1/2).

    Raises:
        InputError: heads that do not divide the features; a map α of more than 1 GiB for an example's head.
    """
    q, k = (_heads(project(x), num_heads) for project in (query, key))
    return ops.dot_product_attention_weights(q, k, scale=scale)


def self_attention_2d(
    x: Float[Array, "*b h w c"],
    query: Callable,
    key: Callable,
    value: Callable,
    *,
    num_heads: int = 1,
    scale: float | None = None,
) -> Float[Array, "*b h w e"]:
    """y_i = Σ_j α_ij v_j, with the α of `self_attention_2d_weights`; `value` gives a map of the size of the keys'.

    >>> x = jnp.array([[[1.0], [3.0]]])
    >>> self_attention_2d(x, lambda x: 0 * x, lambda x: x, lambda x: x)  # no position stands out: the mean
    Array([[[2.],
            [2.]]], dtype=float32)
    """
    q, k, v = (_heads(project(x), num_heads) for project in (query, key, value))
    return ops.dot_product_attention(q, k, v, scale=scale).reshape(*x.shape[:-1], -1)


class SelfAttention2D(nnx.Module):
    """Self-attention over the positions of maps of any size.

    Parameters: 3c² + 3c. Multiply-adds: 3n·c² + 2n²·c.

    Args:
        channels: c.
        num_heads: into which the channels are divided.
        scale: of the products, by default d^(-1/2) with d = c/num_heads.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: heads that do not divide the channels, or a scale that is not positive, at construction; at the
            call, an input that is no map of these channels, or for `attention_map` a map of more than 1 GiB for an
            example's head.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 1,
        scale: float | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_heads(channels, num_heads)
        check(scale is None or scale > 0, f"scale must be positive, got {scale}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.query = nnx.Linear(channels, channels, **layer)
        self.key = nnx.Linear(channels, channels, **layer)
        self.value = nnx.Linear(channels, channels, **layer)
        self.num_heads = num_heads
        self.scale = scale

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b k n m"]:
        """α of every head."""
        x = self._map(x)
        return self_attention_2d_weights(x, self.query, self.key, num_heads=self.num_heads, scale=self.scale)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        x = self._map(x)
        return self_attention_2d(x, self.query, self.key, self.value, num_heads=self.num_heads, scale=self.scale)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        *positions, c = shape
        n = math.prod(positions)
        return Cost(3 * c * c + 3 * c, 3 * n * c * c + 2 * n * n * c)

    def _map(self, x):
        check_map(x, self.query.in_features)
        return promote(x, self.query)


def _heads(x, num_heads):
    check(
        num_heads >= 1 and x.shape[-1] % num_heads == 0,
        f"num_heads must be at least 1 and divide the {x.shape[-1]} features, got {num_heads}.",
    )
    tokens = flatten_positions(x, 2)
    return tokens.reshape(*tokens.shape[:-1], num_heads, -1)
