"""Where a token lies, as waves of many lengths: added to its features, or as the angles by which they are turned.

Along each axis a position p has the phases p·θ_f with θ_f = base^(-f/F), f = 0 … F-1, from one radian a step to almost
base^(-1). The axes come in the order of the map, rows first, each with features of its own. Tokens are in row-major
order. Any number of axes.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from attn_flax.checks import check, check_same_size
from attn_flax.ops.precision import at_least_float32


def rotary_angles(size: Sequence[int], d: int, base: float = 10000.0) -> Float[Array, "n half_d"]:
    """The angles of `rotate` for the tokens of a map: the phases of its first axis, then those of the next.

    In the largest type in use. Heo et al. take a base of 100 for images.

    Args:
        size: the map's size, such as (h, w).
        d: the features of a head, F = d/4 pairs for each axis of a map.
        base: the base of the wavelengths.

    Raises:
        InputError: a size without axes, or an axis below one; d that two numbers for each axis do not divide; base not
            above zero.

    >>> rotary_angles((1, 3), 4)
    Array([[0., 0.],
           [0., 1.],
           [0., 2.]], dtype=float32)

    Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021), arXiv:2104.09864; on
    maps: Heo et al., "Rotary Position Embedding for Vision Transformer" (2024), arXiv:2403.13298, its axial form.
    """
    return jnp.asarray(_phases("base", size, d, base).reshape(-1, d // 2))


def rotate(x: Float[Array, "*b n k d"], angles: Float[Array, "n_angles half_d"]) -> Float[Array, "*b n k d"]:
    """(x_2f, x_2f+1) -> (x_2f cos a_f - x_2f+1 sin a_f, x_2f sin a_f + x_2f+1 cos a_f) for each pair f of features.

    Queries and keys turned so have products that depend on the offset between their tokens alone, where the angles are
    linear in the positions. Computed in float32 or wider. Neighbours are a pair, as in the papers; some models pair
    feature f with f + d/2.

    Args:
        x: queries or keys.
        angles: (n, d/2), of `rotary_angles` or learned.

    Raises:
        InputError: angles for another number of tokens or of pairs.

    >>> rotate(jnp.array([[[1.0, 0.0]]]), jnp.array([[jnp.pi / 2]])).round(6)
    Array([[[-0.,  1.]]], dtype=float32)

    Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021), arXiv:2104.09864.
    """
    check_same_size(x=x.shape, angles=angles.shape, axes=(-3, -2))
    check(
        x.shape[-1] == 2 * angles.shape[-1],
        f"x must have two features for each angle, got shapes {x.shape} and {angles.shape}.",
    )
    wide = at_least_float32(jnp.promote_types(x.dtype, angles.dtype))
    cos, sin = (f(angles.astype(wide))[:, None] for f in (jnp.cos, jnp.sin))
    even, odd = x[..., ::2].astype(wide), x[..., 1::2].astype(wide)
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape).astype(x.dtype)


def sincos_position(size: Sequence[int], d: int, temperature: float = 10000.0) -> Float[Array, "n d"]:
    """The sines, then the cosines of the phases of the map's first axis, then those of the next.

    In the largest type in use. This is MoCo v3's order and law of wavelengths; "Better plain ViT baselines for
    ImageNet-1k" (Beyer et al., 2022, arXiv:2205.01580) puts columns first and ends at exactly 1/temperature.

    Args:
        size: the map's size, such as (h, w).
        d: the features, F = d/4 wavelengths for each axis of a map.
        temperature: the base of the wavelengths.

    Raises:
        InputError: a size without axes, or an axis below one; d that two numbers for each axis do not divide;
            temperature not above zero.

    >>> sincos_position((1, 2), 4).round(4)
    Array([[0.    , 1.    , 0.    , 1.    ],
           [0.    , 1.    , 0.8415, 0.5403]], dtype=float32)

    Source: Chen, Xie and He, "An Empirical Study of Training Self-Supervised Vision Transformers" (2021),
    arXiv:2104.02057.
    """
    phases = _phases("temperature", size, d, temperature)
    return jnp.asarray(np.stack([np.sin(phases), np.cos(phases)], -2).reshape(-1, d))


def cell_centres(h: int, w: int) -> Float[Array, "h w 2"]:
    """(x, y) of the middle of each cell of a map, in shares of the image; in the largest type in use.

    >>> cell_centres(1, 2)
    Array([[[0.25, 0.5 ],
            [0.75, 0.5 ]]], dtype=float32)
    """
    y, x = np.meshgrid((np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing="ij")
    return jnp.asarray(np.stack([x, y], -1))


def sincos_coordinates(x: Float[Array, "*s a"], d: int, temperature: float = 10000.0) -> Float[Array, "*s d"]:
    """The sines, then the cosines of 2π·x·θ_f for each coordinate x of a point or a box, those of the first one first.

    In float32 or wider. As DETR has it, one turn of the fastest wave covers the range from 0 to 1; there sines and
    cosines alternate and rows come before columns, which is another order of the same features.

    Args:
        x: a coordinates in [0, 1].
        d: the features, F = d/(2a) wavelengths for each coordinate.
        temperature: the base of the wavelengths.

    Raises:
        InputError: d that two numbers for each coordinate do not divide; temperature not above zero.

    >>> sincos_coordinates(jnp.array([0.125, 0.625]), 4).round(4)
    Array([ 0.7071,  0.7071, -0.7071, -0.7071], dtype=float32)

    Source: Carion et al., "End-to-End Object Detection with Transformers" (2020), arXiv:2005.12872; of boxes: Liu et
    al., "DAB-DETR: Dynamic Anchor Boxes are Better Queries for DETR" (2022), arXiv:2201.12329.
    """
    axes = x.shape[-1]
    frequencies = _frequencies("temperature", axes, d, temperature)
    x = x.astype(at_least_float32(x.dtype))
    phases = x[..., None] * jnp.asarray(2 * np.pi * frequencies, x.dtype)
    return jnp.stack([jnp.sin(phases), jnp.cos(phases)], -2).reshape(*x.shape[:-1], d)


def _phases(name, size, d, base):
    """p·θ_f of each token and axis in float64, (n, axes, F)."""
    axes = len(size)
    check(axes >= 1 and min(size) >= 1, f"size must be sizes of at least 1, one for each axis, got {size}.")
    frequencies = _frequencies(name, axes, d, base)
    positions = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1).reshape(-1, axes, 1)
    return positions * frequencies


def _frequencies(name, axes, d, base):
    """θ_f = base^(-f/F) in float64."""
    check(
        d >= 1 and d % (2 * axes) == 0,
        f"d must be a positive multiple of {2 * axes}, two numbers for each of {axes} axes, got {d}.",
    )
    check(base > 0, f"{name} must be positive, got {base}.")
    count = d // (2 * axes)
    return base ** (-np.arange(count) / count)
