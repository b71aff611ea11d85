"""Neighbourhood attention: every position attends to the window of positions nearest to it.

Along an axis of L positions, position i sees the w positions from clip(i - ⌊w/2⌋, 0, L - w): the window moves inwards
at the borders and never shrinks. With a dilation of δ this holds within each of the δ classes i mod δ. On a map of
several axes the window is the product of the axes' windows.

No window is copied. The queries are cut into tiles of some positions per axis, and a tile attends to the one box of
keys that covers its windows: two dense products and a mask. A step of a loop takes a row of tiles along the last axis;
the derivative computes a step again instead of keeping it. A class of a dilated axis is an axis of its own. Batch axes
and heads are never folded, so that arrays sharded over them stay where they are.

Sources: Hassani et al., "Neighborhood Attention Transformer" (2022), arXiv:2204.07143; Hassani and Shi, "Dilated
Neighborhood Attention Transformer" (2022), arXiv:2209.15001.
"""

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from attn_flax.checks import check
from attn_flax.ops.precision import at_least_float32

TILE_SIZES = {1: range(24, 33), 2: range(6, 9), 3: range(2, 5)}
TILES_AT_ONCE = 16


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
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    q, k, v = (_by_class(x, axes) for x in (q, k, v))

    def attend(step):
        p, total = _exponentials(q, k, axes, table, scale, step)
        boxes, wide = _parts(v, axes, step, Axis.boxes), at_least_float32(v.dtype)
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
    >>> np.asarray(neighborhood_attention_weights(x, x, window=(3,), table=table))[:2].squeeze().round(3)
    array([[0.25 , 0.333, 0.417],
           [0.222, 0.333, 0.444]], dtype=float32)
    """
    axes = _axes(q, k, window, dilation, table)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    q, k = (_by_class(x, axes) for x in (q, k))

    def weigh(step):
        p, total = _exponentials(q, k, axes, table, scale, step)
        seen = _keys_seen(axes, step)
        alpha = jnp.take_along_axis(p / total, seen.reshape((1,) * (p.ndim - seen.ndim) + seen.shape), -1)
        return alpha.astype(q.dtype)

    return _over_tiles(weigh, axes)


class Axis(NamedTuple):
    """A spatial axis in classes, of which each is cut into tiles of queries that attend to a box of keys.

    Attributes:
        length: its positions.
        window: the keys that a query sees.
        dilation: its classes.
        tile: the queries of a tile.
        tiles: the tiles of a class, the last of which may be padded.
        at_once: the classes, and the tiles of each, that a step takes.
    """

    length: int
    window: int
    dilation: int
    tile: int
    tiles: int
    at_once: tuple[int, int]

    @classmethod
    def cut(cls, length: int, window: int, dilation: int, sizes: range, is_last: bool) -> "Axis":
        """In tiles of about these sizes, with as little padding as they allow."""
        longest = -(-length // dilation)
        even = [-(-longest // -(-longest // size)) for size in sizes]
        tile = min(even, key=lambda size: (-longest % size, size))
        tiles = -(-longest // tile)
        if not is_last:
            return cls(length, window, dilation, tile, tiles, (1, 1))
        steps = -(-tiles // TILES_AT_ONCE)
        together = -(-tiles // steps)
        return cls(length, window, dilation, tile, steps * together, (dilation, together))

    @property
    def padded(self) -> int:
        """The positions of a class, padded to whole tiles."""
        return self.tiles * self.tile

    @property
    def steps(self) -> tuple[int, int]:
        """The steps over the classes, and over the tiles of each."""
        return self.dilation // self.at_once[0], self.tiles // self.at_once[1]

    @property
    def box(self) -> int:
        """The keys of a box."""
        starts = self.window_starts()
        return int((starts.max((0, 2)) - starts.min((0, 2))).max()) + self.window

    def queries(self) -> np.ndarray:
        """The queries of each tile: (tiles, queries)."""
        return np.arange(self.padded).reshape(self.tiles, self.tile)

    def boxes(self) -> np.ndarray:
        """The keys of each tile's box: (tiles, keys)."""
        longest = -(-self.length // self.dilation)
        start = np.minimum(self.window_starts().min((0, 2)), longest - self.box)
        return start[:, None] + np.arange(self.box)

    def window_starts(self) -> np.ndarray:
        """The first key of each query's window: (classes, tiles, queries)."""
        members = -(-(self.length - np.arange(self.dilation)) // self.dilation)
        return np.clip(self.queries() - self.window // 2, 0, members[:, None, None] - self.window)

    def seen(self) -> np.ndarray:
        """The places in its box of the keys that a query sees: (classes, tiles, queries, window)."""
        return (self.window_starts() - self.boxes()[:, :1])[..., None] + np.arange(self.window)

    def mask(self) -> np.ndarray:
        """Whether a query sees a key of its box: (classes, tiles, queries, box)."""
        return (np.arange(self.box)[:, None] == self.seen()[..., None, :]).any(-1)

    def offsets(self) -> np.ndarray:
        """Whether an offset of the table leads from a query to a key of its box: (tiles, queries, box, offsets)."""
        offset = self.boxes()[:, None] - self.queries()[..., None]
        return offset[..., None] == np.arange(1 - self.window, self.window)


def _by_class(x, axes):
    """(*b, *s, k, d) -> (*b, positions and classes of each axis, k, d), padded to whole tiles."""
    batch = x.shape[: x.ndim - 2 - len(axes)]
    widths = [(0, axis.padded * axis.dilation - axis.length) for axis in axes]
    x = jnp.pad(x, [(0, 0)] * len(batch) + widths + [(0, 0)] * 2)
    return x.reshape(*batch, *(size for axis in axes for size in (axis.padded, axis.dilation)), *x.shape[-2:])


def _over_tiles(f, axes):
    """The map (*b, *s, k, e) of what f gives at each step, (*b, k, classes, tiles, queries, e)."""
    n, counts = len(axes), [count for axis in axes for count in axis.steps]
    steps = np.indices(counts).reshape(2 * n, -1).T
    o = lax.map(jax.checkpoint(f), jnp.asarray(steps))
    at_once = [axis.at_once[i] for i in range(2) for axis in axes]
    o = o.reshape(*counts, *o.shape[1:-4], *at_once, *(axis.tile for axis in axes), o.shape[-1])
    heads = o.ndim - 3 * n - 2
    parts = [(2 * i + 1, heads + 1 + n + i, heads + 1 + 2 * n + i, 2 * i, heads + 1 + i) for i in range(n)]
    o = o.transpose(*range(2 * n, heads), *itertools.chain(*parts), heads, o.ndim - 1)
    o = o.reshape(*o.shape[: heads - 2 * n], *(axis.padded * axis.dilation for axis in axes), *o.shape[-2:])
    return o[(..., *(slice(axis.length) for axis in axes), slice(None), slice(None))]


def _exponentials(q, k, axes, table, scale, step):
    """exp(s - max s), zero outside the windows, (*b, k, classes, tiles, queries, box), and the sums of its rows."""
    wide = at_least_float32(jnp.result_type(q, k))
    tiles, boxes = _parts(q, axes, step, Axis.queries), _parts(k, axes, step, Axis.boxes)
    s = scale * jnp.einsum("...nd,...md->...nm", tiles, boxes, preferred_element_type=wide)
    if table is not None:
        s = s + _bias(table.astype(wide), axes, step)
    masks = [_of_step(axis.mask(), axis.at_once, at) for axis, at in _each(axes, step)]
    s = jnp.where(functools.reduce(functools.partial(_pairs, jnp.logical_and), masks), s, -jnp.inf)
    p = jnp.exp(s - lax.stop_gradient(s.max(-1, keepdims=True)))
    return p, p.sum(-1, keepdims=True)


def _parts(x, axes, step, positions):
    """(*b, positions and classes of each axis, k, d) -> (*b, k, classes, tiles, positions, d), of what a step takes."""
    batch, n = x.ndim - 2 - 2 * len(axes), len(axes)
    for i, (axis, (of_class, of_tile)) in enumerate(_each(axes, step)):
        classes, tiles = axis.at_once
        at, of_axis = batch + 3 * i, positions(axis)
        starts = _of_step(of_axis[:, 0], (tiles,), (of_tile,))
        x = _slice(x, of_class * classes, classes, at + 1)
        x = jnp.stack([_slice(x, starts[j], of_axis.shape[1], at) for j in range(tiles)], at)
    tiles, places, classes = (range(batch + part, batch + 3 * n, 3) for part in range(3))
    merged = [math.prod(x.shape[i] for i in part) for part in (classes, tiles, places)]
    x = x.transpose(*range(batch), x.ndim - 2, *classes, *tiles, *places, x.ndim - 1)
    return x.reshape(*x.shape[: batch + 1], *merged, x.shape[-1])


def _each(axes, step):
    """Each axis and the indices of the step over its classes and tiles, constants where there is one step only."""
    return [(axis, [step[2 * i + j] if axis.steps[j] > 1 else 0 for j in range(2)]) for i, axis in enumerate(axes)]


def _of_step(constant, sizes, indices):
    """What a step takes of the first axes of an array of NumPy."""
    for i, (size, index) in enumerate(zip(sizes, indices, strict=True)):
        if constant.shape[i] > 1:
            constant = _slice(constant, index * size, size, i)
    return constant


def _slice(x, start, size, axis):
    """A slice of an axis, static where its start is known."""
    if isinstance(start, jax.Array):
        return lax.dynamic_slice_in_dim(x, start, size, axis)
    return x[(slice(None),) * axis + (slice(start, start + size),)]


def _bias(table, axes, step):
    """table[j - i] of each query and key of a box, (k, 1, tiles, queries, box), 0 where no window holds them."""
    x = table.reshape(*(2 * axis.window - 1 for axis in axes), -1)
    for axis, (_, of_tile) in _each(axes, step):
        offsets = _of_step(axis.offsets().astype(table.dtype), axis.at_once[1:], (of_tile,))
        x = jnp.tensordot(x, offsets, ((0,), (3,)), precision=lax.Precision.HIGHEST)
    order = [1 + 3 * i + part for part in range(3) for i in range(len(axes))]
    merged = [math.prod(x.shape[i] for i in range(1 + part, x.ndim, 3)) for part in range(3)]
    return x.transpose(0, *order).reshape(-1, 1, *merged)


def _keys_seen(axes, step):
    """The places in its box of the keys that a query sees: (classes, tiles, queries, window)."""
    places = np.zeros((1, 1, 1, 1), int)
    for axis, at in _each(axes, step):
        seen = _of_step(axis.seen(), axis.at_once, at)
        places = _pairs(lambda one, other, box=axis.box: one * box + other, places, seen)
    return places


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
    sizes = TILE_SIZES.get(n, TILE_SIZES[3])
    return [Axis.cut(size[i], window[i], dilation[i], sizes, i == n - 1) for i in range(n)]
