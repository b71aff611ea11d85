"""What a mechanism costs."""

from typing import NamedTuple


class Cost(NamedTuple):
    """Counts for one example.

    Attributes:
        parameters: the numbers that are learned.
        multiply_adds: of all products and convolutions, those of a convolution with zeros around the map among them.
            Sums, means, norms, activations and products by element are not counted.
    """

    parameters: int
    multiply_adds: int
