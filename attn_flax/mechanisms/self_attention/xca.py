"""Cross-covariance attention.

    q = W_Q x + b_Q,   k = W_K x + b_K,   v = W_V x + b_V
    α_fg = softmax_g(τ q̂_fᵀ k̂_g)     for each head, with q̂_f = q_f / ‖q_f‖ and k̂_g = k_g / ‖k_g‖
    o_f = Σ_g α_fg v_g
    y = W_O [o]_heads + b_O

where f and g are the d = c/heads features of a head, q_f, k_g and v_g the n numbers that a feature has at the tokens or
the positions of a map, and τ is learned, one for each head, from 1. Features ask features: the map is d×d, and the cost
linear in n. Positions do not mix but through these maps; networks of it add local convolutions.

Differs from the paper: the paper's τ divides; here it multiplies, as in the authors' code.

Errors elsewhere: vit-pytorch multiplies by exp(τ) and starts τ at 1, so its temperature starts at e.

Source: El-Nouby, Touvron, Caron, Bojanowski, Douze, Joulin, Laptev, Neverova, Synnaeve, Verbeek and Jégou, "XCiT:
Cross-Covariance Image Transformers" (2021), arXiv:2106.09681. Confirmed with timm's code.
"""

import math

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.self_attention.mhsa import MultiHeadSelfAttention


def xca_weights(
    q: Float[Array, "*b n k d"], k: Float[Array, "*b n k d"], temperature: Float[Array, " k"]
) -> Float[Array, "*b k d d"]:
    """α of every head, a row for each feature that asks and a column for each that is asked; `temperature` is τ."""
    return ops.cross_covariance_weights(q, k, temperature=temperature)


def xca(
    q: Float[Array, "*b n k d"],
    k: Float[Array, "*b n k d"],
    v: Float[Array, "*b n k d"],
    temperature: Float[Array, " k"],
) -> Float[Array, "*b n k d"]:
    """o for each head, with the α of `xca_weights`.

    >>> x = jnp.arange(4.0).reshape(2, 1, 2)
    >>> xca(x, x, x, jnp.zeros(1)).squeeze()  # at τ = 0 no feature stands out: the mean of all
    Array([[0.5, 0.5],
           [2.5, 2.5]], dtype=float32)
    """
    return ops.cross_covariance_attention(q, k, v, temperature=temperature)


class CrossCovarianceAttention(MultiHeadSelfAttention):
    """Attention between the features of maps, or of tokens.

    Parameters: 4c² + c + k for k heads, and 3c with `qkv_bias`. Multiply-adds: 4n·c² + 2n·c²/k.

    Args:
        channels: c.
        num_heads: k, which must divide c.
        qkv_bias: whether queries, keys and values have biases; the output has.
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
        qkv_bias: bool = False,
        num_spatial_dims: int = 2,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        super().__init__(channels, num_heads=num_heads, qkv_bias=qkv_bias, num_spatial_dims=num_spatial_dims, **layer)
        self.temperature = nnx.Param(jnp.ones(num_heads, param_dtype))

    def attention_map(self, x: Float[Array, "*s c"]) -> Float[Array, "*b k d d"]:
        """α of every head, the weights between its features."""
        q, k, _ = self.split(self._tokens(x))
        return xca_weights(q, k, self.temperature[...]).astype(q.dtype)

    def __call__(self, x: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
        """y, in the layout of x."""
        q, k, v = self.split(self._tokens(x))
        return self.join(xca(q, k, v, self.temperature[...])).reshape(x.shape)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (*s, c)."""
        *positions, c = shape
        n, k = math.prod(positions), self.num_heads
        return Cost(super().cost(shape).parameters + k, n * (4 * c * c + 2 * c * c // k))
