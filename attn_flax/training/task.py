"""What the loop asks of a task."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import PyTree

from attn_flax.training.step import TrainState

Batch = Mapping[str, Any]


@runtime_checkable
class Task(Protocol):
    """What is learned: a state and two pure functions of it, written for one batch on one device.

    `axis` names the mapped axis over which a batch is split, where the functions run once for each part of it: what
    they return must then be reduced over that axis, so that all parts agree. Without one, the batch is whole.
    """

    def init(self, key: jax.Array) -> TrainState:
        """The state before the first step."""

    def update(self, state: TrainState, batch: Batch, *, axis: str | None = None) -> tuple[TrainState, PyTree]:
        """One step: the next state, and metrics that are means over the batch.

        Among them "finite" tells of each parameter leaf, in the tree's order, whether its gradient is.
        """

    def evaluate(self, state: TrainState, batch: Batch, *, axis: str | None = None) -> PyTree:
        """Sums over the batch, row i counting `batch["weight"][i]` times, and what is kept of each row, in `Rows`."""

    def summarize(self, sums: PyTree) -> dict[str, float]:
        """The metrics that the sums over a whole split stand for."""

    def score(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """How good a split's metrics are: the checkpoint of the highest score is the best."""
