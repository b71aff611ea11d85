"""Pooling of maps to a given size."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from attn_flax.checks import check
from attn_flax.ops.precision import at_least_float32


def adaptive_average_pool(x: Float[Array, "*b h w c"], size: tuple[int, int]) -> Float[Array, "*b p q c"]:
    """Averages a map over p × q bins that cover it: bin i of p takes the rows ⌊i·h/p⌋ to ⌈(i+1)·h/p⌉, likewise columns.

    Bins overlap where p does not divide h, and repeat rows where h < p. Accumulated in float32 or wider.

    Raises:
        InputError: a map or a size below 1×1.

    >>> adaptive_average_pool(jnp.arange(8.0).reshape(2, 4, 1), (1, 2)).squeeze()
    Array([2.5, 4.5], dtype=float32)
    """
    check(min(size) >= 1, f"size must be at least (1, 1), got {size}.")
    check(min(x.shape[-3:-1]) >= 1, f"x must be a map of at least 1×1, got shape {x.shape}.")
    if x.shape[-3:-1] == size:
        return x
    rows, columns = (_bin_averages(s, p, at_least_float32(x.dtype)) for s, p in zip(x.shape[-3:-1], size, strict=True))
    return jnp.einsum("...hwc,ph,qw->...pqc", x, rows, columns, precision=jax.lax.Precision.HIGHEST).astype(x.dtype)


def _bin_averages(size, bins, dtype):
    i = np.arange(bins)[:, None]
    start, stop = i * size // bins, -(-(i + 1) * size // bins)
    position = np.arange(size)[None]
    return ((start <= position) & (position < stop)).astype(dtype) / (stop - start)
