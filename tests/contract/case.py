"""What a mechanism promises, and the laws that maps keep."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Case:
    """A mechanism's example.

    Attributes:
        shape: of one example, channels last, small, odd and of distinct sizes.
        map_shape: of its map, or a dict of shapes where the map has parts.
        law: asserts what the values of its map keep to, called for each part.
        arguments: those of the example.
        others: the shapes of further inputs: a signal, a state.
        out_shape: of the output, where it is not that of the input.
        computes_more: why it multiplies more than its equation, if it does.
        zero_gradients: the leaves whose gradient is rightly zero, with the reason.
    """

    shape: tuple[int, ...]
    map_shape: Any
    law: Callable[[np.ndarray], None]
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    others: tuple[Any, ...] = ()
    out_shape: tuple[int, ...] | None = None
    computes_more: str = ""
    zero_gradients: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def inputs(self, *batch: int, seed: int = 0, dtype: Any = np.float32) -> list[Any]:
        """Random inputs with these batch axes."""
        rng = np.random.default_rng(seed)
        draw = lambda shape: jax.numpy.asarray(rng.normal(size=(*batch, *shape)), dtype)  # noqa: E731
        return [jax.tree.map(draw, shape, is_leaf=is_shape) for shape in (self.shape, *self.others)]


def is_shape(value: Any) -> bool:
    """Whether it is a tuple of sizes."""
    return isinstance(value, tuple) and all(isinstance(size, int) for size in value)


def rows_sum_to_one(weights):
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    assert weights.min() >= 0


def columns_sum_to_one(weights):
    np.testing.assert_allclose(weights.sum(-2), 1, rtol=1e-5)
    assert weights.min() >= 0


def between_zero_and_one(weights):
    assert weights.min() >= 0
    assert weights.max() <= 1
    assert np.ptp(weights) > 1e-3


def at_least_zero(weights):
    assert weights.min() >= 0
    assert (weights > 0).any()


def finite_and_varied(weights):
    """For maps without a law of their own."""
    assert np.isfinite(weights).all()
    assert np.ptp(weights) > 1e-3
