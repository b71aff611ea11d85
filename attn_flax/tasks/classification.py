"""Image classification."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import PyTree

from attn_flax.checks import check
from attn_flax.tasks.mixing import cutmix, mixup
from attn_flax.training import Learning, Network, TrainState


@dataclasses.dataclass(frozen=True, eq=False)
class Classification:
    """Cross-entropy between a network's logits and the labels of images.

    A batch has "image" (b, h, w, c) and "label" (b,) of integers; in evaluation also "weight" (b,).

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

    model: nnx.Module
    learning: Learning
    num_classes: int
    label_smoothing: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0

    def __post_init__(self):
        check(0 <= self.label_smoothing < 1, f"label_smoothing must be in [0, 1), got {self.label_smoothing}.")
        check(self.mixup_alpha >= 0, f"mixup_alpha must not be negative, got {self.mixup_alpha}.")
        check(self.cutmix_alpha >= 0, f"cutmix_alpha must not be negative, got {self.cutmix_alpha}.")

    def init(self, key: jax.Array) -> TrainState:
        """The state before the first step, from the model's own parameters; `key` drives dropout and mixing."""
        _, params, model_state = Network.split(self.model)
        return self.learning.init(params, model_state, key)

    def update(self, state: TrainState, batch: PyTree, *, axis: str | None = None) -> tuple[TrainState, PyTree]:
        """One step; the metrics are the batch's loss and accuracy, of mixed images against the larger target."""
        network, _, _ = Network.split(self.model)

        def loss(params, model_state, batch, key):
            mix_key, network_key = jax.random.split(key)
            images, targets = self._mixed(mix_key, batch["image"], self._targets(batch["label"]))
            logits, model_state = network.train(params, model_state, images, key=network_key, axis=axis)
            mean_loss = optax.softmax_cross_entropy(_wide(logits), targets).mean()
            correct = logits.argmax(-1) == targets.argmax(-1)
            return mean_loss, (model_state, {"loss": mean_loss, "accuracy": correct.mean(dtype=jnp.float32)})

        return self.learning.update(loss, state, batch, axis=axis)

    def evaluate(self, state: TrainState, batch: PyTree, *, axis: str | None = None) -> PyTree:
        """The sums of the cross-entropy and of the confusions, rows the true classes and columns the predicted."""
        logits = _wide(self.module(state)(batch["image"]))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        confusion = jnp.zeros((self.num_classes, self.num_classes), jnp.float32)
        sums = {
            "loss": (losses * batch["weight"]).sum(),
            "confusion": confusion.at[batch["label"], logits.argmax(-1)].add(batch["weight"]),
        }
        return sums if axis is None else jax.lax.psum(sums, axis)

    def module(self, state: TrainState) -> nnx.Module:
        """The network with the state's parameters, in evaluation mode."""
        network, _, _ = Network.split(self.model)
        return network.merge(*state.evaluated)

    def summarize(self, sums: PyTree) -> dict[str, float]:
        """The mean cross-entropy and the share of right predictions."""
        count = sums["confusion"].sum()
        return {"loss": float(sums["loss"] / count), "accuracy": float(sums["confusion"].trace() / count)}

    def score(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """The accuracy; among equals the lower loss."""
        return metrics["accuracy"], -metrics["loss"]

    def _targets(self, labels):
        return optax.smooth_labels(jax.nn.one_hot(labels, self.num_classes), self.label_smoothing)

    def _mixed(self, key, images, targets):
        ways = []
        if self.mixup_alpha:
            ways.append(lambda key: mixup(key, images, targets, alpha=self.mixup_alpha))
        if self.cutmix_alpha:
            ways.append(lambda key: cutmix(key, images, targets, alpha=self.cutmix_alpha))
        if not ways:
            return images, targets
        way_key, key = jax.random.split(key)
        return jax.lax.switch(jax.random.randint(way_key, (), 0, len(ways)), ways, key)


def _wide(logits):
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
