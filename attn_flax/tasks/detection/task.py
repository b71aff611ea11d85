"""Detection: the set of objects in an image, their boxes and classes."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from attn_flax.checks import check
from attn_flax.tasks.detection.average_precision import average_precision
from attn_flax.tasks.detection.boxes import Objects
from attn_flax.tasks.detection.denoising import noised, repeated, sees_its_group
from attn_flax.tasks.detection.predictions import detections
from attn_flax.tasks.detection.set_loss import (
    Parts,
    class_weight,
    match,
    matching_cost,
    normalized,
    query_losses,
)
from attn_flax.tasks.supervised import Supervised
from attn_flax.training import Rows, TrainState, reduce_over

WEIGHTS = Parts(classes=2.0, l1=5.0, giou=2.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Detection(Supervised):
    """The set loss of a detection transformer: of all layers of its decoder, of its proposals and denoising queries.

    A batch has "image" (b, h, w, c), "boxes" (b, m, 4) as (c_x, c_y, w, h) in shares of the image, and "labels" (b, m),
    -1 where there is no box; in evaluation also "weight" (b,). The network gives what `models.Detr` gives, and has
    `num_classes`.

    Losses are divided by the number of objects in the whole batch, however it is split over devices or accumulated: the
    mean loss of an image is divided by the mean number of objects of an image, which every part of the batch knows.
    Where the batch has no object at all, they are the mean over its images.

    Attributes:
        model: the detector.
        learning: how gradients move its parameters.
        denoising: how many groups of denoising queries learn beside the others.
        label_noise: the share γ of the denoising queries whose class is any; 0.2 in the paper. The more there are, the
            more of the class they must read from the image.
        weights: λ of the loss's parts.

    Raises:
        InputError: a negative number of groups or a share outside [0, 1]; in a step, images that may have more objects
            than there are queries.
    """

    denoising: int = 0
    label_noise: float = 0.2
    weights: Parts = WEIGHTS

    def __post_init__(self):
        check(self.denoising >= 0, f"denoising must be at least 0, got {self.denoising}.")
        check(0 <= self.label_noise <= 1, f"label_noise must be in [0, 1], got {self.label_noise}.")

    def update(self, state: TrainState, batch: PyTree, *, axis: str | None = None) -> tuple[TrainState, PyTree]:
        """One step; every part of the whole batch knows how many objects an image has in it on average."""
        objects = (batch["labels"] >= 0).sum(-1).mean(dtype=batch["boxes"].dtype)
        if axis is not None:
            objects = jax.lax.pmean(objects, axis)
        of_image = jnp.broadcast_to(objects, len(batch["labels"]))
        return super().update(state, batch | {"objects_of_image": of_image}, axis=axis)

    def examples(self, key: jax.Array, batch: PyTree) -> tuple[PyTree, PyTree]:
        """The images, and denoising queries if there are any; what is to be found, and the objects of an image."""
        objects = Objects(batch["labels"], batch["boxes"])
        targets = objects, batch["objects_of_image"].mean()
        if not self.denoising:
            return batch["image"], targets
        several = repeated(objects, self.denoising)
        labels, boxes = noised(key, several, num_classes=self.model.num_classes, label_noise=self.label_noise)
        return (batch["image"], (labels, boxes, sees_its_group(several.labels, self.denoising))), targets

    def loss(self, out: PyTree, targets: PyTree) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The sum of the losses of all layers, proposals and denoising queries; it, and the parts of the last layer."""
        objects, of_image = targets
        layers = self._mean(out, self._set_losses(out, objects), of_image)
        total = layers.total(self.weights).sum()
        if "proposals" in out:
            proposals = out["proposals"]
            total += self._mean(proposals, self._set_losses(proposals, objects), of_image).total(self.weights)
        if "denoised" in out:
            several, denoised = repeated(objects, self.denoising), out["denoised"]
            losses = self._query_losses(denoised, several)
            of_objects = jax.tree.map(lambda x: jnp.where(several.labels >= 0, x, 0), losses)
            total += self._mean(denoised, of_objects, self.denoising * of_image, 0.0).total(self.weights).sum()
        return total, {"loss": total, **{f"{name}_loss": part[-1] for name, part in layers._asdict().items()}}

    def evaluate(self, state: TrainState, batch: PyTree, *, axis: str | None = None) -> PyTree:
        """The sums of the last layer's losses, and of each image what was found and what there is."""
        out = self.module(state)(batch["image"])
        last = {name: out[name][-1] for name in ("logits", "boxes")}
        objects, weight = Objects(batch["labels"], batch["boxes"]), batch["weight"]
        of_image = (objects.labels >= 0).sum(-1)
        of_queries = {"objects": of_image, "no_objects": last["logits"].shape[-2] - of_image}
        sums = {
            "losses": jax.tree.map(lambda x: x.sum(-1), self._set_losses(last, objects)),
            "objects": of_image,
            "class_weight": class_weight(last["logits"], self.model.num_classes, **of_queries),
        }
        sums = jax.tree.map(lambda x: (x * weight).sum(), sums)
        found = detections(out, self.model.num_classes)
        return reduce_over(axis, sums | {"images": Rows({"found": found, "objects": objects, "weight": weight})})

    def summarize(self, sums: PyTree) -> dict[str, float]:
        """The loss of the last layer and its parts, and the average precisions: AP, AP50 and AP75."""
        parts = normalized(sums["losses"], objects=sums["objects"], class_weight=sums["class_weight"])
        images = sums["images"].tree
        counted = images["weight"] > 0
        found, objects = jax.tree.map(lambda x: x[counted], (images["found"], images["objects"]))
        losses = {"loss": parts.total(self.weights), **{f"{name}_loss": x for name, x in parts._asdict().items()}}
        precisions = average_precision(found, objects, self.model.num_classes)
        return {name: float(value) for name, value in losses.items()} | precisions

    def score(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """AP, the mean over overlaps from 0.50 to 0.95; among equals the lower loss."""
        return metrics["ap"], -metrics["loss"]

    def _set_losses(self, out, objects):
        """The losses (*l, b, q) of queries that are matched to objects."""
        matched = functools.partial(self._matched, objects=objects)
        for _ in out["logits"].shape[:-3]:
            matched = jax.vmap(matched)
        return self._query_losses(out, matched(out["logits"], out["boxes"]))

    def _matched(self, logits, boxes, objects):
        """What each query (b, q) is to find."""
        check(
            logits.shape[-2] >= objects.labels.shape[-1],
            f"the detector's queries must be at least as many as the objects of an image may be, got "
            f"{logits.shape[-2]} for up to {objects.labels.shape[-1]}.",
        )
        cost = functools.partial(matching_cost, num_classes=self.model.num_classes, weights=self.weights)
        return jax.vmap(match)(jax.vmap(cost)(logits, boxes, objects), objects)

    def _query_losses(self, out, targets):
        return query_losses(out["logits"], out["boxes"], targets, num_classes=self.model.num_classes)

    def _mean(self, out, losses, objects, no_objects=None):
        """The losses (*l, b, q) summed over the queries of an image that has so many objects on average."""
        no_objects = out["logits"].shape[-2] - objects if no_objects is None else no_objects
        weight = class_weight(out["logits"], self.model.num_classes, objects=objects, no_objects=no_objects)
        sums = jax.tree.map(lambda x: x.sum(-1).mean(-1), losses)
        return normalized(sums, objects=objects, class_weight=weight)
