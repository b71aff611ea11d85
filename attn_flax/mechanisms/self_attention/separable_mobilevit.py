"""Separable self-attention.

    s_j = w_Iᵀ x_j + b_I,   k_j = W_K x_j + b_K,   v_j = W_V x_j + b_V
    α = softmax_j(s)
    y_i = W_O (relu(v_i) ∘ Σ_j α_j k_j) + b_O

where i and j are tokens, or the positions of a map. One score for each token says how much of its key goes into a
single context vector, which all tokens are multiplied by; no two tokens are compared.

Differs from the paper: nothing. Its network divides a map into patches of 2×2 and attends among the positions of the
same place in their patches; such a division is the caller's, who gives those places as a batch axis.

Errors elsewhere: External-Attention-pytorch's leaves out the relu.

Source: Mehta and Rastegari, "Separable Self-attention for Mobile Vision Transformers" (2022), arXiv:2206.02680.
Confirmed with timm's code.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_channels, flatten_positions, promote


def separable_attention_weights(x: Float[Array, "*b n c"], qkv: Callable) -> Float[Array, "*b n"]:
    """α, a weight for each token.

    Args:
        x: tokens.
        qkv: x -> [s, k, v], any callable from (*b, n, c) to the score and 2d features side by side.
    """
    return _softmax_of_scores(qkv(x))[..., 0, :]


def separable_attention(x: Float[Array, "*b n c"], qkv: Callable, project: Callable) -> Float[Array, "*b n e"]:
    """y, with the α of `separable_attention_weights`; `project` is o -> W_O o + b_O.

    >>> x = jnp.array([[1.0], [3.0]])
    >>> qkv = lambda x: jnp.concatenate([0 * x, x, x - 2], -1)
    >>> separable_attention(x, qkv, lambda o: o)  # the values -1 and 1, the mean key 2
    Array([[0.],
           [2.]], dtype=float32)
    """
    features = qkv(x)
    k, v = jnp.split(features[..., 1:], 2, axis=-1)
    context = ops.attend(_softmax_of_scores(features), k)
    return project(jax.nn.relu(v) * context)


def _softmax_of_scores(features):
    """α, as a map of one row."""
    return ops.softmax(features[..., None, :, 0])


class SeparableSelfAttention(nnx.Module):
    """Separable self-attention over the positions of maps, or over tokens.

    Parameters: 3c² + 4c + 1. Multiply-adds: n·(3c² + 2c).

    Args:
        channels: c.
        num_spatial_dims: how many axes before the channels are positions: 1 for tokens, 2 for maps, 3 for volumes and
            video.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1 at construction; channels or axes that do not fit at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_spatial_dims: int = 2,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(channels >= 1, f"channels must be at least 1, got {channels}.")
        check(num_spatial_dims >= 1, f"num_spatial_dims must be at least 1, got {num_spatial_dims}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.qkv_proj = nnx.Linear(channels, 1 + 2 * channels, **layer)
        self.out_proj = nnx.Linear(channels, channels, **layer)
        self.num_spatial_dims = num_spatial_dims

    def attention_map(self, x: Float[Array, "*s c"]) -> Float[Array, "*b n"]:
        """α, positions in row-major order."""
        return separable_attention_weights(self._tokens(x), self.qkv_proj)

    def __call__(self, x: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
        """y, in the layout of x."""
        return separable_attention(self._tokens(x), self.qkv_proj, self.out_proj).reshape(x.shape)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (*s, c)."""
        *positions, c = shape
        return Cost(3 * c * c + 4 * c + 1, math.prod(positions) * (3 * c * c + 2 * c))

    def _tokens(self, x):
        check_channels(x, self.out_proj.in_features)
        return flatten_positions(promote(x, self.qkv_proj), self.num_spatial_dims)
