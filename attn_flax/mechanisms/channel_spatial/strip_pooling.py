"""Strip pooling: the strip pooling module and the mixed pooling module.

    strips(x) = relu(BN(F_h z_h) + BN(F_w z_w)),    z_h(i) = mean_j x(i, j),    z_w(j) = mean_i x(i, j)

    y = x · sigmoid(W strips(x) + b)                                                         strip pooling

    pyramid(u) = relu(BN(F u) + Σ_s up(BN(F_s pool_s(u))))
    y = relu(x + BN(W [relu(BN(F_1 pyramid(u_1))), relu(BN(F_2 strips(u_2)))]))              mixed pooling
    u_1 = relu(BN(W_1 x)),  u_2 = relu(BN(W_2 x))

with F_h a 3×1, F_w a 1×3 and all other F 3×3 convolutions, pool_s the averages over s×s bins, up the bilinear
interpolation back to h×w, which puts corners on corners, and W_1, W_2 from c to c/r channels. A strip, the mean of a
whole row or column, reaches far along one axis and stays narrow along the other. The strip pooling module gates a map
by its strips; the mixed pooling module adds strips, for what is long, and square bins, for what is compact, to it.

Differs from the paper: nothing; which layers have biases (only W, b of strip pooling) is that of the authors' code.

Errors elsewhere: a collection of attention in PyTorch calls the mixed pooling module, which gates nothing, the strip
pooling module.

Source: Hou, Zhang, Cheng and Feng, "Strip Pooling: Rethinking Spatial Pooling for Scene Parsing" (2020),
arXiv:2003.13328; confirmed with the authors' code.
"""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import BatchNorm
from attn_flax.mechanisms.layout import check_map, promote, reduced


def strip_context(x: Float[Array, "*b h w c"], conv_h: Callable, conv_w: Callable) -> Float[Array, "*b h w d"]:
    """strips(x) = relu(conv_h(z_h) + conv_w(z_w)).

    Args:
        x: maps.
        conv_h: z -> BN(F_h z), on (*b, h, 1, c).
        conv_w: z -> BN(F_w z), on (*b, 1, w, c).
    """
    z_h, z_w = ops.strip_averages(x)
    return jax.nn.relu(conv_h(z_h) + conv_w(z_w))


def strip_pooling_weights(
    x: Float[Array, "*b h w c"], conv_h: Callable, conv_w: Callable, project: Callable
) -> Float[Array, "*b h w c"]:
    """sigmoid(W strips(x) + b), in (0, 1), for every position and channel.

    Args:
        x: maps.
        conv_h: as of `strip_context`.
        conv_w: likewise.
        project: the layer W, b.
    """
    return jax.nn.sigmoid(project(strip_context(x, conv_h, conv_w))).astype(x.dtype)


def strip_pooling(
    x: Float[Array, "*b h w c"], conv_h: Callable, conv_w: Callable, project: Callable
) -> Float[Array, "*b h w c"]:
    """y, x times the weights of `strip_pooling_weights`.

    >>> strip_pooling(jnp.array([[[2.0], [-4.0]]]), lambda z: z, lambda z: 0 * z, lambda s: s).squeeze()
    Array([ 1., -2.], dtype=float32)
    """
    return x * strip_pooling_weights(x, conv_h, conv_w, project)


def pyramid_context(
    x: Float[Array, "*b h w c"], conv: Callable, levels: Iterable[tuple[int, Callable]]
) -> Float[Array, "*b h w d"]:
    """pyramid(x) = relu(conv(x) + Σ_s up(conv_s(pool_s(x)))).

    Args:
        x: maps.
        conv: u -> BN(F u).
        levels: for each s, s and u -> BN(F_s u).

    >>> pyramid_context(jnp.arange(5.0).reshape(1, 5, 1), lambda u: 0 * u, [(3, lambda u: u)]).squeeze()
    Array([0.5 , 1.25, 2.  , 2.75, 3.5 ], dtype=float32)
    """
    pooled = (_resize(conv_s(ops.adaptive_average_pool(x, (s, s))), x.shape[-3:-1]) for s, conv_s in levels)
    return jax.nn.relu(conv(x) + sum(pooled))


def mixed_pooling_context(
    x: Float[Array, "*b h w c"], pyramid: Callable, strips: Callable, fuse: Callable
) -> Float[Array, "*b h w c"]:
    """BN(W [pyramid(x), strips(x)]), what the mixed pooling module adds to x.

    Args:
        x: maps.
        pyramid: x -> relu(BN(F_1 pyramid(u_1))).
        strips: x -> relu(BN(F_2 strips(u_2))).
        fuse: v -> BN(W v), from the channels of both to c.
    """
    return fuse(jnp.concatenate([pyramid(x), strips(x)], axis=-1)).astype(x.dtype)


def mixed_pooling(
    x: Float[Array, "*b h w c"], pyramid: Callable, strips: Callable, fuse: Callable
) -> Float[Array, "*b h w c"]:
    """y = relu(x + v), v the `mixed_pooling_context`.

    >>> mixed_pooling(jnp.array([[[1.0], [-3.0]]]), lambda x: x, lambda x: 2 - x, lambda v: v.sum(-1, keepdims=True))
    Array([[[3.],
            [0.]]], dtype=float32)
    """
    return jax.nn.relu(x + mixed_pooling_context(x, pyramid, strips, fuse))


