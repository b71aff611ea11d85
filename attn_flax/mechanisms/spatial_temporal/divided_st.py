"""Divided space-time attention.

    x' = x + W_t attend_t(norm_t(x)) + b_t            over the frames at the same position
    y = x' + attend_s(norm_s(x'))                     over the positions of the same frame

with a class token u, which all frames share and time does not see:

    [s_t, r_t] = attend_s(norm_s([u, x'_t]))          in each frame t
    y_t = x'_t + r_t,   u' = u + mean_t(s_t)

where norm is a layer normalisation and attend multi-head attention with its output projection. Time comes first, then
space, each with parameters and a residual of its own; a token reaches the whole video in two short steps.

Differs from the paper: nothing. The layer W_t, which the paper's equations do not show, is the authors', who also start
it at zero in all blocks but the first, as `zero_init` does; `qkv_bias` adds the biases of queries, keys and values that
their trained networks have. The perceptron that ends a block of theirs is the caller's.

Source: Bertasius, Wang and Torresani, "Is Space-Time Attention All You Need for Video Understanding?" (2021),
arXiv:2102.05095. Confirmed with the authors' code.
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import LayerNorm
from attn_flax.mechanisms.layout import check_video, promote
from attn_flax.mechanisms.self_attention.mhsa import MultiHeadSelfAttention
from attn_flax.mechanisms.temporal.temporal_mhsa import TemporalSelfAttention


def divided_st_attention(
    x: Float[Array, "*b t h w c"], attend_in_time: Callable, attend_in_space: Callable
) -> Float[Array, "*b t h w c"]:
    """y = x' + attend_in_space(x'), x' = x + attend_in_time(x).

    Args:
        x: videos.
        attend_in_time: x -> W_t attend_t(norm_t(x)) + b_t, any callable on (*b, t, h, w, c).
        attend_in_space: tokens -> attend_s(norm_s(tokens)), any callable on the tokens (*b, t, n, c) of each frame.

    >>> x = jnp.array([1.0, 3.0]).reshape(2, 1, 1, 1)
    >>> divided_st_attention(x, lambda x: x, lambda tokens: 2 * tokens).squeeze()
    Array([ 6., 18.], dtype=float32)
    """
    x = x + attend_in_time(x)
    return x + attend_in_space(_tokens(x)).reshape(x.shape)


def divided_st_attention_with_class_token(
    x: Float[Array, "*b t h w c"],
    class_token: Float[Array, "*b c"],
    attend_in_time: Callable,
    attend_in_space: Callable,
) -> tuple[Float[Array, "*b t h w c"], Float[Array, "*b c"]]:
    """y and u', where every frame attends to a copy of the class token u, and u' = u + the mean of what they give.

    Args:
        x: videos.
        class_token: u.
        attend_in_time: as in `divided_st_attention`.
        attend_in_space: likewise, on h·w + 1 tokens of each frame, the class token first.

    >>> x, u = jnp.array([1.0, 3.0]).reshape(2, 1, 1, 1), jnp.array([5.0])
    >>> y, u = divided_st_attention_with_class_token(x, u, lambda x: x, lambda tokens: tokens[..., ::-1, :])
    >>> y.squeeze(), u
    (Array([ 7., 11.], dtype=float32), Array([9.], dtype=float32))
    """
    x = x + attend_in_time(x)
    given = attend_in_space(_prepend(class_token, _tokens(x)))
    of_class_token = given[..., 0, :].mean(-2, dtype=ops.at_least_float32(given.dtype)).astype(given.dtype)
    return x + given[..., 1:, :].reshape(x.shape), class_token + of_class_token


def _tokens(x):
    """(*b, t, h·w, c)."""
    *batch, h, w, c = x.shape
    return x.reshape(*batch, h * w, c)


def _prepend(class_token, tokens):
    """The tokens of each frame after a copy of the class token."""
    copies = jnp.broadcast_to(class_token[..., None, None, :], (*tokens.shape[:-2], 1, tokens.shape[-1]))
    return jnp.concatenate([copies, tokens], -2)


class DividedSpaceTime(nnx.Module):
    """Attention in time, then in space, each after a norm and with a residual.

    Parameters: 9c² + 7c, and 6c with `qkv_bias`. Multiply-adds: 9thw·c² + 2thw·(t + hw)·c, without a class token.

    Args:
        channels: c.
        num_heads: of both attentions; must divide c.
        qkv_bias: whether queries, keys and values have biases; the outputs have.
        zero_init: whether W_t and b_t start at zero, so that at first time is not attended to.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: sizes below 1 or heads that do not divide the channels, at construction; an input that is no video
            of these channels, or a class token that does not fit it, at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 8,
        qkv_bias: bool = False,
        zero_init: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.time = TemporalSelfAttention(channels, num_heads=num_heads, qkv_bias=qkv_bias, **types)
        self.time_norm = LayerNorm(channels, **types)
        start = {"kernel_init": nnx.initializers.zeros} if zero_init else {}
        self.time_project = nnx.Linear(channels, channels, **start, **types)
        self.space = MultiHeadSelfAttention(
            channels, num_heads=num_heads, qkv_bias=qkv_bias, num_spatial_dims=1, **types
        )
        self.space_norm = LayerNorm(channels, **types)

    def attention_map(
        self, x: Float[Array, "*b t h w c"], class_token: Float[Array, "*b c"] | None = None
    ) -> dict[str, Float[Array, "..."]]:
        """The weights of both: "temporal" (*b, h, w, k, t, t) and "spatial" (*b, t, k, n, n).

        n is h·w, or h·w + 1 with a class token, which comes first.
        """
        x, class_token = self._inputs(x, class_token)
        tokens = _tokens(x + self._attend_in_time(x))
        if class_token is not None:
            tokens = _prepend(class_token, tokens)
        return {
            "temporal": self.time.attention_map(self.time_norm(x)),
            "spatial": self.space.attention_map(self.space_norm(tokens)),
        }

    def __call__(
        self, x: Float[Array, "*b t h w c"], class_token: Float[Array, "*b c"] | None = None
    ) -> Float[Array, "*b t h w c"] | tuple[Float[Array, "*b t h w c"], Float[Array, "*b c"]]:
        """y, in the layout of x; with a class token u the pair (y, u')."""
        x, class_token = self._inputs(x, class_token)
        if class_token is None:
            return divided_st_attention(x, self._attend_in_time, self._attend_in_space)
        return divided_st_attention_with_class_token(x, class_token, self._attend_in_time, self._attend_in_space)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (t, h, w, c), without a class token."""
        t, h, w, c = shape
        time, space = self.time.cost(shape), self.space.cost((h, w, c))
        return Cost(
            time.parameters + space.parameters + c * c + c + 4 * c,
            time.multiply_adds + t * (space.multiply_adds + h * w * c * c),
        )

    def _attend_in_time(self, x):
        return self.time_project(self.time(self.time_norm(x)))

    def _attend_in_space(self, tokens):
        return self.space(self.space_norm(tokens))

    def _inputs(self, x, class_token):
        channels = self.time_project.in_features
        check_video(x, channels)
        if class_token is None:
            return promote(x, self.time_project), None
        expected = (*x.shape[:-4], channels)
        check(
            class_token.shape == expected,
            f"class_token must be one for each video, of shape {expected}, got {class_token.shape}.",
        )
        return promote(x, self.time_project), promote(class_token, self.time_project)
