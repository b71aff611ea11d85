"""Maps read between their pixels."""

import itertools

import jax.numpy as jnp
from jaxtyping import Array, Float

from attn_flax.ops.precision import at_least_float32


def bilinear_sample(
    x: Float[Array, "*b h w c"], grid: Float[Array, "*b p q 2"], *, align_corners: bool = True
) -> Float[Array, "*b p q c"]:
    """The map at the positions of a grid, between pixels by bilinear interpolation, zeros outside.

    Args:
        x: maps.
        grid: positions (x_s, y_s) in coordinates from -1 to 1.
        align_corners: whether -1 and 1 are the middles of the border's pixels, or their outer edges.

    >>> bilinear_sample(jnp.array([[[2.0], [6.0]]]), jnp.array([[[-1.0, 0.0], [0.5, 0.0], [2.0, 0.0]]])).squeeze()
    Array([2., 5., 3.], dtype=float32)
    """
    *batch, h, w, c = x.shape
    *_, p, q, _ = grid.shape
    columns, rows = (_pixels(grid[..., i], n, align_corners) for i, n in enumerate((w, h)))
    left, top = jnp.floor(columns), jnp.floor(rows)
    pixels = x.reshape(*batch, h * w, c).astype(at_least_float32(x.dtype))

    def corner(down, right):
        row, column = top + down, left + right
        weight = (1 - jnp.abs(rows - row)) * (1 - jnp.abs(columns - column))
        inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
        row, column = (jnp.where(inside, at, 0).astype(int) for at in (row, column))
        met = jnp.take_along_axis(pixels, (row * w + column).reshape(*batch, p * q, 1), -2)
        return jnp.where(inside, weight, 0)[..., None] * met.reshape(*batch, p, q, c)

    return sum(itertools.starmap(corner, itertools.product((0, 1), repeat=2))).astype(x.dtype)


def _pixels(coordinates, n, align_corners):
    return (coordinates + 1) * (n - 1) / 2 if align_corners else ((coordinates + 1) * n - 1) / 2
