"""The second pyramid vision transformers: every position asks a smaller map, over maps that shrink from stage to stage.

    x -> (embed -> blocks -> norm) four times -> mean over positions -> linear

    embed(x)   = norm(conv x)           of (2S - 1)×(2S - 1) at steps of S: patches that overlap
    block      z = x + attention(norm(x))
               y = z + W_2 gelu(conv 3×3 (W_1 norm(z)))

The attention is SpatialReductionAttention, the convolution in a block is depthwise, and S is 4 in the first stage and 2
in the others. There is no table of positions: a position is told by the zeros around the map, which the convolutions
see. In the linear network, "li", the attention is the linear form, to 7×7 averages whatever the size of the map. The
names of the layers are timm's.

Differs from the paper: as in the authors' code, the linear network rectifies what its depthwise convolution takes,
relu(W_1 norm(z)), of which the paper does not tell. Initial values are Flax's.

Source: Wang, Xie, Li, Fan, Song, Liang, Lu, Luo and Shao, "PVT v2: Improved Baselines with Pyramid Vision Transformer"
(2022), arXiv:2106.13797. Confirmed with timm's code.
"""

from collections.abc import Callable
from functools import partial
from types import MappingProxyType
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax.checks import check
from attn_flax.mechanisms.layers import LayerNorm, gelu
from attn_flax.mechanisms.layout import check_map, count_heads
from attn_flax.mechanisms.self_attention.sra import SpatialReductionAttention
from attn_flax.models.attention import AttentionFactory
from attn_flax.models.classifier import Classifier, Stage, drop_path, drop_path_rates
from attn_flax.models.van import ConvPerceptron

BINS = 7
"""Along both axes, of the map that the linear form asks."""


class RectifiedConvPerceptron(ConvPerceptron):
    """W_2 gelu(conv 3×3 (relu(W_1 x))), the convolution depthwise."""

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """The map transformed."""
        return self.fc2(gelu(self.dwconv(jax.nn.relu(self.fc1(x)))))


