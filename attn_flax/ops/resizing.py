"""Maps stretched to another size."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from attn_flax.ops.precision import at_least_float32


def resize_nearest(x: Float[Array, "*b p q c"], size: tuple[int, int]) -> Float[Array, "*b h w c"]:
    """Position i of h takes the value at ⌊i·p/h⌋ of p, likewise columns.

    >>> resize_nearest(jnp.array([[[0.0], [4.0]]]), (1, 3)).squeeze()
    Array([0., 0., 4.], dtype=float32)
    """
    rows, columns = (np.arange(h) * p // h for p, h in zip(x.shape[-3:-1], size, strict=True))
    return x[..., rows[:, None], columns, :]


def resize_bilinear(
    x: Float[Array, "*b p q c"], size: tuple[int, int], *, align_corners: bool = False
) -> Float[Array, "*b h w c"]:
    """Interpolated linearly along both axes, without regard to what is left out where the map shrinks.

    Args:
        x: maps.
        size: h and w.
        align_corners: whether the positions are points, spread evenly from the first to the last of x, and not squares
            that fill the same area.

    >>> x = jnp.array([[[0.0], [4.0]]])
    >>> resize_bilinear(x, (1, 4)).squeeze(), resize_bilinear(x, (1, 3), align_corners=True).squeeze()
    (Array([0., 1., 3., 4.], dtype=float32), Array([0., 2., 4.], dtype=float32))
    """
    for axis, length in zip((-3, -2), size, strict=True):
        last = x.shape[axis] - 1
        if align_corners:
            position = np.arange(length) * last / max(length - 1, 1)
        else:
            position = np.clip((np.arange(length) + 0.5) * (last + 1) / length - 0.5, 0, last)
        low = position.astype(int)
        beyond = jnp.asarray(position - low, x.dtype).reshape(-1, *[1] * (-1 - axis))
        x = (1 - beyond) * x.take(low, axis) + beyond * x.take(np.minimum(low + 1, last), axis)
    return x


def resize_bicubic(x: Float[Array, "*b p q c"], size: tuple[int, int]) -> Float[Array, "*b h w c"]:
    """Cubic convolution along both axes, over a wider window where the map shrinks, so that nothing is left out.

    The kernel is Keys' with a = -0.5, whose weights are divided by their sum at the border: PyTorch's "bicubic" with
    antialias, and Pillow's. In float32 or wider. A map of that size stays as it is.

    >>> x = jnp.array([[[0.0], [4.0]]])
    >>> resize_bicubic(x, (1, 1)).squeeze(), resize_bicubic(x, (1, 3)).squeeze().round(3)
    (Array(2., dtype=float32), Array([-0.263,  2.   ,  4.263], dtype=float32))

    Source: Keys, "Cubic convolution interpolation for digital image processing" (1981).
    """
    if x.shape[-3:-1] == tuple(size):
        return x
    shape = (*x.shape[:-3], *size, x.shape[-1])
    return jax.image.resize(x.astype(at_least_float32(x.dtype)), shape, "bicubic").astype(x.dtype)
