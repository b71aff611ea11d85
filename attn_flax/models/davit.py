"""Dual attention vision transformers.

    block    x = x + P_1 x                                        a depthwise convolution of 3×3, with a bias
             x = x + attention(norm(x))
             x = x + P_2 x                                        another
             x = x + W_2 gelu(W_1 norm(x) + b_1) + b_2

    pair     a block of spatial attention, then one of channel attention
    stage    smaller map -> pairs of blocks

    x -> stem (c_1 channels, 1/4 of the image) -> stage 1 (c_1, 1/4) -> stage 2 (c_2, 1/8) -> stage 3 (c_3, 1/16)
      -> stage 4 (c_4, 1/32) -> mean over positions -> norm -> linear

Spatial attention is multi-head self-attention in each window of 7×7, whose tokens are positions; channel attention is
that of ChannelGroupAttention, whose tokens are channels, each of a whole map. A map that the windows do not divide gets
zeros below and on the right, behind the norm: they are seen as any other position, with the biases as keys and values.
The stem is norm(W x + b), with a convolution W of 7×7 at steps of 4, and the smaller map W norm(x) + b, of 2×2 at steps
of 2; a map that the steps do not divide gets zeros below and on the right. The names of the layers are timm's.

Differs from the paper: queries, keys and values have biases, as in the authors' code. Both blocks of a pair have one
rate of stochastic depth, as in timm, where the authors' rise from block to block.

Source: Ding, Xiao, Codella, Luo, Wang and Yuan, "DaViT: Dual Attention Vision Transformers" (2022), arXiv:2204.03645.
Confirmed with timm's code; biases and padding read in the authors' code, dingmyu/davit.
"""

from collections.abc import Sequence
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.channel.channel_attn_davit import ChannelGroupAttention
from attn_flax.mechanisms.layers import DepthwiseConv, LayerNorm, Perceptron, gelu
from attn_flax.mechanisms.layout import check_map
from attn_flax.mechanisms.self_attention.mhsa import MultiHeadSelfAttention
from attn_flax.mechanisms.windows import cut_windows, join_windows
from attn_flax.models.attention import AttentionFactory
from attn_flax.models.classifier import Classifier, drop_path, drop_path_rates, in_order

Norm = partial(LayerNorm, epsilon=1e-5)


