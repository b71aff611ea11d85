"""A residual network that is fast on small images, with any attention in every block.

    x -> p×p pixels to channels -> conv 3×3 -> stages, each half as large as the one before -> norm -> relu
    block   y = shortcut(x) + attention(F(x)),   F(x) = conv 3×3 (relu(norm(conv 3×3 (relu(norm(x))))))

Convolutions over many pixels with few channels are what costs a CPU most, so p×p pixels become the channels of one
position first, which loses nothing. Norms are of groups of channels: no statistics of a batch, however small it is.

Source: the blocks: He, Zhang, Ren and Sun, "Identity Mappings in Deep Residual Networks" (2016), arXiv:1603.05027; the
norm: Wu and He, "Group Normalization" (2018), arXiv:1803.08494; the stem: Ridnik et al., "TResNet: High Performance
GPU-Dedicated Architecture" (2020), arXiv:2003.13630.
"""

import math
from collections.abc import Sequence
from types import MappingProxyType

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.layers import GroupNorm
from attn_flax.mechanisms.layout import check_map
from attn_flax.models.attention import AttentionFactory
from attn_flax.models.classifier import Classifier


class Block(nnx.Module):
    """y = shortcut(x) + attention(F(x)).

    Args:
        in_channels: of x.
        channels: of y.
        stride: 2 halves the map.
        attention: a factory of the mechanism after F, or None for none.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int = 1,
        attention: AttentionFactory | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.norm1 = _norm(in_channels, **types)
        self.conv1 = nnx.Conv(in_channels, channels, (3, 3), stride, padding=1, use_bias=False, **types)
        self.norm2 = _norm(channels, **types)
        self.conv2 = nnx.Conv(channels, channels, (3, 3), padding=1, use_bias=False, **types)
        self.attention = nnx.data(attention(channels, rngs=rngs) if attention else None)
        changes = stride != 1 or in_channels != channels
        self.shortcut = nnx.data(nnx.Conv(in_channels, channels, (1, 1), stride, **types) if changes else None)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """y."""
        y = self.conv1(jax.nn.relu(self.norm1(x)))
        y = self.conv2(jax.nn.relu(self.norm2(y)))
        if self.attention is not None:
            y = self.attention(y)
        return y + (x if self.shortcut is None else self.shortcut(x))


class SmallResNet(Classifier):
    """A residual network for small images; 702,666 parameters by default, with 3 input channels and 10 classes.

    Args:
        num_classes: the number of logits.
        in_channels: of the images.
        patch: p, how many pixels along each axis become one position; must divide height and width.
        widths: the channels of each stage.
        depths: its blocks.
        attention: a factory of the mechanism in every block, or None for none.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1 or stages without width at construction; images of other channels, or that the
            patches do not divide, at the call.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        patch: int = 4,
        widths: Sequence[int] = (64, 128),
        depths: Sequence[int] = (2, 2),
        attention: AttentionFactory | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, size in (("num_classes", num_classes), ("in_channels", in_channels), ("patch", patch)):
            check(size >= 1, f"{name} must be at least 1, got {size}.")
        check(
            len(widths) == len(depths) >= 1 and min(*widths, *depths) >= 1,
            f"widths and depths must be sizes of at least 1, one for each stage, got {widths} and {depths}.",
        )
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.stem = nnx.Conv(in_channels * patch**2, widths[0], (3, 3), padding=1, **types)
        self.stages = nnx.List(
            [
                nnx.List(
                    [
                        Block(
                            widths[max(i - (j == 0), 0)],
                            width,
                            stride=2 if i > 0 and j == 0 else 1,
                            attention=attention,
                            **types,
                        )
                        for j in range(depth)
                    ]
                )
                for i, (width, depth) in enumerate(zip(widths, depths, strict=True))
            ]
        )
        self.norms = nnx.List([_norm(width, **types) for width in widths])
        self.head = nnx.Linear(widths[-1], num_classes, **types)
        self.in_channels = in_channels
        self.patch = patch
        self.feature_channels = tuple(widths)

    def features(self, x: Float[Array, "*b h w c"]) -> list[Float[Array, "*b p q d"]]:
        """The normalised maps of all stages, the largest first, of `feature_channels` channels."""
        check_map(x, self.in_channels)
        x, maps = self.stem(ops.space_to_depth(x, self.patch)), []
        for stage, norm in zip(self.stages, self.norms, strict=True):
            for block in stage:
                x = block(x)
            maps.append(jax.nn.relu(norm(x)))
        return maps

    def forward_features(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """The last of the maps."""
        return self.features(x)[-1]


def _norm(channels, **types):
    """In groups of 16 channels, or of the largest divisor they have in common."""
    return GroupNorm(channels, channels // math.gcd(channels, 16), **types)


MODELS = MappingProxyType({"small_resnet": (SmallResNet, {})})
