"""Maps in windows, grids and blocks with a halo; as many spatial axes as the window has sizes.

Windows, and the tokens in one, are counted in row-major order. All of it are reshapes, slices and constants of NumPy.
"""

import functools
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Shaped

from attn_flax.checks import check


def window_partition(x: Shaped[Array, "*s c"], window: tuple[int, ...]) -> Shaped[Array, "*b windows tokens c"]:
    """Cuts a map into windows that do not overlap: window (i, j) holds x[p·i + y, q·j + z], for y < p and z < q.

    Args:
        x: any batch axes, then one axis for each size of the window, then features.
        window: its sizes (p, q).

    Raises:
        InputError: a size below 1, or one that does not divide the map.

    >>> window_partition(jnp.arange(8).reshape(2, 4, 1), (2, 2)).squeeze()
    Array([[0, 1, 4, 5],
           [2, 3, 6, 7]], dtype=int32)

    Source: Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows" (2021),
    arXiv:2103.14030.
    """
    return _split(x, _quotients(_map_size(x, "window", window), "window", window), window)


def window_merge(
    x: Shaped[Array, "*b windows tokens c"], window: tuple[int, ...], size: tuple[int, ...]
) -> Shaped[Array, "*s c"]:
    """The map of that size whose windows these are: the inverse of `window_partition`.

    Raises:
        InputError: a window that does not divide the size, or other windows than `window_partition` makes of it.

    >>> window_merge(jnp.array([[0, 1, 4, 5], [2, 3, 6, 7]])[..., None], (2, 2), (2, 4)).squeeze()
    Array([[0, 1, 2, 3],
           [4, 5, 6, 7]], dtype=int32)
    """
    windows = _quotients(size, "window", window)
    _check_parts(x, "windows", math.prod(windows), math.prod(window), size)
    return _join(x, windows, window)


def space_to_depth(x: Shaped[Array, "*b h w c"], side: int) -> Shaped[Array, "*b p q d"]:
    """Lays the pixels of each cell of side×side out as channels, side²·c of them, in row-major order.

    Raises:
        InputError: a side below 1, or one that does not divide the map.

    >>> space_to_depth(jnp.arange(8).reshape(2, 4, 1), 2)
    Array([[[0, 1, 4, 5],
            [2, 3, 6, 7]]], dtype=int32)
    """
    windows = window_partition(x, (side, side))
    *batch, h, w, _ = x.shape
    return windows.reshape(*batch, h // side, w // side, -1)


def depth_to_space(x: Shaped[Array, "*b p q d"], side: int) -> Shaped[Array, "*b h w c"]:
    """Lays the channels of each position out as a cell of side×side: the inverse of `space_to_depth`.

    Raises:
        InputError: a side below 1, or channels that are no multiple of its square.

    >>> depth_to_space(jnp.array([[[0, 1, 4, 5], [2, 3, 6, 7]]]), 2).squeeze()
    Array([[0, 1, 2, 3],
           [4, 5, 6, 7]], dtype=int32)
    """
    *batch, p, q, d = x.shape
    check(side >= 1 and d % side**2 == 0, f"channels must be a multiple of {side}², got shape {x.shape}.")
    cells = x.reshape(*batch, p * q, side**2, d // side**2)
    return window_merge(cells, (side, side), (p * side, q * side))


def pad_to_multiple(x: Shaped[Array, "*b h w c"], side: int) -> Shaped[Array, "*b p q c"]:
    """The map with zeros below and on the right, so many that the side divides its height and its width.

    >>> pad_to_multiple(jnp.ones((1, 3, 1)), 2).squeeze()
    Array([[1., 1., 1., 0.],
           [0., 0., 0., 0.]], dtype=float32)
    """
    missing = [(0, -size % side) for size in x.shape[-3:-1]]
    return jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [*missing, (0, 0)])


def cyclic_shift(x: Shaped[Array, "*s c"], shift: tuple[int, ...]) -> Shaped[Array, "*s c"]:
    """Rolls a map back, around its ends: y[i, j] = x[(i + s) mod h, (j + t) mod w]. The negated shift undoes it.

    Args:
        x: any batch axes, then one axis for each entry of the shift, then features.
        shift: (s, t), of any sign.

    Raises:
        InputError: the map has fewer axes than the shift.

    >>> cyclic_shift(jnp.arange(5)[:, None], (2,)).squeeze()
    Array([2, 3, 4, 0, 1], dtype=int32)

    Source: Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows" (2021),
    arXiv:2103.14030.
    """
    size = _map_size(x, "shift", shift)
    return jnp.roll(x, [-s for s in shift], range(x.ndim - 1 - len(size), x.ndim - 1))


def shifted_window_mask(
    size: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...]
) -> Bool[np.ndarray, "windows tokens tokens"]:
    """True where two tokens of one window of the shifted map were neighbours before `cyclic_shift`, so may attend.

    Along an axis of n positions, shifted by s, the last s come from the other end: a pair is kept where both come from
    there or neither does. An axis with shift 0 is not masked.

    Raises:
        InputError: a window that does not divide the size; a shift below 0 or of a window or more.

    >>> shifted_window_mask((4,), (2,), (1,)).astype(int)
    array([[[1, 1],
            [1, 1]],
    <BLANKLINE>
           [[1, 0],
            [0, 1]]])

    Source: Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows" (2021),
    arXiv:2103.14030.
    """
    _quotients(size, "window", window)
    check(
        len(shift) == len(window) and all(0 <= s < p for s, p in zip(shift, window, strict=True)),
        f"shift must be at least 0 and below the window on each axis, got shift={shift}, window={window}.",
    )
    carried = [(np.arange(n) >= n - s).reshape(-1, p) for n, p, s in zip(size, window, shift, strict=True)]
    return _outer([there[:, :, None] == there[:, None] for there in carried])


