"""Efficient additive attention.

    q_i = unit(W_Q x_i + b_Q),   k_i = unit(W_K x_i + b_K)
    a = unit_i(q_iᵀ w)
    g = Σ_i a_i q_i
    y_i = W_2 (W_1 (g ∘ k_i) + b_1 + q_i) + b_2

where i are tokens, or the positions of a map, and unit divides by the Euclidean norm, that of q_i and k_i over the
features, that of a over the tokens. All queries are summed to one by a learned vector w, and it is every token's key
that this sum meets; no two tokens are compared, and there are no values.

Differs from the paper: nothing. The factor 1/√d of q_iᵀ w is left out, which the norm over the tokens takes away. The
norms, and W_2, are those of the authors' code. With more than one head, as in their code, the features before W_2 are
wider, and nothing is divided among the heads.

Source: Shaker, Maaz, Rasheed, Khan, Yang and Khan, "SwiftFormer: Efficient Additive Attention for Transformer-based
Real-time Mobile Vision Applications" (2023), arXiv:2303.15446. Confirmed with the authors' code and timm's.
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

SMALLEST_NORM = 1e-12


def additive_attention_weights(
    x: Float[Array, "*b n c"], to_query: Callable, w: Float[Array, " d"]
) -> Float[Array, "*b n"]:
    """a, of either sign, its squares summing to one.

    Args:
        x: tokens.
        to_query: x -> W_Q x + b_Q, any callable from (*b, n, c) to (*b, n, d).
        w: what tokens are weighed by.
    """
    return _weights(_unit(to_query(x)), w)


def additive_attention(
    x: Float[Array, "*b n c"],
    to_query: Callable,
    to_key: Callable,
    w: Float[Array, " d"],
    project: Callable,
    finish: Callable,
) -> Float[Array, "*b n e"]:
    """y, with the a of `additive_attention_weights`; `to_key`, `project` and `finish` map by W_K, W_1 and W_2.

    >>> x = jnp.array([[3.0], [-2.0]])
    >>> same = lambda x: x
    >>> additive_attention(x, same, same, jnp.array([2.0]), lambda z: z * 2**0.5, same)  # q = k = ±1, g = √2
    Array([[ 3.],
           [-3.]], dtype=float32)
    """
    q, k = _unit(to_query(x)), _unit(to_key(x))
    g = ops.attend(_weights(q, w)[..., None, :], q)
    return finish(project(g * k) + q)


def _unit(x: Float[Array, "*s d"]) -> Float[Array, "*s d"]:
    """x / max(‖x‖, 1e-12) along the last axis, the norm in float32 or wider; its derivative at zero is finite."""
    wide = x.astype(ops.at_least_float32(x.dtype))
    squares = jnp.square(wide).sum(-1, keepdims=True)
    return (wide * jax.lax.rsqrt(jnp.maximum(squares, SMALLEST_NORM**2))).astype(x.dtype)


def _weights(q, w):
    """unit(q w), over the tokens."""
    return _unit(q @ w)


class EfficientAdditiveAttention(nnx.Module):
    """Efficient additive attention over the positions of maps, or over tokens.

    Parameters: 4c² + 5c with one head; with h of them h²·c² + 3h·c² + 4h·c + c. Multiply-adds: n·(h²·c² + 3h·c²
    + 2h·c).

    Args:
        channels: c.
        num_heads: h, by which the features are widened.
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
        num_heads: int = 1,
        num_spatial_dims: int = 2,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        sizes = {"channels": channels, "num_heads": num_heads, "num_spatial_dims": num_spatial_dims}
        for name, size in sizes.items():
            check(size >= 1, f"{name} must be at least 1, got {size}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        width = num_heads * channels
        self.to_query = nnx.Linear(channels, width, **layer)
        self.to_key = nnx.Linear(channels, width, **layer)
        self.w_g = nnx.Param(nnx.initializers.normal(1.0)(rngs.params(), (width,), param_dtype))
        self.proj = nnx.Linear(width, width, **layer)
        self.final = nnx.Linear(width, channels, **layer)
        self.num_spatial_dims = num_spatial_dims

    def attention_map(self, x: Float[Array, "*s c"]) -> Float[Array, "*b n"]:
        """a, positions in row-major order."""
        x = self._tokens(x)
        return additive_attention_weights(x, self.to_query, self.w_g[...].astype(x.dtype))

    def __call__(self, x: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
        """y, in the layout of x."""
        tokens = self._tokens(x)
        w = self.w_g[...].astype(tokens.dtype)
        return additive_attention(tokens, self.to_query, self.to_key, w, self.proj, self.final).reshape(x.shape)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (*s, c)."""
        *positions, c = shape
        n, width = math.prod(positions), self.proj.in_features
        products = width * width + 3 * width * c
        return Cost(products + 4 * width + c, n * (products + 2 * width))

    def _tokens(self, x):
        check_channels(x, self.to_query.in_features)
        return flatten_positions(promote(x, self.to_query), self.num_spatial_dims)
