"""Image classification."""

import dataclasses
from collections.abc import Mapping

import jax
from jaxtyping import PyTree

from attn_flax.checks import check
from attn_flax.tasks.labels import check_smoothing, label_loss, label_metrics, label_sums, smoothed_targets
from attn_flax.tasks.mixing import cutmix, mixup
from attn_flax.tasks.supervised import Supervised
from attn_flax.training import TrainState, reduce_over


@dataclasses.dataclass(frozen=True, eq=False)
class Classification(Supervised):
    """Cross-entropy between a network's logits and the labels of images.

    A batch has "image" (b, h, w, c) and "label" (b,) of integers; in evaluation also "weight" (b,). The metrics of a
    step are its loss and accuracy, of mixed images against the larger target.

    Attributes:
        model: the network, from images to logits (b, classes).
        learning: how gradients move its parameters.
        num_classes: the number of its logits.
        label_smoothing: the share of the target spread evenly over all classes.
        mixup_alpha: α of mixup; 0 for none.
        cutmix_alpha: α of CutMix; 0 for none. With both, each batch takes one of them at random.

    Raises:
        InputError: a smoothing outside [0, 1), or a negative α.
    """

    num_classes: int
    label_smoothing: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0

    def __post_init__(self):
        check_smoothing(self.label_smoothing)
        check(self.mixup_alpha >= 0, f"mixup_alpha must not be negative, got {self.mixup_alpha}.")
        check(self.cutmix_alpha >= 0, f"cutmix_alpha must not be negative, got {self.cutmix_alpha}.")

    def examples(self, key: jax.Array, batch: PyTree) -> tuple[PyTree, PyTree]:
        """The images and their smoothed targets, mixed."""
        images, targets = batch["image"], smoothed_targets(batch["label"], self.num_classes, self.label_smoothing)
        ways = []
        if self.mixup_alpha:
            ways.append(lambda key: mixup(key, images, targets, alpha=self.mixup_alpha))
        if self.cutmix_alpha:
            ways.append(lambda key: cutmix(key, images, targets, alpha=self.cutmix_alpha))
        if not ways:
            return images, targets
        way_key, key = jax.random.split(key)
        return jax.lax.switch(jax.random.randint(way_key, (), 0, len(ways)), ways, key)

    def loss(self, out: PyTree, targets: PyTree) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The mean cross-entropy of logits."""
        return label_loss(out, targets)

    def evaluate(self, state: TrainState, batch: PyTree, *, axis: str | None = None) -> PyTree:
        """The sums of the cross-entropy and of the confusions, rows the true classes and columns the predicted."""
        logits = self.module(state)(batch["image"])
        return reduce_over(axis, label_sums(logits, batch["label"], batch["weight"]))

    def summarize(self, sums: PyTree) -> dict[str, float]:
        """The mean cross-entropy and the share of right predictions."""
        return label_metrics(sums)

    def score(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """The accuracy; among equals the lower loss."""
        return metrics["accuracy"], -metrics["loss"]
