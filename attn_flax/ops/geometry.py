"""Which positions of a map a window meets, for every convolution here."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from attn_flax.checks import check


class Geometry(NamedTuple):
    """Which position of x meets which of the window, in the terms of `jax.lax.conv_general_dilated`, by axis."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    base_dilation: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def axes(self) -> int:
        """The number of spatial axes."""
        return len(self.strides)

    def output_size(self, size: Sequence[int], window: Sequence[int]) -> tuple[int, ...]:
        """The size of the result for a map of this size."""
        return tuple(
            (spread(s, base) + sum(pads) - spread(k, step)) // stride + 1
            for s, k, (stride, pads, base, step) in zip(size, window, zip(*self, strict=True), strict=True)
        )

    def transposed(self, size: Sequence[int], window: Sequence[int]) -> "Geometry":
        """The one by which the cotangent and the flipped window give the gradient of a map of this size."""
        padding = tuple(
            (spread(k, step) - 1 - low, spread(s, base) - spread(n, stride) + low)
            for s, k, n, (stride, (low, _), base, step) in zip(
                size, window, self.output_size(size, window), zip(*self, strict=True), strict=True
            )
        )
        return Geometry(self.base_dilation, padding, self.strides, self.dilation)

    def padded(self, x: jax.Array) -> jax.Array:
        """The map with its zeros around and between."""
        widths = [(low, high, base - 1) for (low, high), base in zip(self.padding, self.base_dilation, strict=True)]
        return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0)] * (x.ndim - self.axes - 1) + widths + [(0, 0, 0)])


def window_geometry(
    size: Sequence[int],
    window: Sequence[int],
    strides: Sequence[int] | None,
    dilation: Sequence[int] | None,
    padding: str | Sequence[tuple[int, int]],
) -> Geometry:
    """The geometry of a window on maps of this size, as the arguments of a convolution tell it.

    Raises:
        InputError: strides, dilation or padding that do not fit the window.
    """
    axes = len(window)
    strides, dilation = (_steps(name, steps, axes) for name, steps in (("strides", strides), ("dilation", dilation)))
    return Geometry(strides, _pads(size, window, strides, dilation, padding), (1,) * axes, dilation)


def met_by(offset, size, strides, dilation):
    """The slices i∘stride + o∘dilation that hold what one offset of the window meets for all i of a map's size."""
    return tuple(
        slice(o * step, o * step + spread(n, stride), stride)
        for o, n, stride, step in zip(offset, size, strides, dilation, strict=True)
    )


def _steps(name, steps, axes):
    steps = (1,) * axes if steps is None else tuple(steps)
    check(
        len(steps) == axes and min(steps) >= 1,
        f"{name} must be {axes} numbers of at least 1, one for each axis of the window, got {steps}.",
    )
    return steps


def _pads(size, window, strides, dilation, padding):
    if isinstance(padding, str):
        check(
            padding.upper() in ("SAME", "SAME_LOWER", "VALID"),
            f"padding must be 'SAME', 'SAME_LOWER', 'VALID' or pairs of numbers, got {padding!r}.",
        )
        spans = [spread(k, step) for k, step in zip(window, dilation, strict=True)]
        return tuple(lax.padtype_to_pads(size, spans, strides, padding))
    pads = tuple(tuple(pair) for pair in padding)
    check(
        len(pads) == len(window) and all(len(pair) == 2 for pair in pads),
        f"padding must be {len(window)} pairs, one for each axis of the window, got {pads}.",
    )
    return pads


def spread(size, step):
    """How many positions `size` of them cover that lie `step` apart."""
    return (size - 1) * step + 1
