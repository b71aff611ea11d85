"""Where the step runs: a mesh of devices, over which the state may be spread, or each device by itself."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from attn_flax.checks import check
from attn_flax.training.leaves import is_key
from attn_flax.training.step import TrainState
from attn_flax.training.task import Batch, Task

Parallelism = Literal["jit", "pmap", "fsdp"]
AXIS = "data"
FSDP_AXIS = "fsdp"
SMALLEST_SHARDED = 4096
"""Leaves with fewer elements are not worth spreading over devices."""


@runtime_checkable
class Runner(Protocol):
    """A task's functions on devices. States and batches enter through `place` and `put`, and leave through `fetch`.

    Where several processes train together, each calls every function, and puts its own part of the batch.
    """

    def check_batch_size(self, batch_size: int) -> None:
        """Raises InputError unless the devices of all processes can share a batch of that size evenly."""

    def place(self, state: TrainState) -> TrainState:
        """The state on the devices."""

    def put(self, batch: Batch) -> Batch:
        """This process's part of the batch, its rows split over its devices."""

    def update(self, state: TrainState, batch: Batch) -> tuple[TrainState, PyTree]:
        """The task's step; the state given is used up."""

    def evaluate(self, state: TrainState, batch: Batch) -> PyTree:
        """The task's sums over the batch."""

    def fetch(self, tree: PyTree) -> PyTree:
        """A state or metrics as one device has them, whole."""

    def portable(self, state: TrainState) -> TrainState:
        """The state as a checkpoint keeps it, whatever the layout: global arrays, each spread or repeated at will."""


def parallelize(
    task: Task, how: Parallelism = "jit", devices: Sequence[Any] | None = None, *, fsdp: int | None = None
) -> Runner:
    """The task's functions, compiled for the devices (by default all, of all processes).

    Args:
        task: what is learned.
        how: "jit" compiles the step for a mesh over all devices and leaves the communication to the compiler; batch
            statistics and random numbers are those of one device. "fsdp" does the same and spreads the state over the
            mesh's second axis, so that each device holds a part of the parameters and moments only. "pmap" runs the
            step on each device with its part of the batch, averages gradients, metrics and batch statistics by
            explicit collectives, and draws other random numbers on each.
        devices: the devices to use.
        fsdp: for "fsdp", over how many devices a state is spread, by default over all; the devices left form the
            mesh's first axis, and each of their groups has a whole state.

    Raises:
        InputError: an unknown way; devices that do not form such a mesh; a batch that the devices do not divide, when
            it is put.
    """
    check(how in get_args(Parallelism), f"parallel must be 'jit', 'pmap' or 'fsdp', got {how!r}.")
    check(how == "fsdp" or fsdp is None, f"fsdp devices are for parallel 'fsdp', got {fsdp} with {how!r}.")
    devices = list(devices or jax.devices())
    if how == "pmap":
        return PmapRunner(task, devices)
    spread = 1 if how == "jit" else len(devices) if fsdp is None else fsdp
    check(
        spread >= 1 and len(devices) % spread == 0,
        f"fsdp devices must divide the device count, got {spread} of {len(devices)} devices.",
    )
    return MeshRunner(task, devices, spread)


class _Devices:
    def __init__(self, devices):
        self._devices = devices

    def check_batch_size(self, batch_size: int) -> None:
        """Raises InputError unless the devices can share a batch of that size evenly."""
        count = len(self._devices)
        check(
            batch_size > 0 and batch_size % count == 0,
            f"the batch size must be a multiple of the device count, got batch size {batch_size} on {count} devices.",
        )

    def _check_batch(self, batch):
        self.check_batch_size(len(jax.tree.leaves(batch)[0]) * jax.process_count())

    def _mesh(self, data, fsdp):
        axes = (AXIS, FSDP_AXIS)
        return jax.make_mesh((data, fsdp), axes, axis_types=(AxisType.Auto,) * 2, devices=self._devices)


