"""Class attention.

    q = W_Q x_0 + b_Q,   k_j = W_K x_j + b_K,   v_j = W_V x_j + b_V
    α_j = softmax_j(qᵀ k_j / √d)     for each head
    y = W_O [Σ_j α_j v_j]_heads + b_O

where x_0 is the class token, j are all tokens, itself among them, and d = c/heads. It alone asks and it alone changes:
a few such layers at the end of a network gather what the tokens have become, and cost is linear in their number.

Differs from the paper: nothing. Norm, residual and scale around it are the caller's, who also puts the class token
before the others. `qkv_bias` leaves out b_Q, b_K and b_V.

Source: Touvron, Cord, Sablayrolles, Synnaeve and Jégou, "Going deeper with Image Transformers" (2021),
arXiv:2103.17239. Confirmed with timm's code.
"""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_channels, check_heads, join_heads, promote, split_heads


def class_attention_weights(q: Float[Array, "*b k d"], k: Float[Array, "*b n k d"]) -> Float[Array, "*b k n"]:
    """α_j of every head, for the one query of each example."""
    return ops.dot_product_attention_weights(q[..., None, :, :], k)[..., 0, :]


def class_attention(
    q: Float[Array, "*b k d"], k: Float[Array, "*b n k d"], v: Float[Array, "*b n k e"]
) -> Float[Array, "*b k e"]:
    """Σ_j α_j v_j for each head, with the α of `class_attention_weights`.

    >>> k, v = jnp.ones((2, 1, 1)), jnp.array([1.0, 3.0]).reshape(2, 1, 1)
    >>> class_attention(jnp.ones((1, 1)), k, v)  # no token stands out: their mean
    Array([[2.]], dtype=float32)
    """
    return ops.dot_product_attention(q[..., None, :, :], k, v)[..., 0, :, :]


class ClassAttention(nnx.Module):
    """The new vector of the class token, the first of the tokens, which asks them all.

    Parameters: 4c² + c, and 3c with `qkv_bias`. Multiply-adds: (2n + 2)·c² + 2n·c for n tokens.

    Args:
        channels: c.
        num_heads: which must divide c.
        qkv_bias: whether query, keys and values have biases; the output has.
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
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_heads(channels, num_heads)
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.q, self.k, self.v = (nnx.Linear(channels, channels, use_bias=qkv_bias, **layer) for _ in range(3))
        self.proj = nnx.Linear(channels, channels, **layer)
        self.num_heads = num_heads

    def attention_map(self, x: Float[Array, "*b n c"]) -> Float[Array, "*b k n"]:
        """α of every head."""
        q, k, _ = self._split(x)
        return class_attention_weights(q, k)

    def __call__(self, x: Float[Array, "*b n c"]) -> Float[Array, "*b c"]:
        """y, for tokens of which the first is the class token."""
        return self.proj(join_heads(class_attention(*self._split(x))))

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (n, c)."""
        n, c = shape
        biases = 4 * c if self.q.use_bias else c
        return Cost(4 * c * c + biases, (2 * n + 2) * c * c + 2 * n * c)

    def _split(self, x):
        """q of each head, and each token's k and v."""
        c = self.proj.in_features
        check_channels(x, c)
        check(x.ndim >= 2, f"x must be tokens (*b, n, {c}), the class token first, got shape {x.shape}.")
        x = promote(x, self.proj)
        features = self.q(x[..., 0, :]), self.k(x), self.v(x)
        return [split_heads(part, 1, self.num_heads)[0] for part in features]
