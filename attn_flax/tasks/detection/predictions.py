"""What a detector found, out of what its queries say."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from attn_flax.tasks.detection.boxes import to_corners
from attn_flax.tasks.detection.set_loss import has_no_object_logit

MOST_DETECTIONS = 100
"""As COCO's evaluation takes of an image."""


class Detections(NamedTuple):
    """Objects that were found, the surest first.

    Attributes:
        boxes: (*b, n, 4).
        labels: (*b, n).
        scores: (*b, n), the probabilities of the labels.
    """

    boxes: Float[Array, "*b n 4"]
    labels: Int[Array, "*b n"]
    scores: Float[Array, "*b n"]


def detections(found: Mapping[str, PyTree], num_classes: int, *, limit: int = MOST_DETECTIONS) -> Detections:
    """The likeliest pairs of a query and a class, in the last layer of a detector's output.

    A query that hesitates between classes may so be there more than once (Zhu et al. 2021, arXiv:2010.04159).

    Args:
        found: "logits" (l, *b, q, k) and "boxes" (l, *b, q, 4).
        num_classes: of the objects.
        limit: how many to give at most.
    """
    logits, boxes = found["logits"][-1], found["boxes"][-1]
    softmax = has_no_object_logit(logits, num_classes)
    scores = jax.nn.softmax(logits)[..., :-1] if softmax else jax.nn.sigmoid(logits)
    scores = scores.reshape(*scores.shape[:-2], -1)
    scores, pair = jax.lax.top_k(scores, min(limit, scores.shape[-1]))
    query, label = jnp.divmod(pair, num_classes)
    return Detections(jnp.take_along_axis(boxes, query[..., None], -2), label, scores)


def predict_boxes(model: Callable, images: Float[Array, "b h w c"], *, limit: int = MOST_DETECTIONS) -> Detections:
    """What a detector with `num_classes` finds in images; boxes are (c_x, c_y, w, h) in shares of the image."""
    return detections(model(images), model.num_classes, limit=limit)


def in_pixels(found: Detections, size: tuple[int, int], *, threshold: float) -> list[Detections]:
    """Of each image the objects that are sure enough, in NumPy, their boxes (x_1, y_1, x_2, y_2) in pixels.

    Args:
        found: of images (b, …).
        size: the images' height and width.
        threshold: the least score.

    >>> found = Detections(jnp.array([[[0.5, 0.5, 0.5, 0.5]] * 2]), jnp.array([[3, 4]]), jnp.array([[0.9, 0.2]]))
    >>> in_pixels(found, (10, 20), threshold=0.5)[0].boxes
    array([[ 5. ,  2.5, 15. ,  7.5]], dtype=float32)
    """
    height, width = size
    boxes = np.asarray(to_corners(found.boxes)) * np.array([width, height] * 2, np.float32)
    sure = np.asarray(found.scores) >= threshold
    rows = zip(sure, boxes, np.asarray(found.labels), np.asarray(found.scores), strict=True)
    return [Detections(*(x[kept] for x in each)) for kept, *each in rows]
