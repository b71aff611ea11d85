"""Linear attention.

    q = W_Q x + b_Q,   k = W_K x + b_K,   v = W_V x + b_V
    α_ij = φ(q_i)ᵀ φ(k_j) / Σ_j φ(q_i)ᵀ φ(k_j)      for each head
    y_i = W_O [Σ_j α_ij v_j]_heads + b_O
    φ(u) = elu(u) + 1

where i and j are tokens, or the positions of a map. Since the similarity is a product of features, Σ_j φ(k_j) v_jᵀ is
summed once for all queries, and the cost grows with the number of tokens and not with its square.

Differs from the paper: the denominator d is guarded, 1/d being d/(d²+ε²), where the authors' code divides by d + ε; ε
is 1e-6 in both. This is the form that sees all tokens, not the causal one.

Source: Katharopoulos, Vyas, Pappas and Fleuret, "Transformers are RNNs: Fast Autoregressive Transformers with Linear
Attention" (2020), arXiv:2006.16236. Confirmed with the authors' code.
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

EPSILON = 1e-6


def similarity_weights(
    q: Float[Array, "*b n k m"], k: Float[Array, "*b n_k k m"], *, epsilon: float = EPSILON
) -> Float[Array, "*b k n n_k"]:
    """α_ij = q_iᵀ k_j / Σ_j q_iᵀ k_j, of queries and keys that a feature map has been applied to.

    The division is guarded, so that a row sums to d²/(d²+ε²), d being its denominator and ε `epsilon`.
    """
    scores = ops.dot_product_scores(jnp.swapaxes(q, -2, -3), jnp.swapaxes(k, -2, -3))
    return ops.sum_normalize(scores, epsilon=epsilon).astype(q.dtype)


def linear_self_attention_weights(
    x: Float[Array, "*b n c"], qkv: Callable, *, num_heads: int, feature_map: Callable = ops.elu_plus_one
) -> Float[Array, "*b k n n"]:
    """α of every head, a row for each token that asks and a column for each that is asked.

    Args:
        x: tokens.
        qkv: x -> [q, k, v], any callable from (*b, n, c) to their features side by side, each head by head.
        num_heads: k.
        feature_map: φ, positive for weights that are an average.
    """
    q, k, _ = split_heads(qkv(x), 3, num_heads)
    return similarity_weights(feature_map(q), feature_map(k))


def linear_self_attention(
    x: Float[Array, "*b n c"],
    qkv: Callable,
    project: Callable,
    *,
    num_heads: int,
    feature_map: Callable = ops.elu_plus_one,
) -> Float[Array, "*b n e"]:
    """y, with the α of `linear_self_attention_weights`, none of which is computed; `project` is o -> W_O o + b_O.

    >>> x = jnp.array([[1.0], [3.0]])
    >>> qkv = lambda x: jnp.concatenate([0 * x, x - 1, x], -1)
    >>> linear_self_attention(x, qkv, lambda o: o, num_heads=1)  # (1·1 + 3·3)/(1 + 3)
    Array([[2.5],
           [2.5]], dtype=float32)
    """
    q, k, v = split_heads(qkv(x), 3, num_heads)
    return project(join_heads(ops.linear_attention(q, k, v, feature_map=feature_map, epsilon=EPSILON)))


class LinearAttention(nnx.Module):
    """Linear attention over the positions of maps, or over tokens.

    Parameters: 4c² + c, and 3c with `qkv_bias`. Multiply-adds: 4n·c² + 2n·c²/heads + n·c.

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
        return linear_self_attention_weights(self._tokens(x), self.qkv, num_heads=self.num_heads)

    def __call__(self, x: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
        """y, in the layout of x."""
        y = linear_self_attention(self._tokens(x), self.qkv, self.proj, num_heads=self.num_heads)
        return y.reshape(x.shape)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (*s, c)."""
        *positions, c = shape
        n = math.prod(positions)
        biases = 4 * c if self.qkv.use_bias else c
        return Cost(4 * c * c + biases, n * c * (4 * c + 2 * c // self.num_heads + 1))

    def _tokens(self, x):
        check_channels(x, self.proj.in_features)
        return flatten_positions(promote(x, self.qkv), self.num_spatial_dims)
