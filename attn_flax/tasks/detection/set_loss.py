"""The loss between a set of predictions and the set of objects in an image.

    σ = argmin Σ_j cost(σ(j), j)                                                    a query for each object
    L = λ_class Σ_i L_class(i) + Σ_j (λ_L1 ‖b_σ(j) - b_j‖₁ + λ_GIoU (1 - GIoU(b_σ(j), b_j)))

over queries i and objects j. The cost of a pair has the same parts and weights, with the class by its probability, or
by its focal loss less that of its absence. Queries that no object has are to find none. The classes are read off the
number of logits:

- one more than classes: a softmax, the last is no object; L_class is the cross-entropy, for no object a tenth of it;
- as many as classes: a sigmoid each; L_class is the focal loss, for no object with all classes absent.

Source: Carion et al., "End-to-End Object Detection with Transformers" (2020), arXiv:2005.12872; the focal loss: Lin,
Goyal, Girshick, He and Dollár, "Focal Loss for Dense Object Detection" (2017), arXiv:1708.02002, and in the cost: Zhu
et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection" (2021), arXiv:2010.04159.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from attn_flax.tasks.detection.boxes import Objects, generalized_iou

NO_OBJECT_WEIGHT = 0.1

focal_loss = partial(optax.sigmoid_focal_loss, alpha=0.25, gamma=2.0)
"""-α_t (1 - p_t)^γ log p_t of each class, given its logit and 1 or 0."""


class Parts(NamedTuple):
    """The parts of a loss, and what each is multiplied by: λ.

    Attributes:
        classes: of all queries.
        l1: of those that have an object.
        giou: likewise.
    """

    classes: Float[Array, "..."] | float
    l1: Float[Array, "..."] | float
    giou: Float[Array, "..."] | float

    def total(self, weights: "Parts") -> Float[Array, "..."]:
        """Their sum, each multiplied by its weight."""
        return sum(weight * part for weight, part in zip(weights, self, strict=True))


def has_no_object_logit(logits: Float[Array, "*s k"], num_classes: int) -> bool:
    """Whether the last logit is no object, or each is a class's."""
    return logits.shape[-1] == num_classes + 1


def matching_cost(
    logits: Float[Array, "q k"], boxes: Float[Array, "q 4"], objects: Objects, *, num_classes: int, weights: Parts
) -> Float[Array, "q m"]:
    """What it costs to give each object to each query; 0 where there is no object.

    Args:
        logits: of an image's queries.
        boxes: likewise.
        objects: the image's, m at most.
        num_classes: of the objects.
        weights: λ.
    """
    if has_no_object_logit(logits, num_classes):
        of_classes = -jax.nn.softmax(logits)
    else:
        of_classes = focal_loss(logits, jnp.ones_like(logits)) - focal_loss(logits, jnp.zeros_like(logits))
    distance = jnp.abs(boxes[:, None] - objects.boxes).sum(-1)
    overlap = generalized_iou(boxes[:, None], objects.boxes)
    cost = Parts(of_classes[:, objects.labels], distance, -overlap).total(weights)
    return jnp.where(objects.labels >= 0, cost, 0)


def match(cost: Float[Array, "q m"], objects: Objects) -> Objects:
    """What each query is to find, so that the costs add up to the least: an object of its own, or none.

    Args:
        cost: of an image, q ≥ m.
        objects: the image's.

    >>> objects = Objects(jnp.array([7, 8]), jnp.zeros((2, 4)))
    >>> match(jnp.array([[1.0, 2.0], [0.0, 9.0], [5.0, 5.0]]), objects).labels
    Array([ 8,  7, -1], dtype=int32)
    """
    queries, m = cost.shape
    of_query, of_object = optax.assignment.hungarian_algorithm(jax.lax.stop_gradient(cost))
    index = jnp.full(queries, m).at[of_query].set(of_object)
    none = Objects(jnp.full(1, -1, objects.labels.dtype), jnp.ones((1, 4), objects.boxes.dtype))
    return jax.tree.map(lambda x, no_object: jnp.concatenate([x, no_object])[index], objects, none)


def query_losses(
    logits: Float[Array, "*b q k"], boxes: Float[Array, "*b q 4"], targets: Objects, *, num_classes: int
) -> Parts:
    """The losses (*b, q) of queries, each of which is to find the object in its place, or none; targets broadcast."""
    targets = Objects(jnp.broadcast_to(targets.labels, logits.shape[:-1]), targets.boxes)
    found = targets.labels >= 0
    if has_no_object_logit(logits, num_classes):
        labels = jnp.where(found, targets.labels, num_classes)
        classes = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        classes = jnp.where(found, classes, NO_OBJECT_WEIGHT * classes)
    else:
        classes = focal_loss(logits, jax.nn.one_hot(targets.labels, num_classes, dtype=logits.dtype)).sum(-1)
    l1 = jnp.abs(boxes - targets.boxes).sum(-1)
    giou = 1 - generalized_iou(boxes, targets.boxes)
    return Parts(classes, *(jnp.where(found, x, 0) for x in (l1, giou)))


def class_weight(
    logits: Float[Array, "*s k"], num_classes: int, *, objects: Num[Array, "..."], no_objects: Num[Array, "..."] | float
) -> Num[Array, "..."]:
    """What the losses of classes are divided by: the number of objects, of a softmax the weights of all queries.

    Args:
        logits: which of the two they are.
        num_classes: of the objects.
        objects: how many queries have one.
        no_objects: how many have none.
    """
    softmax = has_no_object_logit(logits, num_classes)
    return objects + NO_OBJECT_WEIGHT * no_objects if softmax else objects


def normalized(sums: Parts, *, objects: ArrayLike, class_weight: ArrayLike) -> Parts:
    """The sums over queries divided by the number of objects, of classes by the class weight; by 1 where it is 0."""
    count, weight = (jnp.where(x > 0, x, 1) for x in (objects, class_weight))
    return Parts(sums.classes / weight, sums.l1 / count, sums.giou / count)
