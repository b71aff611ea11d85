"""A task that compiles in no time: one vector learns the mean of what it is shown."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from attn_flax.training import Learning, TrainState

LEARNING = Learning(optax.sgd(0.3, momentum=0.9))


@dataclasses.dataclass(frozen=True, eq=False)
class Mean:
    """Batches have "value" (b, 3); the model state counts the rows seen, unless there is none."""

    learning: Learning = LEARNING
    stateless: bool = False

    def init(self, key: jax.Array) -> TrainState:
        centre = jax.random.normal(key, (3,))
        return self.learning.init({"centre": centre}, {} if self.stateless else {"rows": jnp.zeros(())}, key)

    def update(self, state, batch, *, axis=None):
        def loss(params, model_state, batch, key):
            value = batch["value"]
            mean_loss = 0.5 * ((params["centre"] - value) ** 2).sum(-1).mean()
            return mean_loss, (jax.tree.map(lambda rows: rows + len(value), model_state), {"loss": mean_loss})

        return self.learning.update(loss, state, batch, axis=axis)

    def evaluate(self, state, batch, *, axis=None):
        """How often each pixel value, from 0 to 255, came first in an image, and each label."""
        first = jnp.rint(batch["image"][:, 0, 0, 0] * 255).astype(int)
        sums = {
            "first": jnp.zeros(256).at[first].add(batch["weight"]),
            "label": jnp.zeros(10).at[batch["label"]].add(batch["weight"]),
        }
        return sums if axis is None else jax.lax.psum(sums, axis)

    def summarize(self, sums):
        return {"first": float(sums["first"].sum())}

    def score(self, metrics):
        return metrics["accuracy"], -metrics["loss"]


def values(count, size, *, start=0):
    """The batches of the steps from `start` on."""
    for step in range(start, start + count):
        yield {"value": np.random.default_rng(step).normal(size=(size, 3)).astype(np.float32)}
