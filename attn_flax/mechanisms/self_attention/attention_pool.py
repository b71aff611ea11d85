"""Attention pooling.

    q = W_Q u + b_Q,   k_j = W_K x_j + b_K,   v_j = W_V x_j + b_V
    α_j = softmax_j(qᵀ k_j / √d)        for each head
    z = W_O [Σ_j α_j v_j]_heads + b_O
    y = z + W_2 gelu(W_1 norm(z) + b_1) + b_2

where j are tokens, or the positions of a map, d = c/heads, norm is a layer normalisation and u one learned vector. It
asks all tokens of every example, and what it gathers stands for them: a mean whose weights are learned.

Differs from the paper: it refers to Lee et al., who ask with several vectors, add u to z, and normalise after the
sums; its networks have the equations above.

Source: Zhai, Kolesnikov, Houlsby and Beyer, "Scaling Vision Transformers" (2021), arXiv:2106.04560, after Lee, Lee,
Kim, Kosiorek, Choi and Teh, "Set Transformer" (2019), arXiv:1810.00825. Confirmed with timm's code.
"""

import math

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import LayerNorm, Perceptron, gelu
from attn_flax.mechanisms.layout import (
    check_channels,
    check_heads,
    flatten_positions,
    join_heads,
    promote,
    split_heads,
)


def attention_pool_weights(q: Float[Array, "k d"], k: Float[Array, "*b n k d"]) -> Float[Array, "*b k n"]:
    """α_j = softmax_j(qᵀ k_j / √d), for each head."""
    return ops.dot_product_attention_weights(_for_each(q, k), k)[..., 0, :]


def attention_pool(
    q: Float[Array, "k d"], k: Float[Array, "*b n k d"], v: Float[Array, "*b n k e"]
) -> Float[Array, "*b k e"]:
    """Σ_j α_j v_j for each head, with the α of `attention_pool_weights`.

    >>> k, v = jnp.ones((2, 1, 1)), jnp.array([1.0, 3.0]).reshape(2, 1, 1)
    >>> attention_pool(jnp.ones((1, 1)), k, v)  # no token stands out: their mean
    Array([[2.]], dtype=float32)
    """
    return ops.dot_product_attention(_for_each(q, k), k, v)[..., 0, :, :]


def _for_each(q, k):
    """The query as the only one of every example."""
    return jnp.broadcast_to(q, (*k.shape[:-3], 1, *q.shape))


class AttentionPool(nnx.Module):
    """The positions of a map, or tokens, pooled to one vector by a learned query, and a perceptron after it.

    Parameters: 4c² + 7c, and 2c·hidden + c + hidden, with hidden = mlp_ratio·c. Multiply-adds: (2n + 2)·c² + 2n·c, and
    2c·hidden.

    Args:
        channels: c.
        num_heads: which must divide c.
        mlp_ratio: the width of the perceptron, in c.
        num_spatial_dims: how many axes before the channels are positions: 1 for tokens, 2 for maps, 3 for volumes and
            video.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: sizes below 1 or heads that do not divide the channels, at construction; channels or axes that do
            not fit at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 8,
        mlp_ratio: int | float = 4,
        num_spatial_dims: int = 2,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_heads(channels, num_heads)
        check(mlp_ratio >= 1, f"mlp_ratio must be at least 1, got {mlp_ratio}.")
        check(num_spatial_dims >= 1, f"num_spatial_dims must be at least 1, got {num_spatial_dims}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        initialize = nnx.initializers.truncated_normal(channels**-0.5)
        self.latent = nnx.Param(initialize(rngs.params(), (channels,), param_dtype))
        self.q = nnx.Linear(channels, channels, **layer)
        self.kv = nnx.Linear(channels, 2 * channels, **layer)
        self.proj = nnx.Linear(channels, channels, **layer)
        self.norm = LayerNorm(channels, **layer)
        self.mlp = Perceptron(channels, round(mlp_ratio * channels), activation=gelu, **layer)
        self.num_heads = num_heads
        self.num_spatial_dims = num_spatial_dims

    def attention_map(self, x: Float[Array, "*s c"]) -> Float[Array, "*b k n"]:
        """α of every head, positions in row-major order."""
        q, k, _ = self._split(x)
        return attention_pool_weights(q, k)

    def __call__(self, x: Float[Array, "*s c"]) -> Float[Array, "*b c"]:
        """y."""
        z = self.proj(join_heads(attention_pool(*self._split(x))))
        return z + self.mlp(self.norm(z))

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (*s, c)."""
        *positions, c = shape
        n, perceptron = math.prod(positions), self.mlp.cost(1)
        return Cost(
            4 * c * c + 7 * c + perceptron.parameters, (2 * n + 2) * c * c + 2 * n * c + perceptron.multiply_adds
        )

    def _split(self, x):
        """q of each head, and each token's k and v."""
        check_channels(x, self.proj.in_features)
        tokens = flatten_positions(promote(x, self.kv), self.num_spatial_dims)
        (q,) = split_heads(self.q(self.latent[...].astype(tokens.dtype)), 1, self.num_heads)
        return q, *split_heads(self.kv(tokens), 2, self.num_heads)
