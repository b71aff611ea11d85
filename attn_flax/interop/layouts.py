"""How layers keep their numbers here and in PyTorch."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Leaf(NamedTuple):
    """A parameter's place in a PyTorch layer.

    Attributes:
        name: what it is called there.
        order: our axes, in the order of theirs; None where they agree.
        ones: their axes of one that we do not have.
        merged: whether the first two of our axes, so ordered, are one of theirs.
    """

    name: str
    order: tuple[int, ...] | None = None
    ones: tuple[int, ...] = ()
    merged: bool = False

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Our array, in their layout.

        >>> Leaf("weight", (1, 0), (2, 3)).to_torch(np.zeros((7, 5))).shape
        (5, 7, 1, 1)
        """
        array = np.transpose(array, self._order(array.ndim))
        array = array.reshape(-1, *array.shape[2:]) if self.merged else array
        return np.asarray(np.expand_dims(array, self.ones), order="C")

    def from_torch(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Their array, in our layout, of our shape.

        >>> Leaf("weight", (1, 0), (2, 3)).from_torch(np.zeros((5, 7, 1, 1)), (7, 5)).shape
        (7, 5)
        """
        order = self._order(len(shape))
        array = array.reshape([shape[axis] for axis in order])
        return np.asarray(np.transpose(array, np.argsort(order).tolist()), order="C")

    def _order(self, axes):
        return tuple(range(axes)) if self.order is None else self.order


Layer = Mapping[str, Leaf]
"""The parameters and statistics of a layer, by our names."""

BIAS = {"bias": Leaf("bias")}
LINEAR: Layer = {"kernel": Leaf("weight", (1, 0)), **BIAS}
CONV_1X1: Layer = {"kernel": Leaf("weight", (1, 0), (2, 3)), **BIAS}
CONV: Layer = {"kernel": Leaf("weight", (3, 2, 0, 1)), **BIAS}
DEPTHWISE: Layer = {"kernel": Leaf("weight", (2, 0, 1), (1,)), **BIAS}
GROUPED_1X1: Layer = {
    "kernel": Leaf("weight", (0, 2, 1), (2, 3), merged=True),
    "bias": Leaf("bias", merged=True),
}
NORM: Layer = {"scale": Leaf("weight"), **BIAS}
BATCH_NORM: Layer = {**NORM, "mean": Leaf("running_mean"), "var": Leaf("running_var")}
