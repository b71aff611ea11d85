"""Axes cut into parts, which loops take one after the other."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

State = TypeVar("State")


class Cut(NamedTuple):
    """An axis as lanes × steps × size: a step takes `size` neighbours out of each lane."""

    lanes: int
    steps: int
    size: int

    @classmethod
    def within(cls, length: int, most: int) -> "Cut":
        """The fewest steps that take at most so many out of a lane, at least one.

        An axis has as many lanes as the devices can shard it into, so that each of them steps through its own part and
        nothing moves between devices.
        """
        lanes = math.gcd(length, jax.device_count())
        lane = length // lanes
        size = max(size for size in range(1, min(lane, max(most, 1)) + 1) if lane % size == 0)
        return cls(lanes, lane // size, size)

    def places(self, step: ArrayLike) -> jax.Array:
        """Which elements of the axis a step takes."""
        first = jnp.arange(self.lanes)[:, None] * self.steps * self.size
        return (first + step * self.size + jnp.arange(self.size)).ravel()


class Cuts:
    """The axes (*b, g) of several arrays, cut alike, for one loop over all of them.

    Args:
        lengths: of the axes.
        most: how many elements of all axes together a step takes, at most, out of a lane.
    """

    def __init__(self, lengths: Sequence[int], most: int):
        cuts = []
        for length in reversed(lengths):
            cuts.append(Cut.within(length, most))
            most //= cuts[-1].size
        self._cuts = cuts[::-1]
        self._lengths = tuple(lengths)
        self.steps = math.prod(cut.steps for cut in cuts)

    def take(self, x: jax.Array, step: ArrayLike, group_axis: int) -> jax.Array:
        """The part of an array (*b, …, g, …) that a step takes; axes of one are taken by all."""
        view, starts, sizes, shape = self._window(x.shape, step, group_axis)
        return lax.dynamic_slice(x.reshape(view), starts, sizes).reshape(shape)

    def put(self, x: jax.Array, part: jax.Array, step: ArrayLike, group_axis: int) -> jax.Array:
        """The array with a step's part replaced."""
        view, starts, sizes, _ = self._window(x.shape, step, group_axis)
        return lax.dynamic_update_slice(x.reshape(view), part.reshape(sizes), starts).reshape(x.shape)

    def numbers(self, step: ArrayLike) -> jax.Array:
        """For each element that a step takes, (*b, g), its number among all in row-major order."""
        numbers = jnp.zeros((), jnp.uint32)
        for cut, length, own in zip(self._cuts, self._lengths, self._unravel(step), strict=True):
            numbers = numbers[..., None] * length + cut.places(own).astype(jnp.uint32)
        return numbers

    def _window(self, shape, step, group_axis):
        """The shape in which each lane, step and size is an axis, where the step's part starts, and its shapes."""
        axes = (*range(len(self._cuts) - 1), group_axis)
        cut_at = {axis: (cut, own) for axis, cut, own in zip(axes, self._cuts, self._unravel(step), strict=True)}
        view, starts, sizes, part = [], [], [], []
        for axis, length in enumerate(shape):
            cut, own = cut_at.get(axis, (None, 0))
            is_cut = cut is not None and length > 1
            view += cut if is_cut else [length]
            starts += [0, own, 0] if is_cut else [0]
            sizes += [cut.lanes, 1, cut.size] if is_cut else [length]
            part.append(cut.lanes * cut.size if is_cut else length)
        return view, starts, sizes, part

    def _unravel(self, step):
        """The step of each axis."""
        steps = []
        for cut in reversed(self._cuts):
            steps.insert(0, step % cut.steps)
            step = step // cut.steps
        return steps


class Blocks(NamedTuple):
    """An axis in blocks of one size; the last one begins early enough to be whole."""

    length: int
    size: int

    @classmethod
    def even(cls, length: int, most: int) -> "Blocks":
        """The fewest blocks of at most so many, as small as they can be then."""
        return cls(length, math.ceil(length / math.ceil(length / most)))

    @property
    def count(self) -> int:
        """The number of blocks."""
        return math.ceil(self.length / self.size)

    def start(self, i: ArrayLike) -> jax.Array:
        """Where block i begins."""
        return jnp.minimum(i * self.size, self.length - self.size)

    def places(self, i: ArrayLike) -> jax.Array:
        """Which elements of the axis block i holds."""
        return self.start(i) + jnp.arange(self.size)

    def fresh(self, i: ArrayLike) -> jax.Array | None:
        """Which of them no earlier block holds; None if all."""
        return self.places(i) >= i * self.size if self.length % self.size else None

    def take(self, x: jax.Array, i: ArrayLike, axis: int) -> jax.Array:
        """Block i of an array; an axis of one is taken by all."""
        return x if x.shape[axis] == 1 else lax.dynamic_slice_in_dim(x, self.start(i), self.size, axis)


def loop(first: ArrayLike, last: ArrayLike, body: Callable[[ArrayLike, State], State], start: State) -> State:
    """`lax.fori_loop`, without a loop where there is one turn."""
    is_one = isinstance(first, int) and isinstance(last, int) and last == first + 1
    return body(first, start) if is_one else lax.fori_loop(first, last, body, start)


def add_at(x: jax.Array, part: jax.Array, starts: dict[int, ArrayLike]) -> jax.Array:
    """The array with a part added where it starts, on the axes that are named."""
    indices = [starts.get(axis - x.ndim, 0) for axis in range(x.ndim)]
    before = lax.dynamic_slice(x, indices, part.shape)
    return lax.dynamic_update_slice(x, before + part, indices)