def _resize(x, size):
    """Bilinear interpolation, corners on corners, in float32 or wider."""
    if x.shape[-3:-1] == size:
        return x
    rows, columns = (
        jnp.asarray(_interpolation(s, t), ops.at_least_float32(x.dtype))
        for s, t in zip(x.shape[-3:-1], size, strict=True)
    )
    tall = jnp.einsum("...hwc,ph->...pwc", x, rows, precision=jax.lax.Precision.HIGHEST)
    return jnp.einsum("...pwc,qw->...pqc", tall, columns, precision=jax.lax.Precision.HIGHEST).astype(x.dtype)


def _interpolation(size, new_size):
    """The weights (new_size, size) by which numbers at 0 … size - 1 give those at evenly spaced places from 0 on."""
    places = np.linspace(0, size - 1, new_size)
    return np.maximum(1 - np.abs(places[:, None] - np.arange(size)), 0)


class StripPooling(nnx.Module):
    """The strip pooling module for maps of any size; the authors put it after the 3×3 convolution of a bottleneck.

    Parameters: 7c² + 5c. Multiply-adds: 3(h + w)·c² + h·w·c².

    Args:
        channels: c.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: channels below 1 at construction; an input that is no map of these channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(channels >= 1, f"channels must be at least 1, got {channels}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.conv_h = _ConvNorm(channels, channels, (3, 1), **layer)
        self.conv_w = _ConvNorm(channels, channels, (1, 3), **layer)
        self.project = nnx.Linear(channels, channels, **layer)

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """The weights, in the layout of x."""
        return strip_pooling_weights(self._map(x), self.conv_h, self.conv_w, self.project)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return strip_pooling(self._map(x), self.conv_h, self.conv_w, self.project)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        return Cost(7 * c * c + 5 * c, (3 * (h + w) + h * w) * c * c)

    def _map(self, x):
        check_map(x, self.project.in_features)
        return promote(x, self.project)


class MixedPooling(nnx.Module):
    """The mixed pooling module for maps of any size; the authors' head has two in a row.

    Parameters with m = c/r and two sizes of bins: 4c·m + 51m² + 18m + 2c, which is 4.1875c² + 6.5c.

    Args:
        channels: c.
        pool_sizes: each s, the bins of the pyramid being s×s.
        reduction: r.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1 at construction; an input that is no map of these channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        pool_sizes: tuple[int, ...] = (20, 12),
        reduction: int = 4,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        hidden = reduced(channels, reduction)
        check(min(pool_sizes, default=1) >= 1, f"pool_sizes must be at least 1 each, got {pool_sizes}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.reduce_pyramid = _LinearNorm(channels, hidden, **layer)
        self.reduce_strips = _LinearNorm(channels, hidden, **layer)
        self.conv = _ConvNorm(hidden, hidden, (3, 3), **layer)
        self.conv_pooled = nnx.List([_ConvNorm(hidden, hidden, (3, 3), **layer) for _ in pool_sizes])
        self.conv_h = _ConvNorm(hidden, hidden, (3, 1), **layer)
        self.conv_w = _ConvNorm(hidden, hidden, (1, 3), **layer)
        self.refine_pyramid = _ConvNorm(hidden, hidden, (3, 3), **layer)
        self.refine_strips = _ConvNorm(hidden, hidden, (3, 3), **layer)
        self.fuse = _LinearNorm(2 * hidden, channels, **layer)
        self.pool_sizes = tuple(pool_sizes)

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """What is added to x, there being no gate."""
        return mixed_pooling_context(self._map(x), self._pyramid, self._strips, self.fuse)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """y, in the layout of x."""
        return mixed_pooling(self._map(x), self._pyramid, self._strips, self.fuse)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c); bins are averaged along its longer side first."""
        h, w, c = shape
        m, levels = self.conv.features, len(self.pool_sizes)
        resampled = sum(s * (h * w + s * min(h, w)) + s * (h * s + h * w) for s in self.pool_sizes if (h, w) != (s, s))
        convolved = 27 * h * w + 3 * (h + w) + 9 * sum(s * s for s in self.pool_sizes)
        return Cost(
            4 * c * m + (33 + 9 * levels) * m * m + 2 * (7 + levels) * m + 2 * c,
            4 * h * w * c * m + convolved * m * m + resampled * m,
        )

    def _pyramid(self, x):
        u = jax.nn.relu(self.reduce_pyramid(x))
        levels = zip(self.pool_sizes, self.conv_pooled, strict=True)
        return jax.nn.relu(self.refine_pyramid(pyramid_context(u, self.conv, levels)))

    def _strips(self, x):
        u = jax.nn.relu(self.reduce_strips(x))
        return jax.nn.relu(self.refine_strips(strip_context(u, self.conv_h, self.conv_w)))

    def _map(self, x):
        check_map(x, self.reduce_strips.linear.in_features)
        return promote(x, self.reduce_strips.linear)


class _ConvNorm(nnx.Module):
    """BN(F x), F a convolution."""

    def __init__(self, in_features, features, window, **layer):
        self.conv = nnx.Conv(in_features, features, window, use_bias=False, **layer)
        self.norm = BatchNorm(features, **layer)
        self.features = features

    def __call__(self, x):
        return self.norm(self.conv(x))


class _LinearNorm(nnx.Module):
    """BN(W x)."""

    def __init__(self, in_features, features, **layer):
        self.linear = nnx.Linear(in_features, features, use_bias=False, **layer)
        self.norm = BatchNorm(features, **layer)

    def __call__(self, x):
        return self.norm(self.linear(x))
