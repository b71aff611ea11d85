"""Scaled cosine attention in windows, with a continuous position bias.

    q, k, v = W x + [b_Q, 0, b_V]                                   in heads of d features
    α_ij = softmax_j(min(eˢ, 100) cos(q_i, k_j) + B_{p_i - p_j})    for each window and head
    y_i = W_O [Σ_j α_ij v_j]_heads + b_O

    B_Δ = 16 sigmoid(W_2 relu(W_1 Δ̂ + b_1)),   Δ̂ = sign(Δ) log₈(1 + 8|Δ| / (M - 1))

where i and j are positions in one window of M×M, p_i and p_j their rows and columns in it, and s a learned number for
each head; the windows are padded, rolled and masked as in `swin`. No pair of vectors, however long, can rule the
softmax, and what knows the places is a perceptron of the offsets, 2 → 512 → heads: it knows those of other windows too,
and since their logarithms grow slowly it need not reach far for them.

Differs from the paper: the paper divides the cosines by a learned τ above 0.01, which is e⁻ˢ, its Δ̂ is the logarithm of
the offset as it is, and its bias what the perceptron gives; the equations above are the authors' code's, as are its
biases, of which keys have none. There the sizes in Δ̂ can also be those of the windows of an earlier training. A vector
of zeros, such as the keys of the padding, has a cosine of zero, and no gradient.

Source: Liu, Hu, Lin, Yao, Xie, Wei, Ning, Cao, Zhang, Dong, Wei and Guo, "Swin Transformer V2: Scaling Up Capacity and
Resolution" (2022), arXiv:2111.09883. Confirmed with timm's code, and read in the authors'.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_map, count_heads, join_heads, promote, split_heads
from attn_flax.mechanisms.windows import (
    bias_and_mask,
    checked_shift,
    cut_windows,
    join_windows,
    padded_size,
)

LARGEST_SCALE = 100.0
SMALLEST_NORM = 1e-12
LARGEST_BIAS = 16.0
HIDDEN = 512


def swinv2_weights(
    x: Float[Array, "*b h w c"],
    qkv: Callable,
    logit_scale: Float[Array, " k"],
    table: Float[Array, "t k"],
    *,
    window: int,
    shift: int = 0,
) -> Float[Array, "*b windows k n n"]:
    """α of every window and head, in the order of `swin_weights`.

    Args:
        x: maps.
        qkv: x -> [q, k, v], any callable from (*b, n, c) to their features side by side, each head by head.
        logit_scale: s.
        table: B, of `continuous_position_table`.
        window: M.
        shift: how far the map is rolled back.
    """
    q, k, _ = split_heads(qkv(cut_windows(x, window, shift)), 3, table.shape[-1])
    place = bias_and_mask(x, table, window, shift)
    return ops.dot_product_attention_weights(_scaled(q, logit_scale), _unit(k), scale=1.0, **place)


def swinv2(
    x: Float[Array, "*b h w c"],
    qkv: Callable,
    project: Callable,
    logit_scale: Float[Array, " k"],
    table: Float[Array, "t k"],
    *,
    window: int,
    shift: int = 0,
) -> Float[Array, "*b h w e"]:
    """y_i = W_O [Σ_j α_ij v_j]_heads + b_O, with the α of `swinv2_weights`; `project` is o -> W_O o + b_O.

    >>> x = jnp.array([[[1.0], [-3.0]]])  # unlike ones: a cosine of -1, so that each sees itself alone
    >>> same, largest, table = lambda x: jnp.concatenate([x, x, x], -1), jnp.array([9.0]), jnp.zeros((9, 1))
    >>> swinv2(x, same, lambda o: o, largest, table, window=2).squeeze()
    Array([ 1., -3.], dtype=float32)
    """
    q, k, v = split_heads(qkv(cut_windows(x, window, shift)), 3, table.shape[-1])
    place = bias_and_mask(x, table, window, shift)
    o = ops.dot_product_attention(_scaled(q, logit_scale), _unit(k), v, scale=1.0, **place)
    return project(join_windows(join_heads(o), x.shape[-3:-1], window, shift))


def continuous_position_table(perceptron: Callable, window: int) -> Float[Array, "t k"]:
    """B_Δ = 16 sigmoid(perceptron(Δ̂)) for each offset Δ in a window, in the order of `ops.relative_position_bias`.

    Args:
        perceptron: Δ̂ -> W_2 relu(W_1 Δ̂ + b_1), any callable from (t, 2) to the heads.
        window: M.

    >>> continuous_position_table(lambda offsets: 0 * offsets[:, :1], 1)
    Array([[8.]], dtype=float32)
    """
    share = np.arange(1 - window, window) / max(window - 1, 1)
    spaced = np.sign(share) * np.log2(1 + 8 * np.abs(share)) / 3
    offsets = np.stack(np.meshgrid(spaced, spaced, indexing="ij"), -1).reshape(-1, 2)
    return LARGEST_BIAS * jax.nn.sigmoid(perceptron(jnp.asarray(offsets)))


def _scaled(q, logit_scale):
    """min(eˢ, 100) q / ‖q‖."""
    scale = jnp.exp(jnp.minimum(logit_scale, math.log(LARGEST_SCALE)))
    return _unit(q) * scale[:, None].astype(q.dtype)


def _unit(x):
    """x / ‖x‖ over the features of a head; zero where x is."""
    wide = x.astype(ops.at_least_float32(x.dtype))
    squares = jnp.square(wide).sum(-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.maximum(squares, SMALLEST_NORM**2))
    return (wide * jnp.where(squares > SMALLEST_NORM**2, inverse, 0)).astype(x.dtype)


class CosineWindowAttention(nnx.Module):
    """Scaled cosine attention in windows of a map of any size, rolled or not.

    Parameters: 4c² + 3c + k + 1536 + 512k, with k = c/d heads. Multiply-adds: (3n' + n)·c² + 2n'·M²·c +
    512·(2M - 1)²·(2 + k), for n positions, n' of them with the padding.

    Args:
        channels: c.
        head_dim: d, which must divide c.
        window: M.
        shift: how far the map is rolled back, by default ⌊M/2⌋; 0 leaves the windows where they are.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: sizes below 1, heads that do not divide the channels, or a shift outside the window, at
            construction; an input that is no map of these channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        head_dim: int = 32,
        window: int = 8,
        shift: int | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        num_heads = count_heads(channels, head_dim)
        self.shift = checked_shift(window, shift)
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.qkv = nnx.Linear(channels, 3 * channels, use_bias=False, **layer)
        self.q_bias = nnx.Param(jnp.zeros(channels, param_dtype))
        self.v_bias = nnx.Param(jnp.zeros(channels, param_dtype))
        self.proj = nnx.Linear(channels, channels, **layer)
        self.logit_scale = nnx.Param(jnp.full(num_heads, math.log(10), param_dtype))
        self.cpb_mlp = nnx.Sequential(
            nnx.Linear(2, HIDDEN, param_dtype=param_dtype, rngs=rngs),
            jax.nn.relu,
            nnx.Linear(HIDDEN, num_heads, use_bias=False, param_dtype=param_dtype, rngs=rngs),
        )
        self.window = window

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b windows k n n"]:
        """α of every window and head, as `swinv2_weights` has them."""
        x = self._map(x)
        return swinv2_weights(x, self._qkv, *self._scale_and_table(x), window=self.window, shift=self.shift)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        x = self._map(x)
        return swinv2(x, self._qkv, self.proj, *self._scale_and_table(x), window=self.window, shift=self.shift)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        *size, c = shape
        n, padded, k = math.prod(size), math.prod(padded_size(size, self.window)), self.logit_scale.size
        of_bias = HIDDEN * (2 * self.window - 1) ** 2 * (2 + k)
        return Cost(
            4 * c * c + 3 * c + k + HIDDEN * (3 + k),
            (3 * padded + n) * c * c + 2 * padded * self.window**2 * c + of_bias,
        )

    def _map(self, x):
        check_map(x, self.proj.in_features)
        return promote(x, self.qkv)

    def _qkv(self, x):
        """W x + [b_Q, 0, b_V]."""
        q_bias, v_bias = self.q_bias[...], self.v_bias[...]
        return self.qkv(x) + jnp.concatenate([q_bias, jnp.zeros_like(q_bias), v_bias]).astype(x.dtype)

    def _scale_and_table(self, x):
        return self.logit_scale[...], continuous_position_table(self.cpb_mlp, self.window).astype(x.dtype)