def grid_partition(x: Shaped[Array, "*s c"], grid: tuple[int, ...]) -> Shaped[Array, "*b windows tokens c"]:
    """Cuts a map into groups spread evenly over the whole of it: group (i, j) holds x[y·h/p + i, z·w/q + j].

    Here y < p and z < q, so that a group has as many tokens as a window of these sizes.

    Args:
        x: any batch axes, then one axis for each size of the grid, then features.
        grid: its sizes (p, q).

    Raises:
        InputError: a size below 1, or one that does not divide the map.

    >>> grid_partition(jnp.arange(6)[:, None], (3,)).squeeze()
    Array([[0, 2, 4],
           [1, 3, 5]], dtype=int32)

    Source: Tu et al., "MaxViT: Multi-Axis Vision Transformer" (2022), arXiv:2204.01697.
    """
    return jnp.swapaxes(_split(x, grid, _quotients(_map_size(x, "grid", grid), "grid", grid)), -3, -2)


def grid_merge(
    x: Shaped[Array, "*b windows tokens c"], grid: tuple[int, ...], size: tuple[int, ...]
) -> Shaped[Array, "*s c"]:
    """The map of that size whose groups these are: the inverse of `grid_partition`.

    Raises:
        InputError: a grid that does not divide the size, or other groups than `grid_partition` makes of it.

    >>> grid_merge(jnp.array([[0, 2, 4], [1, 3, 5]])[..., None], (3,), (6,)).squeeze()
    Array([0, 1, 2, 3, 4, 5], dtype=int32)
    """
    groups = _quotients(size, "grid", grid)
    _check_parts(x, "groups", math.prod(groups), math.prod(grid), size)
    return _join(jnp.swapaxes(x, -3, -2), grid, groups)


def halo_blocks(
    x: Shaped[Array, "*s c"], block: tuple[int, ...], halo: tuple[int, ...]
) -> Shaped[Array, "*b blocks tokens c"]:
    """Blocks as `window_partition` cuts them, each with what surrounds it: halo positions on either side, zero outside.

    Args:
        x: any batch axes, then one axis for each size of the block, then features.
        block: its sizes without the halo.
        halo: its width on each axis.

    Raises:
        InputError: a block below 1, one that does not divide the map, or a halo below 0.

    >>> halo_blocks(jnp.arange(1, 7)[:, None], (3,), (1,)).squeeze()
    Array([[0, 1, 2, 3, 4],
           [3, 4, 5, 6, 0]], dtype=int32)

    Source: Vaswani et al., "Scaling Local Self-Attention for Parameter Efficient Visual Backbones" (2021),
    arXiv:2103.12731.
    """
    blocks = _quotients(_map_size(x, "block", block), "block", block)
    _check_halo(block, halo)
    for axis, (n, p, r) in enumerate(zip(blocks, block, halo, strict=True), start=-1 - len(block)):
        x = _surround(x, axis, n, p, r)
    size = [p + 2 * r for p, r in zip(block, halo, strict=True)]
    return _split(x, blocks, size)


