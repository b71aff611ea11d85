"""The state of training, and the one gradient step that tasks make."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from attn_flax.checks import check

Leaf = Any  # an array, or what may stand for one in the tree: its shape, its sharding
LossFunction = Callable[[PyTree, PyTree, PyTree, jax.Array], tuple[jax.Array, tuple[PyTree, PyTree]]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a run is at a step.

    Attributes:
        step: how many updates have been made.
        params: the parameters.
        model_state: what the network keeps beside them, such as batch statistics.
        opt_state: the optimiser's.
        ema: the moving averages of (params, model_state), or None where none are kept.
        key: the run's random key; each step folds its number into it.
    """

    step: Leaf
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    ema: PyTree
    key: Leaf

    @property
    def evaluated(self) -> tuple[PyTree, PyTree]:
        """The (params, model_state) to evaluate and to keep: the averages where there are any."""
        return self.ema or (self.params, self.model_state)


@dataclasses.dataclass(frozen=True)
class Learning:
    """How gradients move parameters.

    Attributes:
        optimizer: the transformation of the gradients.
        accumulate: into how many parts a batch is cut, whose gradients are averaged: less memory, the same step.
        ema_decay: d of the moving averages, avg <- d·avg + (1-d)·new; 0 keeps none. In the first steps d is at most
            (1 + step) / (10 + step), so that the average does not dwell on the initial values.

    Raises:
        InputError: accumulate below 1, or a decay outside [0, 1).
    """

    optimizer: optax.GradientTransformation
    accumulate: int = 1
    ema_decay: float = 0.0

    def __post_init__(self):
        check(self.accumulate >= 1, f"accumulate must be at least 1, got {self.accumulate}.")
        check(0 <= self.ema_decay < 1, f"ema_decay must be in [0, 1), got {self.ema_decay}.")

    def init(self, params: PyTree, model_state: PyTree, key: jax.Array) -> TrainState:
        """The state before the first step; it shares no array with its arguments, so that it may be donated."""
        params, model_state, key = jax.tree.map(jnp.copy, (params, model_state, key))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            model_state=model_state,
            opt_state=self.optimizer.init(params),
            ema=jax.tree.map(jnp.copy, (params, model_state)) if self.ema_decay else None,
            key=key,
        )

    def update(
        self, loss: LossFunction, state: TrainState, batch: PyTree, *, axis: str | None = None
    ) -> tuple[TrainState, PyTree]:
        """One step down the gradient of a mean loss.

        Args:
            loss: (params, model_state, batch, key) -> (loss, (new model_state, metrics)), means over the batch.
            state: the state before.
            batch: arrays with a leading batch axis.
            axis: the mapped axis over which the batch is split, if it is; gradients and metrics are averaged over it,
                and each part draws random numbers of its own.

        Returns:
            The state after, and the metrics, with one more: "finite", whether each leaf of the gradients is, in the
            order of the parameters' leaves.
        """
        key = jax.random.fold_in(state.key, state.step)
        if axis is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis))
        grads, model_state, metrics = self._gradients(loss, state, batch, key)
        if axis is not None:
            grads, metrics = jax.lax.pmean((grads, metrics), axis)
        finite = jnp.array([jnp.isfinite(grad).all() for grad in jax.tree.leaves(grads)])
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = self._averaged(state, (params, model_state)) if state.ema else None
        return TrainState(state.step + 1, params, model_state, opt_state, ema, state.key), metrics | {"finite": finite}

    def _gradients(self, loss, state, batch, key):
        def part(model_state, batch_and_key):
            (_, (model_state, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(
                state.params, model_state, *batch_and_key
            )
            return model_state, (grads, metrics)

        if self.accumulate == 1:
            model_state, (grads, metrics) = part(state.model_state, (batch, key))
            return grads, model_state, metrics
        parts = jax.tree.map(self._cut, batch), jax.random.split(key, self.accumulate)
        model_state, (grads, metrics) = jax.lax.scan(part, state.model_state, parts)
        grads, metrics = jax.tree.map(lambda x: x.mean(0), (grads, metrics))
        return grads, model_state, metrics

    def _cut(self, x):
        check(
            x.shape[0] % self.accumulate == 0,
            f"accumulate must divide the batch of a device, got accumulate={self.accumulate}, batch={x.shape[0]}.",
        )
        # Strided, so that every part keeps the batch's split over devices.
        return x.reshape(-1, self.accumulate, *x.shape[1:]).swapaxes(0, 1)

    def _averaged(self, state, new):
        decay = jnp.minimum(self.ema_decay, (1 + state.step) / (10 + state.step))

        def average(old, new):
            if not jnp.issubdtype(new.dtype, jnp.floating):
                return new
            return (old + (1 - decay) * (new - old)).astype(old.dtype)  # exact for what stays as it is

        return jax.tree.map(average, state.ema, new)
