"""Statistics of maps over their positions, in float32 or wider, returned in the type of the map."""

import jax.numpy as jnp
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
