"""Distillation by hard labels: a classifier learns what the labels say, and what a teacher says.

    L = ½ CE(z_c, y) + ½ CE(z_d, argmax_k z_t,k)

where CE is the mean cross-entropy, y the label, and z_t are the teacher's logits of the same images, augmented and
mixed as they are. z_c and z_d are the logits of the network's two heads, or both its logits where it has one.

Differs from the paper: nothing. y may be smoothed and mixed; what the teacher says is not.

Source: Touvron, Cord, Douze, Massa, Sablayrolles and Jégou, "Training data-efficient image transformers & distillation
through attention" (2021), arXiv:2012.12877.
"""

import dataclasses

import jax
from flax import nnx
from jaxtyping import PyTree

from attn_flax.checks import check
from attn_flax.tasks.classification import Classification
from attn_flax.tasks.labels import label_loss
from attn_flax.training import Network


@dataclasses.dataclass(frozen=True, eq=False)
class Distillation(Classification):
    """The classification of images, learned from their labels and from a teacher.

    In training a network's method `logits_of_heads`, where it has one, gives z_c and z_d. The metrics of a step are its
    loss, the accuracy of z_c, and the agreement of z_d with the teacher. Evaluation is that of the network alone.

    Attributes:
        teacher: from images to logits (b, classes). It is used in evaluation mode and stays as it is: its parameters
            are constants of the compiled step, no part of the state.

    Raises:
        InputError: what Classification refuses; a teacher of other classes, in the first step.
    """

    teacher: nnx.Module = dataclasses.field(kw_only=True)

    @property
    def method(self) -> str:
        """What of the network gives the logits in training."""
        return "logits_of_heads" if hasattr(self.model, "logits_of_heads") else "__call__"

    def examples(self, key: jax.Array, batch: PyTree) -> tuple[PyTree, PyTree]:
        """The images, mixed; their targets, and what the teacher says of them."""
        images, targets = super().examples(key, batch)
        network, *variables = Network.split(self.teacher)
        logits = network.merge(*variables)(images)
        check(
            logits.shape[-1] == self.num_classes,
            f"teacher must give logits of {self.num_classes} classes, got {logits.shape[-1]}.",
        )
        return images, (targets, jax.nn.one_hot(logits.argmax(-1), self.num_classes))

    def loss(self, out: PyTree, targets: PyTree) -> tuple[jax.Array, dict[str, jax.Array]]:
        """L of the logits of one or two heads."""
        heads = out if isinstance(out, tuple) else (out, out)
        (of_labels, by_labels), (of_teacher, by_teacher) = map(label_loss, heads, targets)
        loss = (of_labels + of_teacher) / 2
        return loss, {"loss": loss, "accuracy": by_labels["accuracy"], "agreement": by_teacher["accuracy"]}
