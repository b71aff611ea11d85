"""Neighbourhood attention: every position attends to the window of positions nearest to it.

Along an axis of L positions, position i sees the w positions from clip(i - ⌊w/2⌋, 0, L - w): the window moves inwards
at the borders and never shrinks. With a dilation of δ this holds within each of the δ classes i mod δ. On a map of
several axes the window is the product of the axes' windows.

No window is copied. The queries are cut into tiles of some positions per axis, and a tile attends to the one box of
keys that covers its windows: two dense products and a mask known beforehand. A class of a dilated axis is an axis of
its own. Batch axes and heads are never folded, so that arrays sharded over them stay where they are.

Sources: Hassani et al., "Neighborhood Attention Transformer" (2022), arXiv:2204.07143; Hassani and Shi, "Dilated
Neighborhood Attention Transformer" (2022), arXiv:2209.15001.
"""

import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from attn_flax.checks import check
from attn_flax.ops.precision import at_least_float32

TILE = 8


def neighborhood_attention(
    q: Float[Array, "*s k d"],
    k: Float[Array, "..."],
    v: Float[Array, "..."],
    *,
    window: tuple[int, ...],
    dilation: tuple[int, ...] | None = None,
    table: Float[Array, "..."] | None = None,
    scale: float | None = None,
) -> Float[Array, "*s k e"]:
    """o_i = Σ_{j ∈ N(i)} α_ij v_j with α_i = softmax_{j ∈ N(i)}(scale·q_iᵀ k_j + table[j - i]).

    Args:
        q: queries (*b, *s, k, d): any batch axes, one spatial axis for each size of the window, heads, features.
        k: keys, of the same shape.
        v: values (*b, *s, k, e).
        window: its odd sizes, one for each spatial axis.
        dilation: the step between the positions of a window on each axis; 1 by default.
        table: a bias for each head and each offset from query to key, (prod(2·window - 1), k), the offsets in row-major
            order from -(window - 1) to window - 1, in steps of the dilation.
        scale: 1/√d by default.

    Raises:
        InputError: an even window; a dilation below 1 or of other axes; q, k, v or table of other shapes; a map on
            which a class of a dilated axis has fewer positions than the window.

    >>> x = jnp.arange(5.0).reshape(5, 1, 1)
    >>> neighborhood_attention(0 * x, x, x, window=(3,)).squeeze()
    Array([1., 1., 2., 3., 3.], dtype=float32)
    """
    check(
        v.shape[:-1] == q.shape[:-1],
        f"v must have the shape of q but for its last axis, got shapes {v.shape} and {q.shape}.",
    )
    axes = _axes(q, k, window, dilation, table)
    p, total = _exponentials(q, k, axes, table, scale)
    o = jnp.einsum(
        "...nm,...me->...ne",
        p.astype(v.dtype),
        _boxes(v, axes),
        preferred_element_type=at_least_float32(v.dtype),
    )
    return _untile((o / total).astype(v.dtype), axes)


def neighborhood_attention_weights(
    q: Float[Array, "*s k d"],
    k: Float[Array, "..."],
    *,
    window: tuple[int, ...],
    dilation: tuple[int, ...] | None = None,
    table: Float[Array, "..."] | None = None,
    scale: float | None = None,
) -> Float[Array, "*s k m"]:
    """α of `neighborhood_attention`: m = prod(window) weights for each query and head, in the window's row-major order.

    Raises:
        InputError: as `neighborhood_attention` does.

    >>> x = jnp.zeros((5, 1, 1))
    >>> neighborhood_attention_weights(x, x, window=(3,), table=jnp.log(jnp.arange(1.0, 6))[:, None])[:2].squeeze()
    Array([[0.25      , 0.33333334, 0.41666666],
           [0.22222222, 0.33333334, 0.44444445]], dtype=float32)
    """
    axes = _axes(q, k, window, dilation, table)
    p, total = _exponentials(q, k, axes, table, scale)
    seen = _positions(axes)
    p = jnp.take_along_axis(p / total, seen.reshape((1,) * (p.ndim - seen.ndim) + seen.shape), -1)
    return _untile(p.astype(q.dtype), axes)


