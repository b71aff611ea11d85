"""What each mechanism of the catalogue promises, for tests/test_contract.py."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np


def rows_sum_to_one(weights):
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    assert weights.min() >= 0


def at_least_zero(weights):
    assert weights.min() >= 0
    assert (weights > 0).any()


@dataclasses.dataclass(frozen=True)
class Case:
    """A mechanism's example.

    Attributes:
        shape: of one example, channels last, small, odd and of distinct sizes.
        map_shape: of its map.
        law: asserts what the values of its map keep to.
        zero_gradients: the leaves whose gradient is rightly zero, with the reason.
    """

    shape: tuple[int, ...]
    map_shape: tuple[int, ...]
    law: Callable[[np.ndarray], None]
    zero_gradients: Mapping[str, str] = dataclasses.field(default_factory=dict)


CASES = {
    "article": Case((7, 5, 8), (35, 35), rows_sum_to_one),
    "article_gate": Case((7, 5, 16), (7, 5, 16), at_least_zero),
}
