"""Denoising queries: objects with noise, from which the decoder learns to find the objects.

    c' = c + λ r s / 2,   s' = s (1 + λ r'),   r, r' ~ U(-1, 1)          of a box with centre c and size s
    label' = any label with probability γ, else the label

They need no matching, so that the decoder learns from stable targets before its own queries agree on who finds what.

Source: Li, Zhang, Liu, Guo, Ni and Zhang, "DN-DETR: Accelerate DETR Training by Introducing Query DeNoising" (2022),
arXiv:2203.01305.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from attn_flax.tasks.detection.boxes import Objects

BOX_NOISE = 0.4
"""λ."""
WHOLE_IMAGE = (0.5, 0.5, 1.0, 1.0)


def repeated(objects: Objects, groups: int) -> Objects:
    """The objects so many times in a row; the box of no object is the whole image."""
    boxes = jnp.where(objects.labels[..., None] >= 0, objects.boxes, jnp.array(WHOLE_IMAGE, objects.boxes.dtype))
    return Objects(*(jnp.concatenate([x] * groups, axis) for x, axis in ((objects.labels, -1), (boxes, -2))))


def noised(
    key: jax.Array, objects: Objects, *, num_classes: int, label_noise: float
) -> tuple[Int[Array, "*b d"], Float[Array, "*b d 4"]]:
    """Labels and boxes of the objects with noise; there is a label also where there is no object.

    Args:
        key: the source of the noise.
        objects: with labels from 0 to num_classes - 1, or -1 for none.
        num_classes: of the objects.
        label_noise: γ.
    """
    label_key, which_key, centre_key, size_key = jax.random.split(key, 4)
    labels, boxes = objects
    anything = jax.random.randint(label_key, labels.shape, 0, num_classes, labels.dtype)
    changed = jax.random.bernoulli(which_key, label_noise, labels.shape) | (labels < 0)
    centre, size = jnp.split(boxes, 2, -1)
    moved, scaled = (
        BOX_NOISE * jax.random.uniform(key, size.shape, size.dtype, -1, 1) for key in (centre_key, size_key)
    )
    boxes = jnp.concatenate([centre + moved * size / 2, size * (1 + scaled)], -1)
    return jnp.where(changed, anything, labels), boxes.clip(0, 1)


def sees_its_group(labels: Int[Array, "*b d"], groups: int) -> Bool[Array, "*b d d"]:
    """True where a denoising query sees another: an object, of its own group.

    >>> sees_its_group(jnp.array([3, -1, 3, -1]), 2).astype(int)
    Array([[1, 0, 0, 0],
           [1, 0, 0, 0],
           [0, 0, 1, 0],
           [0, 0, 1, 0]], dtype=int32)
    """
    group = jnp.arange(labels.shape[-1]) // (labels.shape[-1] // groups)
    return (group[:, None] == group) & (labels >= 0)[..., None, :]
