"""U-Net, with attention gates on its skip connections.

    x_1 = convs_1(x),   x_l = convs_l(halve(x_{l-1}))                  down to the smallest map, y_L = x_L
    y_l = convs'_l([gate_l(x_l, y_{l+1}), up_l(y_{l+1})])              and up again
    s_L = W_L y_L + b_L,   s_l = W_l y_l + b_l + resize(s_{l+1})       the logits are s_1

convs are 3×3 convolutions, each followed by a batch norm and relu; halve takes the largest of each 2×2 positions, up is
a transposed convolution of 2×2 windows in steps of 2, resize interpolates linearly. Without gates gate_l(x, y) = x. The
coarser map y_{l+1}, which knows more of what the picture shows, tells the gate which positions of x_l to let pass.

Differs from the papers: the logits of Ronneberger et al. are W_1 y_1 + b_1 alone, and Oktay et al. supervise the scores
of coarser maps too. Here the scores of all maps are summed, as Long et al. do: the coarse ones tell which class is
near, the fine ones where it ends, and what the smallest map learns of the classes need not first find its way up.
Convolutions are padded with zeros, so that the logits are as large as the image, where Ronneberger et al. crop every
skip connection and the output; they have no batch norm, which Oktay et al. have. Images that the smallest map does not
divide are padded with zeros below and on the right, and the logits cropped. A `cell` of more than one pixel lays the
pixels of each cell out as the channels of one position, and the logits of a position out as those of its cell: all maps
are then smaller by that factor. The gates are those of the equations of Oktay et al., whose code adds a convolution
with batch norm after the gate and before the deepest signal; like there, x_1 has none.

Source: Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation" (2015),
arXiv:1505.04597. The gates: Oktay et al., "Attention U-Net: Learning Where to Look for the Pancreas" (2018),
arXiv:1804.03999. The sum of scores: Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic
Segmentation" (2014), arXiv:1411.4038.
"""

import itertools
from collections.abc import Sequence
from types import MappingProxyType

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.layers import ConvNormRelu
from attn_flax.mechanisms.layout import check_map
from attn_flax.models.attention import AttentionFactory
from attn_flax.nn import AttentionGate


class UNet(nnx.Module):
    """U-Net; for two classes of grey images of 31,043,274 parameters without gates, 32,076,365 with them.

    Args:
        num_classes: the number of logits of each pixel.
        widths: the channels of each stage, the largest map first.
        depths: how many convolutions each stage has, on the way down as on the way up.
        in_channels: of the images.
        cell: the height and width of the cells of pixels that are one position of the largest map.
        gates: whether attention gates are on the skip connections, but for that of the largest map.
        attention: a factory of the mechanism after each stage on the way down, or None for none.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1, not as many depths as widths, or fewer stages than the gates need, at construction;
            images of other channels at the call.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        widths: Sequence[int] = (64, 128, 256, 512, 1024),
        depths: Sequence[int] = (2, 2, 2, 2, 2),
        in_channels: int = 3,
        cell: int = 1,
        gates: bool = True,
        attention: AttentionFactory | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, size in (("num_classes", num_classes), ("in_channels", in_channels), ("cell", cell)):
            check(size >= 1, f"{name} must be at least 1, got {size}.")
        check(
            len(widths) == len(depths) >= 2 and min(*widths, *depths) >= 1,
            f"widths and depths must be numbers of at least 1 for each of two or more stages, got {widths}, {depths}.",
        )
        check(not gates or len(widths) >= 3, f"gates need a third stage, got widths {widths}.")
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        before = (in_channels * cell**2, *widths)
        self.down = nnx.List([_stage(*sizes, **types) for sizes in zip(before, widths, depths, strict=False)])
        self.attention = nnx.List([attention(width, rngs=rngs) for width in widths] if attention else [])
        pairs = list(itertools.pairwise(widths))
        self.gates = nnx.List([AttentionGate(c, gating_channels=d, **types) for c, d in pairs[1:]] if gates else [])
        self.enlarge = nnx.List([nnx.Linear(d, 4 * c, **types) for c, d in pairs])
        self.up = nnx.List([_stage(2 * c, c, depth, **types) for (c, _), depth in zip(pairs, depths, strict=False)])
        cells = (cell**2, *[1] * len(pairs))
        self.scores = nnx.List(
            [nnx.Linear(c, num_classes * pixels, **types) for c, pixels in zip(widths, cells, strict=True)]
        )
        self.in_channels = in_channels
        self.cell = cell

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w classes"]:
        """The logits of each pixel of images of any size."""
        check_map(x, self.in_channels)
        h, w = x.shape[-3:-1]
        *skips, y = self.features(x)
        logits = self.scores[-1](y)
        for stage in reversed(range(len(skips))):
            skip = self._gated(stage, skips[stage], y)
            enlarged = ops.depth_to_space(self.enlarge[stage](y), 2)
            y = self.up[stage](jnp.concatenate([skip, enlarged], -1))
            finer = ops.depth_to_space(self.scores[stage](y), 1 if stage else self.cell)
            logits = finer + ops.resize_bilinear(logits, finer.shape[-3:-1])
        return logits[..., :h, :w, :]

    def features(self, x: Float[Array, "*b h w c"]) -> list[Float[Array, "*b p q d"]]:
        """The maps x_1 … x_L on the way down."""
        x = ops.pad_to_multiple(x, self.cell * 2 ** (len(self.down) - 1))
        maps = []
        for stage, convs in enumerate(self.down):
            x = convs(_halved(x) if maps else ops.space_to_depth(x, self.cell))
            if self.attention:
                x = self.attention[stage](x)
            maps.append(x)
        return maps

    def _gated(self, stage, x, signal):
        return self.gates[stage - 1](x, signal) if self.gates and stage else x


def _stage(in_channels, channels, depth, **types):
    sizes = [in_channels, *[channels] * depth]
    return nnx.Sequential(*[ConvNormRelu(c, d, **types) for c, d in itertools.pairwise(sizes)])


def _halved(x):
    """The largest of each 2×2 positions; as a maximum over an axis, whose gradient a CPU computes five times faster."""
    *batch, h, w, c = x.shape
    return ops.window_partition(x, (2, 2)).max(-2).reshape(*batch, h // 2, w // 2, c)


MODELS = MappingProxyType(
    {
        "unet": (UNet, {}),
        "unet_small": (UNet, {"widths": (24, 64, 128), "depths": (1, 2, 2), "cell": 2}),
    }
)
