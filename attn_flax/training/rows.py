"""What an evaluation keeps row by row, beside what it adds up."""

import dataclasses
import operator
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """A tree of arrays with a leading batch axis, one row for each example; a sum of two has the rows of both.

    Attributes:
        tree: the arrays.

    >>> (Rows({"score": np.array([1.0, 2.0])}) + Rows({"score": np.array([3.0])})).tree
    {'score': array([1., 2., 3.])}
    """

    tree: Any

    def __add__(self, other: "Rows") -> "Rows":
        return Rows(jax.tree.map(lambda *arrays: np.concatenate(arrays), self.tree, other.tree))


def add_sums(one: PyTree, other: PyTree) -> PyTree:
    """What two batches give together."""
    return jax.tree.map(operator.add, one, other, is_leaf=_is_rows)


def reduce_over(axis: str | None, sums: PyTree) -> PyTree:
    """What the parts of a batch give together: sums are added up over the mapped axis, `Rows` one after the other.

    Args:
        axis: the mapped axis over which the batch is split; None where it is whole, and nothing changes.
        sums: what this part gives.
    """
    if axis is None:
        return sums

    def reduced(leaf):
        if not _is_rows(leaf):
            return jax.lax.psum(leaf, axis)
        return Rows(jax.lax.all_gather(leaf.tree, axis, tiled=True))

    return jax.tree.map(reduced, sums, is_leaf=_is_rows)


def _is_rows(leaf):
    return isinstance(leaf, Rows)
