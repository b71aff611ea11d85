"""Scores that depend on where the key lies relative to the query."""

import itertools
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from attn_flax.checks import check, check_same_size
from attn_flax.ops.precision import at_least_float32

CUBIC_COEFFICIENT = -0.75


def relative_position_index(window: Sequence[int]) -> Int[np.ndarray, "n n"]:
    """The row of a table, one for each offset between two positions of a window, that query i and key j take.

    With p the position of a token and w the window, the row is that of the offset p_i - p_j + w - 1, row-major among
    the 2w - 1 offsets of each axis. Tokens are in row-major order. Any number of axes.

    Raises:
        InputError: a window without axes, or an axis below one.

    >>> relative_position_index((3,))
    array([[2, 1, 0],
           [3, 2, 1],
           [4, 3, 2]])

    Source: Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows" (2021),
    arXiv:2103.14030.
    """
    _check_window("window", window)
    positions = np.array(list(itertools.product(*map(range, window))))
    offsets = positions[:, None] - positions + np.array(window) - 1
    return np.ravel_multi_index(tuple(np.moveaxis(offsets, -1, 0)), _offsets(window))


def relative_position_bias(table: Float[Array, "t k"], window: Sequence[int]) -> Float[Array, "k n n"]:
    """B_kij = table[relative_position_index_ij, k], to be added to the scores of head k; its gradient sums in float32.

    Args:
        table: a bias for each offset and head, t = prod(2·window - 1).
        window: its sizes.

    Raises:
        InputError: a window without axes, or an axis below one; a table with another number of rows.

    >>> relative_position_bias(jnp.arange(5.0)[:, None], (3,))[0]
    Array([[2., 1., 0.],
           [3., 2., 1.],
           [4., 3., 2.]], dtype=float32)

    Source: Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows" (2021),
    arXiv:2103.14030.
    """
    _check_table(table, window)
    return jnp.moveaxis(_rows_of(table, relative_position_index(window)), -1, 0)


def resize_relative_position_table(
    table: Float[Array, "t k"], window: Sequence[int], new_window: Sequence[int]
) -> Float[Array, "s k"]:
    """The table of another window, by cubic convolution along each axis of offsets (bicubic in two).

    The 2w - 1 offsets of an axis are taken as samples at the middles of equal cells, the new ones likewise over the
    same length, and beyond the border the outermost sample is repeated. The kernel is Keys' with a = -0.75, and nothing
    is smoothed where the window shrinks: PyTorch's "bicubic" without aligned corners, as Swin's authors resize.

    Args:
        table: a bias for each offset and head, t = prod(2·window - 1).
        window: its sizes.
        new_window: the sizes wanted.

    Raises:
        InputError: a window without axes, or an axis below one; windows of different axes; a table with another number
            of rows.

    Source: Keys, "Cubic convolution interpolation for digital image processing" (1981).
    """
    _check_window("new_window", new_window)
    _check_table(table, window)
    check(
        len(window) == len(new_window),
        f"window and new_window must have as many axes, got {tuple(window)} and {tuple(new_window)}.",
    )
    wide = at_least_float32(table.dtype)
    resized = table.reshape(*_offsets(window), -1).astype(wide)
    for axis, (size, new_size) in enumerate(zip(_offsets(window), _offsets(new_window), strict=True)):
        weights = jnp.asarray(_cubic_weights(size, new_size), wide)
        resized = jnp.moveaxis(jnp.tensordot(weights, resized, (1, axis), precision="highest"), 0, axis)
    return resized.reshape(-1, table.shape[-1]).astype(table.dtype)


def decomposed_relative_position(
    q: Float[Array, "*b h w k d"], rows: Float[Array, "offsets_h d_rows"], columns: Float[Array, "offsets_w d_columns"]
) -> Float[Array, "*b k n n"]:
    """E_ij = q_iᵀ (R^h[y_i - y_j] + R^w[x_i - x_j]), to be added to the scores; i and j are tokens in row-major order.

    In float32 or wider. In BoTNet's tables the offsets run the other way, from key to query.

    Args:
        q: the queries of a map; the authors do not scale them here.
        rows: R^h, 2h - 1 vectors for the offsets 1 - h to h - 1.
        columns: R^w, 2w - 1 vectors for the offsets 1 - w to w - 1.

    Raises:
        InputError: tables for another map, or of other features than q.

    Source: Li et al., "MViTv2: Improved Multiscale Vision Transformers for Classification and Detection" (2021),
    arXiv:2112.01526; Srinivas et al., "Bottleneck Transformers for Visual Recognition" (2021), arXiv:2101.11605.
    """
    *batch, h, w, heads, _ = q.shape
    for name, table, size in (("rows", rows, h), ("columns", columns, w)):
        check(len(table) == 2 * size - 1, f"{name} must be {2 * size - 1} vectors for a map {h}×{w}, got {len(table)}.")
        check_same_size(**{"q": q.shape, name: table.shape}, axes=(-1, -1))
    wide = at_least_float32(jnp.result_type(q, rows, columns))
    r_h, r_w = (_rows_of(table, relative_position_index((size,))) for table, size in ((rows, h), (columns, w)))
    e_h = jnp.einsum("...hwkd,hyd->...khwy", q, r_h, preferred_element_type=wide)
    e_w = jnp.einsum("...hwkd,wxd->...khwx", q, r_w, preferred_element_type=wide)
    return (e_h[..., :, None] + e_w[..., None, :]).reshape(*batch, heads, h * w, h * w)


def _rows_of(table, index):
    wide = table.astype(at_least_float32(table.dtype))  # so that the gradients of repeated rows are summed in it
    return wide.at[index].get(mode="promise_in_bounds").astype(table.dtype)


def _cubic_weights(size, new_size):
    """The matrix (new_size, size) of the interpolation."""
    position = (np.arange(new_size) + 0.5) * size / new_size - 0.5
    first = np.floor(position).astype(int) - 1
    weights = np.zeros((new_size, size))
    for tap in range(4):
        sample = np.clip(first + tap, 0, size - 1)
        np.add.at(weights, (np.arange(new_size), sample), _cubic(np.abs(position - first - tap)))
    return weights


def _cubic(distance):
    a = CUBIC_COEFFICIENT
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))


def _offsets(window):
    return tuple(2 * size - 1 for size in window)


def _check_window(name, window):
    check(
        len(window) >= 1 and min(window) >= 1, f"{name} must be sizes of at least 1, one for each axis, got {window}."
    )


def _check_table(table, window):
    _check_window("window", window)
    rows = math.prod(_offsets(window))
    check(
        len(table) == rows,
        f"table must have {rows} rows for a window {tuple(window)}, got shape {table.shape}.",
    )