class Block(nnx.Module):
    """z = x + attention(norm(x)), then y = z + perceptron(norm(z)).

    Args:
        channels: of x and y.
        mlp_ratio: the width of the perceptron, in channels.
        attention: a factory of the mechanism, or None for none.
        perceptron: a factory of the perceptron, of channels and hidden ones.
        num_spatial_dims: how many axes before the channels are positions: 1 for tokens, 2 for maps.
        drop_path_rate: of stochastic depth.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters, and of what is left out.
    """

    def __init__(
        self,
        channels: int,
        *,
        mlp_ratio: int,
        attention: AttentionFactory | None,
        perceptron: Callable[..., nnx.Module] = ConvPerceptron,
        num_spatial_dims: int = 2,
        drop_path_rate: float = 0.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.norm1 = nnx.data(LayerNorm(channels, **types) if attention else None)
        self.attn = nnx.data(attention(channels, rngs=rngs) if attention else None)
        self.norm2 = LayerNorm(channels, **types)
        self.mlp = perceptron(channels, mlp_ratio * channels, **types)
        self.drop_path = drop_path(drop_path_rate, axes=num_spatial_dims + 1, rngs=rngs)

    def __call__(self, x: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
        """y."""
        if self.attn is not None:
            x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class OverlapPatchEmbed(nnx.Module):
    """norm(conv x), with a convolution of (2S - 1)×(2S - 1) at steps of S and S - 1 zeros around the map.

    Args:
        in_channels: of x.
        channels: of the map made of it.
        stride: S.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        window = (2 * stride - 1, 2 * stride - 1)
        self.proj = nnx.Conv(in_channels, channels, window, stride, padding=stride - 1, **types)
        self.norm = LayerNorm(channels, epsilon=1e-5, **types)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """The map, S times smaller along both axes, rounded up."""
        return self.norm(self.proj(x))


class NormedStage(Stage):
    """Patches embedded, blocks one after another, and a norm.

    Args:
        downsample: what embeds.
        blocks: of the stage.
        norm: behind them.
        remat: whether the backward pass computes what is within a block anew instead of keeping it.
    """

    def __init__(self, downsample: OverlapPatchEmbed, blocks: list[Block], norm: nnx.Module, *, remat: bool = False):
        super().__init__(downsample, blocks, remat=remat)
        self.norm = norm

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """The map after the norm."""
        return self.norm(super().__call__(x))


class PyramidVisionTransformerV2(Classifier):
    """A pyramid vision transformer; for 1000 classes of colour images of 3,666,760 (b0) to 81,956,008 (b5) parameters.

    Args:
        num_classes: the number of logits.
        embed_dims: the channels of each stage.
        depths: how many blocks each stage has.
        head_dim: the features of a head of the default attention.
        sr_ratios: R of the default attention in each stage, where it is not linear.
        linear: whether the default attention is linear, and what the blocks' convolutions take is rectified.
        mlp_ratios: the width of the blocks' perceptrons in each stage, in channels.
        in_channels: of the images.
        attention: a factory of the mechanism of maps in every block, or None for none. The default, the class
            SpatialReductionAttention itself, is given the arguments above, and the types.
        drop_path_rate: of stochastic depth in the last block, from zero in the first.
        remat: whether the backward pass computes what is within a block anew instead of keeping it.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters, and of what is left out.

    Raises:
        InputError: a size below 1, stages without one of the sizes, heads that do not divide the channels, or a rate
            out of range, at construction; images of other channels, or whose maps are smaller than a square of the
            default attention, at the call.
    """

    timm_names: ClassVar = ((r"^stages\.0\.downsample\b", "patch_embed"),)

    def __init__(
        self,
        num_classes: int,
        *,
        embed_dims: tuple[int, ...] = (64, 128, 320, 512),
        depths: tuple[int, ...],
        head_dim: int = 64,
        sr_ratios: tuple[int, ...] = (8, 4, 2, 1),
        linear: bool = False,
        mlp_ratios: tuple[int, ...] = (8, 8, 4, 4),
        in_channels: int = 3,
        attention: AttentionFactory | None = SpatialReductionAttention,
        drop_path_rate: float = 0.0,
        remat: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(num_classes >= 1, f"num_classes must be at least 1, got {num_classes}.")
        check(in_channels >= 1, f"in_channels must be at least 1, got {in_channels}.")
        check_stages(embed_dims=embed_dims, depths=depths, sr_ratios=sr_ratios, mlp_ratios=mlp_ratios)
        types = {"dtype": dtype, "param_dtype": param_dtype}
        layer = {**types, "rngs": rngs}
        perceptron = RectifiedConvPerceptron if linear else ConvPerceptron
        rates = drop_path_rates(drop_path_rate, depths)
        self.stages = nnx.List([])
        for i, channels in enumerate(embed_dims):
            mechanism = attention
            if attention is SpatialReductionAttention:
                asked = {"sr_ratio": 1, "pool": BINS} if linear else {"sr_ratio": sr_ratios[i]}
                mechanism = partial(attention, num_heads=count_heads(channels, head_dim), **asked, **types)
            block = partial(Block, channels, mlp_ratio=mlp_ratios[i], attention=mechanism, perceptron=perceptron)
            embed = OverlapPatchEmbed(embed_dims[i - 1] if i else in_channels, channels, stride=2 if i else 4, **layer)
            blocks = [block(drop_path_rate=rate, **layer) for rate in rates[i]]
            self.stages.append(NormedStage(embed, blocks, LayerNorm(channels, **layer), remat=remat))
        self.head = nnx.Linear(embed_dims[-1], num_classes, **layer)
        self.in_channels = in_channels
        self.feature_channels = embed_dims

    def features(self, x: Float[Array, "*b h w c"]) -> list[Float[Array, "*b p q d"]]:
        """The normalised maps of all stages, of `feature_channels` channels.

        They have a quarter, an eighth, … of the image's height and width, rounded up.
        """
        check_map(x, self.in_channels)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def forward_features(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """The last of the maps."""
        return self.features(x)[-1]


def check_stages(**sizes: tuple[int, ...]) -> None:
    """Raises InputError unless there is one of each of the sizes for every stage, and all are at least 1."""
    lengths = {len(of_stages) for of_stages in sizes.values()}
    check(
        len(lengths) == 1 and 0 not in lengths and min(map(min, sizes.values())) >= 1,
        f"{', '.join(sizes)} must be sizes of at least 1, one of each for every stage, "
        f"got {', '.join(map(str, sizes.values()))}.",
    )


MODELS = MappingProxyType(
    {
        "pvt_v2_b0": (
            PyramidVisionTransformerV2,
            {"embed_dims": (32, 64, 160, 256), "depths": (2, 2, 2, 2), "head_dim": 32},
        ),
        "pvt_v2_b1": (PyramidVisionTransformerV2, {"depths": (2, 2, 2, 2)}),
        "pvt_v2_b2": (PyramidVisionTransformerV2, {"depths": (3, 4, 6, 3)}),
        "pvt_v2_b2_li": (PyramidVisionTransformerV2, {"depths": (3, 4, 6, 3), "linear": True}),
        "pvt_v2_b3": (PyramidVisionTransformerV2, {"depths": (3, 4, 18, 3)}),
        "pvt_v2_b4": (PyramidVisionTransformerV2, {"depths": (3, 8, 27, 3)}),
        "pvt_v2_b5": (PyramidVisionTransformerV2, {"depths": (3, 6, 40, 3), "mlp_ratios": (4, 4, 4, 4)}),
    }
)