def halo_mask(
    size: tuple[int, ...], block: tuple[int, ...], halo: tuple[int, ...]
) -> Bool[np.ndarray, "blocks tokens"]:
    """True where a token of `halo_blocks` lies inside the map.

    Raises:
        InputError: a block below 1, one that does not divide the size, or a halo below 0.

    >>> halo_mask((6,), (3,), (1,)).astype(int)
    array([[0, 1, 1, 1, 1],
           [1, 1, 1, 1, 0]])
    """
    blocks = _quotients(size, "block", block)
    _check_halo(block, halo)
    inside = []
    for n, p, r in zip(blocks, block, halo, strict=True):
        position = p * np.arange(n)[:, None] + np.arange(-r, p + r)
        inside.append((position >= 0) & (position < n * p))
    return _outer(inside)


def _split(x, outer, inner):
    """(*b, h·p, w·q, c) -> (*b, h·w, p·q, c), with (h, w) outer and (p, q) inner."""
    batch, axes = x.ndim - 1 - len(outer), range(len(outer))
    pairs = [size for pair in zip(outer, inner, strict=True) for size in pair]
    x = x.reshape(*x.shape[:batch], *pairs, x.shape[-1])
    order = [*(2 * i for i in axes), *(2 * i + 1 for i in axes)]
    x = x.transpose(*range(batch), *(batch + i for i in order), x.ndim - 1)
    return x.reshape(*x.shape[:batch], math.prod(outer), math.prod(inner), x.shape[-1])


def _join(x, outer, inner):
    """(*b, h·w, p·q, c) -> (*b, h·p, w·q, c), with (h, w) outer and (p, q) inner."""
    batch, axes = x.ndim - 3, len(outer)
    x = x.reshape(*x.shape[:batch], *outer, *inner, x.shape[-1])
    order = [batch + i + half for i in range(axes) for half in (0, axes)]
    x = x.transpose(*range(batch), *order, x.ndim - 1)
    return x.reshape(*x.shape[:batch], *(n * p for n, p in zip(outer, inner, strict=True)), x.shape[-1])


def _surround(x, axis, blocks, block, halo):
    """n·p positions of an axis -> n·(p+2r): slices of n·p positions, side by side, each p further than the last."""
    whole = -(-2 * halo // block) + 1
    widths = [(0, 0)] * x.ndim
    widths[axis] = (halo, (whole - 1) * block - halo)
    x = jnp.pad(x, widths)
    axis %= x.ndim
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    parts = [lax.slice_in_dim(x, i * block, (i + blocks) * block, axis=axis) for i in range(whole)]
    parts = [part.reshape(*before, blocks, block, *after) for part in parts]
    joined = lax.slice_in_dim(jnp.concatenate(parts, axis + 1), 0, block + 2 * halo, axis=axis + 1)
    return joined.reshape(*before, -1, *after)


def _outer(masks: Sequence[np.ndarray]) -> np.ndarray:
    """The masks of all axes, (n, p), (m, q) -> (n·m, p·q): True where each is."""
    return functools.reduce(np.kron, masks)


def _map_size(x, name, sizes):
    check(
        1 <= len(sizes) < x.ndim,
        f"x must have an axis for each entry of {name}, and one of features, got {name}={sizes} and shape {x.shape}.",
    )
    return x.shape[-1 - len(sizes) : -1]


def _quotients(size, name, parts):
    check(
        len(size) == len(parts) and all(p >= 1 and n % p == 0 for n, p in zip(size, parts, strict=True)),
        f"{name} must be at least 1 and divide the map on each axis, got {name}={parts} for a map of {size}.",
    )
    return tuple(n // p for n, p in zip(size, parts, strict=True))


def _check_parts(x, kind, number, tokens, size):
    check(
        x.shape[-3:-1] == (number, tokens),
        f"x must be the {number} {kind} of {tokens} tokens of a map of {size}, (*b, {number}, {tokens}, c), "
        f"got shape {x.shape}.",
    )


def _check_halo(block, halo):
    check(
        len(halo) == len(block) and min(halo) >= 0,
        f"halo must be at least 0 on each axis of the block, got halo={halo}, block={block}.",
    )
