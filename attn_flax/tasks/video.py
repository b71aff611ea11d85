"""Video classification."""

import dataclasses
import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from attn_flax.checks import check
from attn_flax.tasks.labels import check_smoothing, label_loss, label_metrics, label_sums, smoothed_targets
from attn_flax.tasks.supervised import Supervised
from attn_flax.training import TrainState, reduce_over


def cut_logits(
    logits: Float[Array, "*b classes"], labellings: Mapping[str, int]
) -> dict[str, Float[Array, "*b classes_of_one"]]:
    """The logits of each labelling, of those of all side by side.

    Args:
        logits: in the order of the labellings.
        labellings: how many classes each has, by its name.

    Raises:
        InputError: there are not as many logits as classes.

    >>> cut_logits(jnp.array([1.0, 2.0, 3.0]), {"digit": 1, "direction": 2})
    {'digit': Array([1.], dtype=float32), 'direction': Array([2., 3.], dtype=float32)}
    """
    total = sum(labellings.values())
    check(
        logits.shape[-1] == total,
        f"logits must be of {total} classes, those of {', '.join(labellings)}, got shape {logits.shape}.",
    )
    *ends, _ = itertools.accumulate(labellings.values())
    return dict(zip(labellings, jnp.split(logits, ends, -1), strict=True))


@dataclasses.dataclass(frozen=True, eq=False)
class VideoClassification(Supervised):
    """The sum of the cross-entropies between a network's logits and the labels of videos in one or more labellings.

    A batch has "frames" (b, t, h, w, c) and "labels" (b, n) of integers, a column for each labelling; in evaluation
    also "weight" (b,).

    Attributes:
        model: the network, from videos to the logits of all labellings side by side.
        learning: how gradients move its parameters.
        labellings: how many classes each labelling has, by its name, in the order of the columns and the logits.
        label_smoothing: the share of a target spread evenly over all classes of its labelling.

    Raises:
        InputError: no labelling, one without classes, or a smoothing outside [0, 1).
    """

    labellings: Mapping[str, int]
    label_smoothing: float = 0.0

    def __post_init__(self):
        check(
            len(self.labellings) > 0 and min(self.labellings.values()) >= 1,
            f"labellings must be one or more, each of at least 1 class, got {dict(self.labellings)}.",
        )
        check_smoothing(self.label_smoothing)

    def examples(self, key: jax.Array, batch: PyTree) -> tuple[PyTree, PyTree]:
        """The videos, and the smoothed targets of each labelling."""
        labels = self._columns(batch["labels"])
        sizes = self.labellings.items()
        return batch["frames"], {name: smoothed_targets(labels[name], n, self.label_smoothing) for name, n in sizes}

    def loss(self, out: PyTree, targets: PyTree) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The sum of the mean cross-entropies; it and the accuracy of each labelling."""
        logits = cut_logits(out, self.labellings)
        metrics = self._together({name: label_loss(logits[name], targets[name])[1] for name in logits})
        return metrics["loss"], metrics

    def evaluate(self, state: TrainState, batch: PyTree, *, axis: str | None = None) -> PyTree:
        """For each labelling the sums of the cross-entropy and of the confusions, as `label_sums` gives them."""
        logits = cut_logits(self.module(state)(batch["frames"]), self.labellings)
        labels = self._columns(batch["labels"])
        return reduce_over(axis, {name: label_sums(logits[name], labels[name], batch["weight"]) for name in logits})

    def summarize(self, sums: PyTree) -> dict[str, float]:
        """The sum of the mean cross-entropies, and the share of right predictions of each labelling."""
        return self._together({name: label_metrics(sums[name]) for name in self.labellings})

    def score(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """The mean accuracy; among equals the lower loss."""
        accuracies = [metrics[f"{name}_accuracy"] for name in self.labellings]
        return sum(accuracies) / len(accuracies), -metrics["loss"]

    def _columns(self, labels):
        return dict(zip(self.labellings, jnp.unstack(labels, axis=-1), strict=True))

    @staticmethod
    def _together(metrics):
        accuracies = {f"{name}_accuracy": of_one["accuracy"] for name, of_one in metrics.items()}
        return {"loss": sum(of_one["loss"] for of_one in metrics.values()), **accuracies}
