"""Semantic segmentation."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from attn_flax.checks import check
from attn_flax.ops import at_least_float32
from attn_flax.tasks.labels import label_metrics, label_sums
from attn_flax.tasks.supervised import Supervised
from attn_flax.training import TrainState, reduce_over


def class_map(logits: Float[Array, "*b h w classes"]) -> Int[Array, "*b h w"]:
    """The likeliest class of each pixel; among equals the first."""
    return logits.argmax(-1)


def predict_mask(model: Callable, images: Float[Array, "*b h w c"]) -> Int[Array, "*b h w"]:
    """The class of each pixel of the images.

    >>> predict_mask(lambda x: jnp.concatenate([x, 1 - x], -1), jnp.array([[[0.2], [0.9]]]))
    Array([[1, 0]], dtype=int32)
    """
    return class_map(model(images))


def class_iou(confusion: Float[np.ndarray, "classes classes"]) -> Float[np.ndarray, " classes"]:
    """The intersection of each class's true and predicted pixels over their union.

        IoU_k = C_kk / (Σ_j C_kj + Σ_i C_ik - C_kk)

    Args:
        confusion: how many pixels of each true class, a row, were predicted to be of each class, a column.

    Returns:
        NaN for a class that neither is nor was predicted anywhere.

    >>> class_iou(np.array([[3.0, 1.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]])).round(2)
    array([0.75, 0.67,  nan])
    """
    both = np.diag(confusion)
    either = confusion.sum(0) + confusion.sum(1) - both
    return np.divide(both, either, out=np.full(len(both), np.nan), where=either > 0)


def foreground_iou(confusion: Float[np.ndarray, "classes classes"], background: int) -> float:
    """The IoU of all classes but the background taken for one, whichever of them a pixel is; NaN if there is none.

    >>> foreground_iou(np.array([[5.0, 1.0, 0.0], [0.0, 2.0, 2.0], [1.0, 0.0, 2.0]]), background=0)
    0.75
    """
    both = np.delete(np.delete(confusion, background, 0), background, 1).sum()
    either = confusion.sum() - confusion[background, background]
    return float(both / either) if either > 0 else float("nan")


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentation(Supervised):
    """Cross-entropy between a network's logits and the class of each pixel, their mean over the pixels that have one.

    A batch has "image" (b, h, w, c) and "mask" (b, h, w) of integers, -1 for pixels to be ignored; in evaluation also
    "weight" (b,). The metrics of a step are its loss and the accuracy of the pixels.

    The mean is over the pixels of the whole batch, however it is split over devices or accumulated: a part with few
    pixels that count, counts little. It is zero if there are none.

    Attributes:
        model: the network, from images to the logits of each pixel (b, h, w, classes).
        learning: how gradients move its parameters.
        background: the class that is no object, where there is one: the other classes taken together are then measured
            too.

    Raises:
        InputError: a background below 0.
    """

    background: int | None = None

    def __post_init__(self):
        check(
            self.background is None or self.background >= 0,
            f"background must be a class or None, got {self.background}.",
        )

    def update(self, state: TrainState, batch: PyTree, *, axis: str | None = None) -> tuple[TrainState, PyTree]:
        """One step; of the whole batch's pixels that count, every part of it knows how many there are."""
        counted = batch["mask"] >= 0
        share = counted.mean(dtype=float)
        if axis is not None:
            share = jax.lax.pmean(share, axis)
        weight = counted / jnp.where(share > 0, share, 1)
        return super().update(state, batch | {"pixel_weight": weight}, axis=axis)

    def examples(self, key: jax.Array, batch: PyTree) -> tuple[PyTree, PyTree]:
        """The images; the class of each pixel, and how much it counts: 1 on average over the batch."""
        return batch["image"], (batch["mask"], batch["pixel_weight"])

    def loss(self, out: jax.Array, targets: PyTree) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The mean cross-entropy of logits; it and the accuracy."""
        mask, weight = targets
        logits = out.astype(at_least_float32(out.dtype))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(mask, 0))
        loss = (losses * weight).mean()
        return loss, {"loss": loss, "accuracy": ((class_map(logits) == mask) * weight).mean()}

    def evaluate(self, state: TrainState, batch: PyTree, *, axis: str | None = None) -> PyTree:
        """The sums of the cross-entropy and of the confusions, rows the true classes and columns the predicted."""
        logits, mask = self.module(state)(batch["image"]), batch["mask"]
        weight = (mask >= 0) * batch["weight"][:, None, None]

        def sums_of_image(logits, mask, weight):
            return label_sums(logits.reshape(-1, logits.shape[-1]), jnp.maximum(mask, 0).ravel(), weight.ravel())

        # Image by image, since a count that grows in float32 one by one ends at 2^24.
        sums = jax.vmap(sums_of_image)(logits, mask, weight)
        return reduce_over(axis, jax.tree.map(lambda x: x.sum(0), sums))

    def summarize(self, sums: PyTree) -> dict[str, float]:
        """The mean cross-entropy, the accuracy of the pixels, and the mean IoU; with a background the foreground's IoU.

        The mean is over the classes that are or were predicted somewhere.
        """
        confusion = np.asarray(sums["confusion"], np.float64)
        metrics = label_metrics(sums) | {"mean_iou": float(np.nanmean(class_iou(confusion)))}
        if self.background is None:
            return metrics
        return metrics | {"foreground_iou": foreground_iou(confusion, self.background)}

    def score(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """The mean IoU; among equals the lower loss."""
        return metrics["mean_iou"], -metrics["loss"]
