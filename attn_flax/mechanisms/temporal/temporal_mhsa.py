"""Temporal self-attention.

    q = W_Q x + b_Q,   k = W_K x + b_K,   v = W_V x + b_V
    α_tu = softmax_u(q_tᵀ k_u / √d)     for each position and head
    y_t = W_O [Σ_u α_tu v_u]_heads + b_O

where t and u are frames and d = c/heads. Each position of a frame attends to the same position of all frames and to
nothing else, so a video of any length costs no more than h·w short sequences.

Differs from the paper: nothing. Norm and residual, which both papers put around it, are the caller's, and `qkv_bias`
leaves out b_Q, b_K and b_V, which TimeSformer's equations do not have and its trained networks do.

Source: Bertasius, Wang and Torresani, "Is Space-Time Attention All You Need for Video Understanding?" (2021),
arXiv:2102.05095; Arnab, Dehghani, Heigold, Sun, Lučić and Schmid, "ViViT: A Video Vision Transformer" (2021),
arXiv:2103.15691. Confirmed with the authors' code of both.
"""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_video, promote
from attn_flax.mechanisms.self_attention.mhsa import MultiHeadSelfAttention


def temporal_attention_weights(
    q: Float[Array, "*b t h w k d"], k: Float[Array, "*b t h w k d"]
) -> Float[Array, "*b h w k t t"]:
    """α_tu = softmax_u(q_tᵀ k_u / √d), for each position and head."""
    return ops.dot_product_attention_weights(_frames_last(q), _frames_last(k))


def temporal_attention(
    q: Float[Array, "*b t h w k d"], k: Float[Array, "*b t h w k d"], v: Float[Array, "*b t h w k e"]
) -> Float[Array, "*b t h w k e"]:
    """o_t = Σ_u α_tu v_u, with the α of `temporal_attention_weights`.

    >>> q, v = jnp.zeros((2, 1, 1, 1, 1)), jnp.array([1.0, 3.0]).reshape(2, 1, 1, 1, 1)
    >>> temporal_attention(q, q, v).squeeze()  # no frame stands out: their mean
    Array([2., 2.], dtype=float32)
    """
    return jnp.moveaxis(ops.dot_product_attention(*map(_frames_last, (q, k, v))), -3, -5)


def _frames_last(x):
    """(*b, h, w, t, k, d), with the frames in the place of tokens."""
    return jnp.moveaxis(x, -5, -3)


class TemporalSelfAttention(nnx.Module):
    """Multi-head self-attention over the frames of a video, for each position by itself.

    Parameters: 4c² + 4c, or 4c² + c without `qkv_bias`. Multiply-adds: 4thw·c² + 2t²hw·c.

    Args:
        channels: c.
        num_heads: which must divide c.
        qkv_bias: whether queries, keys and values have biases; the output has.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: sizes below 1 or heads that do not divide the channels, at construction; an input that is no video
            of these channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 8,
        qkv_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.heads = MultiHeadSelfAttention(channels, num_heads=num_heads, qkv_bias=qkv_bias, **types)

    def attention_map(self, x: Float[Array, "*b t h w c"]) -> Float[Array, "*b h w k t t"]:
        """α of each position and head: frame t's weights for all frames."""
        q, k, _ = self.heads.split(self._video(x))
        return temporal_attention_weights(q, k)

    def __call__(self, x: Float[Array, "*b t h w c"]) -> Float[Array, "*b t h w c"]:
        """y, in the layout of x."""
        return self.heads.join(temporal_attention(*self.heads.split(self._video(x))))

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (t, h, w, c)."""
        t, h, w, c = shape
        parameters, multiply_adds = self.heads.cost((t, c))
        return Cost(parameters, h * w * multiply_adds)

    def _video(self, x):
        check_video(x, self.heads.proj.in_features)
        return promote(x, self.heads.proj)
