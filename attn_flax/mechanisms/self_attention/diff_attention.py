"""Differential attention.

    [q¹, q²] = W_Q x + b_Q,   [k¹, k²] = W_K x + b_K,   v = W_V x + b_V
    α_ij = softmax_j(q¹_iᵀ k¹_j / √d) - λ softmax_j(q²_iᵀ k²_j / √d)     for each head
    o_i = (1 - λ_init) norm(Σ_j α_ij v_j)
    y_i = W_O [o_i]_heads + b_O
    λ = exp(λ_q1ᵀ λ_k1) - exp(λ_q2ᵀ λ_k2) + λ_init,   λ_init = 0.8 - 0.6 exp(-0.3 depth)

where i and j are tokens, or the positions of a map, queries and keys have d = c/(2·heads) features and values 2d, norm
is an RMS normalisation of a head's 2d features, and λ_q1, λ_k1, λ_q2 and λ_k2 are learned vectors of d, the same for
all heads. What both maps of a head look at, such as the noise, cancels. Rows sum to 1 - λ.

Differs from the paper: every token sees all others, as in images, and W_O has a bias b_O, as in timm; `qkv_bias` leaves
out b_Q, b_K and b_V, which the paper does not have. `depth` counts layers from 0, the paper from 1.

Source: Ye, Dong, Xia, Sun, Zhu, Huang and Wei, "Differential Transformer" (2024), arXiv:2410.05258; compared with the
authors' code, microsoft/unilm. Confirmed with timm's code.
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
from attn_flax.mechanisms.self_attention.mhsa import MultiHeadSelfAttention


def diff_attention_weights(
    q: Float[Array, "*b n k d"], k: Float[Array, "*b m k d"], difference: Float[Array, ""] | float
) -> Float[Array, "*b k n m"]:
    """α of every head, a row for each token that asks and a column for each that is asked.

    Args:
        q: [q¹, q²], the queries of both maps side by side.
        k: [k¹, k²], likewise.
        difference: λ.
    """
    first, second = map(ops.dot_product_attention_weights, _halves(q), _halves(k))
    return first - jnp.asarray(difference, first.dtype) * second


def diff_attention(
    q: Float[Array, "*b n k d"],
    k: Float[Array, "*b m k d"],
    v: Float[Array, "*b m k e"],
    normalize: Callable,
    *,
    difference: Float[Array, ""] | float,
    initial: float,
) -> Float[Array, "*b n k e"]:
    """o_i = (1 - λ_init) norm(Σ_j α_ij v_j) for each head, with the α of `diff_attention_weights`.

    Args:
        q: [q¹, q²], the queries of both maps side by side.
        k: [k¹, k²], likewise.
        v: the values.
        normalize: norm, any callable on the features of a head.
        difference: λ.
        initial: λ_init.

    >>> q, v = jnp.zeros((1, 1, 2)), jnp.array([[[2.0]]])
    >>> diff_attention(q, q, v, lambda o: o, difference=0.5, initial=0.0)  # half of what there is
    Array([[[1.]]], dtype=float32)
    """
    first, second = (ops.dot_product_attention(*halves, v) for halves in zip(_halves(q), _halves(k), strict=True))
    return (1 - initial) * normalize(first - jnp.asarray(difference, v.dtype) * second)


def _halves(x):
    return jnp.split(x, 2, axis=-1)


class DifferentialAttention(MultiHeadSelfAttention):
    """Self-attention over the positions of maps, or over tokens, by the difference of two maps for each head.

    Parameters: 4c² + c + 6d, and 3c with `qkv_bias`. Multiply-adds: 4n·c² + 3n²·c.

    Args:
        channels: c.
        num_heads: which must divide c, into an even number of features.
        qkv_bias: whether queries, keys and values have biases; the output has.
        depth: the number of layers before this one.
        num_spatial_dims: how many axes before the channels are positions: 1 for tokens, 2 for maps, 3 for volumes and
            video.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: sizes below 1, heads that do not divide the channels as above, or a depth below 0, at construction;
            at the call, channels or axes that do not fit, or for `attention_map` a map of more than 1 GiB for an
            example's head.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 8,
        qkv_bias: bool = False,
        depth: int = 0,
        num_spatial_dims: int = 2,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        super().__init__(channels, num_heads=num_heads, qkv_bias=qkv_bias, num_spatial_dims=num_spatial_dims, **layer)
        width = channels // num_heads
        check(
            width % 2 == 0,
            f"channels / num_heads must be even, for two maps each, got channels={channels}, num_heads={num_heads}.",
        )
        check(depth >= 0, f"depth must be at least 0, got {depth}.")
        initialize = nnx.initializers.normal(0.1)
        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = (
            nnx.Param(initialize(rngs.params(), (width // 2,), param_dtype)) for _ in range(4)
        )
        self.norm = nnx.RMSNorm(width, epsilon=1e-5, **layer)
        self.lambda_init = 0.8 - 0.6 * math.exp(-0.3 * depth)

    def attention_map(self, x: Float[Array, "*s c"]) -> Float[Array, "*b k n n"]:
        """α of every head, positions in row-major order."""
        q, k, _ = self.split(self._tokens(x))
        return diff_attention_weights(q, k, self._difference())

    def __call__(self, x: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
        """y, in the layout of x."""
        q, k, v = self.split(self._tokens(x))
        o = diff_attention(q, k, v, self.norm, difference=self._difference(), initial=self.lambda_init)
        return self.join(o).reshape(x.shape)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (*s, c)."""
        *positions, c = shape
        n, plain = math.prod(positions), super().cost(shape)
        return Cost(plain.parameters + 3 * c // self.num_heads, plain.multiply_adds + n * n * c)

    def _difference(self):
        """λ, in float32 or wider."""
        pairs = (self.lambda_q1, self.lambda_k1), (self.lambda_q2, self.lambda_k2)
        wide = ops.at_least_float32(self.lambda_q1.dtype)
        first, second = (jnp.exp(jnp.sum(q[...].astype(wide) * k[...].astype(wide))) for q, k in pairs)
        return first - second + self.lambda_init
