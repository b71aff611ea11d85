"""What the mechanisms on video share: its layout, and multi-head attention among tokens."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_channels


def check_video(x: Array, channels: int) -> None:
    """Raises InputError unless x is a video (*b, t, h, w, channels)."""
    check_channels(x, channels)
    check(x.ndim >= 4, f"x must be a video (*b, t, h, w, {channels}), got shape {x.shape}.")


class MultiHead(nnx.Module):
    """W_O [o^1 … o^k] + b_O, where o^j = softmax(q^j k^jᵀ / √d) v^j among the tokens that are given together.

    Parameters: 4c² + c, and 3c with biases of queries, keys and values.

    Args:
        channels: c.
        num_heads: k, which must divide c; d = c/k.
        qkv_bias: whether queries, keys and values have biases.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: channels or heads below 1, or heads that do not divide the channels.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(channels >= 1, f"channels must be at least 1, got {channels}.")
        check(
            num_heads >= 1 and channels % num_heads == 0,
            f"num_heads must be at least 1 and divide channels, got num_heads={num_heads}, channels={channels}.",
        )
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.query = nnx.Linear(channels, channels, use_bias=qkv_bias, **layer)
        self.key = nnx.Linear(channels, channels, use_bias=qkv_bias, **layer)
        self.value = nnx.Linear(channels, channels, use_bias=qkv_bias, **layer)
        self.project = nnx.Linear(channels, channels, **layer)
        self.num_heads = num_heads

    def split(self, x: Float[Array, "*s c"]) -> tuple[Float[Array, "*s k d"], ...]:
        """Queries, keys and values of each head."""
        return tuple(
            layer(x).reshape(*x.shape[:-1], self.num_heads, -1) for layer in (self.query, self.key, self.value)
        )

    def join(self, o: Float[Array, "*s k d"]) -> Float[Array, "*s c"]:
        """W_O [o^1 … o^k] + b_O."""
        return self.project(o.reshape(*o.shape[:-2], -1))

    def weights(self, x: Float[Array, "*b n c"]) -> Float[Array, "*b k n n"]:
        """softmax(q^j k^jᵀ / √d)."""
        q, k, _ = self.split(x)
        return ops.dot_product_attention_weights(q, k)

    def __call__(self, x: Float[Array, "*b n c"]) -> Float[Array, "*b n c"]:
        """The tokens after attention among them."""
        return self.join(ops.dot_product_attention(*self.split(x)))

    def cost(self, sequences: int, tokens: int) -> Cost:
        """For sequences of so many tokens, each attended to within itself."""
        c = self.query.in_features
        biases = 4 * c if self.query.use_bias else c
        return Cost(4 * c * c + biases, sequences * tokens * (4 * c * c + 2 * tokens * c))
