"""How layers keep their numbers here and in PyTorch."""

import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from flax import nnx

from attn_flax.mechanisms.layers import DepthwiseConv


class Layout(NamedTuple):
    """How PyTorch lays out an array of ours.

    Attributes:
        order: our axes, in the order of theirs; None where they agree.
        ones: their axes of one that we do not have.
        merged: whether the first two of our axes, so ordered, are one of theirs.
        square: whether the last of our axes, so ordered, is a square of theirs.
        index: of how many there are along an axis of ours: which of ours is at each place of theirs; None for the same.
        axis: that axis.
    """

    order: tuple[int, ...] | None = None
    ones: tuple[int, ...] = ()
    merged: bool = False
    square: bool = False
    index: Callable[[int], np.ndarray] | None = None
    axis: int = -1

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """Of their array, from that of ours.

        >>> Layout((1, 0), (2, 3)).shape((7, 5))
        (5, 7, 1, 1)
        """
        return self._moved(np.broadcast_to(np.int8(0), ours)).shape

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Our array, in their layout."""
        return np.asarray(self._moved(array), order="C")

    def from_torch(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Their array, in our layout, of our shape.

        >>> Layout((1, 0), (2, 3)).from_torch(np.zeros((5, 7, 1, 1)), (7, 5)).shape
        (7, 5)
        """
        order = self._order(len(shape))
        array = array.reshape([shape[axis] for axis in order])
        array = np.transpose(array, np.argsort(order).tolist())
        if self.index is not None:
            array = np.take(array, np.argsort(self.index(shape[self.axis])), self.axis)
        return np.asarray(array, order="C")

    def _moved(self, array):
        if self.index is not None:
            array = np.take(array, self.index(array.shape[self.axis]), self.axis)
        array = np.transpose(array, self._order(array.ndim))
        if self.merged:
            array = array.reshape(-1, *array.shape[2:])
        if self.square:
            side = math.isqrt(array.shape[-1])
            array = array.reshape(*array.shape[:-1], side, side)
        return np.expand_dims(array, self.ones)

    def _order(self, axes):
        return tuple(range(axes)) if self.order is None else self.order


AS_IT_IS = Layout()
LINEAR = Layout((1, 0))
CONV_1X1 = Layout((1, 0), (2, 3))

NAMES: Mapping[str, str] = MappingProxyType(
    {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
)
"""PyTorch's names of what a layer owns, where they differ from ours."""


def owned(module: nnx.Module) -> Iterator[tuple[str, nnx.Variable, Layout]]:
    """A Module's own parameters and statistics, not those of its parts, with PyTorch's layouts of them."""
    for name, variable in nnx.iter_children(module):
        if isinstance(variable, nnx.Param | nnx.BatchStat):
            yield name, variable, _layout(module, name, len(variable.shape))


def _layout(module, name, axes):
    """As the kind of the layer has it."""
    if name != "kernel":
        return AS_IT_IS
    if isinstance(module, nnx.Linear):
        return LINEAR
    if isinstance(module, nnx.Conv):
        return Layout((axes - 1, axes - 2, *range(axes - 2)))
    if isinstance(module, DepthwiseConv):
        return Layout((axes - 1, *range(axes - 1)), (1,))
    return AS_IT_IS
