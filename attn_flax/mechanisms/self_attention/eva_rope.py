"""Self-attention with rotary positions, of EVA-02.

    q = W_Q x + b_Q,   k = W_K x,   v = W_V x + b_V
    α_ij = softmax_j((R_i q_i)ᵀ R_j k_j / √d)     for each head
    y_i = W_O [Σ_j α_ij v_j]_heads + b_O

where i and j are the positions of a map, d = c/heads, and R_i turns each pair of neighbouring features by an angle:
half of the pairs by p_y·θ_f, the others by p_x·θ_f, with (p_y, p_x) the row and column of i and θ_f = base^(-f/F) for
the F pairs of an axis. What a query and a key have in common thus depends on the offset between them alone. A bias of
the keys would not cancel here, as it does without rotations; the authors have none.

Differs from the paper: positions are counted on maps of every size; the authors stretch those of a map that is larger
than in pretraining to the same range. A class token, which they do not turn, is not here; nor is the normalisation of
the heads' features before W_O, which is an option of theirs.

Source: Fang, Sun, Wang, Huang, Wang and Cao, "EVA-02: A Visual Representation for Neon Genesis" (2023),
arXiv:2303.11331, after Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021),
arXiv:2104.09864. Confirmed with timm's code.
"""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.self_attention.mhsa import MultiHeadSelfAttention


def eva_rope_weights(
    q: Float[Array, "*b n k d"], k: Float[Array, "*b n k d"], angles: Float[Array, "n half_d"]
) -> Float[Array, "*b k n n"]:
    """α of every head, a row for each token that asks and a column for each that is asked.

    Args:
        q: the queries.
        k: the keys.
        angles: of R_i, as `ops.rotary_angles` has them.
    """
    return ops.dot_product_attention_weights(ops.rotate(q, angles), ops.rotate(k, angles))


def eva_rope(
    q: Float[Array, "*b n k d"],
    k: Float[Array, "*b n k d"],
    v: Float[Array, "*b n k e"],
    angles: Float[Array, "n half_d"],
) -> Float[Array, "*b n k e"]:
    """Σ_j α_ij v_j for each head, with the α of `eva_rope_weights`.

    >>> x, v = jnp.full((3, 1, 4), 4.0), jnp.array([1.0, 2.0, 3.0]).reshape(3, 1, 1)
    >>> eva_rope(x, x, v, ops.rotary_angles((3, 1), 4)).squeeze().round(1)  # the same tokens, told apart by their rows
    Array([1., 2., 3.], dtype=float32)
    """
    return ops.dot_product_attention(ops.rotate(q, angles), ops.rotate(k, angles), v)


class RotarySelfAttention(MultiHeadSelfAttention):
    """Self-attention over the positions of maps whose queries and keys are turned by where they are.

    Parameters: 4c² + c, and 2c with `qkv_bias`. Multiply-adds: 4n·c² + 2n²·c.

    Args:
        channels: c.
        num_heads: which must divide c, into a multiple of two features for each axis of positions: 4 for maps.
        qkv_bias: whether queries and values have biases; the output has, and keys have not.
        base: of the wavelengths.
        num_spatial_dims: how many axes before the channels are positions: 1 for tokens in a row, 2 for maps, 3 for
            volumes and video.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: sizes below 1, heads that do not divide the channels as above, or a base not above zero, at
            construction; at the call, channels or axes that do not fit, or for `attention_map` a map of more than 1 GiB
            for an example's head.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 8,
        qkv_bias: bool = True,
        base: float = 10000.0,
        num_spatial_dims: int = 2,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        super().__init__(channels, num_heads=num_heads, num_spatial_dims=num_spatial_dims, **layer)
        check(
            channels // num_heads % (2 * num_spatial_dims) == 0,
            f"channels / num_heads must be a multiple of {2 * num_spatial_dims}, two for each of {num_spatial_dims} "
            f"axes, got channels={channels}, num_heads={num_heads}.",
        )
        check(base > 0, f"base must be positive, got {base}.")
        self.q_bias, self.v_bias = (
            nnx.data(nnx.Param(jnp.zeros(channels, param_dtype)) if qkv_bias else None) for _ in range(2)
        )
        self.base = base

    def attention_map(self, x: Float[Array, "*s c"]) -> Float[Array, "*b k n n"]:
        """α of every head, positions in row-major order."""
        q, k, _ = self.split(self._tokens(x))
        return eva_rope_weights(q, k, self._angles(x))

    def __call__(self, x: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
        """y, in the layout of x."""
        q, k, v = self.split(self._tokens(x))
        return self.join(eva_rope(q, k, v, self._angles(x))).reshape(x.shape)

    def split(self, x: Float[Array, "*s c"]) -> tuple[Float[Array, "*s k d"], ...]:
        """q, k and v of each head, before they are turned."""
        q, k, v = super().split(x)
        if self.q_bias is None:
            return q, k, v
        q_bias, v_bias = (bias[...].astype(q.dtype).reshape(q.shape[-2:]) for bias in (self.q_bias, self.v_bias))
        return q + q_bias, k, v + v_bias

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (*s, c)."""
        plain = super().cost(shape)
        return Cost(plain.parameters + (0 if self.q_bias is None else 2 * shape[-1]), plain.multiply_adds)

    def _angles(self, x):
        *_, c = x.shape
        return ops.rotary_angles(x.shape[-1 - self.num_spatial_dims : -1], c // self.num_heads, self.base)
