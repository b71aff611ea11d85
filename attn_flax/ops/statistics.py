"""Statistics of maps over their positions, in float32 or wider, returned in the type of the map."""

import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float

from attn_flax.checks import check
from attn_flax.ops.precision import at_least_float32


def average(x: Float[Array, "*b h w c"]) -> Float[Array, "*b c"]:
    """The mean of each channel over the positions.

    Raises:
        InputError: a map without a position.

    >>> average(jnp.arange(8.0).reshape(2, 2, 2))
    Array([3., 4.], dtype=float32)
    """
    _check_map(x)
    return x.mean((-3, -2), dtype=at_least_float32(x.dtype)).astype(x.dtype)


def strip_averages(x: Float[Array, "*b h w c"]) -> tuple[Float[Array, "*b h 1 c"], Float[Array, "*b 1 w c"]]:
    """The means of every row and of every column.

    Raises:
        InputError: a map without a position.

    >>> rows, columns = strip_averages(jnp.arange(6.0).reshape(2, 3, 1))
    >>> rows.ravel(), columns.ravel()
    (Array([1., 4.], dtype=float32), Array([1.5, 2.5, 3.5], dtype=float32))
    """
    _check_map(x)
    rows, columns = (x.mean(axis, dtype=at_least_float32(x.dtype), keepdims=True) for axis in (-2, -3))
    return rows.astype(x.dtype), columns.astype(x.dtype)


def covariance(x: Float[Array, "*b h w c"]) -> Float[Array, "*b c c"]:
    """Σ = mean_i (x_i - μ)(x_i - μ)ᵀ over the positions i; stays in float32 or wider.

    >>> covariance(jnp.array([[[1.0, 0.0], [3.0, 0.0]]]))
    Array([[1., 0.],
           [0., 0.]], dtype=float32)
    """
    _check_map(x)
    *_, h, w, _ = x.shape
    x = x.astype(at_least_float32(x.dtype))
    centred = x - x.mean((-3, -2), keepdims=True)
    return jnp.einsum("...hwc,...hwd->...cd", centred, centred, precision=Precision.HIGHEST) / (h * w)


def mean_and_variance(
    x: Float[Array, "*s"], axes: int | tuple[int, ...], *, correction: int = 0
) -> tuple[Float[Array, "*t"], Float[Array, "*t"]]:
    """μ = Σ x / n and Σ (x - μ)² / max(n - correction, 1) over some axes, which stay as axes of one.

    In float32 or wider. The divisor is at least one, so the variance of one number is zero whatever the correction.

    >>> mean, variance = mean_and_variance(jnp.array([[1.0, 3.0]]), -1, correction=1)
    >>> mean.item(), variance.item()
    (2.0, 2.0)
    """
    x = x.astype(at_least_float32(x.dtype))
    mean = x.mean(axes, keepdims=True)
    squares = jnp.square(x - mean).sum(axes, keepdims=True)
    n = x.size // mean.size
    return mean, squares / max(n - correction, 1)


def group_normalize(x: Float[Array, "*b h w c"], groups: int, *, epsilon: float) -> Float[Array, "*b h w c"]:
    """(x - μ_g) / √(σ²_g + ε), with the mean and variance of each example's group of channels in a row.

    Raises:
        InputError: groups that do not divide the channels; a map without a position.

    >>> group_normalize(jnp.array([[[1.0, 3.0, 10.0, 10.0]]]), 2, epsilon=0.01).round(2)
    Array([[[-1.,  1.,  0.,  0.]]], dtype=float32)

    Source: Wu and He, "Group Normalization" (2018), arXiv:1803.08494.
    """
    _check_map(x)
    *_, c = x.shape
    check(groups >= 1 and c % groups == 0, f"groups must be at least 1 and divide the {c} channels, got {groups}.")
    grouped = x.reshape(*x.shape[:-1], groups, c // groups)
    mean, variance = mean_and_variance(grouped, (-4, -3, -1))
    return ((grouped - mean) / jnp.sqrt(variance + epsilon)).reshape(x.shape).astype(x.dtype)


def _check_map(x):
    check(
        x.ndim >= 3 and min(x.shape[-3:]) >= 1,
        f"x must be a map (*b, h, w, c) of at least 1×1, got shape {x.shape}.",
    )
