"""Neighbourhood attention: every position attends to the window of positions nearest to it.

Along an axis of L positions, position i sees the w positions from clip(i - ⌊w/2⌋, 0, L - w): the window moves inwards
at the borders and never shrinks. With a dilation of δ this holds within each of the δ classes i mod δ. On a map of
several axes the window is the product of the axes' windows.

No window is copied. The queries are cut into tiles of some positions per axis, and a tile attends to the one box of
keys that covers its windows: two dense products and a mask. One step of a loop takes the tiles along the last axis, and
the loop goes over those of the other axes; the derivative computes a step again instead of keeping it. A class of a
dilated axis is an axis of its own. Batch axes and heads are never folded, so that arrays sharded over them stay there.

Sources: Hassani et al., "Neighborhood Attention Transformer" (2022), arXiv:2204.07143; Hassani and Shi, "Dilated
Neighborhood Attention Transformer" (2022), arXiv:2209.15001.
"""

import functools
import math
from typing import NamedTuple

import jax
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

    def attend(at):
        p, total = _exponentials(q, k, axes, table, scale, at)
        boxes = _boxes(v, axes, at)
        wide = at_least_float32(v.dtype)
        o = jnp.einsum("...nm,...me->...ne", p.astype(v.dtype), boxes, preferred_element_type=wide)
        return (o / total).astype(v.dtype)

    return _over_tiles(attend, axes)


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
    >>> table = jnp.log(jnp.arange(1.0, 6))[:, None]
    >>> neighborhood_attention_weights(x, x, window=(3,), table=table)[:2].squeeze().round(3)
    Array([[0.25 , 0.333, 0.417],
           [0.222, 0.333, 0.444]], dtype=float32)
    """
    axes = _axes(q, k, window, dilation, table)

    def weigh(at):
        p, total = _exponentials(q, k, axes, table, scale, at)
        seen = _keys_seen(axes, at)
        alpha = jnp.take_along_axis(p / total, seen.reshape((1,) * (p.ndim - seen.ndim) + seen.shape), -1)
        return alpha.astype(q.dtype)

    return _over_tiles(weigh, axes)


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

    @property
    def box(self) -> int:
        """The keys of a box."""
        starts = self.window_starts()
        return int((starts.max((0, 2)) - starts.min((0, 2))).max()) + self.window

    def tile_starts(self) -> np.ndarray:
        """The first query of each tile."""
        return self.tile * np.arange(self.tiles)

    def box_starts(self) -> np.ndarray:
        """The first key of each tile's box."""
        return np.minimum(self.window_starts().min((0, 2)), self.longest - self.box)

    def window_starts(self) -> np.ndarray:
        """The first key of each query's window: (classes, tiles, queries)."""
        query = np.arange(self.tiles * self.tile).reshape(1, self.tiles, self.tile)
        members = -(-(self.length - np.arange(self.dilation)) // self.dilation)
        return np.clip(query - self.window // 2, 0, members[:, None, None] - self.window)

    def seen(self) -> np.ndarray:
        """The keys of its box that a query sees: (classes, tiles, queries, window)."""
        return (self.window_starts() - self.box_starts()[:, None])[..., None] + np.arange(self.window)

    def mask(self) -> np.ndarray:
        """Whether a query sees a key of its box: (classes, tiles, queries, box)."""
        return (np.arange(self.box)[:, None] == self.seen()[..., None, :]).any(-1)

    def offsets(self) -> np.ndarray:
        """Whether an offset of the table leads from a query to a key: (1, tiles, queries, box, offsets)."""
        query = self.tile_starts()[:, None] + np.arange(self.tile)
        key = self.box_starts()[:, None] + np.arange(self.box)
        return (key[:, None, :, None] - query[..., None, None] == np.arange(1 - self.window, self.window))[None]


def _over_tiles(f, axes):
    """The map (*b, *s, k, e) of what f gives for the tiles of each step, (*b, k, classes, tiles, queries, e)."""
    *outer, last = axes
    counts = [count for axis in outer for count in (axis.dilation, axis.tiles)]
    steps = np.indices(counts).reshape(len(outer), 2, math.prod(counts))
    o = lax.map(jax.checkpoint(f), jnp.asarray(np.moveaxis(steps, -1, 0)))
    batch, n = o.ndim - 6, len(axes)
    o = o.reshape(
        *counts, *o.shape[1 : 2 + batch], last.dilation, last.tiles, *(axis.tile for axis in axes), o.shape[-1]
    )
    heads = len(counts) + batch
    classes = [*range(0, len(counts), 2), heads + 1]
    order = [part for i in range(n) for part in (classes[i] + 1, heads + 3 + i, classes[i])]
    o = o.transpose(*range(len(counts), heads), *order, heads, o.ndim - 1)
    o = o.reshape(*o.shape[:batch], *(axis.tiles * axis.tile * axis.dilation for axis in axes), *o.shape[-2:])
    for i, axis in enumerate(axes):
        o = lax.slice_in_dim(o, 0, axis.length, axis=batch + i)
    return o


def _exponentials(q, k, axes, table, scale, at):
    """exp(s - max s), zero outside the windows, (*b, k, classes, tiles, queries, box), and the sums of its rows."""
    wide = at_least_float32(jnp.result_type(q, k))
    s = jnp.einsum("...nd,...md->...nm", _tiles(q, axes, at), _boxes(k, axes, at), preferred_element_type=wide)
    s = s * (q.shape[-1] ** -0.5 if scale is None else scale)
    if table is not None:
        s = s + _bias(table.astype(wide), axes, at)
    mask = functools.reduce(functools.partial(_pairs, jnp.logical_and), _at(axes, at, Axis.mask))
    s = jnp.where(mask, s, -jnp.inf)
    p = jnp.exp(s - lax.stop_gradient(s.max(-1, keepdims=True)))
    return p, p.sum(-1, keepdims=True)


def _tiles(x, axes, at):
    return _parts(x, axes, at, [(axis.tile_starts(), axis.tile) for axis in axes])


def _boxes(x, axes, at):
    return _parts(x, axes, at, [(axis.box_starts(), axis.box) for axis in axes])


def _parts(x, axes, at, parts):
    """(*b, *s, k, d) -> (*b, k, classes, parts, positions, d), of the step `at` along all axes but the last."""
    batch, n = x.ndim - 2 - len(axes), len(axes)
    padded = [axis.tiles * axis.tile * axis.dilation for axis in axes]
    widths = [(0, size - axis.length) for size, axis in zip(padded, axes, strict=True)]
    x = jnp.pad(x, [(0, 0)] * batch + widths + [(0, 0)] * 2)
    x = x.reshape(
        *x.shape[:batch], *(size for axis in axes for size in (axis.tiles * axis.tile, axis.dilation)), *x.shape[-2:]
    )
    for i, (starts, size) in enumerate(parts[:-1]):
        x = lax.dynamic_slice_in_dim(x, jnp.asarray(starts)[at[i, 1]], size, axis=batch + 2 * i)
        x = lax.dynamic_slice_in_dim(x, at[i, 0], 1, axis=batch + 2 * i + 1)
    starts, size = parts[-1]
    x = jnp.stack([lax.slice_in_dim(x, start, start + size, axis=-4) for start in starts], batch)
    positions = range(batch + 1, batch + 1 + 2 * n, 2)
    x = x.transpose(*range(batch), x.ndim - 2, *(i + 1 for i in positions), batch, *positions, x.ndim - 1)
    sizes = math.prod(size for _, size in parts)
    return x.reshape(*x.shape[: batch + 1], axes[-1].dilation, axes[-1].tiles, sizes, x.shape[-1])


def _at(axes, at, constant):
    """A constant (classes, tiles, …) of each axis, of all axes but the last only what the step `at` takes."""
    *outer, last = (jnp.asarray(constant(axis)) for axis in axes)
    for i, array in enumerate(outer):
        of_class = array if array.shape[0] == 1 else lax.dynamic_slice_in_dim(array, at[i, 0], 1, axis=0)
        outer[i] = lax.dynamic_slice_in_dim(of_class, at[i, 1], 1, axis=1)
    return [*outer, last]


def _bias(table, axes, at):
    """table[j - i] of each query and key of a box, (k, 1, tiles, queries, box), 0 where no window holds them."""
    x = table.reshape(*(2 * axis.window - 1 for axis in axes), -1)
    for offsets in _at(axes, at, Axis.offsets):
        x = jnp.tensordot(x, offsets[0].astype(table.dtype), ((0,), (3,)), precision=lax.Precision.HIGHEST)
    order = [1 + 3 * i + part for part in range(3) for i in range(len(axes))]
    merged = [math.prod(getattr(axis, name) for axis in axes) for name in ("tile", "box")]
    return x.transpose(0, *order).reshape(-1, 1, axes[-1].tiles, *merged)


def _keys_seen(axes, at):
    """The keys of its box that a query sees: (classes, tiles, queries, window)."""
    first, *others = _at(axes, at, Axis.seen)
    for axis, seen in zip(axes[1:], others, strict=True):
        first = _pairs(lambda a, b, box=axis.box: a * box + b, first, seen)
    return first


def _pairs(f, a, b):
    """f of all pairs of entries, axis by axis: (p, q, …) and (r, s, …) -> (p·r, q·s, …)."""
    sizes = [m * n for m, n in zip(a.shape, b.shape, strict=True)]
    a, b = jnp.expand_dims(a, range(1, 2 * a.ndim, 2)), jnp.expand_dims(b, range(0, 2 * b.ndim, 2))
    return f(a, b).reshape(sizes)


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
