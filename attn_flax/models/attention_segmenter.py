"""Segmentation by a residual network whose maps pass through any attention.

    x = conv([Σ_l resize(lateral_l(C_l))])        the maps C_1 … C_L of the backbone, at the size of the largest of them
    v = conv(attention(x))
    logits = resize(W dropout(conv([x, v])) + b)

conv are 3×3 convolutions, each followed by a batch norm and relu, lateral 1×1 convolutions, and resize interpolates
linearly, at last to the size of the image. The attention gives every position what others, perhaps at the other end of
the picture, know of it. With dual attention this is the head of DANet, with criss-cross attention that of CCNet.

Differs from the papers: their backbones are dilated, so that the last map keeps an eighth of the image's size; here the
maps of an eighth, a 16th and a 32nd are summed, which costs a fraction. The convolutions around the attention, and that
x stays beside v, are CCNet's for every mechanism; DANet's own are inside of its mechanism. There is no auxiliary
classifier, such as the authors train on the last map but one.

Source: Fu, Liu, Tian, Li, Bao, Fang and Lu, "Dual Attention Network for Scene Segmentation" (2019), arXiv:1809.02983;
Huang, Wang, Wei, Huang, Shi, Liu and Huang, "CCNet: Criss-Cross Attention for Semantic Segmentation" (2019),
arXiv:1811.11721. The sum of the maps: Kirillov, Girshick, He and Dollár, "Panoptic Feature Pyramid Networks" (2019),
arXiv:1901.02446.
"""

from collections.abc import Callable
from functools import partial
from types import MappingProxyType

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.layers import ConvNormRelu
from attn_flax.models.attention import AttentionFactory
from attn_flax.models.resnet import BasicBlock, Bottleneck, ResNet
from attn_flax.nn import DualAttention


class AttentionSegmenter(nnx.Module):
    """A backbone and a head with any attention.

    Args:
        num_classes: the number of logits of each pixel.
        backbone: a factory (num_classes, *, in_channels, rngs, …) of a network with `features(x)`, maps of an image,
            the largest first, of `feature_channels` channels.
        in_channels: of the images.
        attention: a factory of the mechanism in the head, or None for none.
        width: the channels of the head.
        levels: how many of the backbone's last maps are summed.
        dropout: the probability to drop a feature before the logits.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1 or a probability outside [0, 1) at construction; images that the backbone refuses at
            the call.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: Callable[..., nnx.Module],
        in_channels: int = 3,
        attention: AttentionFactory | None = DualAttention,
        width: int = 128,
        levels: int = 3,
        dropout: float = 0.1,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, size in (("num_classes", num_classes), ("width", width), ("levels", levels)):
            check(size >= 1, f"{name} must be at least 1, got {size}.")
        check(0 <= dropout < 1, f"dropout must be in [0, 1), got {dropout}.")
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.backbone = backbone(1, in_channels=in_channels, **types)
        channels = self.backbone.feature_channels[-levels:]
        self.lateral = nnx.List([nnx.Linear(c, width, **types) for c in channels])
        self.fuse = ConvNormRelu(width, width, **types)
        self.attention = nnx.data(attention(width, rngs=rngs) if attention else None)
        self.after = ConvNormRelu(width, width, **types)
        self.merge = ConvNormRelu(2 * width, width, **types)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.classify = nnx.Linear(width, num_classes, **types)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w classes"]:
        """The logits of each pixel of images of any size that the backbone takes."""
        logits = self.head(self.backbone.features(x)[-len(self.lateral) :])
        return ops.resize_bilinear(logits, x.shape[-3:-1])

    def head(self, maps: list[Float[Array, "..."]]) -> Float[Array, "*b p q classes"]:
        """The logits of each position of the largest of the backbone's maps (*b, p_l, q_l, c_l)."""
        size = maps[0].shape[-3:-1]
        same_size = [ops.resize_bilinear(f(c), size) for f, c in zip(self.lateral, maps, strict=True)]
        x = self.fuse(sum(same_size))
        v = self.after(x if self.attention is None else self.attention(x))
        return self.classify(self.dropout(self.merge(jnp.concatenate([x, v], -1))))


MODELS = MappingProxyType(
    {
        "resnet18_segmenter": (
            AttentionSegmenter,
            {"backbone": partial(ResNet, block=BasicBlock, depths=(2, 2, 2, 2))},
        ),
        "resnet50_segmenter": (
            AttentionSegmenter,
            {"backbone": partial(ResNet, block=Bottleneck, depths=(3, 4, 6, 3))},
        ),
    }
)
