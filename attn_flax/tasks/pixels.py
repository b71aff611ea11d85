"""Standardised images as pixels and back, and random numbers that belong to images."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from attn_flax.checks import check


@dataclasses.dataclass(frozen=True)
class Standardization:
    """x = (p - mean) / std between standardised images x and pixels p in [0, 1].

    Attributes:
        mean: the channels' means.
        std: their standard deviations.

    Raises:
        InputError: not as many of one as of the other, or a deviation that is not positive.

    >>> standardization = Standardization((0.5,), (0.25,))
    >>> float(standardization.pixels(standardization.standardize(jnp.array([0.75])))[0])
    0.75
    """

    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self):
        check(
            len(self.mean) == len(self.std) > 0 and min(self.std) > 0,
            f"mean and std must have a value for each channel, and std positive ones, got {self.mean} and {self.std}.",
        )

    def pixels(self, x: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
        """The pixels p of standardised images, not rounded."""
        return x * np.asarray(self.std, x.dtype) + np.asarray(self.mean, x.dtype)

    def standardize(self, p: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
        """The standardised images of pixels."""
        return (p - np.asarray(self.mean, p.dtype)) / np.asarray(self.std, p.dtype)


def to_bytes(images: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Images in [-1, 1] as pixels in [0, 1], rounded as 8-bit files keep them: multiples of 1/255.

    >>> (255 * to_bytes(jnp.array([-1.0, 0.0, 0.001, 1.0]))).tolist()
    [0.0, 128.0, 128.0, 255.0]
    """
    return jnp.rint((images + 1) * (255 / 2)).clip(0, 255) / 255


def normal_for_images(images: Float[Array, "b h w c"], shape: tuple[int, ...]) -> Float[Array, "b ..."]:
    """Normal numbers of a shape for each image, a function of that image's bits alone.

    So evaluations draw the same ones, whatever the size of their batches, and however they are split over devices.

    >>> images = jax.random.normal(jax.random.key(1), (4, 3, 2, 1))
    >>> draws = normal_for_images(images, (5,))
    >>> bool(jnp.allclose(draws[2:], normal_for_images(images[2:], (5,)))), draws.shape
    (True, (4, 5))
    """
    bits = jax.lax.bitcast_convert_type(images.astype(jnp.float32), jnp.uint32)
    bits ^= bits >> 23  # so that numbers of few digits, whose low bits are zero, differ in low bits
    # An odd factor for each pixel, so that the same pixels in another order make another number.
    factors = 2 * np.random.default_rng(0).integers(2**31, size=bits.shape[1:], dtype=np.uint32) + 1
    numbers = (bits * factors).sum((1, 2, 3), dtype=jnp.uint32)
    key = jax.random.key(0)
    return jax.vmap(lambda number: jax.random.normal(jax.random.fold_in(key, number), shape))(numbers)
