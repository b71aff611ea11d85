"""What the tasks share in which one network learns what is known of its inputs."""

import abc
import dataclasses
from typing import ClassVar

import jax
from flax import nnx
from jaxtyping import PyTree

from attn_flax.training import Learning, Network, TrainState


@dataclasses.dataclass(frozen=True, eq=False)
class Supervised(abc.ABC):
    """A network, its learning, and a step down the loss of its outputs against their targets.

    Attributes:
        model: the network.
        learning: how gradients move its parameters.
    """

    method: ClassVar[str] = "__call__"
    """What of the network gives its outputs in training."""

    model: nnx.Module
    learning: Learning

    def init(self, key: jax.Array) -> TrainState:
        """The state before the first step, from the model's own parameters; `key` drives dropout and mixing."""
        _, params, model_state = Network.split(self.model)
        return self.learning.init(params, model_state, key)

    def update(self, state: TrainState, batch: PyTree, *, axis: str | None = None) -> tuple[TrainState, PyTree]:
        """One step; the metrics are those of `loss`, of the batch as `examples` gives it."""
        network, _, _ = Network.split(self.model)

        def loss(params, model_state, batch, key):
            examples_key, network_key = jax.random.split(key)
            inputs, targets = self.examples(examples_key, batch)
            inputs = inputs if isinstance(inputs, tuple) else (inputs,)
            out, model_state = network.train(
                params, model_state, *inputs, key=network_key, axis=axis, method=self.method
            )
            mean_loss, metrics = self.loss(out, targets)
            return mean_loss, (model_state, metrics)

        return self.learning.update(loss, state, batch, axis=axis)

    def module(self, state: TrainState) -> nnx.Module:
        """The network with the state's parameters, in evaluation mode."""
        network, _, _ = Network.split(self.model)
        return network.merge(*state.evaluated)

    @abc.abstractmethod
    def examples(self, key: jax.Array, batch: PyTree) -> tuple[PyTree, PyTree]:
        """The network's input in a step of training, or a tuple of its inputs, and their targets."""

    @abc.abstractmethod
    def loss(self, out: PyTree, targets: PyTree) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The mean loss of the network's output, and metrics that are means over the batch."""
