"""Single-head self-attention over a part of the channels.

    [x_1, x_2] = x                              the first p channels and the others
    [q, k, v] = BN(W GN(x_1))
    o_i = Σ_j softmax_j(q_iᵀ k_j / √d) v_j
    y = BN(W_O relu([o, x_2]))

where i and j are the positions of a map, GN norms all features of an example together, q and k have d features, and v
has p. Several heads were found to learn alike; one head over about a fifth of the channels, mixed with the others by
W_O, costs less memory traffic.

Differs from the paper: nothing. ReLU and the norms are those of the authors' code, where the last norm's scale starts
at zero, inside of a residual; here, where there may be none, at one. The residual around it is the caller's.

Source: Yun and Ro, "SHViT: Single-Head Vision Transformer with Memory Efficient Macro Design" (2024), arXiv:2401.16456.
Confirmed with the authors' and timm's code.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import GroupNorm
from attn_flax.mechanisms.layout import check_map, flatten_positions, promote
from attn_flax.mechanisms.self_attention.cascaded_group import LinearNorm

DEFAULT_SHARE = 0.214
"""Of the channels, as in the paper: 1/4.67."""


def single_head_weights(x: Float[Array, "*b h w c"], ask: Callable, *, partial_channels: int) -> Float[Array, "*b n n"]:
    """α_ij = softmax_j(q_iᵀ k_j / √d), positions in row-major order.

    Args:
        x: maps.
        ask: x_1 -> (q, k, v), from maps to maps of features.
        partial_channels: p.
    """
    q, k, _ = _asked(x[..., :partial_channels], ask)
    return ops.dot_product_attention_weights(q, k)[..., 0, :, :]


def single_head(
    x: Float[Array, "*b h w c"], ask: Callable, project: Callable, *, partial_channels: int
) -> Float[Array, "*b h w c"]:
    """y = project([o, x_2]), o_i = Σ_j α_ij v_j with the α of `single_head_weights`; `project` is u -> BN(W_O relu(u)).

    >>> x = jnp.array([[[1.0, 7.0], [3.0, 9.0]]])
    >>> single_head(x, lambda x: (0 * x, x, x), lambda u: u, partial_channels=1)[0]
    Array([[2., 7.],
           [2., 9.]], dtype=float32)
    """
    attended, rest = jnp.split(x, [partial_channels], -1)
    o = ops.dot_product_attention(*_asked(attended, ask))
    return project(jnp.concatenate([o.reshape(attended.shape), rest], -1))


def _asked(x, ask):
    """q, k and v as tokens of one head."""
    return tuple(flatten_positions(features, 2)[..., None, :] for features in ask(x))


class SingleHeadAttention(nnx.Module):
    """Single-head attention over the first p channels of maps of any size.

    Parameters: 2p + (p + 2)(2d + p) + c² + 2c. Multiply-adds: n·(p(2d + p) + c²) + n²·(d + p).

    Args:
        channels: c.
        key_dim: d, the features of queries and keys.
        partial_channels: p, at most c; by default 0.214·c, rounded, at least 1.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: sizes below 1 or a larger part than the whole, at construction; an input that is no map of these
            channels, at the call, or for `attention_map` one whose map takes more than 1 GiB for an example.
    """

    def __init__(
        self,
        channels: int,
        *,
        key_dim: int = 16,
        partial_channels: int | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, size in (("channels", channels), ("key_dim", key_dim)):
            check(size >= 1, f"{name} must be at least 1, got {size}.")
        part = max(1, round(DEFAULT_SHARE * channels)) if partial_channels is None else partial_channels
        check(1 <= part <= channels, f"partial_channels must be 1 to channels={channels}, got {part}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.norm = GroupNorm(part, 1, **layer)
        self.qkv = LinearNorm(part, 2 * key_dim + part, **layer)
        self.proj = LinearNorm(channels, channels, **layer)
        self.key_dim = key_dim
        self.partial_channels = part

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b n n"]:
        """α, positions in row-major order."""
        return single_head_weights(self._map(x), self._ask, partial_channels=self.partial_channels)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return single_head(self._map(x), self._ask, self._project, partial_channels=self.partial_channels)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, _ = shape
        n, p = h * w, self.partial_channels
        parameters, multiply_adds = map(sum, zip(self.qkv.cost(n), self.proj.cost(n), strict=True))
        return Cost(2 * p + parameters, multiply_adds + n * n * (self.key_dim + p))

    def _ask(self, x):
        return jnp.split(self.qkv(self.norm(x)), (self.key_dim, 2 * self.key_dim), -1)

    def _project(self, u):
        return self.proj(jax.nn.relu(u))

    def _map(self, x):
        check_map(x, self.proj.linear.in_features)
        return promote(x, self.proj.linear)
