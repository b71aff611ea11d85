"""How the mechanisms that attend in windows cut the map, and what they know of places in a window."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from attn_flax import ops
from attn_flax.checks import check


def cut_windows(x: Shaped[Array, "*b h w c"], window: int, shift: int = 0) -> Shaped[Array, "*b windows n c"]:
    """The windows of the map, padded with zeros to whole ones and rolled back."""
    return ops.window_partition(ops.cyclic_shift(ops.pad_to_multiple(x, window), (shift, shift)), (window, window))


def join_windows(
    windows: Shaped[Array, "*b windows n c"], size: tuple[int, int], window: int, shift: int = 0
) -> Shaped[Array, "*b h w c"]:
    """The map of that size out of whose like `cut_windows` cuts such windows: its inverse.

    >>> x = jnp.arange(15).reshape(3, 5, 1)
    >>> bool((join_windows(cut_windows(x, 2, 1), (3, 5), 2, 1) == x).all())
    True
    """
    h, w = size
    padded = ops.window_merge(windows, (window, window), padded_size(size, window))
    return ops.cyclic_shift(padded, (-shift, -shift))[..., :h, :w, :]


def bias_and_mask(
    x: Float[Array, "*b h w c"], table: Float[Array, "t k"], window: int, shift: int
) -> dict[str, Array | None]:
    """What `ops.dot_product_attention` has to know of a map's windows: B, and who sees whom where the map is rolled."""
    window_size, size = (window, window), padded_size(x.shape[-3:-1], window)
    mask = jnp.asarray(ops.shifted_window_mask(size, window_size, (shift, shift)))[:, None] if shift else None
    return {"bias": ops.relative_position_bias(table, window_size), "mask": mask}


def padded_size(size: Sequence[int], window: int) -> tuple[int, ...]:
    """The size of a map, filled up to whole windows.

    >>> padded_size((3, 4), 2)
    (4, 4)
    """
    return tuple(math.ceil(n / window) * window for n in size)


def checked_shift(window: int, shift: int | None) -> int:
    """The shift of such windows, by default half of one, rounded down.

    Raises:
        InputError: a window below 1; a shift below 0, or of a window or more.
    """
    check(window >= 1, f"window must be at least 1, got {window}.")
    shift = window // 2 if shift is None else shift
    check(0 <= shift < window, f"shift must be at least 0 and below window, got shift={shift}, window={window}.")
    return shift


def create_table(size: Sequence[int], num_heads: int, rngs: nnx.Rngs, param_dtype: DTypeLike) -> nnx.Param:
    """B to begin with: small numbers for each offset between two positions of a map of this size, and each head."""
    offsets = math.prod(2 * n - 1 for n in size)
    return nnx.Param(nnx.initializers.truncated_normal(0.02)(rngs.params(), (offsets, num_heads), param_dtype))
