"""ACmix: self-attention and convolution from the same projections.

    q, k, v = W_q x + b_q, W_k x + b_k, W_v x + b_v              in N heads
    A_i = Σ_{j ∈ window(i)} softmax_j(q_iᵀ (k_j + p_i - p_j) / √d) v_j
    f_o = Σ_n (w_no q^n + w'_no k^n + w''_no v^n)                for each offset o of a k×k convolution
    B_i = Σ_o shift_o(f_o)_i                                     learned: a convolution started as these shifts
    y = α A + β B

with d features in each of N heads and learned positions p = W_p (column, row), both from -1 to 1. One set of
projections is used twice: by attention in a window around each position, and by a convolution that is taken apart into
1×1 convolutions, of the features of all heads, and shifts. Two learned numbers weigh the branches.

Differs from the paper: nothing. W_p has a bias in its authors' code and none here, since it cancels. Beyond the border
the window meets the map reflected, as in that code, and on maps smaller than the window reflected again and again. The
features of B lie with the heads last, those of A with the heads first, as there.

Errors elsewhere: the authors' code, and External-Attention-pytorch after it, loses the bias of the shifts when it
sets it to zero (`shift_bias=False`).

Source: Pan, Ge, Lu, Song, Chen, Huang and Huang, "On the Integration of Self-Attention and Convolution" (2022),
arXiv:2111.14556; compared with the code of its authors.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_map, promote
from attn_flax.ops.branches import grouped_conv
from attn_flax.ops.neighborhood import TILE_SIZES, Axis


def acmix_attention_weights(
    q: Float[Array, "*b h w n d"], k: Float[Array, "*b h w n d"], positions: Float[Array, "h w d"], *, window: int
) -> Float[Array, "*b h w n m"]:
    """softmax_j(q_iᵀ (k_j + p_i - p_j) / √d): m = window² weights of each position and head, the window's rows first.

    q_iᵀ p_i is the same for all j and left out.
    """
    q, k = _framed(q, k - positions[..., None, :], window=window)
    weights = ops.neighborhood_attention_weights(q, k, window=(window, window))
    return _unframed(weights, window)


def acmix_attention(
    q: Float[Array, "*b h w n d"],
    k: Float[Array, "*b h w n d"],
    v: Float[Array, "*b h w n d"],
    positions: Float[Array, "h w d"],
    *,
    window: int,
) -> Float[Array, "*b h w n d"]:
    """A_i = Σ_j α_ij v_j over the window around i, with the α of `acmix_attention_weights`.

    Args:
        q: queries.
        k: keys.
        v: values.
        positions: p.
        window: its odd size, the same on both axes; the map is reflected at its border.

    >>> x = jnp.arange(4.0).reshape(1, 4, 1, 1)
    >>> acmix_attention(0 * x, x, x, jnp.zeros((1, 4, 1)), window=3).squeeze() * 3
    Array([2., 3., 6., 7.], dtype=float32)
    """
    q, k, v = _framed(q, k - positions[..., None, :], v, window=window)
    return _unframed(ops.neighborhood_attention(q, k, v, window=(window, window)), window)


def acmix_convolution(
    q: Float[Array, "*b h w n d"],
    k: Float[Array, "*b h w n d"],
    v: Float[Array, "*b h w n d"],
    mix: Callable,
    shift: Callable,
) -> Float[Array, "*b h w c"]:
    """B = Σ_o shift_o(f_o), f = mix(q, k, v).

    Args:
        q: queries.
        k: keys.
        v: values.
        mix: any callable from the 3n heads of a feature, (*b, h, w, d, 3n), to its f_o, (*b, h, w, d, o).
        shift: the sum of the shifted f_o, any callable from (*b, h, w, d·o) to (*b, h, w, c).

    >>> x = jnp.arange(3.0).reshape(1, 3, 1, 1)
    >>> left = lambda f: jnp.roll(f, -1, -2)
    >>> acmix_convolution(x, 0 * x, 0 * x, lambda heads: heads[..., :1], left).squeeze()
    Array([1., 2., 0.], dtype=float32)
    """
    heads = jnp.concatenate([q, k, v], -2)
    f = mix(jnp.swapaxes(heads, -1, -2))
    return shift(f.reshape(*f.shape[:-2], -1))


def _framed(q, *reflected, window):
    """The queries in a frame of zeros, and the rest in one that reflects them, as wide as a window reaches."""
    frame = [(0, 0)] * (q.ndim - 4) + [(window // 2,) * 2] * 2 + [(0, 0)] * 2
    return jnp.pad(q, frame), *(jnp.pad(x, frame, mode="reflect") for x in reflected)


def _unframed(x, window):
    inside = slice(window // 2, -(window // 2) or None)
    return x[..., inside, inside, :, :]


class ACmix(nnx.Module):
    """ACmix on maps of any size.

    Parameters: 3·(c² + c) + 2d + 3N·k² + k⁴·c + 2, and c with a bias of the shifts, where d = c/N. Multiply-adds for
    each position: 3c² + 2d + 3k²·c + k⁴·c, and those of `ops.neighborhood_attention` on the map and its frame, about
    2c·window² for each position at the least.

    Args:
        channels: c, which the heads must divide.
        heads: N.
        window: the size of the window of attention, odd.
        kernel_size: k of the convolution, odd.
        shift_bias: whether the convolution that starts as shifts has a bias.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1, an even window or kernel, heads that do not divide the channels at construction; an
            input that is no map of these channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int = 4,
        window: int = 7,
        kernel_size: int = 3,
        shift_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(channels >= 1, f"channels must be at least 1, got {channels}.")
        check(
            heads >= 1 and channels % heads == 0,
            f"heads must be at least 1 and divide channels, got heads={heads}, channels={channels}.",
        )
        for name, size in (("window", window), ("kernel_size", kernel_size)):
            check(size >= 1 and size % 2 == 1, f"{name} must be odd, got {size}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        d, offsets = channels // heads, kernel_size**2
        self.query = nnx.Linear(channels, channels, **layer)
        self.key = nnx.Linear(channels, channels, **layer)
        self.value = nnx.Linear(channels, channels, **layer)
        self.position = nnx.Linear(2, d, use_bias=False, **layer)
        self.mix = nnx.Linear(3 * heads, offsets, use_bias=False, **layer)
        self.shift = nnx.Conv(
            d * offsets,
            channels,
            (kernel_size, kernel_size),
            feature_group_count=d,
            use_bias=shift_bias,
            kernel_init=shifts,
            conv_general_dilated=grouped_conv,
            **layer,
        )
        self.attention_rate = nnx.Param(jnp.full((), 0.5, param_dtype))
        self.convolution_rate = nnx.Param(jnp.full((), 0.5, param_dtype))
        self.heads = heads
        self.window = window

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w n m"]:
        """α of each position and head over its window, of m positions in row-major order."""
        q, k, _ = self._project(x)
        return acmix_attention_weights(q, k, self._positions(q), window=self.window)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y = α A + β B, in the layout of x."""
        q, k, v = self._project(x)
        attended = acmix_attention(q, k, v, self._positions(q), window=self.window).reshape(x.shape)
        convolved = acmix_convolution(q, k, v, self.mix, self.shift)
        alpha, beta = (rate[...].astype(q.dtype) for rate in (self.attention_rate, self.convolution_rate))
        return alpha * attended + beta * convolved

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        d, offsets = c // self.heads, self.mix.out_features
        mixing, shifting = 3 * self.heads * offsets, offsets**2 * c
        parameters = 3 * (c * c + c) + 2 * d + mixing + shifting + self.shift.use_bias * c + 2
        of_position = 3 * c * c + 2 * d + d * mixing + shifting
        return Cost(parameters, h * w * of_position + 2 * c * _scores(h, w, self.window))

    def _project(self, x):
        check_map(x, self.query.in_features)
        x = promote(x, self.query)
        return [layer(x).reshape(*x.shape[:-1], self.heads, -1) for layer in (self.query, self.key, self.value)]

    def _positions(self, q):
        h, w = q.shape[-4:-2]
        rows, columns = jnp.meshgrid(jnp.linspace(-1, 1, h), jnp.linspace(-1, 1, w), indexing="ij")
        return self.position(jnp.stack([columns, rows], -1).astype(q.dtype))


def shifts(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Float[Array, "p q i o"]:
    """Of each group's i = p·q inputs the o-th tap of the window takes the o-th: an initialiser as of `nnx.Conv`."""
    p, q, i, _ = shape
    return jnp.broadcast_to(jnp.eye(i, dtype=dtype).reshape(p, q, i, 1), shape)


def _scores(h, w, window):
    """How many pairs of query and key `ops.neighborhood_attention` meets, tiles and boxes as it cuts them."""
    frame = 2 * (window // 2)
    axes = [Axis.cut(size + frame, window, 1, TILE_SIZES[2], last) for size, last in ((h, False), (w, True))]
    return math.prod(axis.padded * axis.box for axis in axes)
