"""A feature pyramid: maps of all sizes that all know what the smallest knows.

    M_L = lateral_L(C_L),   M_l = lateral_l(C_l) + upsample(M_{l+1})
    P_l = smooth_l(M_l)

of the maps C_1 … C_L of a network, the largest first: lateral are 1×1 convolutions to the same number of channels,
upsample repeats the values of the smaller map, and smooth are 3×3 convolutions.

Differs from the paper: a map need not be exactly half as large as the one before; position i of h takes the value at
⌊i·p/h⌋ of p, which is the paper's factor of two where it is.

Source: Lin, Dollár, Girshick, He, Hariharan and Belongie, "Feature Pyramid Networks for Object Detection" (2017),
arXiv:1612.03144.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.layout import check_map


class FeaturePyramid(nnx.Module):
    """The pyramid over the maps of a network, such as some of `ResNet.features`.

    Args:
        in_channels: of each map, the largest map first.
        channels: of all maps of the pyramid.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: no map or a size below 1 at construction, another number of maps or of channels at the call.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int = 256,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(
            len(in_channels) >= 1 and min(in_channels) >= 1,
            f"in_channels must be numbers of at least 1, one for each map, got {tuple(in_channels)}.",
        )
        check(channels >= 1, f"channels must be at least 1, got {channels}.")
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.lateral = nnx.List([nnx.Conv(c, channels, (1, 1), **types) for c in in_channels])
        self.smooth = nnx.List([nnx.Conv(channels, channels, (3, 3), **types) for _ in in_channels])

    def __call__(self, maps: Sequence[Float[Array, "..."]]) -> list[Float[Array, "..."]]:
        """P_1 … P_L, each of the size of its map.

        Args:
            maps: C_1 … C_L, (*b, h_l, w_l, c_l).
        """
        check(len(maps) == len(self.lateral), f"maps must be {len(self.lateral)}, got {len(maps)}.")
        for x, lateral in zip(maps, self.lateral, strict=True):
            check_map(x, lateral.in_features)
        *larger, smallest = (lateral(x) for x, lateral in zip(maps, self.lateral, strict=True))
        merged = [smallest]
        for x in reversed(larger):
            merged.append(x + ops.resize_nearest(merged[-1], x.shape[-3:-1]))
        return [smooth(x) for smooth, x in zip(self.smooth, reversed(merged), strict=True)]
