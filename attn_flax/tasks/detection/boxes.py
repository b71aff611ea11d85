"""Boxes, and how much they overlap.

A box is (c_x, c_y, w, h), its centre and its size, in shares of the image.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

LEAST_AREA = 1e-9
"""What smaller areas count as where they divide."""


class Objects(NamedTuple):
    """The objects of images.

    Attributes:
        labels: (*b, n), -1 where there is none.
        boxes: (*b, n, 4).
    """

    labels: Int[Array, "*b n"]
    boxes: Float[Array, "*b n 4"]


def to_corners(boxes: Float[Array, "*s 4"]) -> Float[Array, "*s 4"]:
    """(x_1, y_1, x_2, y_2), the left, upper, right and lower edges.

    >>> to_corners(jnp.array([0.5, 0.25, 0.5, 0.5]))
    Array([0.25, 0.  , 0.75, 0.5 ], dtype=float32)
    """
    centre, size = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([centre - size / 2, centre + size / 2], -1)


def generalized_iou(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """GIoU = |A ∩ B| / |A ∪ B| - |C − (A ∪ B)| / |C|, with C the smallest box around both; from -1 to 1.

    Two boxes without area at the same place have 0.

    Args:
        a: boxes (…, 4).
        b: boxes; the shapes broadcast.

    >>> generalized_iou(jnp.array([0.25, 0.5, 0.5, 1.0]), jnp.array([[0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.5, 0.5]]))
    Array([ 1.  , -0.25], dtype=float32)

    Source: Rezatofighi, Tsoi, Gwak, Sadeghian, Reid and Savarese, "Generalized Intersection over Union: A Metric and a
    Loss for Bounding Box Regression" (2019), arXiv:1902.09630.
    """
    a_first, a_last = jnp.split(to_corners(a), 2, -1)
    b_first, b_last = jnp.split(to_corners(b), 2, -1)
    intersection = _area(jnp.maximum(a_first, b_first), jnp.minimum(a_last, b_last))
    around = _area(jnp.minimum(a_first, b_first), jnp.maximum(a_last, b_last))
    union = _area(a_first, a_last) + _area(b_first, b_last) - intersection
    return intersection / jnp.maximum(union, LEAST_AREA) - (around - union) / jnp.maximum(around, LEAST_AREA)


def _area(first, last):
    return jnp.maximum(last - first, 0).prod(-1)
