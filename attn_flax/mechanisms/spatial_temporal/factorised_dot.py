"""Factorised dot-product attention.

    q = W_Q x + b_Q,   k = W_K x + b_K,   v = W_V x + b_V
    Y_s = softmax(q k_sᵀ / √d) v_s      half of the heads, over the positions of the same frame
    Y_t = softmax(q k_tᵀ / √d) v_t      the other half, over the frames at the same position
    y = W_O [Y_s, Y_t] + b_O

with d = c/heads. Space and time are attended to at once, in one layer with as many parameters as plain multi-head
attention, at the price of two short kinds of sequences.

Differs from the paper: nothing. The authors' code gives the first half of the heads to time and the second to space:
the same up to the order in which the features of q, k and v and the inputs of W_O are counted.

Source: Arnab, Dehghani, Heigold, Sun, Lučić and Schmid, "ViViT: A Video Vision Transformer" (2021), arXiv:2103.15691,
model 4. Confirmed with the authors' code.
"""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_video, promote
from attn_flax.mechanisms.self_attention.mhsa import MultiHeadSelfAttention
from attn_flax.mechanisms.temporal.temporal_mhsa import temporal_attention, temporal_attention_weights


def factorised_dot_attention_weights(
    q: Float[Array, "*b t h w k d"], k: Float[Array, "*b t h w k d"]
) -> tuple[Float[Array, "*b t g n n"], Float[Array, "*b h w g t t"]]:
    """The weights in space and in time, of half of the heads each; n = h·w."""
    (q_s, q_t), (k_s, k_t) = map(_halves, (q, k))
    spatial = ops.dot_product_attention_weights(_positions(q_s), _positions(k_s))
    return spatial, temporal_attention_weights(q_t, k_t)


def factorised_dot_attention(
    q: Float[Array, "*b t h w k d"], k: Float[Array, "*b t h w k d"], v: Float[Array, "*b t h w k e"]
) -> Float[Array, "*b t h w k e"]:
    """[Y_s, Y_t]: the first half of the heads attends in space, the second in time.

    >>> q, v = jnp.zeros((2, 1, 2, 2, 1)), jnp.array([[0.0, 2.0], [4.0, 6.0]])[:, None, :, None, None]
    >>> s, t = jnp.unstack(factorised_dot_attention(q, q, v.repeat(2, -2)).squeeze(), axis=-1)
    >>> print(s, t)  # rows are frames: their means, and those of the columns
    [[1. 1.]
     [5. 5.]] [[2. 4.]
     [2. 4.]]
    """
    (q_s, q_t), (k_s, k_t), (v_s, v_t) = map(_halves, (q, k, v))
    spatial = ops.dot_product_attention(*map(_positions, (q_s, k_s, v_s))).reshape(v_s.shape)
    return jnp.concatenate([spatial, temporal_attention(q_t, k_t, v_t)], -2)


def _halves(x):
    return jnp.split(x, 2, -2)


def _positions(x):
    """(*b, t, h·w, k, d)."""
    *batch, h, w, k, d = x.shape
    return x.reshape(*batch, h * w, k, d)


class FactorisedDotProduct(nnx.Module):
    """Multi-head attention on video, half of whose heads attend in space and half in time.

    Parameters: 4c² + 4c. Multiply-adds: 4thw·c² + thw·(hw + t)·c.

    Args:
        channels: c.
        num_heads: even, and a divisor of c.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: sizes below 1, an odd number of heads or one that does not divide the channels, at construction; an
            input that is no video of these channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 8,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(num_heads % 2 == 0, f"num_heads must be even, got {num_heads}.")
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.heads = MultiHeadSelfAttention(channels, num_heads=num_heads, qkv_bias=True, **types)

    def attention_map(self, x: Float[Array, "*b t h w c"]) -> dict[str, Float[Array, "..."]]:
        """The weights of half of the heads each: "spatial" (*b, t, k/2, n, n), "temporal" (*b, h, w, k/2, t, t)."""
        q, k, _ = self.heads.split(self._video(x))
        spatial, temporal = factorised_dot_attention_weights(q, k)
        return {"spatial": spatial, "temporal": temporal}

    def __call__(self, x: Float[Array, "*b t h w c"]) -> Float[Array, "*b t h w c"]:
        """y, in the layout of x."""
        return self.heads.join(factorised_dot_attention(*self.heads.split(self._video(x))))

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (t, h, w, c)."""
        t, h, w, c = shape
        in_space, in_time = self.heads.cost((h, w, c)), self.heads.cost((t, c))
        return Cost(in_space.parameters, (t * in_space.multiply_adds + h * w * in_time.multiply_adds) // 2)

    def _video(self, x):
        check_video(x, self.heads.proj.in_features)
        return promote(x, self.heads.proj)
