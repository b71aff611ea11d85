"""Twins: attention to a smaller map, alone or in turns with attention in windows, and positions made by a convolution.

    x -> (embed -> block -> x + conv 3×3 x -> blocks) four times -> norm -> mean over positions -> linear

    embed(x)   = norm(W [x]_cells + b)      cells of 4×4 in the first stage, of 2×2 in the others
    block      z = x + attention(norm(x))
               y = z + W_2 gelu(W_1 norm(z) + b_1) + b_2

The convolution behind each stage's first block is depthwise: a generator of conditional positions, which it takes from
what is around a position and from the zeros around the map, so that images may be of any size. In Twins-PCPVT all
attention is SpatialReductionAttention. In Twins-SVT the first, third, … block of a stage has LocallyGroupedAttention,
in windows that do not move, and the others SpatialReductionAttention, there called global sub-sampled attention. Rows
and columns that fill no cell are left out. The names of the layers are timm's.

Differs from the paper: nothing. Initial values are Flax's.

Errors elsewhere: in timm the padding of a map that its windows do not divide is seen, of which LocallyGroupedAttention
tells; so the logits are timm's where the windows divide the maps, as in images of 224×224.

Source: Chu, Tian, Wang, Zhang, Ren, Wei, Xia and Shen, "Twins: Revisiting the Design of Spatial Attention in Vision
Transformers" (2021), arXiv:2104.13840; the positions: Chu, Tian, Zhang, Wang and Shen, "Conditional Positional
Encodings for Vision Transformers" (2021), arXiv:2102.10882. Confirmed with timm's code.
"""

from functools import partial
from types import MappingProxyType
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax.checks import check
from attn_flax.mechanisms.layers import DepthwiseConv, LayerNorm, Perceptron, gelu
from attn_flax.mechanisms.layout import check_map, count_heads
from attn_flax.mechanisms.self_attention.lsa_gsa import LocallyGroupedAttention
from attn_flax.mechanisms.self_attention.sra import SpatialReductionAttention
from attn_flax.models.attention import AttentionFactory
from attn_flax.models.classifier import Classifier, drop_path_rates, in_order
from attn_flax.models.focalnet import Downsample
from attn_flax.models.pvt_v2 import Block, check_stages


class Twins(Classifier):
    """A Twins transformer; for 1000 classes of colour images of 24 to 99 million parameters (small to SVT large).

    Args:
        num_classes: the number of logits.
        embed_dims: the channels of each stage.
        depths: how many blocks each stage has.
        head_dim: the features of a head of the default attention.
        sr_ratios: R of the default attention in each stage.
        window: of the attention in windows that the default attention takes turns with; None for none.
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
            out of range, at construction; images of other channels, or too small for the last stage to have a position
            or a stage to have a square of the default attention, at the call.
    """

    timm_names: ClassVar = ((r"^pos_block\.(\d+)\b", r"pos_block.\1.proj.0"),)

    def __init__(
        self,
        num_classes: int,
        *,
        embed_dims: tuple[int, ...],
        depths: tuple[int, ...],
        head_dim: int,
        sr_ratios: tuple[int, ...] = (8, 4, 2, 1),
        window: int | None = None,
        mlp_ratios: tuple[int, ...] = (4, 4, 4, 4),
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
        rates = drop_path_rates(drop_path_rate, depths)
        self.patch_embeds, self.blocks, self.pos_block = nnx.List([]), nnx.List([]), nnx.List([])
        for i, channels in enumerate(embed_dims):
            mechanisms = attention, attention
            if attention is SpatialReductionAttention:
                mechanisms = _in_turns(channels, head_dim, sr_ratios[i], window, **types)
            perceptron = partial(Perceptron, activation=gelu)
            block = partial(Block, channels, mlp_ratio=mlp_ratios[i], perceptron=perceptron, **layer)
            embed = partial(Downsample, embed_dims[i - 1] if i else in_channels, channels, overlap=False, **layer)
            self.patch_embeds.append(embed(stride=2 if i else 4))
            self.blocks.append(
                nnx.List([block(attention=mechanisms[j % 2], drop_path_rate=rate) for j, rate in enumerate(rates[i])])
            )
            self.pos_block.append(DepthwiseConv(channels, (3, 3), **layer))
        self.norm = LayerNorm(embed_dims[-1], **layer)
        self.head = nnx.Linear(embed_dims[-1], num_classes, **layer)
        self.in_channels = in_channels
        self.feature_channels = embed_dims
        self.remat = remat

    def features(self, x: Float[Array, "*b h w c"]) -> list[Float[Array, "*b p q d"]]:
        """The maps after each stage, of `feature_channels` channels and a quarter, an eighth, … of height and width."""
        check_map(x, self.in_channels)
        (h, w), smallest = x.shape[-3:-1], 4 * 2 ** (len(self.blocks) - 1)
        check(min(h, w) >= smallest, f"images must be of at least {smallest}×{smallest}, got {h}×{w}.")
        maps = []
        for embed, blocks, position in zip(self.patch_embeds, self.blocks, self.pos_block, strict=True):
            x = in_order(blocks[:1], embed(x), remat=self.remat)
            x = in_order(blocks[1:], x + position(x), remat=self.remat)
            maps.append(x)
        return maps

    def forward_features(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b p q d"]:
        """The last of the maps, normalised."""
        return self.norm(self.features(x)[-1])


def _in_turns(channels, head_dim, sr_ratio, window, **types):
    """The attentions of a stage's first, third, … and second, fourth, … blocks."""
    heads = count_heads(channels, head_dim)
    to_all = partial(SpatialReductionAttention, num_heads=heads, sr_ratio=sr_ratio, **types)
    if window is None:
        return to_all, to_all
    return partial(LocallyGroupedAttention, head_dim=head_dim, window=window, **types), to_all


PCPVT = {"embed_dims": (64, 128, 320, 512), "head_dim": 64, "mlp_ratios": (8, 8, 4, 4)}
SVT = {"head_dim": 32, "window": 7}

MODELS = MappingProxyType(
    {
        "twins_pcpvt_small": (Twins, PCPVT | {"depths": (3, 4, 6, 3)}),
        "twins_pcpvt_base": (Twins, PCPVT | {"depths": (3, 4, 18, 3)}),
        "twins_pcpvt_large": (Twins, PCPVT | {"depths": (3, 8, 27, 3)}),
        "twins_svt_small": (Twins, SVT | {"embed_dims": (64, 128, 256, 512), "depths": (2, 2, 10, 4)}),
        "twins_svt_base": (Twins, SVT | {"embed_dims": (96, 192, 384, 768), "depths": (2, 2, 18, 2)}),
        "twins_svt_large": (Twins, SVT | {"embed_dims": (128, 256, 512, 1024), "depths": (2, 2, 18, 2)}),
    }
)
