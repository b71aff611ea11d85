"""What tasks with labels compute: smoothed targets, cross-entropy, and the sums and metrics of an evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from attn_flax.checks import check
from attn_flax.ops import at_least_float32

Given = Array | np.ndarray  # what a batch holds, in JAX or before it


def check_smoothing(label_smoothing: float) -> None:
    """Raises InputError unless it is a share of the target that leaves some of it to the label."""
    check(0 <= label_smoothing < 1, f"label_smoothing must be in [0, 1), got {label_smoothing}.")


def smoothed_targets(labels: Int[Given, "*b"], num_classes: int, smoothing: float) -> Float[Array, "*b classes"]:
    """(1 - s)·onehot(label) + s / classes.

    >>> smoothed_targets(jnp.array(1), 4, 0.2)
    Array([0.05, 0.85, 0.05, 0.05], dtype=float32)
    """
    return optax.smooth_labels(jax.nn.one_hot(labels, num_classes), smoothing)


def label_loss(
    logits: Float[Array, "b classes"], targets: Float[Array, "b classes"]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The mean cross-entropy; it and the accuracy, where the largest target counts as the right one."""
    loss = optax.softmax_cross_entropy(_wide(logits), targets).mean()
    correct = logits.argmax(-1) == targets.argmax(-1)
    return loss, {"loss": loss, "accuracy": correct.mean(dtype=jnp.float32)}


def label_sums(
    logits: Float[Array, "b classes"], labels: Int[Given, " b"], weight: Float[Given, " b"]
) -> dict[str, Float[Array, "..."]]:
    """The sums of the cross-entropy and of the confusions, rows the true classes and columns the predicted.

    >>> sums = label_sums(jnp.array([[2.0, 0.0], [3.0, 0.0]]), jnp.array([0, 1]), jnp.ones(2))
    >>> sums["confusion"]
    Array([[1., 0.],
           [1., 0.]], dtype=float32)
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(_wide(logits), labels)
    confusion = jnp.zeros((logits.shape[-1],) * 2, jnp.float32)
    return {
        "loss": (losses * weight).sum(),
        "confusion": confusion.at[labels, logits.argmax(-1)].add(weight),
    }


def label_metrics(sums: PyTree) -> dict[str, float]:
    """The mean cross-entropy and the share of right predictions that `label_sums` stand for."""
    count = sums["confusion"].sum()
    return {"accuracy": float(sums["confusion"].trace() / count), "loss": float(sums["loss"] / count)}


def _wide(logits):
    return logits.astype(at_least_float32(logits.dtype))
