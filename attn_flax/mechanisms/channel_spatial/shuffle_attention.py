"""Shuffle attention, SA-Net.

    [x_1, x_2] = x_g                                           the halves of each group g of channels
    y_1 = x_1 · sigmoid(w_1 ∘ mean_hw(x_1) + b_1)              the channel gate
    y_2 = x_2 · sigmoid(w_2 ∘ GN(x_2) + b_2)                   the spatial gate
    y = shuffle([y_1, y_2] of all groups)

with vectors w and b of c/2G features that all G groups share, and GN a normalisation of each channel over its
positions, with a scale and a bias of its own. The last step lays the c channels out as 2 × c/2 and transposes them, so
that the next layer's groups are mixed of all these. At first w is 0 and b is 1, and all is scaled by sigmoid(1).

Differs from the paper: nothing. "Group normalisation" there has as many groups as channels, as in the authors' code.

Errors elsewhere: none in the values; since w_2 starts at 0, the scale and bias of GN have no gradient in the first
step, here as in the authors' code.

Source: Zhang and Yang, "SA-Net: Shuffle Attention for Deep Convolutional Neural Networks" (2021), arXiv:2102.00240;
confirmed with the authors' code.
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
from attn_flax.mechanisms.layout import check_map, promote

EPSILON = 1e-5


def shuffle_attention_weights(
    x: Float[Array, "*b h w c"], groups: int, score_channels: Callable, score_positions: Callable
) -> tuple[Float[Array, "*b 1 1 g d"], Float[Array, "*b h w g d"]]:
    """The gates of the first and of the second half of each group, in (0, 1).

    Args:
        x: maps.
        groups: G; 2G divides c, and d = c/2G.
        score_channels: s -> w_1 ∘ s + b_1 on the means, any callable on (*b, 1, 1, G, d).
        score_positions: n -> w_2 ∘ GN(x_2) + b_2, on the x_2 normalised but not scaled, (*b, h, w, G, d).
    """
    first, second = _halves(x, groups)
    mean, _ = ops.mean_and_variance(first, (-4, -3))
    channel_gate = jax.nn.sigmoid(score_channels(mean.astype(x.dtype)))
    return channel_gate, jax.nn.sigmoid(score_positions(_normalize(second)))


def shuffle_attention(
    x: Float[Array, "*b h w c"], groups: int, score_channels: Callable, score_positions: Callable
) -> Float[Array, "*b h w c"]:
    """y: both halves times their gates of `shuffle_attention_weights`, shuffled.

    >>> shuffle_attention(jnp.array([[[2.0, 4.0, 6.0, 8.0]]]), 1, lambda s: 0 * s, lambda n: 0 * n)
    Array([[[1., 3., 2., 4.]]], dtype=float32)
    """
    gates = shuffle_attention_weights(x, groups, score_channels, score_positions)
    gated = [half * gate for half, gate in zip(_halves(x, groups), gates, strict=True)]
    return _shuffle(jnp.stack(gated, axis=-2).reshape(x.shape))


def _halves(x, groups):
    grouped = x.reshape(*x.shape[:-1], groups, 2, -1)
    return grouped[..., 0, :], grouped[..., 1, :]


def _normalize(x):
    mean, variance = ops.mean_and_variance(x, (-4, -3))
    return ((x - mean) / jnp.sqrt(variance + EPSILON)).astype(x.dtype)


def _shuffle(x):
    return x.reshape(*x.shape[:-1], 2, -1).swapaxes(-2, -1).reshape(x.shape)


class ShuffleAttention(nnx.Module):
    """Shuffle attention for maps of any size.

    Parameters: 3c/G. Multiply-adds: none.

    Args:
        channels: c.
        groups: G; twice as many must divide the channels. By default the greatest common divisor of 64 and c/2.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: taken as by all Modules; nothing is random here.

    Raises:
        InputError: a size below 1 or groups twice of which do not divide the channels, at construction; an input that
            is no map of these channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        groups: int | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(channels >= 1, f"channels must be at least 1, got {channels}.")
        groups = math.gcd(64, channels // 2) if groups is None else groups
        check(
            groups >= 1 and channels % (2 * groups) == 0,
            f"groups must be at least 1 and twice of them divide channels, got groups={groups}, channels={channels}.",
        )
        types = {"dtype": dtype, "param_dtype": param_dtype}
        features = channels // (2 * groups)
        self.channel = _Affine(jnp.zeros(features), jnp.ones(features), **types)
        self.spatial = _Affine(jnp.zeros(features), jnp.ones(features), **types)
        self.norm = _Affine(jnp.ones(features), jnp.zeros(features), **types)
        self.channels = channels
        self.groups = groups

    def attention_map(self, x: Float[Array, "*b h w c"]) -> dict[str, Array]:
        """The gates: "channel" (*b, 1, 1, G, c/2G) of the first halves, "spatial" (*b, h, w, G, c/2G) of the second."""
        weights = shuffle_attention_weights(self._map(x), self.groups, self.channel, self._score_positions)
        return dict(zip(("channel", "spatial"), weights, strict=True))

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x, its channels shuffled."""
        return shuffle_attention(self._map(x), self.groups, self.channel, self._score_positions)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        return Cost(3 * self.channels // self.groups, 0)

    def _score_positions(self, normalized):
        return self.spatial(self.norm(normalized))

    def _map(self, x):
        check_map(x, self.channels)
        return promote(x, self.channel)


class _Affine(nnx.Module):
    """w ∘ x + b."""

    def __init__(self, scale, bias, *, dtype, param_dtype):
        self.scale = nnx.Param(scale.astype(param_dtype))
        self.bias = nnx.Param(bias.astype(param_dtype))
        self.dtype = dtype
        self.param_dtype = param_dtype

    def __call__(self, x):
        return x * self.scale[...].astype(x.dtype) + self.bias[...].astype(x.dtype)
