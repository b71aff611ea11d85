"""Where the step runs: one device, a mesh of them, or each on its own with explicit collectives."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from attn_flax.checks import check
from attn_flax.training.step import TrainState
from attn_flax.training.task import Batch, Task

Parallelism = Literal["jit", "pmap"]
AXIS = "data"


@runtime_checkable
class Runner(Protocol):
    """A task's functions on devices. States and batches enter through `place` and `put`, and leave through `fetch`."""

    def check_batch_size(self, batch_size: int) -> None:
        """Raises InputError unless the devices can share a batch of that size evenly."""

    def place(self, state: TrainState) -> TrainState:
        """The state on all devices."""

    def put(self, batch: Batch) -> Batch:
        """The batch, its rows split over the devices."""

    def update(self, state: TrainState, batch: Batch) -> tuple[TrainState, PyTree]:
        """The task's step; the state given is used up."""

    def evaluate(self, state: TrainState, batch: Batch) -> PyTree:
        """The task's sums over the batch."""

    def fetch(self, tree: PyTree) -> PyTree:
        """A state or metrics as one device has them."""


def parallelize(task: Task, how: Parallelism = "jit", devices: Sequence[Any] | None = None) -> Runner:
    """The task's functions, compiled for the devices (by default all).

    Args:
        task: what is learned.
        how: "jit" compiles the step for a mesh over all devices and leaves the communication to the compiler; batch
            statistics and random numbers are those of one device. "pmap" runs the step on each device with its part of
            the batch, averages gradients, metrics and batch statistics by explicit collectives, and draws other random
            numbers on each.
        devices: the devices to use.

    Raises:
        InputError: an unknown way; a batch that the devices do not divide, when it is put.
    """
    check(how in get_args(Parallelism), f"parallel must be 'jit' or 'pmap', got {how!r}.")
    runner = JitRunner if how == "jit" else PmapRunner
    return runner(task, list(devices or jax.devices()))


class _Devices:
    def __init__(self, devices):
        self._devices = devices
        mesh = jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self._split = NamedSharding(mesh, PartitionSpec(AXIS))

    def check_batch_size(self, batch_size: int) -> None:
        """Raises InputError unless the devices can share a batch of that size evenly."""
        count = len(self._devices)
        check(
            batch_size > 0 and batch_size % count == 0,
            f"the batch size must be a multiple of the device count, got batch size {batch_size} on {count} devices.",
        )


class JitRunner(_Devices):
    """The step under one jit over a mesh of devices."""

    def __init__(self, task: Task, devices: Sequence[Any]):
        super().__init__(devices)
        self.update = jax.jit(task.update, donate_argnums=0, out_shardings=self._replicated)
        self.evaluate = jax.jit(task.evaluate, out_shardings=self._replicated)

    def place(self, state: TrainState) -> TrainState:
        """The state on every device."""
        return jax.device_put(state, self._replicated)

    def put(self, batch: Batch) -> Batch:
        """The batch, its rows split over the mesh."""
        self.check_batch_size(len(jax.tree.leaves(batch)[0]))
        return jax.device_put(batch, self._split)

    def fetch(self, tree: PyTree) -> PyTree:
        """The tree as it is: its arrays are whole."""
        return tree


class PmapRunner(_Devices):
    """The step under pmap: states and metrics have a leading device axis."""

    def __init__(self, task: Task, devices: Sequence[Any]):
        super().__init__(devices)
        self.update = jax.pmap(partial(task.update, axis=AXIS), AXIS, devices=devices, donate_argnums=0)
        self.evaluate = jax.pmap(partial(task.evaluate, axis=AXIS), AXIS, devices=devices)

    def place(self, state: TrainState) -> TrainState:
        """A copy of the state for every device."""
        stacked = jax.tree.map(lambda x: jnp.stack([x] * len(self._devices)), state)
        return jax.device_put(stacked, self._split)

    def put(self, batch: Batch) -> Batch:
        """The batch with a leading device axis."""
        self.check_batch_size(len(jax.tree.leaves(batch)[0]))
        return jax.tree.map(lambda x: x.reshape(len(self._devices), -1, *x.shape[1:]), dict(batch))

    def fetch(self, tree: PyTree) -> PyTree:
        """The first device's copy; all are equal."""
        return jax.tree.map(lambda x: x[0], tree)
