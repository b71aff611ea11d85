"""What stands for positions, resampled for images of another size."""

import math

import jax.numpy as jnp
import numpy as np
from flax import nnx

from attn_flax import ops


def resampled(owner: nnx.Module, path: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """timm's array, for as many positions as ours; whatever has no positions that are known here as it is.

    Embeddings and tables are resampled by cubic convolution over a grid, which is taken for a square where timm's array
    does not tell. Swin's authors do the same to their tables; timm makes those of far offsets coarser.

    Args:
        owner: the Module that has our array.
        path: of our array.
        array: timm's.
        shape: of ours.
    """
    match path.rpartition(".")[2]:
        case "pos_embed" if len(shape) == 3:
            return _resampled_embedding(array, shape[:2], prefix=0)
        case "pos_embed" if hasattr(owner, "grid"):
            return _resampled_embedding(array, owner.grid, prefix=shape[0] - math.prod(owner.grid))
        case "relative_position_bias_table":
            height, width = owner.size if hasattr(owner, "size") else (owner.window, owner.window)
            return _resampled_rows(array, (2 * height - 1, 2 * width - 1))
    return array


def _resampled_embedding(array, grid, *, prefix):
    """(1, n, c) or (1, h, w, c), of which the first `prefix` rows are no positions."""
    if array.ndim == 4:
        return _resized(array[0], grid)[None]
    of_prefix, of_grid = array[0, :prefix], array[0, prefix:]
    return np.concatenate([of_prefix, _resampled_rows(of_grid, grid)])[None]


def _resampled_rows(rows, grid):
    """(n, c), whose n rows are a square."""
    side = math.isqrt(len(rows))
    if side * side != len(rows):
        return rows
    return _resized(rows.reshape(side, side, -1), grid).reshape(math.prod(grid), -1)


def _resized(x, grid):
    return np.asarray(ops.resize_bicubic(jnp.asarray(x), grid))
