"""Spatial gating unit.

    [u, v] = x
    y = u ∘ (W LN(v) + b)

with u and v the first and the second half of the channels, LN the layer norm of each token, and W an n×n matrix over
the tokens with a number b for each, the same for all channels. One half of the features is gated by the other, mixed
across tokens by fixed weights; W starts near zero and b at one, so that at first y is u.

Differs from the paper: nothing.

Source: Liu, Dai, So and Le, "Pay Attention to MLPs" (2021), arXiv:2105.08050; compared with timm's code, as whose the
layer norm's ε is 10⁻⁵.
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import LayerNorm
from attn_flax.mechanisms.layout import check_channels, promote


def sgu_weights(
    x: Float[Array, "*b n c"], normalize: Callable, w: Float[Array, "n n"], bias: Float[Array, " n"]
) -> Float[Array, "*b n d"]:
    """W LN(v) + b, of any sign and size, one for each token and channel of u.

    Args:
        x: the features of n tokens.
        normalize: LN, any callable on (*b, n, c/2).
        w: W.
        bias: b.
    """
    _, v = jnp.split(x, 2, axis=-1)
    return jnp.einsum("nm,...md->...nd", w, normalize(v)) + bias[:, None]


def sgu(
    x: Float[Array, "*b n c"], normalize: Callable, w: Float[Array, "n n"], bias: Float[Array, " n"]
) -> Float[Array, "*b n d"]:
    """y = u ∘ `sgu_weights`, of half the channels.

    >>> x = jnp.array([[1.0, 3.0], [2.0, 4.0]])
    >>> sgu(x, lambda v: v, jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.zeros(2))
    Array([[4.],
           [6.]], dtype=float32)
    """
    u, _ = jnp.split(x, 2, axis=-1)
    return u * sgu_weights(x, normalize, w, bias)


class SpatialGatingUnit(nnx.Module):
    """The spatial gating unit of n tokens, which halves their channels.

    Parameters: n² + n + c. Multiply-adds: n²·c/2.

    Args:
        channels: c, even.
        tokens: n.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1 or odd channels at construction; other tokens or channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        tokens: int,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(channels >= 1, f"channels must be at least 1, got {channels}.")
        check(channels % 2 == 0, f"channels must be even, got {channels}.")
        check(tokens >= 1, f"tokens must be at least 1, got {tokens}.")
        self.norm = LayerNorm(channels // 2, epsilon=1e-5, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.kernel = nnx.Param(nnx.initializers.normal(1e-6)(rngs.params(), (tokens, tokens), param_dtype))
        self.bias = nnx.Param(jnp.ones(tokens, param_dtype))

    def attention_map(self, x: Float[Array, "*b n c"]) -> Float[Array, "*b n d"]:
        """W LN(v) + b, the gate of u."""
        return sgu_weights(*self._arguments(x))

    def __call__(self, x: Float[Array, "*b n c"]) -> Float[Array, "*b n d"]:
        """y, the tokens with half their channels."""
        return sgu(*self._arguments(x))

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (n, c)."""
        n, c = shape
        return Cost(n * n + n + c, n * n * c // 2)

    def _arguments(self, x):
        check_channels(x, 2 * self.norm.num_features)
        tokens = len(self.bias)
        check(x.ndim >= 2 and x.shape[-2] == tokens, f"x must be {tokens} tokens (*b, n, c), got shape {x.shape}.")
        x = promote(x, self.norm)
        return x, self.norm, self.kernel[...].astype(x.dtype), self.bias[...].astype(x.dtype)