class Block(nnx.Module):
    """An attention and a perceptron, each behind a convolution that tells where positions are.

    Args:
        channels: of x.
        attention: a factory of the mechanism, or None for none.
        window: the height and width of the windows among whose tokens the mechanism is; None if it is one of maps.
        mlp_ratio: the width of the perceptron, in `channels`.
        drop_path_rate: of stochastic depth.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters, and of what is left out.
    """

    def __init__(
        self,
        channels: int,
        *,
        attention: AttentionFactory | None,
        window: int | None = None,
        mlp_ratio: int = 4,
        drop_path_rate: float = 0.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.cpe1 = DepthwiseConv(channels, (3, 3), **types)
        self.norm1 = nnx.data(Norm(channels, **types) if attention else None)
        self.attn = nnx.data(attention(channels, rngs=rngs) if attention else None)
        self.cpe2 = DepthwiseConv(channels, (3, 3), **types)
        self.norm2 = Norm(channels, **types)
        self.mlp = Perceptron(channels, mlp_ratio * channels, activation=gelu, **types)
        self.drop_path = drop_path(drop_path_rate, axes=3, rngs=rngs)
        self.window = window

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """The map after the block."""
        x = x + self.cpe1(x)
        if self.attn is not None:
            x = x + self.drop_path(self._attend(self.norm1(x)))
        x = x + self.cpe2(x)
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend(self, x):
        if self.window is None:
            return self.attn(x)
        return join_windows(self.attn(cut_windows(x, self.window)), x.shape[-3:-1], self.window)


class Stem(nnx.Module):
    """norm(W x + b), with a convolution W of 7×7 at steps of 4.

    Args:
        in_channels: of the images.
        channels: of the map.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.conv = nnx.Conv(in_channels, channels, (7, 7), 4, padding=3, **types)
        self.norm = Norm(channels, **types)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """The map, of a quarter of the image's height and width, rounded up."""
        return self.norm(self.conv(ops.pad_to_multiple(x, 4)))


class Downsample(nnx.Module):
    """W norm(x) + b, with a convolution W of 2×2 at steps of 2.

    Args:
        in_channels: of x.
        channels: of the map made of it.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.norm = Norm(in_channels, **types)
        self.conv = nnx.Conv(in_channels, channels, (2, 2), 2, padding="VALID", **types)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """The map, of half the height and width, rounded up."""
        return self.conv(ops.pad_to_multiple(self.norm(x), 2))


class Stage(nnx.Module):
    """Pairs of blocks, one of spatial and one of channel attention, behind what makes the map before them smaller.

    Args:
        downsample: which does so, or None in the first stage.
        blocks: the pairs.
        remat: whether the backward pass computes what is within a block anew instead of keeping it.
    """

    def __init__(self, downsample: Downsample | None, blocks: Sequence[tuple[Block, Block]], *, remat: bool = False):
        self.downsample = nnx.data(downsample)
        self.blocks = nnx.List([nnx.List(pair) for pair in blocks])
        self.remat = remat

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """The map after the last block."""
        if self.downsample is not None:
            x = self.downsample(x)
        return in_order(chain.from_iterable(self.blocks), x, remat=self.remat)


class DaViT(Classifier):
    """A dual attention vision transformer; for 1000 classes of colour images of 28,360,168 parameters (tiny) to
    1,406,470,120 (giant).

    Args:
        num_classes: the number of logits.
        embed_dims: the channels of each stage.
        depths: how many pairs of blocks each stage has.
        num_heads: of the spatial attention of each stage, and the groups of the default channel attention.
        window: the height and width of the windows of spatial attention.
        mlp_ratio: the width of the blocks' perceptrons, in their channels.
        in_channels: of the images.
        drop_path_rate: of stochastic depth in the last pair, from zero in the first.
        attention: a factory of the mechanism of maps in the second block of every pair, or None for none. The default,
            the class ChannelGroupAttention itself, is given the groups, all biases, and the types.
        remat: whether the backward pass computes what is within a block anew instead of keeping it.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters, and of what is left out.

    Raises:
        InputError: a size below 1, other numbers of stages in one argument than in another, heads that do not divide
            the channels or a rate out of range at construction; images of other channels at the call.
    """

    timm_names: ClassVar = (
        (r"\b(cpe\d)\b", r"\1.proj"),
        (r"^head\b", "head.fc"),
        (r"^norm\b", "head.norm"),
    )

    def __init__(
        self,
        num_classes: int,
        *,
        embed_dims: tuple[int, ...],
        depths: tuple[int, ...],
        num_heads: tuple[int, ...],
        window: int = 7,
        mlp_ratio: int = 4,
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        attention: AttentionFactory | None = ChannelGroupAttention,
        remat: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        sizes = {"num_classes": num_classes, "window": window, "mlp_ratio": mlp_ratio, "in_channels": in_channels}
        for name, size in sizes.items():
            check(size >= 1, f"{name} must be at least 1, got {size}.")
        stages = {"embed_dims": embed_dims, "depths": depths, "num_heads": num_heads}
        for name, of_stages in stages.items():
            check(
                len(of_stages) == len(depths) >= 1 and min(of_stages) >= 1,
                f"{name} must be numbers of at least 1, one for each stage of depths={depths}, got {of_stages}.",
            )
        types = {"dtype": dtype, "param_dtype": param_dtype}
        layer = {**types, "rngs": rngs}
        block = partial(Block, mlp_ratio=mlp_ratio, **layer)
        all_rates = drop_path_rates(drop_path_rate, depths)
        self.stem = Stem(in_channels, embed_dims[0], **layer)
        self.stages = nnx.List([])
        for before, width, heads, rates in zip((None, *embed_dims[:-1]), embed_dims, num_heads, all_rates, strict=True):
            tokens = partial(MultiHeadSelfAttention, num_heads=heads, qkv_bias=True, num_spatial_dims=1, **types)
            spatial = partial(block, width, attention=tokens, window=window)
            channel = partial(block, width, attention=_in_groups(attention, heads, **types))
            pairs = [(spatial(drop_path_rate=rate), channel(drop_path_rate=rate)) for rate in rates]
            downsample = Downsample(before, width, **layer) if before else None
            self.stages.append(Stage(downsample, pairs, remat=remat))
        self.norm = Norm(embed_dims[-1], **layer)
        self.head = nnx.Linear(embed_dims[-1], num_classes, **layer)
        self.feature_channels = embed_dims

    def features(self, x: Float[Array, "*b h w c"]) -> list[Float[Array, "*b p q d"]]:
        """The maps after each stage, of `feature_channels` channels.

        They have a quarter, an eighth, … of the image's height and width, rounded up at each step.
        """
        check_map(x, self.stem.conv.in_features)
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def forward_features(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """The last stage's map."""
        return self.features(x)[-1]

    def pool(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b c"]:
        """The mean over the positions of a map, normalised."""
        return self.norm(super().pool(x))


def _in_groups(attention, groups, **types):
    """A factory of the mechanism; what groups it has, and biases, if it is channel attention itself."""
    if attention is ChannelGroupAttention:
        return partial(attention, groups=groups, use_bias=True, **types)
    return attention


TINY = {"embed_dims": (96, 192, 384, 768), "depths": (1, 1, 3, 1), "num_heads": (3, 6, 12, 24)}
SMALL = TINY | {"depths": (1, 1, 9, 1)}
BASE = SMALL | {"embed_dims": (128, 256, 512, 1024), "num_heads": (4, 8, 16, 32)}
LARGE = SMALL | {"embed_dims": (192, 384, 768, 1536), "num_heads": (6, 12, 24, 48)}
HUGE = SMALL | {"embed_dims": (256, 512, 1024, 2048), "num_heads": (8, 16, 32, 64)}
GIANT = {"embed_dims": (384, 768, 1536, 3072), "depths": (1, 1, 12, 3), "num_heads": (12, 24, 48, 96)}

MODELS = MappingProxyType(
    {
        "davit_tiny": (DaViT, TINY),
        "davit_small": (DaViT, SMALL),
        "davit_base": (DaViT, BASE),
        "davit_large": (DaViT, LARGE),
        "davit_huge": (DaViT, HUGE),
        "davit_giant": (DaViT, GIANT),
    }
)
