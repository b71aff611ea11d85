"""The article's convolutional gate.

    m = relu(W_2 sigmoid(W_1 x + b_1) + b_2)
    y = x · m

with W_1 from c to c/8 channels and W_2 back, both 1×1 convolutions, which act on every position alone.

Differs from the paper: the article's listing multiplies sigmoid(conv1(x)), of c/8 channels, with conv2(x), of c
channels, and gives conv2 an input of the wrong width, so it cannot run. Here conv2 takes the output of the sigmoid, the
reading that fits the two layers' widths.

Source: the article's section 4.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_channels, promote


def article_gate_weights(x: Float[Array, "*b c"], reduce: Callable, expand: Callable) -> Float[Array, "*b c"]:
    """m = relu(expand(sigmoid(reduce(x)))), at least zero, one for each position and channel.

    Args:
        x: features, any axes before the channels.
        reduce: x -> W_1 x + b_1, the 1×1 convolution to fewer channels.
        expand: the 1×1 convolution back to c channels.
    """
    return jax.nn.relu(expand(jax.nn.sigmoid(reduce(x))))


def article_gate(x: Float[Array, "*b c"], reduce: Callable, expand: Callable) -> Float[Array, "*b c"]:
    """y = x · m, with the m of `article_gate_weights`.

    >>> article_gate(jnp.array([3.0, -4.0]), lambda x: 0 * x, lambda s: s)
    Array([ 1.5, -2. ], dtype=float32)
    """
    return x * article_gate_weights(x, reduce, expand)


class ArticleGate(nnx.Module):
    """The article's gate with its two 1×1 convolutions, on features with any axes before the channels.

    Parameters: 2c·c/r + c/r + c (1,096 for c = 64). Multiply-adds: 2c·c/r for each position.

    Args:
        channels: c; the reduction must divide it.
        reduction: r, by which the inner convolution narrows; the article's is 8.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a reduction that does not divide the channels, or a size below 1, at construction; an input with
            other channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 8,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(channels >= 1, f"channels must be at least 1, got {channels}.")
        check(
            reduction >= 1 and channels % reduction == 0,
            f"reduction must be at least 1 and divide channels, got reduction={reduction}, channels={channels}.",
        )
        inner = channels // reduction
        self.reduce = nnx.Linear(channels, inner, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.expand = nnx.Linear(inner, channels, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def attention_map(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        """m, in the layout of x."""
        check_channels(x, self.reduce.in_features)
        return article_gate_weights(promote(x, self.reduce), self.reduce, self.expand)

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        """y, in the layout of x."""
        return promote(x, self.reduce) * self.attention_map(x)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (*s, c)."""
        *positions, c = shape
        inner = self.reduce.out_features
        return Cost(2 * c * inner + inner + c, math.prod(positions) * 2 * c * inner)