class MeshRunner(_Devices):
    """The step under one jit over a mesh (data, fsdp): the batch is split over both axes, the state over the second."""

    def __init__(self, task: Task, devices: Sequence[Any], fsdp: int):
        super().__init__(devices)
        self._grid = self._mesh(len(devices) // fsdp, fsdp)
        self._whole = NamedSharding(self._grid, PartitionSpec())
        self._rows = NamedSharding(self._grid, PartitionSpec((AXIS, FSDP_AXIS)))
        abstract = jax.eval_shape(task.init, jax.random.key(0))
        self._spread = jax.tree.map(lambda x: NamedSharding(self._grid, spread(x.shape, fsdp)), abstract)
        self.update = jax.jit(task.update, donate_argnums=0, out_shardings=(self._spread, self._whole))
        self.evaluate = jax.jit(task.evaluate, out_shardings=self._whole)

    def place(self, state: TrainState) -> TrainState:
        """The state on every device, or spread over the mesh."""
        return _placed(state, self._spread)

    def put(self, batch: Batch) -> Batch:
        """The batch, its rows split over the mesh."""
        self._check_batch(batch)
        if jax.process_count() == 1:
            return jax.device_put(batch, self._rows)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self._rows, np.asarray(x)), batch)

    def fetch(self, tree: PyTree) -> PyTree:
        """The whole tree on this process's first device."""
        if not all(x.is_fully_replicated for x in jax.tree.leaves(tree)):
            tree = _placed(tree, self._whole)
        return jax.tree.map(lambda x: x.addressable_data(0), tree)

    def portable(self, state: TrainState) -> TrainState:
        """The state as it is."""
        return state


class PmapRunner(_Devices):
    """The step under pmap: states and metrics have a leading axis, the devices of this process."""

    def __init__(self, task: Task, devices: Sequence[Any]):
        super().__init__(devices)
        grid = self._mesh(len(devices), 1)
        self._whole = NamedSharding(grid, PartitionSpec())
        self._local = [device for device in devices if device.process_index == jax.process_index()]
        local_mesh = jax.sharding.Mesh(np.array(self._local), (AXIS,))
        self._split = NamedSharding(local_mesh, PartitionSpec(AXIS))
        self.update = jax.pmap(partial(task.update, axis=AXIS), AXIS, devices=devices, donate_argnums=0)
        self.evaluate = jax.pmap(partial(task.evaluate, axis=AXIS), AXIS, devices=devices)

    def place(self, state: TrainState) -> TrainState:
        """A copy of the state for every device."""

        def stacked(x):
            x = x.addressable_data(0)
            return jnp.stack([x] * len(self._local))

        return jax.device_put(jax.tree.map(stacked, state), self._split)

    def put(self, batch: Batch) -> Batch:
        """The batch with a leading device axis."""
        self._check_batch(batch)
        return jax.tree.map(lambda x: x.reshape(len(self._local), -1, *x.shape[1:]), dict(batch))

    def fetch(self, tree: PyTree) -> PyTree:
        """The first device's copy; all are equal."""
        return jax.tree.map(lambda x: x.addressable_data(0)[0], tree)

    def portable(self, state: TrainState) -> TrainState:
        """The first device's copy, on all devices of all processes."""
        return _placed(self.fetch(state), self._whole)


def spread(shape: tuple[int, ...], devices: int) -> PartitionSpec:
    """How an array is spread over the mesh's second axis: along its longest axis that the devices divide.

    Small arrays, and those without such an axis, are on every device; among axes of one length the last is taken.

    >>> tuple(spread((3, 3, 64, 128), 8)), tuple(spread((64,), 8))
    ((None, None, None, 'fsdp'), ())
    """
    divided = [(size, axis) for axis, size in enumerate(shape) if size % devices == 0]
    if devices == 1 or not divided or math.prod(shape) < SMALLEST_SHARDED:
        return PartitionSpec()
    _, axis = max(divided)
    return PartitionSpec(*[None] * axis, FSDP_AXIS)


def _placed(tree, shardings):
    """The arrays, equal in all processes, with these shardings."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    return jax.jit(lambda tree: tree, out_shardings=shardings)(jax.tree.map(_anywhere, tree))


def _anywhere(x):
    """An array of this process bound to no device, or a global one as it is."""
    if not x.is_fully_addressable:
        return x
    if is_key(x):
        return jax.random.wrap_key_data(np.asarray(jax.random.key_data(x)), impl=jax.random.key_impl(x))
    return np.asarray(x)
