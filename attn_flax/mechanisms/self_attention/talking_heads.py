"""Talking-heads attention.

    q = W_Q x + b_Q,   k = W_K x + b_K,   v = W_V x + b_V
    e_ij = q_iᵀ k_j / √d                            for each head
    α_ij = W_w softmax_j(W_l e_ij + b_l) + b_w      where e_ij and α_ij are vectors, a number for each head
    y_i = W_O [Σ_j α_ij v_j]_heads + b_O

where i and j are tokens, or the positions of a map, and d = c/heads. By W_l the heads tell each other what they
compare, before the softmax, and by W_w what they look at, after it; so many heads may have few features each. The
weights have any sign, and b_l, which adds the same to all scores of a row, cancels in the softmax.

Differs from the paper: nothing. Shazeer et al. mix without biases; those here are of CaiT's networks.

Errors elsewhere: vit-pytorch mixes without biases, by matrices that start as standard normal numbers.

Source: Touvron, Cord, Sablayrolles, Synnaeve and Jégou, "Going deeper with Image Transformers" (2021),
arXiv:2103.17239, after Shazeer, Lan, Cheng, Ding and Hou, "Talking-Heads Attention" (2020), arXiv:2003.02436.
Confirmed with timm's code.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.self_attention.mhsa import MultiHeadSelfAttention


def talking_heads_weights(
    q: Float[Array, "*b n k d"], k: Float[Array, "*b m k d"], mix_scores: Callable, mix_weights: Callable
) -> Float[Array, "*b k n m"]:
    """α of every head, a row for each token that asks and a column for each that is asked.

    Args:
        q: the queries.
        k: the keys.
        mix_scores: e -> W_l e + b_l, any callable from (*b, n, m, k), with the heads last.
        mix_weights: the weights after the softmax -> α, likewise.
    """
    scores = ops.dot_product_scores(jnp.moveaxis(q, -2, -3), jnp.moveaxis(k, -2, -3)) * q.shape[-1] ** -0.5
    return mix_heads(ops.softmax(mix_heads(scores, mix_scores)), mix_weights)


def talking_heads(
    q: Float[Array, "*b n k d"],
    k: Float[Array, "*b m k d"],
    v: Float[Array, "*b m k e"],
    mix_scores: Callable,
    mix_weights: Callable,
) -> Float[Array, "*b n k e"]:
    """Σ_j α_ij v_j for each head, with the α of `talking_heads_weights`.

    >>> q, k, v = jnp.zeros((1, 1, 2)), jnp.ones((2, 1, 2)), jnp.array([[[1.0]], [[3.0]]])
    >>> talking_heads(q, k, v, lambda e: e, lambda weights: 2 * weights)  # twice the mean
    Array([[[4.]]], dtype=float32)
    """
    return attend_by_heads(talking_heads_weights(q, k, mix_scores, mix_weights), v)


def mix_heads(weights: Float[Array, "*b k n m"], mix: Callable) -> Float[Array, "*b l n m"]:
    """What a callable makes of the numbers that the heads have for a query and a key, which it takes last."""
    return jnp.moveaxis(mix(jnp.moveaxis(weights, -3, -1)), -1, -3)


def attend_by_heads(weights: Float[Array, "*b k n m"], v: Float[Array, "*b m k e"]) -> Float[Array, "*b n k e"]:
    """Σ_j α_ij v_j for each head, in the type of the values."""
    return jnp.einsum("...knm,...mke->...nke", weights, v).astype(v.dtype)


class TalkingHeadsAttention(MultiHeadSelfAttention):
    """Self-attention over the positions of maps, or over tokens, whose heads mix their scores and their weights.

    Parameters: 4c² + c + 2(k² + k) for k heads, and 3c with `qkv_bias`. Multiply-adds: 4n·c² + 2n²·c + 2n²·k². The maps
    of all heads are in memory at once.

    Args:
        channels: c.
        num_heads: k, which must divide c.
        qkv_bias: whether queries, keys and values have biases; the output and both mixtures have.
        num_spatial_dims: how many axes before the channels are positions: 1 for tokens, 2 for maps, 3 for volumes and
            video.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: sizes below 1 or heads that do not divide the channels, at construction; at the call, channels or
            axes that do not fit, or a map of more than 1 GiB for an example's head.
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
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        super().__init__(channels, num_heads=num_heads, qkv_bias=qkv_bias, num_spatial_dims=num_spatial_dims, **layer)
        self.mix_scores = nnx.Linear(num_heads, num_heads, **layer)
        self.mix_weights = nnx.Linear(num_heads, num_heads, **layer)

    def attention_map(self, x: Float[Array, "*s c"]) -> Float[Array, "*b k n n"]:
        """α of every head, positions in row-major order."""
        q, k, _ = self.split(self._tokens(x))
        return talking_heads_weights(q, k, self.mix_scores, self.mix_weights)

    def __call__(self, x: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
        """y, in the layout of x."""
        q, k, v = self.split(self._tokens(x))
        return self.join(talking_heads(q, k, v, self.mix_scores, self.mix_weights)).reshape(x.shape)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (*s, c)."""
        plain, k, n = super().cost(shape), self.num_heads, math.prod(shape[:-1])
        return Cost(plain.parameters + 2 * (k * k + k), plain.multiply_adds + 2 * n * n * k * k)