class Axis(NamedTuple):
    """A spatial axis in classes, of which each is cut into tiles of queries that attend to a box of keys."""

    length: int
    window: int
    dilation: int

    @property
    def longest(self) -> int:
        """The positions of the longest class."""
        return -(-self.length // self.dilation)

    @property
    def tiles(self) -> int:
        """The number of tiles."""
        return -(-self.longest // TILE)

    @property
    def tile(self) -> int:
        """The queries of a tile; the last tile may be padded."""
        return -(-self.longest // self.tiles)

    def window_starts(self) -> np.ndarray:
        """Where the window of each query starts: (classes, tiles, queries)."""
        query = np.arange(self.tiles * self.tile).reshape(1, self.tiles, self.tile)
        members = -(-(self.length - np.arange(self.dilation)) // self.dilation)
        return np.clip(query - self.window // 2, 0, members[:, None, None] - self.window)

    def box_starts(self) -> np.ndarray:
        """Where the box of each tile starts: (tiles,)."""
        return np.minimum(self.window_starts().min((0, 2)), self.longest - self.box)

    @property
    def box(self) -> int:
        """The keys of a box."""
        starts = self.window_starts()
        return int((starts.max((0, 2)) - starts.min((0, 2))).max()) + self.window

    def keys(self) -> np.ndarray:
        """The key in its box that comes first in each query's window: (classes, tiles, queries)."""
        return self.window_starts() - self.box_starts()[:, None]

    def mask(self) -> np.ndarray:
        """Whether a query sees a key of its box: (classes, tiles, queries, box)."""
        from_start = np.arange(self.box) - self.keys()[..., None]
        return (from_start >= 0) & (from_start < self.window)

    def positions(self) -> np.ndarray:
        """The keys of its box that a query sees: (classes, tiles, queries, window)."""
        return self.keys()[..., None] + np.arange(self.window)

    def offsets(self) -> np.ndarray:
        """Which offset of the table lies between a query and a key of its box: (tiles, queries, box, offsets)."""
        query = np.arange(self.tiles * self.tile).reshape(self.tiles, self.tile, 1, 1)
        key = (self.box_starts()[:, None] + np.arange(self.box))[:, None, :, None]
        return key - query == np.arange(1 - self.window, self.window)


def _exponentials(q, k, axes, table, scale):
    """exp(s - max s) of each tile and its box, zero outside the windows, (*b, k, classes, tiles, n, m); their sums."""
    wide = at_least_float32(jnp.result_type(q, k))
    s = jnp.einsum("...nd,...md->...nm", _tiles(q, axes), _boxes(k, axes), preferred_element_type=wide)
    s = s * (q.shape[-1] ** -0.5 if scale is None else scale)
    if table is not None:
        s = s + _bias(table.astype(wide), axes)
    mask = functools.reduce(np.kron, [axis.mask() for axis in axes])
    s = jnp.where(mask, s, -jnp.inf)
    p = jnp.exp(s - lax.stop_gradient(s.max(-1, keepdims=True)))
    return p, p.sum(-1, keepdims=True)


def _tiles(x, axes):
    """(*b, *s, k, d) -> (*b, k, classes, tiles, queries, d)."""
    x, first = _heads_first(x, axes)
    for i, axis in enumerate(axes):
        x = _pad(x, first + i, axis.tiles * axis.tile * axis.dilation)
    split = [size for axis in axes for size in (axis.tiles, axis.tile, axis.dilation)]
    return _arrange(x.reshape(*x.shape[:first], *split, x.shape[-1]), first)


def _boxes(x, axes):
    """(*b, *s, k, d) -> (*b, k, classes, tiles, box, d)."""
    x, first = _heads_first(x, axes)
    for i, axis in enumerate(axes):
        at = first + 3 * i
        x = _pad(x, at, axis.longest * axis.dilation)
        x = x.reshape(*x.shape[:at], axis.longest, axis.dilation, *x.shape[at + 1 :])
        x = jnp.stack([lax.slice_in_dim(x, i, i + axis.box, axis=at) for i in axis.box_starts()], at)
    return _arrange(x, first)


def _untile(o, axes):
    """(*b, k, classes, tiles, queries, e) -> (*b, *s, k, e)."""
    first, n = o.ndim - 4, len(axes)
    sizes = [[getattr(axis, name) for axis in axes] for name in ("dilation", "tiles", "tile")]
    o = o.reshape(*o.shape[:first], *(size for part in sizes for size in part), o.shape[-1])
    order = [first + i + n * part for i in range(n) for part in (1, 2, 0)]
    o = o.transpose(*range(first), *order, o.ndim - 1)
    o = o.reshape(*o.shape[:first], *(axis.tiles * axis.tile * axis.dilation for axis in axes), o.shape[-1])
    for i, axis in enumerate(axes):
        o = lax.slice_in_dim(o, 0, axis.length, axis=first + i)
    return jnp.moveaxis(o, first - 1, -2)


def _heads_first(x, axes):
    """(*b, *s, k, d) -> (*b, k, *s, d), and where its spatial axes start."""
    first = x.ndim - 1 - len(axes)
    return jnp.moveaxis(x, -2, first - 1), first


def _pad(x, axis, size):
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, widths)


def _arrange(x, first):
    """(…, tiles, positions and classes of each axis, d) -> (…, classes, tiles, positions, d), of all axes."""
    tiles, positions, classes = (range(first + part, x.ndim - 1, 3) for part in range(3))
    merged = [math.prod(x.shape[i] for i in part) for part in (classes, tiles, positions)]
    x = x.transpose(*range(first), *classes, *tiles, *positions, x.ndim - 1)
    return x.reshape(*x.shape[:first], *merged, x.shape[-1])


def _bias(table, axes):
    """table[j - i] of each query and key of a box, (k, 1, tiles, queries, box), 0 where no window holds them."""
    x = table.reshape(*(2 * axis.window - 1 for axis in axes), -1)
    for axis in axes:
        x = jnp.tensordot(x, axis.offsets().astype(table.dtype), ((0,), (3,)), precision=lax.Precision.HIGHEST)
    order = [1 + 3 * i + part for part in range(3) for i in range(len(axes))]
    merged = [math.prod(getattr(axis, name) for axis in axes) for name in ("tiles", "tile", "box")]
    return x.transpose(0, *order).reshape(-1, 1, *merged)


def _positions(axes):
    """The keys of its box that a query sees: (classes, tiles, queries, window)."""
    seen = np.zeros((1, 1, 1, 1), int)
    for axis in axes:
        other = axis.positions()
        seen = (seen * axis.box)[:, None, :, None, :, None, :, None] + other[None, :, None, :, None, :, None, :]
        seen = seen.reshape([a * b for a, b in zip(seen.shape[::2], seen.shape[1::2], strict=True)])
    return seen


def _axes(q, k, window, dilation, table):
    n = len(window)
    dilation = (1,) * n if dilation is None else dilation
    check(n >= 1 and all(w >= 1 and w % 2 for w in window), f"window must be of odd sizes, got {window}.")
    check(
        len(dilation) == n and min(dilation) >= 1,
        f"dilation must be at least 1 on each axis of the window, got dilation={dilation}, window={window}.",
    )
    check(
        q.ndim >= n + 2,
        f"q must have {n} axes of positions, one of heads and one of features, as window={window} says, "
        f"got shape {q.shape}.",
    )
    check(k.shape == q.shape, f"k must have the shape of q, got shapes {k.shape} and {q.shape}.")
    size = q.shape[-2 - n : -2]
    least = tuple(w * step for w, step in zip(window, dilation, strict=True))
    check(
        all(length >= at_least for length, at_least in zip(size, least, strict=True)),
        f"the map must be of at least {least} positions, window times dilation, for window={window} and "
        f"dilation={dilation}, got {size}.",
    )
    offsets = math.prod(2 * w - 1 for w in window)
    check(
        table is None or table.shape == (offsets, q.shape[-2]),
        f"table must be of {offsets} offsets and {q.shape[-2]} heads, ({offsets}, {q.shape[-2]}), "
        f"got shape {None if table is None else table.shape}.",
    )
    return [Axis(*axis) for axis in zip(size, window, dilation, strict=True)]
